"""The trainer's random numbers (src/random.rs), drawn again: they depend on what they are for, never on who draws them."""

import math

import numpy

import fdlibm

# What random numbers are for, by the trainer's numbers.
IMAGE, EPISODE, FLOW_NOISE, FLOW_TIMES = 4, 9, 10, 11


def philox(counters, key):
    """Philox4x32-10 (Salmon et al. 2011) of an array of counters (n, 4): n times four words, as uint64."""
    mask = numpy.uint64(0xFFFFFFFF)
    first, second = key & 0xFFFFFFFF, key >> 32
    words = [counters[:, i].astype(numpy.uint64) for i in range(4)]
    for _ in range(10):
        low, high = words[0] * numpy.uint64(0xD2511F53), words[2] * numpy.uint64(0xCD9E8D57)
        shift = numpy.uint64(32)
        words = [
            (high >> shift) ^ words[1] ^ numpy.uint64(first),
            high & mask,
            (low >> shift) ^ words[3] ^ numpy.uint64(second),
            low & mask,
        ]
        first, second = (first + 0x9E3779B9) & 0xFFFFFFFF, (second + 0xBB67AE85) & 0xFFFFFFFF
    return numpy.stack(words, axis=1)


def draw(seed, purpose, ids, count, epochs=0, site=0):
    """The first words of several streams, one for each id: (ids, count), as uint64. `epochs` is one for all, or one each."""
    ids = numpy.asarray(ids, dtype=numpy.uint64).reshape(-1, 1)
    blocks = -(-count // 4)
    counters = numpy.zeros((len(ids), blocks, 4), dtype=numpy.uint64)
    counters[:, :, 0] = numpy.arange(blocks)
    counters[:, :, 1] = site | purpose << 24
    counters[:, :, 2] = ids
    counters[:, :, 3] = numpy.asarray(epochs, dtype=numpy.uint64).reshape(-1, 1)
    return philox(counters.reshape(-1, 4), seed).reshape(len(ids), -1)[:, :count]


def uniform(words):
    """Multiples of 2^-53 in [0, 1), each from two words: (n, 2m) to (n, m)."""
    bits = words[:, 0::2] << numpy.uint64(32) | words[:, 1::2]
    return (bits >> numpy.uint64(11)).astype(numpy.float64) / 2.0**53


def normal(words):
    """Standard normal numbers in fp32, two from four words by Box and Muller's method: (n, 4m) to (n, 2m)."""
    numbers = uniform(words)
    radius = numpy.sqrt(-2.0 * fdlibm.log(1.0 - numbers[:, 0::2]))
    sin, cos = fdlibm.sincos(math.tau * numbers[:, 1::2])
    pairs = numpy.stack([radius * cos, radius * sin], axis=2)
    return pairs.reshape(len(numbers), -1).astype(numpy.float32)
