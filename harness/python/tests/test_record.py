"""Tests of the parts that compute: each against its definition, spelled another way."""

import math
import random
import struct
import unittest

import numpy
import torch
import xxhash

from lockstep_record import BLOCK_ELEMENTS, LANES, SKETCH_CODES, digest, digest_lines, fingerprint, flat, rank_ranges, real
from lockstep_record import sketch, square_sum
from lockstep_record.lines import tree_sum
from lockstep_record.machine import cpu


def node(leaves, level, index):
    """The ordered sum as its definition says: node (level, index) covers leaves [index·2^level, (index+1)·2^level)."""
    if level == 0:
        return leaves[index]
    left = node(leaves, level - 1, 2 * index)
    right = (2 * index + 1) << (level - 1)
    return left if right >= len(leaves) else f"({left}+{node(leaves, level - 1, 2 * index + 1)})"


class TreeTest(unittest.TestCase):
    def test_it_is_the_tree_of_the_definition(self):
        for count in range(1, 40):
            leaves = [str(i) for i in range(count)]
            summed = tree_sum(leaves, lambda left, right: f"({left}+{right})")
            self.assertEqual(summed, node(leaves, (count - 1).bit_length(), 0), count)


class SketchTest(unittest.TestCase):
    def test_the_definition_is_pinned(self):
        """The numbers that harness/record/src/sketch.rs is tested for."""
        self.assertEqual(SKETCH_CODES[:8].tolist(), [2, 11, 5, 6, 6, 5, 3, 0])
        expected = [43551.0, 43033.0, 22469.0, 16864.0, -13937.0, -23817.0, -2008.0, 33893.0]
        self.assertEqual(list(sketch(numpy.arange(3000, dtype="<f4"))), expected)
        self.assertEqual(list(fingerprint(torch.arange(3000.0), sketched=True)[2]), expected)

    def test_a_line_has_one_only_where_it_was_taken(self):
        lines = list(digest_lines(3, "parameters", [[("w", None, "aa", 1.0, None), ("b", None, "aa", 1.0, (1.0,) * 8)]]))
        self.assertNotIn("sketch", lines[0])
        self.assertEqual(lines[1]["sketch"], [1.0] * 8)


