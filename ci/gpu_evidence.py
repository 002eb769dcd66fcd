#!/usr/bin/env python3
"""Collects what `ci/gpu-acceptance` left in its folder into evidence.json: who ran what on which GPUs, how each case of the
matrix ended, how fast it was and how much memory it took, and the ratios of the bench.

It needs nothing but Python. What is missing or cannot be read is null, and named under `problems`: evidence that leaves
something out must say so.
"""

import argparse
import csv
import json
import platform
import statistics
import sys
from datetime import datetime, timezone
from pathlib import Path

# The first steps of a run pay for kernels and memory that later ones find there.
WARMUP_STEPS = 3


class Reader:
    """Reads files, and remembers what it could not read."""

    def __init__(self, folder):
        self.folder, self.problems = folder, []

    def text(self, path):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{self.named(path)}: {error.__class__.__name__}")
            return None

    def named(self, path):
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)

    def json(self, path):
        text = self.text(path)
        try:
            return None if text is None else json.loads(text)
        except ValueError as error:
            self.problems.append(f"{self.named(path)}: {error}")
            return None

    def lines(self, path):
        """Of a JSON-lines file. A last line that was cut short is none."""
        found = []
        for line in (self.text(path) or "").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                self.problems.append(f"{self.named(path)}: line {len(found) + 1} is not JSON")
                break
        return found


def largest(values):
    known = [value for value in values if value is not None]
    return max(known) if known else None


def case_of(reader, cell):
    """What one cell of a report says, with what its run left."""
    outcome = cell.get("outcome") or {}
    run = Path(cell.get("run_dir") or "")
    facts = {
        "case": f"{cell.get('group')}/{cell.get('name')}",
        "ranks": cell.get("ranks"),
        "strategy": cell.get("strategy"),
        "verdict": outcome.get("verdict"),
        "reason": outcome.get("reason"),
        "seconds": cell.get("seconds"),
    }
    if not (run / "manifest.json").is_file():
        return facts
    return facts | run_of(reader, run)


def run_of(reader, run):
    manifest = reader.json(run / "manifest.json") or {}
    segments = manifest.get("segments") or []
    steps = [line for line in reader.lines(run / "metrics.jsonl") if line.get("step", 0) > WARMUP_STEPS]
    speeds = [line["tokens_per_second"] for line in steps if isinstance(line.get("tokens_per_second"), (int, float))]
    telemetry = [line for path in sorted(run.glob("telemetry/rank-*.jsonl")) for line in reader.lines(path)]
    return {
        "precision": (manifest.get("config") or {}).get("precision"),
        "backends": [segment.get("backend") for segment in segments],
        "buckets": [segment.get("buckets") for segment in segments],
        "nccl": [segment["nccl"] for segment in segments if segment.get("nccl")],
        "tokens_per_second_median": statistics.median(speeds) if speeds else None,
        "resident_bytes_max": largest(line.get("resident_bytes_max") for line in steps),
        "tensor_bytes_max": largest(line.get("tensor_bytes_max") for line in telemetry),
        "gpu_memory_used_bytes_max": largest(line.get("memory_used_bytes_max") for line in telemetry),
        "utilisation_percent_max": largest(line.get("utilisation_percent") for line in telemetry),
    }


def matrix_of(reader, groups):
    """Each part of the matrix: its exit code and its cases."""
    parts = []
    for name, exit_code in groups:
        report = reader.json(reader.folder / name / "report.json") or {}
        cases = [case_of(reader, cell) for cell in report.get("cells") or []]
        if not cases:
            reader.problems.append(f"{name}: no case was reported")
        parts.append({"part": name, "exit_code": exit_code, "cases": cases})
    return parts


def bench_of(reader, exit_code):
    """The ratios of ours to theirs; None where nothing was measured."""
    if exit_code is None:
        return None
    results = reader.json(reader.folder / "bench" / "bench.json") or {}
    comparisons = []
    for finding in results.get("comparisons") or []:
        rows = {row["aim"]["metric"]: row.get("spread") | {"ours": row.get("ours"), "theirs": row.get("theirs")}
                for row in finding.get("rows") or [] if row.get("spread")}
        sides = [(finding.get(side) or {}).get("label") for side in ("ours", "theirs")]
        comparisons.append({"name": finding.get("name"), "sides": sides, "rows": rows, "problem": finding.get("problem")})
    return {"exit_code": exit_code, "comparisons": comparisons}


def gpus_of(reader):
    rows = list(csv.reader((reader.text(reader.folder / "gpus.csv") or "").splitlines(), skipinitialspace=True))
    return [dict(zip(rows[0], row)) for row in rows[1:]]


def part(text):
    name, equals, code = text.partition("=")
    if not equals or not code.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not NAME=EXIT_CODE")
    return name, int(code)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--device", required=True, choices=["cuda", "cpu"], help="cpu: a rehearsal, which proves nothing of GPUs")
    parser.add_argument("--gpus", required=True, type=int)
    parser.add_argument("--nccl-test", required=True, type=int, help="its exit code")
    parser.add_argument("--matrix", action="append", default=[], type=part, metavar="NAME=EXIT_CODE")
    parser.add_argument("--bench", type=int, help="its exit code; left out where it was not run")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    reader = Reader(arguments.folder.resolve())
    matrix = matrix_of(reader, arguments.matrix)
    evidence = {
        "evidence_version": 1,
        "commit": arguments.commit,
        "finished": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "host": platform.node(),
        "is_rehearsal": arguments.device != "cuda",
        "gpu_count": arguments.gpus,
        "gpus": gpus_of(reader),
        "nccl_test": {"exit_code": arguments.nccl_test, "output": reader.text(reader.folder / "nccl.txt")},
        "matrix": matrix,
        "bench": bench_of(reader, arguments.bench),
        "problems": reader.problems,
    }
    path = reader.folder / "evidence.json"
    path.write_text(json.dumps(evidence, indent=2) + "\n", encoding="utf-8")
    cases = [case for part in matrix for case in part["cases"]]
    passed = sum(case["verdict"] in ("passed", "golden") for case in cases)
    print(
        f"gpu-acceptance: {arguments.gpus} GPU(s), NCCL exit {arguments.nccl_test}, {passed} of {len(cases)} runs of the matrix "
        f"good, {len(reader.problems)} gaps in the evidence: {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
