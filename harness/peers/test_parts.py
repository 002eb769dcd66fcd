"""Tests of the parts that decide and compute: each against its definition, spelled another way."""

import math
import unittest

import blake3
import numpy
import torch

import data
import episodes
import fdlibm
import streams
from arm import IGNORED, targets_of
from device import local_rank, ordinal, prepare_environment
from golden import Refused
from gradients import share
from images import draw_all
from objective import Objective
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


class StreamsTest(unittest.TestCase):
    def test_philox_has_the_known_answers_of_its_reference(self):
        counter = numpy.array([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], dtype=numpy.uint64)
        words = streams.philox(counter, 0xA4093822 | 0x299F31D0 << 32)[0].tolist()
        self.assertEqual(words, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])

    def test_normal_numbers_have_the_trainers_bits(self):
        """Those that src/random_tests.rs is tested for: seed 1337, dropout's purpose, site 3, micro-batch 5, step 7."""
        normals = streams.normal(streams.draw(1337, 3, [5], 8, 7, site=3))[0, :3]
        self.assertEqual(normals.view(numpy.uint32).tolist(), [1045143116, 1021047078, 1038211467])

    def test_a_stream_knows_nothing_of_its_neighbours(self):
        together = streams.draw(9, streams.FLOW_NOISE, [4, 7, 4], 12, [0, 0, 1])
        self.assertEqual(together[1].tolist(), streams.draw(9, streams.FLOW_NOISE, [7], 12, 0)[0].tolist())
        self.assertEqual(together[0, :5].tolist(), streams.draw(9, streams.FLOW_NOISE, [4], 5)[0].tolist())
        self.assertTrue((together[0] != together[2]).any())


class FdlibmTest(unittest.TestCase):
    """A C library is within a unit in the last place of it, and mostly equal: another formula would not be."""

    def check(self, found, expected, numbers):
        expected = numpy.array([expected(number) for number in numbers.tolist()])
        self.assertTrue((abs(found - expected) <= numpy.spacing(abs(expected))).all())
        self.assertGreater((found == expected).mean(), 0.9)

    def test_log(self):
        corners = [*(2.0 ** -numpy.arange(60.0)), math.nextafter(1, 0)]
        numbers = numpy.concatenate([numpy.random.default_rng(0).random(5000), corners])
        self.check(fdlibm.log(numbers), math.log, numbers)

    def test_sine_and_cosine_also_where_subtracting_cancels(self):
        near = [1 + way * 2.0**-bits for bits in range(10, 54) for way in (-1, 0, 1)]
        multiples = [n * math.pi / 2 * factor for n in (1, 2, 3, 4) for factor in near]
        numbers = numpy.concatenate([numpy.random.default_rng(0).random(5000) * math.tau, multiples])
        numbers = numpy.concatenate([numbers, -numbers, [0.0, 1e-300]])
        sin, cos = fdlibm.sincos(numbers)
        self.check(sin, math.sin, numbers)
        self.check(cos, math.cos, numbers)


class ArmTest(unittest.TestCase):
    def test_the_simulated_set_is_the_trainers(self):
        """The digest that src/data/arm/tests.rs is tested for."""
        simulated = episodes.simulate(range(episodes.EPISODES), 2, 3)
        self.assertEqual(
            blake3.blake3(simulated.tobytes()).hexdigest(), "3b6d0b18772957204f968cb8a8577811c8679e9084dc9d0975df4df48975cc34"
        )

    def test_targets_are_the_next_words_of_the_plan(self):
        turns = episodes.simulate(range(50), 2, 3)
        for turn, targets in zip(turns.reshape(-1), targets_of(turns).reshape(-1, episodes.TURN_TOKENS), strict=True):
            first, tokens = episodes.OBSERVATION_TOKENS, turn["tokens"].tolist()
            words = [index for index, target in enumerate(targets.tolist()) if target != IGNORED]
            self.assertEqual(words, list(range(first - 1, first - 1 + turn["words"])))
            self.assertEqual([targets[index] for index in words], [tokens[index + 1] for index in words])

    def test_a_step_may_straddle_two_epochs(self):
        ids = [[[2, 0], [1, 2]], [[0, 1], [1, 0]]]
        self.assertEqual(data.epochs(ids, 3), [[[0, 0], [0, 1]], [[1, 1], [2, 2]]])


class ObjectiveTest(unittest.TestCase):
    TERMS = (("ar", 0.5), ("fm", 2.0))
    # Of each micro-batch: both losses' sums, and their targets.
    PARTS = (((12.0, 3.0), (4, 8)), ((6.0, 9.0), (8, 2)))

    @staticmethod
    def share(objective, sums):
        return objective.share([torch.tensor(value) for value in sums]).numbers()

    def losses(self, objective):
        return objective.recorded([self.share(objective, sums) for sums, _ in self.PARTS])

    def test_each_loss_is_the_mean_over_its_own_targets_of_the_global_batch(self):
        losses = self.losses(Objective(self.TERMS, [12, 10]))
        means = {name: losses["loss_terms"][name] for name in ("ar", "fm")}
        self.assertEqual(means["ar"], {"loss": 1.5, "targets": 12})
        self.assertAlmostEqual(means["fm"]["loss"], 1.2, places=6)
        self.assertAlmostEqual(losses["loss"], 0.5 * 1.5 + 2.0 * 1.2, places=6)
        self.assertAlmostEqual(sum(losses["micro_batch_losses"]), losses["loss"], places=6)

    def test_other_counts_and_other_weights_are_other_losses(self):
        """The negative control: the mean of means, one count for both, and weights that are swapped."""
        expected = self.losses(Objective(self.TERMS, [12, 10]))["loss"]
        own = [Objective(self.TERMS, [2 * count for count in counts]) for _, counts in self.PARTS]
        mean_of_means = sum(self.share(one, sums)[0] for one, (sums, _) in zip(own, self.PARTS))
        one_count = self.losses(Objective(self.TERMS, [22, 22]))["loss"]
        swapped = self.losses(Objective((("ar", 2.0), ("fm", 0.5)), [12, 10]))["loss"]
        for other in (mean_of_means, one_count, swapped):
            self.assertGreater(abs(other - expected), 0.1)

    def test_a_loss_without_targets_is_zero_and_a_single_one_is_not_recorded_apart(self):
        self.assertEqual(self.share(Objective(self.TERMS, [3, 0]), (6.0, 0.0)), [1.0, 2.0, 0.0])
        alone = Objective((("loss", 1.0),), [4])
        self.assertEqual(alone.recorded([self.share(alone, (6.0,))]), {"loss": 1.5, "micro_batch_losses": [1.5]})


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