class RecordTest(unittest.TestCase):
    def test_digest_of_one_block_is_pinned(self):
        elements = numpy.frombuffer(b"lockstep", dtype="<f4")
        expected = xxhash.xxh3_128(xxhash.xxh3_128(b"lockstep").intdigest().to_bytes(16, "little")).hexdigest()
        self.assertEqual(digest(elements), expected)

    def test_a_changed_bit_and_swapped_blocks_change_the_digest(self):
        elements = numpy.arange(3 * BLOCK_ELEMENTS, dtype="<f4")
        changed = elements.copy()
        changed[-1] = numpy.nextafter(changed[-1], numpy.float32(0))
        self.assertNotEqual(digest(changed), digest(elements))
        self.assertNotEqual(digest(numpy.roll(elements, BLOCK_ELEMENTS)), digest(elements))

    def test_square_sum_adds_in_the_prescribed_order(self):
        generator = numpy.random.default_rng(0)
        for size in (0, 1, 7, 8, 9, 1023, 1024, 1025, 5000):
            elements = generator.normal(size=size).astype("<f4")
            total = 0.0
            for start in range(0, size, BLOCK_ELEMENTS):
                lanes = [0.0] * LANES
                for i, value in enumerate(elements[start : start + BLOCK_ELEMENTS].tolist()):
                    lanes[i % LANES] += value * value
                block = 0.0
                for lane in lanes:
                    block += lane
                total += block
            self.assertEqual(square_sum(elements), total, size)

    def test_the_order_matters(self):
        elements = numpy.random.default_rng(0).normal(size=100_000).astype("<f4")
        self.assertNotEqual(square_sum(elements), float(numpy.square(elements.astype(float)).sum()))

    def test_reals_keep_every_bit(self):
        generator = random.Random(0)
        for _ in range(1000):
            bits = generator.getrandbits(64)
            value = struct.unpack("<d", struct.pack("<Q", bits))[0]
            text = real(value)
            if math.isfinite(value):
                self.assertEqual(struct.pack("<d", float(repr(text))), struct.pack("<Q", bits))
            else:
                self.assertEqual(int(text, 16), bits)

    def test_a_parted_replica_gets_its_own_line(self):
        same, other = ("w", None, "aa", 1.0, None), ("w", None, "bb", 1.0, None)
        lines = list(digest_lines(3, "parameters", [[same], [other], [same], [same]]))
        self.assertEqual([(line["digest"], line["ranks"]) for line in lines], [("aa", [[0, 0], [2, 3]]), ("bb", [[1, 1]])])
        self.assertEqual(rank_ranges([0, 1, 2, 5, 7, 8]), [[0, 2], [5, 5], [7, 8]])

    def test_replicas_with_the_same_nan_have_not_parted(self):
        entry = lambda: ("w", None, "aa", float("nan"), (float("inf"),) * 8)  # noqa: E731
        (line,) = digest_lines(3, "reduced_gradient", [[entry()], [entry()]])
        self.assertEqual((line["ranks"], line["norm"], line["sketch"][0]), ([[0, 1]], real(math.nan), "0x7ff0000000000000"))

    def test_a_tensor_that_ranks_hold_together_has_one_line(self):
        lines = list(digest_lines(3, "optimizer", [[("w", None, "aa", 1.0, None)], [("w", None, "bb", 1.0, None)]], sharded=True))
        self.assertEqual([(line["digest"], line["ranks"], line["sharded"]) for line in lines], [("aa", [[0, 1]], True)])

    def test_other_dtypes_are_hashed_as_their_own_bytes(self):
        """Blocks count elements, not bytes; bfloat16, which numpy lacks, included."""
        values = torch.randn(3000, generator=torch.Generator().manual_seed(0))
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            tensor = values.to(dtype)
            raw, size = tensor.view(torch.uint8).numpy().tobytes(), tensor.element_size()
            blocks = [raw[start : start + size * BLOCK_ELEMENTS] for start in range(0, len(raw), size * BLOCK_ELEMENTS)]
            self.assertEqual(len(blocks), 3)
            hashes = b"".join(xxhash.xxh3_128(block).intdigest().to_bytes(16, "little") for block in blocks)
            value, squares, bins = fingerprint(tensor)
            self.assertIsNone(bins)
            self.assertEqual(value, xxhash.xxh3_128(hashes).hexdigest())
            self.assertAlmostEqual(squares, float(tensor.double().square().sum()), places=6)

    def test_shapes_and_strides_do_not_matter_but_order_does(self):
        matrix = torch.arange(6.0).view(2, 3)
        self.assertEqual(digest(flat(matrix)), digest(flat(torch.arange(6.0))))
        self.assertEqual(digest(flat(matrix.t())), digest(flat(matrix.t().contiguous())))
        self.assertNotEqual(digest(flat(matrix.t())), digest(flat(matrix)))
        self.assertEqual(digest(flat(torch.zeros(()))), digest(flat(torch.zeros(1))))

    def test_what_is_not_finite_stays_so(self):
        self.assertTrue(math.isnan(square_sum(flat(torch.tensor([1.0, math.nan])))))
        self.assertEqual(square_sum(flat(torch.tensor([1.0, -math.inf]))), math.inf)


class MachineTest(unittest.TestCase):
    def test_a_processor_is_named_by_its_family(self):
        text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon\n\nvendor_id\t: Other\n"
        found = cpu(text)
        self.assertEqual((found["vendor"], found["family"], found["model"], found["name"]), ("GenuineIntel", "6", "143", "Xeon"))
        self.assertIsNone(cpu("Processor\t: AArch64\n"))


if __name__ == "__main__":
    unittest.main()
