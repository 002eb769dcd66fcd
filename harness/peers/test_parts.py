"""Tests of the parts that decide and compute: each against its definition, spelled another way."""

import math
import random
import struct
import unittest

import blake3
import numpy
import xxhash

from golden import Refused
from gradients import share, tree_sum
from images import draw_all, philox
from record import BLOCK_ELEMENTS, LANES, SKETCH_CODES, digest, digest_lines, rank_ranges, real, sketch, square_sum
from schedule import learning_rate
from world import World, world_of


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

    def test_shares_are_contiguous_and_complete(self):
        for items in range(1, 20):
            for parts in range(1, items + 1):
                shares = [share(items, parts, part) for part in range(parts)]
                self.assertEqual([i for one in shares for i in one], list(range(items)))
                sizes = [len(one) for one in shares]
                self.assertEqual(sizes, sorted(sizes, reverse=True))
                self.assertLessEqual(max(sizes) - min(sizes), 1)


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


class SketchTest(unittest.TestCase):
    def test_the_definition_is_pinned(self):
        """The numbers that harness/record/src/sketch.rs is tested for."""
        self.assertEqual(SKETCH_CODES[:8].tolist(), [2, 11, 5, 6, 6, 5, 3, 0])
        self.assertEqual(list(sketch(numpy.arange(3000, dtype="<f4"))), [43551.0, 43033.0, 22469.0, 16864.0, -13937.0, -23817.0, -2008.0, 33893.0])

    def test_a_line_has_one_only_where_it_was_taken(self):
        lines = list(digest_lines(3, "parameters", [[("w", None, "aa", 1.0, None), ("b", None, "aa", 1.0, (1.0,) * 8)]]))
        self.assertNotIn("sketch", lines[0])
        self.assertEqual(lines[1]["sketch"], [1.0] * 8)


class ImagesTest(unittest.TestCase):
    def test_the_drawn_set_is_the_trainers(self):
        """The digest that src/data/images/shapes.rs is tested for."""
        self.assertEqual(blake3.blake3(draw_all()).hexdigest(), "be944efe2992c514ab0df0b2ef8a7ca916a2c463a21398dfff2ce523dec2a2d0")

    def test_philox_has_the_known_answers_of_its_reference(self):
        counter = numpy.array([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], dtype=numpy.uint64)
        words = philox(counter, 0xA4093822 | 0x299F31D0 << 32)[0].tolist()
        self.assertEqual(words, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])


class WorldTest(unittest.TestCase):
    MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}

    def test_each_launcher_is_known(self):
        self.assertIsNone(world_of({"RANK": "1", "HOME": "/"}))
        spawned = {"TORCH_GOLDEN_RANK": "1", "TORCH_GOLDEN_WORLD_SIZE": "3", "TORCH_GOLDEN_RENDEZVOUS": "/f"}
        self.assertEqual(world_of(spawned), World(1, 3, "file:///f", True))
        torchrun = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
        self.assertEqual(world_of(torchrun), World(2, 4, "env://", False))
        self.assertEqual(world_of(torchrun | {"LOCAL_WORLD_SIZE": "4"}), World(2, 4, "env://", True))
        # Ranks that this program started itself, from inside another launcher.
        self.assertEqual(world_of(torchrun | spawned), World(1, 3, "file:///f", True))

    def test_mpirun_over_hosts_needs_a_master(self):
        with self.assertRaisesRegex(Refused, "--master HOST"):
            world_of(self.MPIRUN)
        address = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"}
        self.assertEqual(world_of(self.MPIRUN | address), World(1, 4, "tcp://10.0.0.1:5000", False))
        self.assertEqual(world_of(self.MPIRUN | address, "n1:77"), World(1, 4, "tcp://n1:77", False))
        with self.assertRaisesRegex(Refused, "port `x`"):
            world_of(self.MPIRUN, "n1:x")
        with self.assertRaisesRegex(Refused, "OMPI_COMM_WORLD_SIZE=four"):
            world_of(self.MPIRUN | {"OMPI_COMM_WORLD_SIZE": "four"}, "n1")

    def test_jobs_of_mpirun_get_ports_of_their_own(self):
        local = self.MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
        worlds = [world_of(local | {"PMIX_NAMESPACE": str(job)}) for job in range(100)]
        ports = {int(world.init_method.removeprefix("tcp://127.0.0.1:")) for world in worlds}
        self.assertGreater(len(ports), 95)
        self.assertTrue(all(1024 < port < 32768 for port in ports))


class ScheduleTest(unittest.TestCase):
    def test_corners(self):
        for kind, end in (("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)):
            schedule = {"kind": kind, "warmup_steps": 5, "steps": 25, "final_fraction": 0.1}
            self.assertEqual(learning_rate(schedule, 1.0, 1), 0.2)
            self.assertEqual(learning_rate(schedule, 1.0, 5), 1.0)
            self.assertAlmostEqual(learning_rate(schedule, 1.0, 25), end)
            self.assertAlmostEqual(learning_rate(schedule, 1.0, 15), (1 + end) / 2)


if __name__ == "__main__":
    unittest.main()
