"""Runs the whole program on a small golden run: which ways of adding agree bit for bit, which do not, and what is
refused."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from synthetic import STEPS, write_golden

PROGRAM = Path(__file__).with_name("torch_golden.py")
LIMIT_S = 120
COMPARED = ("loss", "micro_batch_losses", "gradient_norm", "parameter_norm", "learning_rate", "epoch")


def lines(run, name):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def results(run):
    """All that a comparison looks at, except who computed it."""
    digests = [{key: line[key] for key in line if key != "ranks"} for line in lines(run, "digests")]
    metrics = [{key: line[key] for key in COMPARED} for line in lines(run, "metrics")]
    return digests, metrics, lines(run, "samples")


class WholeProgramTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def golden(self, micro_batches, **changes):
        path = self.folder / "golden"
        write_golden(path, micro_batches, **changes)
        return path

    def start(self, golden, name, *arguments):
        command = [sys.executable, PROGRAM, "--golden", golden, "--run-dir", self.folder / name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def repeat(self, golden, name, *arguments):
        process = self.start(golden, name, *arguments)
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
        self.assertEqual({str(line["ranks"]) for line in lines(ddp, "digests")}, {"[[0, 1]]"})
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


if __name__ == "__main__":
    unittest.main()
