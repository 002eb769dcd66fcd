"""How values are spelled in the lines of the record."""

import math
import struct


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


def digest_lines(step, phase, per_rank, sharded=False):
    """Lines of digests.jsonl from each rank's list of (tensor, micro-batch or None, digest, norm, sketch or None).

    Ranks that hold the same value share a line, so a second line for a tensor is a replica that has parted. Tensors that
    the ranks hold together (`sharded`) were gathered by each rank, and rank 0 speaks for all.
    """
    if sharded:
        everyone = rank_ranges(range(len(per_rank)))
        for entry in per_rank[0]:
            line = digest_line(step, phase, spelled(entry), everyone)
            yield line | {"sharded": True} if len(per_rank) > 1 else line
        return
    for entries in zip(*per_rank, strict=True):
        holders = {}
        for rank, entry in enumerate(entries):
            holders.setdefault(spelled(entry), []).append(rank)
        for entry, ranks in holders.items():
            yield digest_line(step, phase, entry, rank_ranges(ranks))


def spelled(entry):
    """An entry with its numbers as the record has them: there, a NaN equals the same NaN."""
    tensor, micro_batch, value, norm, bins = entry
    return tensor, micro_batch, value, real(norm), None if bins is None else tuple(real(value) for value in bins)


def digest_line(step, phase, entry, ranks):
    tensor, micro_batch, value, norm, bins = entry
    line = {"step": step, "phase": phase, "tensor": tensor}
    if micro_batch is not None:
        line["micro_batch"] = micro_batch
    line |= {"digest": value, "norm": norm}
    if bins is not None:
        line["sketch"] = list(bins)
    return line | {"ranks": ranks}


def tree_sum(leaves, add=lambda left, right: left + right):
    """The sum along the fixed binary tree of docs/why-the-bits-agree.md: neighbours in pairs, level by level; one left over
    rises alone."""
    while len(leaves) > 1:
        pairs = [add(left, right) for left, right in zip(leaves[::2], leaves[1::2])]
        leaves = pairs + leaves[len(pairs) * 2 :]
    return leaves[0]
