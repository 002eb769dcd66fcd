"""Writes a run directory as docs/run-record.md describes it: all that a foreign trainer needs to be compared.

Nothing in this file knows about a model or about lockstep's own code; copy it to your own trainer.
"""

import json
import math
import os
import resource
import shutil
import socket
import struct
import time
from pathlib import Path

import blake3
import numpy
import xxhash
from safetensors.numpy import save_file

RECORD_VERSION = 1
BLOCK_ELEMENTS = 1024
# A block's squares are added in eight interleaved sums first, then those in order: it decides the bits of a norm.
LANES = 8


def flat(tensor):
    """A torch tensor's elements as a flat little-endian float32 array."""
    return numpy.ascontiguousarray(tensor.detach().numpy(), dtype="<f4").reshape(-1)


def digest(elements):
    """XXH3-128 over the XXH3-128 digests of the tensor's blocks (harness/record/src/digest.rs)."""
    whole = xxhash.xxh3_128()
    data = elements.tobytes()
    for start in range(0, len(data), 4 * BLOCK_ELEMENTS):
        whole.update(xxhash.xxh3_128(data[start : start + 4 * BLOCK_ELEMENTS]).intdigest().to_bytes(16, "little"))
    return whole.hexdigest()


def sequential(values, axis=0):
    """The sum along an axis, strictly one after the other: `numpy.sum` adds pairwise."""
    return numpy.add.accumulate(values, axis=axis).take(-1, axis=axis)


def square_sum(elements):
    """Sum of squares in double precision, in the order that the record prescribes: see LANES and BLOCK_ELEMENTS."""
    if elements.size == 0:
        return 0.0
    squares = numpy.zeros(-(-elements.size // BLOCK_ELEMENTS) * BLOCK_ELEMENTS)
    squares[: elements.size] = numpy.square(elements.astype(numpy.float64))
    lanes = sequential(squares.reshape(-1, BLOCK_ELEMENTS // LANES, LANES), axis=1)
    return float(sequential(sequential(lanes, axis=1)))


def sketch_codes():
    """Bin (low three bits) and sign (bit 3) of each element of a block (harness/record/src/sketch.rs)."""
    hashes = [xxhash.xxh3_128(number.to_bytes(8, "little")).intdigest() for number in range(BLOCK_ELEMENTS // 32)]
    return numpy.array([(value >> (4 * nibble)) & 15 for value in hashes for nibble in range(32)])


SKETCH_CODES = sketch_codes()


def sketch(elements):
    """Eight numbers from which the distance of two tensors can be estimated: each element is added to one of them, with a sign."""
    bins = numpy.zeros(8)
    for number, start in enumerate(range(0, elements.size, BLOCK_ELEMENTS)):
        block = elements[start : start + BLOCK_ELEMENTS].astype(numpy.float64)
        codes = SKETCH_CODES[: block.size]
        sums = numpy.bincount(codes & 7, weights=numpy.where(codes & 8, -block, block), minlength=8)
        turn = xxhash.xxh3_128(number.to_bytes(8, "little"), seed=1).intdigest() & 15
        bins += numpy.roll(-sums if turn & 8 else sums, turn & 7)
    return tuple(bins.tolist())


def global_norm(square_sums):
    """L2 norm of all tensors together, from their sums of squares in the model's order."""
    total = 0.0
    for value in square_sums:
        total += value
    return math.sqrt(total)


def real(value):
    """A float as the record spells it: JSON has no infinities and no NaN."""
    value = float(value)
    return value if math.isfinite(value) else "0x%016x" % struct.unpack("<Q", struct.pack("<d", value))[0]


def rank_ranges(ranks):
    """[0, 1, 2, 5] as [[0, 2], [5, 5]]."""
    ranges = []
    for rank in ranks:
        if ranges and ranges[-1][1] + 1 == rank:
            ranges[-1][1] = rank
        else:
            ranges.append([rank, rank])
    return ranges


def digest_lines(step, phase, per_rank):
    """Lines of digests.jsonl from each rank's list of (tensor, micro-batch or None, digest, norm, sketch or None).

    Ranks that hold the same value share a line, so a second line for a tensor is a replica that has parted.
    """
    for entries in zip(*per_rank, strict=True):
        holders = {}
        for rank, entry in enumerate(entries):
            holders.setdefault(entry, []).append(rank)
        for (tensor, micro_batch, value, norm, bins), ranks in holders.items():
            line = {"step": step, "phase": phase, "tensor": tensor}
            if micro_batch is not None:
                line["micro_batch"] = micro_batch
            line |= {"digest": value, "norm": real(norm)}
            if bins is not None:
                line["sketch"] = [real(value) for value in bins]
            yield line | {"ranks": rank_ranges(ranks)}


def resident_bytes_max():
    """The largest resident set of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class RunDirectory:
    """The files of one run. Lines are flushed as they are written, so that a crash keeps what was measured."""

    def __init__(self, path, manifest):
        self.path = Path(path)
        if self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(f"{self.path} is not empty: give another --run-dir, or remove it")
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        (self.path / "config.yaml").write_text(json.dumps(manifest["config"], indent=1) + "\n", encoding="utf-8")
        self.manifest = manifest
        self._write_manifest()
        self.files = {
            name: (self.path / f"{name}.jsonl").open("w", encoding="utf-8") for name in ("metrics", "samples", "digests")
        }

    def _write_manifest(self):
        replace_file(self.path / "manifest.json", json.dumps(self.manifest, indent=1, allow_nan=False) + "\n")

    def write(self, name, lines):
        for line in lines:
            self.files[name].write(json.dumps(line, allow_nan=False) + "\n")
        self.files[name].flush()

    def end(self, step):
        """Marks the run as finished after `step`."""
        for file in self.files.values():
            file.close()
        self.manifest["segments"][-1]["ended"] = {"step": step, "outcome": "finished", "unix_s": int(time.time())}
        self._write_manifest()

    def save_checkpoint(self, step, state, tensors):
        """Publishes `tensors` (name -> torch tensor) as checkpoint `step`: written aside, renamed when complete."""
        final = self.path / "checkpoints" / f"step-{step:08}"
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        arrays = {name: flat(tensor) for name, tensor in sorted(tensors.items())}
        shard = partial / "shard-00000-of-00001.safetensors"
        save_file(arrays, shard)
        sync(shard)
        entries = [
            {
                "name": name,
                "dtype": "F32",
                "shape": list(tensors[name].shape),
                "digest": digest(array),
                "pieces": [{"file": shard.name, "key": name, "offset": 0, "length": array.size}],
            }
            for name, array in arrays.items()
        ]
        file = {"name": shard.name, "bytes": shard.stat().st_size, "blake3": file_blake3(shard)}
        manifest = {"record_version": RECORD_VERSION, "state": state, "files": [file], "tensors": entries}
        replace_file(partial / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        os.rename(partial, final)


def file_blake3(path):
    """BLAKE3 of a file, hexadecimal."""
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


def rank_info(rank, optimizer_bytes, master_bytes):
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "optimizer_bytes": optimizer_bytes,
        "master_bytes": master_bytes,
    }
