"""Digests and norms of tensors, with the bits that docs/run-record.md prescribes."""

import math

import numpy
import xxhash

BLOCK_ELEMENTS = 1024
# A block's squares are added in eight interleaved sums first, then those in order: it decides the bits of a norm.
LANES = 8


def flat(tensor):
    """A torch tensor's elements as a flat little-endian array of their own type; bfloat16, which numpy lacks, as its bits."""
    import torch

    tensor = tensor.detach().reshape(-1).cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def digest(elements):
    """XXH3-128 over the XXH3-128 digests of the tensor's blocks (harness/record/src/digest.rs)."""
    whole = xxhash.xxh3_128()
    data, block = elements.tobytes(), elements.itemsize * BLOCK_ELEMENTS
    for start in range(0, len(data), block):
        whole.update(xxhash.xxh3_128(data[start : start + block]).intdigest().to_bytes(16, "little"))
    return whole.hexdigest()


def sequential(values, axis=0):
    """The sum along an axis, strictly one after the other: `numpy.sum` adds pairwise."""
    return numpy.add.accumulate(values, axis=axis).take(-1, axis=axis)


def square_sum(elements):
    """Sum of squares in double precision, in the order that the record prescribes: see LANES and BLOCK_ELEMENTS."""
    if elements.size == 0:
        return 0.0
    squares = numpy.zeros(-(-elements.size // BLOCK_ELEMENTS) * BLOCK_ELEMENTS)
    # Infinities and NaNs are what a record is there to show.
    with numpy.errstate(over="ignore", invalid="ignore"):
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


def fingerprint(tensor, sketched=False):
    """Digest, sum of squares and sketch (None unless `sketched`) of a torch tensor."""
    import torch

    values = tensor.detach().to(torch.float64) if tensor.dtype == torch.bfloat16 else tensor
    elements = flat(values)
    return digest(flat(tensor)), square_sum(elements), sketch(elements) if sketched else None


def global_norm(square_sums):
    """L2 norm of all tensors together, from their sums of squares in the model's order."""
    total = 0.0
    for value in square_sums:
        total += value
    return math.sqrt(total)
