"""The files of a run directory: all that a foreign trainer needs to be compared."""

import json
import os
import shutil
import time
from pathlib import Path

from .digests import digest, flat

RECORD_VERSION = 1
FILES = ("metrics", "samples", "digests")
# Names of dtypes as safetensors spells them.
DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class RunDirectory:
    """The files of one run. Lines are flushed as they are written, so that a crash keeps what was measured."""

    def __init__(self, path, manifest, from_step=0):
        """A new record; with `from_step`, that of a run which goes on from its checkpoint of that step."""
        self.path = Path(path)
        # In the steps before this execution.
        self.samples_seen = 0
        if from_step:
            manifest = self._go_on(manifest, from_step)
        elif self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(f"{self.path} is not empty: give another run directory, or remove it")
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        (self.path / "config.yaml").write_text(json.dumps(manifest["config"], indent=1) + "\n", encoding="utf-8")
        self.manifest = manifest
        self.write_manifest()
        self.files = {name: (self.path / f"{name}.jsonl").open("a", encoding="utf-8") for name in FILES}

    def _go_on(self, manifest, from_step):
        """Drops the lines after `from_step`, since those steps are done again, and adds a segment."""
        try:
            earlier = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.path} has no manifest.json: there is no record to go on with") from error
        for name in FILES:
            path = self.path / f"{name}.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= from_step]
            if name == "samples":
                self.samples_seen = sum(len(ids) for line in kept for ids in json.loads(line)["micro_batches"])
            replace_file(path, "".join(kept))
        return earlier | {"segments": [*earlier["segments"], *manifest["segments"]]}

    def write_manifest(self):
        replace_file(self.path / "manifest.json", json.dumps(self.manifest, indent=1, allow_nan=False) + "\n")

    def write(self, name, lines):
        for line in lines:
            self.files[name].write(json.dumps(line, allow_nan=False) + "\n")
        self.files[name].flush()

    def end(self, step):
        """Marks the run as finished after `step`."""
        self.close()
        self.manifest["segments"][-1]["ended"] = {"step": step, "outcome": "finished", "unix_s": int(time.time())}
        self.write_manifest()

    def close(self):
        for file in self.files.values():
            file.close()

    def save_checkpoint(self, step, state, tensors):
        """Publishes `tensors` (name -> torch tensor) as checkpoint `step`: written aside, renamed when complete."""
        from safetensors.torch import save_file

        final = self.path / "checkpoints" / f"step-{step:08}"
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        # Copies: safetensors refuses tensors that share memory, as those of a flat buffer do.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
        shard = partial / "shard-00000-of-00001.safetensors"
        save_file(tensors, shard)
        sync(shard)
        entries = [
            {
                "name": name,
                "dtype": DTYPES[str(tensor.dtype).removeprefix("torch.")],
                "shape": list(tensor.shape),
                "digest": digest(flat(tensor)),
                "pieces": [{"file": shard.name, "key": name, "offset": 0, "length": tensor.numel()}],
            }
            for name, tensor in tensors.items()
        ]
        file = {"name": shard.name, "bytes": shard.stat().st_size, "blake3": file_blake3(shard)}
        manifest = {"record_version": RECORD_VERSION, "state": state, "files": [file], "tensors": entries}
        replace_file(partial / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)


def file_blake3(path):
    """BLAKE3 of a file, hexadecimal."""
    import blake3

    return blake3.blake3().update_mmap(str(path)).hexdigest() if path.stat().st_size else blake3.blake3().hexdigest()


def sync(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def replace_file(path, text):
    """Writes a whole file so that a reader sees the old one or the new one, never a part."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    os.replace(new, path)
