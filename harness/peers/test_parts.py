"""Tests of the parts that decide and compute: each against its definition, spelled another way."""

import unittest

import blake3
import numpy

from device import local_rank, ordinal, prepare_environment
from golden import Refused
from gradients import share
from images import draw_all, philox
from schedule import learning_rate
from world import World, world_of


class ShareTest(unittest.TestCase):
    def test_shares_are_contiguous_and_complete(self):
        for items in range(1, 20):
            for parts in range(1, items + 1):
                shares = [share(items, parts, part) for part in range(parts)]
                self.assertEqual([i for one in shares for i in one], list(range(items)))
                sizes = [len(one) for one in shares]
                self.assertEqual(sizes, sorted(sizes, reverse=True))
                self.assertLessEqual(max(sizes) - min(sizes), 1)


class ImagesTest(unittest.TestCase):
    def test_the_drawn_set_is_the_trainers(self):
        """The digest that src/data/images/shapes.rs is tested for."""
        self.assertEqual(blake3.blake3(draw_all()).hexdigest(), "be944efe2992c514ab0df0b2ef8a7ca916a2c463a21398dfff2ce523dec2a2d0")

    def test_philox_has_the_known_answers_of_its_reference(self):
        counter = numpy.array([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], dtype=numpy.uint64)
        words = philox(counter, 0xA4093822 | 0x299F31D0 << 32)[0].tolist()
        self.assertEqual(words, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])


class DeviceTest(unittest.TestCase):
    def test_each_rank_of_a_machine_has_a_gpu_of_its_own(self):
        world = World(5, 8, "env://", False)
        self.assertEqual(local_rank({"LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, world), 1)
        self.assertEqual(local_rank({"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, world), 2)
        self.assertEqual(local_rank({"LOCAL_RANK": "x"}, world), 5)
        self.assertEqual([ordinal(local, 2) for local in range(2)], [0, 1])
        for local, visible in ((2, 2), (0, 0)):
            with self.assertRaises(Refused) as refused:
                ordinal(local, visible)
            self.assertIn("CUDA_VISIBLE_DEVICES", str(refused.exception))

    def test_only_gpus_need_a_workspace_of_fixed_size(self):
        for kind, given, expected in (("cpu", {}, {}), ("cuda", {}, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})):
            prepare_environment(kind, given)
            self.assertEqual(given, expected)
        own = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
        prepare_environment("cuda", own)
        self.assertEqual(own, {"CUBLAS_WORKSPACE_CONFIG": ":16:8"})


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
