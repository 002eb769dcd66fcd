"""Nothing exists only in YAML: each step of a workflow is one call of a script of ci/ that .ci/run runs as well, and jobs
that name a container take the one of ci/versions.env.

Usage: check_workflows.py ROOT. Prints what is wrong, and ends with 1 if anything is.
"""

import re
import sys
from pathlib import Path

from ruamel.yaml import YAML

# Scripts that .ci/run does not run, and why.
APART = {
    "ci/fresh": "it downloads and compiles everything once more; it runs when the set-up has changed",
}

# One command, with nothing for a shell to interpret but variables: expressions would be pasted in unquoted.
STEP = re.compile(r'(?P<program>\.ci/run|ci/[\w-]+|make (?P<target>[\w-]+))(?: (?:[\w./=-]+|"\$[A-Z_]+"))*')
RULE = re.compile(r"^(?P<target>[\w-]+):(?P<prerequisites>[^#\n=]*)[^\n]*\n(?P<recipe>(?:\t.*\n?)*)", re.MULTILINE)
CALL = re.compile(r"(?<![\w/.-])(?:\./)?(?:make (?P<target>[a-z][\w-]*)|(?P<script>ci/[\w-]+)(?![\w./-]))")


def commands(text):
    """A script without its comments and without what is quoted: messages name scripts, too."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return re.sub(r'"[^"\n]*"|\'[^\'\n]*\'', "", code)


class Reached:
    """What .ci/run runs, directly or through make and other scripts."""

    def __init__(self, root):
        self.root, self.scripts, self.targets = root, set(), set()
        makefile = root / "Makefile"
        self.rules = {rule["target"]: rule for rule in RULE.finditer(makefile.read_text())}
        self.follow((root / ".ci/run").read_text())

    def follow(self, text):
        for call in CALL.finditer(commands(text)):
            if call["script"]:
                self.script(call["script"])
            else:
                self.target(call["target"])

    def script(self, name):
        path = self.root / name
        if name not in self.scripts and path.is_file():
            self.scripts.add(name)
            self.follow(path.read_text())

    def target(self, name):
        if name not in self.targets and name in self.rules:
            self.targets.add(name)
            for prerequisite in self.rules[name]["prerequisites"].split():
                self.target(prerequisite)
            self.follow(self.rules[name]["recipe"].replace("@", ""))


def problem_of_step(command, root, reached):
    """What is wrong with the `run` of a step, or None."""
    step = STEP.fullmatch(command.strip())
    if not step:
        return "is not one call of a script of ci/ or a make target"
    if step["target"]:
        if step["target"] not in reached.rules:
            return f"the Makefile has no target {step['target']}"
        return None if step["target"] in reached.targets else ".ci/run does not run it"
    program = step["program"]
    path = root / program
    if not path.is_file() or not path.stat().st_mode & 0o100:
        return f"{program} is no executable file"
    if program in reached.scripts or program in APART or program == ".ci/run":
        return None
    return ".ci/run does not run it"


def problems(root):
    """Everything wrong with the workflows of a checkout, one line each."""
    reached = Reached(root)
    versions = dict(re.findall(r"^(\w+)=(.*)$", (root / "ci/versions.env").read_text(), re.MULTILINE))
    image = versions["BUILD_IMAGE"]
    files = sorted((root / ".github/workflows").glob("*.yml"))
    if not files:
        yield ".github/workflows has no *.yml"
    for file in files:
        for name, job in YAML(typ="safe").load(file)["jobs"].items():
            place = f"{file.relative_to(root)}: job {name}"
            container = job.get("container", image)
            if container not in (image, {"image": image, "options": "--privileged"}):
                yield f"{place}: its container is not {image}, the BUILD_IMAGE of ci/versions.env"
            if "timeout-minutes" not in job:
                yield f"{place}: has no timeout-minutes"
            for step in job["steps"]:
                if "run" in step and (problem := problem_of_step(step["run"], root, reached)):
                    yield f"{place}: `{step['run'].strip()}`: {problem}"


def main():
    found = list(problems(Path(sys.argv[1])))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
