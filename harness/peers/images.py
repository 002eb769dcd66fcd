"""The trainer's drawn images (`embedded:shapes`), drawn again here: a pure function of each image's number.

The golden run's manifest holds the BLAKE3 of the whole set, so an image that differed in one bit would be noticed.
"""

import blake3
import numpy

import streams
from golden import Refused

IMAGES, SIDE, CLASSES = 4096, 32, 16
PIXELS = 3 * SIDE * SIDE
SEED = 0x0073686170657331
# The words that choose what is drawn.
CHOICES = 8


def covered(label, x, y, r):
    """Whether the shape of a class, of extent r, covers the pixel that lies x to the right of and y below its centre."""
    long, short = numpy.maximum(abs(x), abs(y)), numpy.minimum(abs(x), abs(y))
    square = x * x + y * y

    def stripe(distance):
        return distance % r < r // 2

    return numpy.select(
        [label == index for index in range(CLASSES)],
        [
            square <= r * r,
            (square <= r * r) & (9 * square >= 4 * r * r),
            long < r,
            (long < r) & (3 * long >= 2 * r),
            abs(x) + abs(y) <= r,
            (long <= r) & (4 * short <= r),
            (long <= r) & (3 * (long - short) <= r),
            stripe(y),
            stripe(x),
            stripe(x + y),
            stripe(long),
            stripe(x) != stripe(y),
            (square <= r * r) & (y < 0),
            (abs(y) <= r) & (2 * abs(x) <= y + r),
            (long <= r) & (3 * abs(y) <= r),
            (long <= r) & (3 * abs(x) <= r),
        ],
    )


def draw(ids):
    """(classes, pixels): uint8 arrays of shape (n,) and (n, 3, 32, 32)."""
    words = streams.draw(SEED, streams.IMAGE, ids, CHOICES + PIXELS // 2).astype(numpy.int64)

    def below(index, bound):
        return (words[:, index] * bound >> 32)[:, None, None]

    label, radius = below(0, CLASSES), 5 + below(3, 6)
    row, column = numpy.mgrid[0:SIDE, 0:SIDE]
    shape = covered(label, column - 10 - below(1, 12), row - 10 - below(2, 12), radius)
    channels = numpy.arange(3)
    background = 64 + (words[:, 4:5] >> (8 * channels + 1) & 0x7F)
    sign = numpy.where(words[:, 6:7] >> (29 + channels) & 1 == 1, 1, -1)
    foreground = background + sign * (32 + below(5, 64)[:, 0])
    colours = numpy.where(shape[:, None], foreground[:, :, None, None], background[:, :, None, None])
    halves = numpy.stack([words[:, CHOICES:] & 0xFFFF, words[:, CHOICES:] >> 16], axis=2).reshape(-1, 3, SIDE, SIDE)
    noise = ((halves & 0xFF) + (halves >> 8) - 255) >> 1
    return label[:, 0, 0].astype(numpy.uint8), numpy.clip(colours + noise, 0, 255).astype(numpy.uint8)


def draw_all():
    """The whole set as records: one byte for the class, then the pixels."""
    parts = (draw(range(start, start + 512)) for start in range(0, IMAGES, 512))
    return b"".join(
        numpy.concatenate([labels[:, None], pixels.reshape(-1, PIXELS)], axis=1).tobytes() for labels, pixels in parts
    )


class Images:
    """Micro-batches of the golden run's images."""

    def __init__(self, golden):
        records = draw_all()
        if blake3.blake3(records).hexdigest() != golden.manifest["data"]["digest"]:
            raise Refused("data.path: these are not the images that the golden run was trained on")
        self.records = numpy.frombuffer(records, dtype=numpy.uint8).reshape(IMAGES, 1 + PIXELS)

    def micro_batch(self, ids, epochs):
        """Pixels and classes: without augmentation, the same in all epochs."""
        import torch

        records = self.records[ids]
        pixels = (records[:, 1:].astype(numpy.float32) - numpy.float32(127.5)) / numpy.float32(64)
        targets = torch.from_numpy(records[:, 0].astype(numpy.int64))
        return {"inputs": torch.from_numpy(pixels).view(-1, 3, SIDE, SIDE), "targets": targets}

    def targets(self, ids):
        """Of the loss: images."""
        return [len(ids)]
