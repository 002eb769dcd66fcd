"""Runs the whole program on a small golden run: which ways of adding agree bit for bit, which do not, and what is
refused."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from synthetic import STEPS, write_golden

PROGRAM = Path(__file__).with_name("torch_golden.py")
ROOT = PROGRAM.parents[2]
LIMIT_S = 120
COMPARED = ("loss", "micro_batch_losses", "gradient_norm", "parameter_norm", "learning_rate", "epoch", "tokens")


def lines(run, name):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def results(run):
    """All that a comparison looks at, except who computed it."""
    digests = [{key: line[key] for key in line if key != "ranks"} for line in lines(run, "digests")]
    metrics = [{key: line[key] for key in COMPARED} | line.get("loss_terms", {}) for line in lines(run, "metrics")]
    return digests, metrics, lines(run, "samples")


def replicated(run):
    """Digests of what all ranks have: a micro-batch is one rank's."""
    return [line for line in lines(run, "digests") if line["phase"] != "data"]


class WholeProgramTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def golden(self, micro_batches, **changes):
        path = self.folder / "golden"
        write_golden(path, micro_batches, **changes)
        return path

    def start(self, golden, name, *arguments, launcher=(sys.executable,)):
        command = [*launcher, PROGRAM, "--golden", golden, "--run-dir", self.folder / name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def repeat(self, golden, name, *arguments, launcher=(sys.executable,)):
        process = self.start(golden, name, *arguments, launcher=launcher)
        self.assertEqual(process.returncode, 0, process.stderr)
        return self.folder / name

    def refused(self, golden, exit_code, message, *arguments):
        process = self.start(golden, "refused", *arguments)
        self.assertEqual(process.returncode, exit_code, process.stderr)
        self.assertIn(message, process.stderr)
        self.assertNotIn("Traceback", process.stderr)

    def test_two_micro_batches_have_one_sum(self):
        golden = self.golden(2)
        sequential = self.repeat(golden, "sequential", "--accumulate", "sequential")
        tree = self.repeat(golden, "tree", "--accumulate", "tree")
        ddp = self.repeat(golden, "ddp", "--accumulate", "sequential", "--ranks", "2")
        self.assertEqual(results(tree), results(sequential))
        self.assertEqual(results(ddp), results(sequential))
        self.assertEqual({str(line["ranks"]) for line in replicated(ddp)}, {"[[0, 1]]"})
        data = [line for line in lines(ddp, "digests") if line["phase"] == "data" and line["step"] == 1]
        self.assertEqual([(line["tensor"], line["micro_batch"], line["ranks"]) for line in data], [
            (name, rank, [[rank, rank]]) for rank in (0, 1) for name in ("inputs", "targets")
        ])
        self.assert_complete(ddp, ranks=2)

    def assert_complete(self, run, ranks):
        segment = json.loads((run / "manifest.json").read_text())["segments"][0]
        self.assertEqual((segment["world_size"], len(segment["ranks"]), segment["backend"]), (ranks, ranks, "gloo"))
        self.assertEqual((segment["ended"]["step"], segment["ended"]["outcome"]), (STEPS, "finished"))
        checkpoint = json.loads((run / "checkpoints" / f"step-{STEPS:08}" / "manifest.json").read_text())
        names = [entry["name"] for entry in checkpoint["tensors"]]
        self.assertEqual(names, sorted(names))
        self.assertIn("optimizer/exp_avg_sq/wte.weight", names)
        last = {(line["phase"], line["tensor"]): line["digest"] for line in lines(run, "digests") if line["step"] == STEPS}
        for entry in checkpoint["tensors"]:
            kind, name = entry["name"].split("/", 1)
            self.assertEqual(entry["digest"], last[{"model": "parameters"}.get(kind, kind), name])

    def test_sgd_on_two_ranks(self):
        golden = self.golden(2, optim__kind="sgd")
        alone = self.repeat(golden, "alone", "--accumulate", "sequential")
        self.assertEqual(results(self.repeat(golden, "ddp", "--accumulate", "sequential", "--ranks", "2")), results(alone))

    def test_two_losses_are_summed_alike_by_every_engine(self):
        golden = self.golden(2, kind="vla")
        sequential = self.repeat(golden, "sequential")
        for name, arguments in (
            ("tree", ("--accumulate", "tree")),
            ("ddp", ("--engine", "ddp", "--ranks", "2")),
            ("zero", ("--engine", "zero_redundancy", "--ranks", "2")),
        ):
            self.assertEqual(results(self.repeat(golden, name, *arguments)), results(sequential))
        for line in lines(sequential, "metrics"):
            ar, fm = line["loss_terms"]["ar"], line["loss_terms"]["fm"]
            self.assertTrue(math.isclose(line["loss"], ar["loss"] + 2 * fm["loss"], rel_tol=1e-6), line)
            self.assertEqual(line["tokens"], ar["targets"] + fm["targets"])
        self.assertGreater(len({line["tokens"] for line in lines(sequential, "metrics")}), 1)
        names = {line["tensor"] for line in lines(sequential, "digests") if line["phase"] == "data"}
        self.assertEqual(names, {"inputs", "targets", "actions", "counted", "noise", "times"})

    def test_the_weight_of_a_loss_and_the_seed_of_its_noise_are_noticed(self):
        """The negative control: what is computed before the weight enters is equal, and nothing after it."""
        golden = self.golden(2, kind="vla")
        first = lines(self.repeat(golden, "as-it-was"), "metrics")[0]
        for name, change in (("weight", {"model__fm_weight": 1.0}), ("noise", {})):
            shutil.rmtree(golden)
            manifest = self.golden(2, kind="vla", **change) / "manifest.json"
            if name == "noise":
                manifest.write_text(manifest.read_text().replace('"seed": 1', '"seed": 2'))
            other = lines(self.repeat(golden, name), "metrics")[0]
            self.assertNotEqual(other["loss"], first["loss"])
            self.assertNotEqual(other["gradient_norm"], first["gradient_norm"])
            self.assertEqual(other["loss_terms"]["fm"] == first["loss_terms"]["fm"], name == "weight")
            self.assertEqual(other["loss_terms"]["ar"], first["loss_terms"]["ar"])

    def test_five_micro_batches_have_more_than_one_sum(self):
        """The negative control: the order of additions does move bits, so the equalities above say something."""
        golden = self.golden(5, record__local_gradients=True)
        tree = self.repeat(golden, "tree", "--accumulate", "tree")
        sequential = self.repeat(golden, "sequential", "--accumulate", "sequential")
        # Before any addition, and before the first update, nothing can differ.
        first_losses = [lines(run, "metrics")[0]["micro_batch_losses"] for run in (tree, sequential)]
        self.assertEqual(*first_losses)
        self.assertNotEqual(lines(tree, "metrics")[-1]["parameter_norm"], lines(sequential, "metrics")[-1]["parameter_norm"])
        local = [line for line in lines(tree, "digests") if line["phase"] == "local_gradient" and line["step"] == 1]
        self.assertEqual({line["micro_batch"] for line in local}, set(range(5)))

    def test_what_cannot_be_repeated_is_refused(self):
        for changes, message in (
            ({"model__dropout": 0.1}, "model.dropout is not 0"),
            ({"model__positions": "rotary"}, "model.positions"),
            ({"data__tokenizer": "bpe"}, "data.tokenizer"),
            ({"optim__clip_norm": 1.0}, "optim.clip_norm"),
            ({"kind": "vla", "data__path": "embedded:grasp"}, "data.path is not embedded:reach"),
            ({"kind": "vla", "model__chunk": 5}, "not the episodes that the golden run was trained on"),
        ):
            with self.subTest(message), tempfile.TemporaryDirectory() as folder:
                golden = Path(folder) / "golden"
                write_golden(golden, 2, **changes)
                self.refused(golden, 2, message, "--accumulate", "tree")

    def test_wrong_ranks_and_a_missing_initial_state_are_refused(self):
        golden = self.golden(2)
        self.refused(golden, 2, "--ranks 3: from 1 to 2", "--accumulate", "sequential", "--ranks", "3")
        self.refused(golden, 2, "--accumulate tree is for one rank", "--accumulate", "tree", "--ranks", "2")
        (golden / "checkpoints" / "step-00000000" / "manifest.json").unlink()
        self.refused(golden, 72, "checkpoint.at_start=true", "--accumulate", "sequential", "--ranks", "2")

    @unittest.skipIf(shutil.which("nvidia-smi"), "there may be a GPU here")
    def test_a_gpu_that_is_not_there_is_refused(self):
        self.refused(self.golden(2), 2, "this process sees 0 GPU(s)", "--device", "cuda")

    def test_engines_and_ranks_that_do_not_fit_are_refused(self):
        golden = self.golden(3, optim__kind="sgd")
        self.refused(golden, 2, "--engine single is for one rank", "--engine", "single", "--ranks", "2")
        self.refused(golden, 2, "it shards optim.kind adamw only", "--engine", "deepspeed", "--ranks", "3")
        self.refused(golden, 2, "--timeout-s nan", "--timeout-s", "nan")
        self.refused(golden, 2, "is set up for the CPU", "--engine", "deepspeed", "--ranks", "2", "--device", "cuda")
        shutil.rmtree(golden)
        self.refused(self.golden(3), 2, "no multiple of 2 ranks", "--engine", "deepspeed", "--ranks", "2")

    def test_without_digests_a_step_is_only_training(self):
        golden = self.golden(2)
        digested = self.repeat(golden, "digested")
        shutil.rmtree(golden)
        plain = self.repeat(self.golden(2, record__digests_every=0), "plain", "--no-checkpoint")
        self.assertEqual(list((plain / "checkpoints").iterdir()), [])
        self.assertEqual(lines(plain, "digests"), [])
        for left, right in zip(lines(digested, "metrics"), lines(plain, "metrics"), strict=True):
            self.assertEqual(left["micro_batch_losses"], right["micro_batch_losses"])
            # PyTorch's own norm is in single precision.
            for norm in ("gradient_norm", "parameter_norm"):
                self.assertTrue(math.isclose(left[norm], right[norm], rel_tol=1e-6), (norm, left, right))
            self.assertLess(right["seconds"]["record"], 1e-3)

    def test_torchrun_and_mpirun_start_the_same_ranks(self):
        golden = self.golden(2)
        alone = self.repeat(golden, "alone")
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        self.assertEqual(results(self.repeat(golden, "torchrun", launcher=torchrun)), results(alone))
        mpirun = shutil.which("mpirun") or str(ROOT / ".toolchain/bin/mpirun")
        if not Path(mpirun).exists():
            self.skipTest("no mpirun")
        mpirun = (mpirun, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "2", sys.executable)
        self.assertEqual(results(self.repeat(golden, "mpirun", launcher=mpirun)), results(alone))
        process = self.start(golden, "three", "--ranks", "3", launcher=mpirun)
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("the launcher started 2", process.stderr)

    def test_a_flipped_bit_in_the_initial_state_is_found(self):
        golden = self.golden(2)
        shard = next((golden / "checkpoints" / "step-00000000").glob("*.safetensors"))
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        self.refused(golden, 72, "does not have the digest", "--accumulate", "tree")

    def test_ranks_that_do_not_end_are_ended(self):
        golden = self.golden(2)
        self.refused(golden, 90, "not done after", "--accumulate", "sequential", "--ranks", "2", "--timeout-s", "0.01")

    def test_one_rank_that_does_not_end_is_ended(self):
        self.refused(self.golden(2), 90, "rank 0 is not done after", "--timeout-s", "0.1")


class EnginesTest(unittest.TestCase):
    """Each engine trains as the plain one does: more than two micro-batches, so in another order of additions."""

    kind = "gpt"
    STEPS, MICRO_BATCHES, RTOL = 20, 8, 1e-5

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        # A larger eps keeps rounding noise in gradients that should be zero out of the update.
        write_golden(cls.folder / "golden", cls.MICRO_BATCHES, steps=cls.STEPS, kind=cls.kind, optim__eps=1e-6)
        cls.expected = cls.run_engine("single", 1)

    @classmethod
    def run_engine(cls, engine, ranks):
        run = cls.folder / f"{engine}-{ranks}"
        command = [sys.executable, PROGRAM, "--golden", cls.folder / "golden", "--run-dir", run]
        command += ["--engine", engine, "--ranks", str(ranks)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if process.returncode != 0:
            raise AssertionError(process.stderr)
        return run

    def agrees(self, engine, ranks):
        run = self.run_engine(engine, ranks)
        expected, found = lines(self.expected, "metrics"), lines(run, "metrics")
        self.assertEqual(len(found), self.STEPS)
        for left, right in zip(expected, found, strict=True):
            for name in ("loss", "gradient_norm", "parameter_norm"):
                self.assertTrue(math.isclose(left[name], right[name], rel_tol=self.RTOL), (name, left, right))
            self.terms_agree(left.get("loss_terms", {}), right.get("loss_terms", {}))
        for left, right in zip(lines(self.expected, "digests"), lines(run, "digests"), strict=True):
            self.assertEqual((left["step"], left["phase"], left["tensor"]), (right["step"], right["phase"], right["tensor"]))
            # Replicas have not parted: a tensor has one line, which all ranks share.
            if right["phase"] != "data":
                self.assertEqual(right["ranks"], [[0, ranks - 1]])
            self.assertTrue(math.isclose(left["norm"], right["norm"], rel_tol=1e-4, abs_tol=1e-6), (left, right))
        # It did train.
        self.assertLess(found[-1]["loss"], found[0]["loss"] - 0.1)
        return json.loads((run / "manifest.json").read_text())["segments"][0]

    def terms_agree(self, expected, found):
        """Of a model with several losses: each apart, with its count."""
        self.assertEqual(expected.keys(), found.keys())
        for name, term in expected.items():
            self.assertEqual(found[name]["targets"], term["targets"])
            self.assertTrue(math.isclose(found[name]["loss"], term["loss"], rel_tol=self.RTOL), (name, expected, found))

    def whole_state(self):
        return json.loads((self.expected / "manifest.json").read_text())["segments"][0]["ranks"][0]

    def assert_sharded(self, segment, ranks):
        """Ranks hold shares of the state, and all of it together; DeepSpeed pads."""
        whole, held = self.whole_state(), [rank["optimizer_bytes"] for rank in segment["ranks"]]
        self.assertEqual(len(held), ranks)
        self.assertGreaterEqual(sum(held), whole["optimizer_bytes"])
        self.assertLess(sum(held), 1.05 * whole["optimizer_bytes"])
        self.assertLess(max(held), 0.8 * whole["optimizer_bytes"])

    def test_ddp(self):
        segment = self.agrees("ddp", 3)
        self.assertEqual([rank["optimizer_bytes"] for rank in segment["ranks"]], [self.whole_state()["optimizer_bytes"]] * 3)

    def test_zero_redundancy(self):
        segment = self.agrees("zero_redundancy", 2)
        self.assert_sharded(segment, 2)
        self.assertEqual(segment["strategy"], "zero_redundancy")

    @unittest.skipUnless(importlib.util.find_spec("deepspeed"), "deepspeed is not installed: ci/setup --peers")
    def test_deepspeed(self):
        segment = self.agrees("deepspeed", 2)
        self.assert_sharded(segment, 2)
        self.assertIn("deepspeed", segment["versions"])

    @unittest.skipIf(importlib.util.find_spec("deepspeed"), "deepspeed is installed")
    def test_deepspeed_that_is_missing_is_named(self):
        with self.assertRaisesRegex(AssertionError, "ci/setup --peers"):
            self.run_engine("deepspeed", 2)


class TwoLossesTest(EnginesTest):
    """The same of a model with two losses, which ranks have unlike numbers of targets of."""

    kind = "vla"


if __name__ == "__main__":
    unittest.main()
