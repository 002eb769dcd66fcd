"""The recorder on one process: what it writes, and what it refuses."""

import json
import math
import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import torch

from lockstep_record import Recorder, fingerprint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import task  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CHECKPOINTS = all(__import__("importlib").util.find_spec(name) for name in ("safetensors", "blake3"))


def lines(run, name):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


class RecorderTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.run = Path(folder.name) / "run"
        self.model = task.build()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def run_steps(self, record, first, last, clip=None):
        for step in range(first, last + 1):
            self.optimizer.zero_grad()
            ids = task.micro_batches(step, 1)
            loss = task.loss(self.model, ids[0])
            loss.backward()
            if clip:
                record.gradients()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            # Recorded gradients are those of the update, even where the loop clears them before it records.
            self.optimizer.zero_grad()
            record.step(step, loss=loss, samples=ids)

    def test_a_line_a_step_and_a_digest_a_tensor(self):
        with Recorder(self.run, self.model, self.optimizer, config=task.CONFIG) as record:
            self.run_steps(record, 1, 3)
        self.assertEqual([line["step"] for line in lines(self.run, "metrics")], [1, 2, 3])
        self.assertEqual([line["learning_rate"] for line in lines(self.run, "metrics")], [1e-2] * 3)
        digests = lines(self.run, "digests")
        names = [name for name, _ in self.model.named_parameters()]
        at = lambda step, phase: [line["tensor"] for line in digests if (line["step"], line["phase"]) == (step, phase)]  # noqa: E731
        self.assertEqual(at(0, "parameters"), names)
        self.assertEqual(at(2, "reduced_gradient"), names)
        self.assertEqual(at(2, "optimizer"), [f"{kind}/{name}" for kind in ("exp_avg", "exp_avg_sq") for name in names])
        last = {line["tensor"]: line for line in digests if (line["step"], line["phase"]) == (3, "parameters")}
        for name, parameter in self.model.named_parameters():
            value, squares, _ = fingerprint(parameter)
            self.assertEqual((last[name]["digest"], last[name]["norm"]), (value, math.sqrt(squares)))
        manifest = json.loads((self.run / "manifest.json").read_text())
        self.assertEqual(manifest["segments"][0]["ended"]["step"], 3)
        elements = sum(parameter.numel() for parameter in self.model.parameters())
        self.assertGreaterEqual(manifest["segments"][0]["ranks"][0]["optimizer_bytes"], 8 * elements)

    def test_clipping_is_measured(self):
        with Recorder(self.run, self.model, self.optimizer) as record:
            self.run_steps(record, 1, 2, clip=0.1)
        for line in lines(self.run, "metrics"):
            self.assertGreater(line["gradient_norm"], 0.1)
            self.assertAlmostEqual(line["clip_coefficient"], 0.1 / line["gradient_norm"], places=5)

    def test_the_interval_leaves_digests_out_but_no_norm(self):
        with Recorder(self.run, self.model, self.optimizer, every=3) as record:
            self.run_steps(record, 1, 6)
        self.assertEqual({line["step"] for line in lines(self.run, "digests")}, {0, 1, 3, 6})
        self.assertTrue(all(line["gradient_norm"] > 0 and line["parameter_norm"] > 0 for line in lines(self.run, "metrics")))

    def test_a_run_goes_on_from_a_step(self):
        with Recorder(self.run, self.model, self.optimizer) as record:
            self.run_steps(record, 1, 4)
        with Recorder(self.run, self.model, self.optimizer, from_step=2) as record:
            self.assertEqual(record.samples_seen, 2 * task.SIZE)
            self.run_steps(record, 3, 5)
        for name in ("metrics", "samples"):
            self.assertEqual([line["step"] for line in lines(self.run, name)], [1, 2, 3, 4, 5])
        segments = json.loads((self.run / "manifest.json").read_text())["segments"]
        self.assertEqual([segment["from_step"] for segment in segments], [0, 2])

    def test_a_run_that_breaks_has_no_end(self):
        with self.assertRaises(ZeroDivisionError), Recorder(self.run, self.model, self.optimizer) as record:
            self.run_steps(record, 1, 2)
            raise ZeroDivisionError
        self.assertEqual(len(lines(self.run, "metrics")), 2)
        self.assertNotIn("ended", json.loads((self.run / "manifest.json").read_text())["segments"][0])

    def test_what_would_be_a_wrong_record_is_refused(self):
        with Recorder(self.run, self.model, self.optimizer) as record:
            self.run_steps(record, 1, 2)
            for step in (2, 4):
                with self.assertRaisesRegex(ValueError, "after step 2"):
                    record.step(step, loss=1.0)
            with self.assertRaisesRegex(ValueError, "2 losses but 1 lists"):
                record.step(3, loss=[1.0, 2.0], samples=[[1, 2]])
        with self.assertRaisesRegex(FileExistsError, "is not empty"):
            Recorder(self.run, self.model, self.optimizer)
        with self.assertRaisesRegex(FileNotFoundError, "no record to go on with"):
            Recorder(self.run / "other", self.model, self.optimizer, from_step=2)

    def test_ranks_that_do_not_know_of_each_other_are_refused(self):
        """Without a process group each of them would train alone, and overwrite the others' record."""
        with mock.patch.dict(os.environ, {"WORLD_SIZE": "4"}), self.assertRaisesRegex(RuntimeError, "WORLD_SIZE is 4"):
            Recorder(self.run, self.model, self.optimizer)

    def test_dropout_leaves_evidence_of_its_masks(self):
        self.model = task.build(dropout=0.2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        with Recorder(self.run, self.model, self.optimizer) as record:
            self.run_steps(record, 1, 3)
        masks = [line["masks"] for line in lines(self.run, "samples")]
        self.assertEqual([len(one) for one in masks], [1, 1, 1])
        self.assertEqual(len({one[0] for one in masks}), 3)

    def run_scaled(self, record, scaler, last, overflow, clip=None):
        """Steps of a mixed-precision loop; in step `overflow` one gradient is infinite."""
        for step in range(1, last + 1):
            self.optimizer.zero_grad()
            ids = task.micro_batches(step, 1)
            loss = task.loss(self.model, ids[0])
            scaler.scale(loss).backward()
            if step == overflow:
                next(self.model.parameters()).grad[0, 0] = math.inf
            if clip:
                scaler.unscale_(self.optimizer)
                record.gradients()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            state = scaler.state_dict()
            scaler.step(self.optimizer)
            scaler.update()
            record.step(step, loss=loss, samples=ids, loss_scale=state)

    def test_the_loss_scale_is_recorded_as_ours_is(self):
        for clip in (None, 100.0):
            with self.subTest(clip=clip), tempfile.TemporaryDirectory() as folder:
                self.model = task.build()
                self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
                scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
                with Recorder(Path(folder) / "run", self.model, self.optimizer) as record:
                    self.run_scaled(record, scaler, 5, overflow=3, clip=clip)
                recorded = lines(Path(folder) / "run", "metrics")
                scales = [(line["loss_scale"]["scale"], line["loss_scale"]["finite_steps"]) for line in recorded]
                self.assertEqual(scales, [(1024, 0), (1024, 1), (2048, 0), (1024, 0), (1024, 1)])
                self.assertEqual([line.get("skipped_for") for line in recorded], [None, None, "0.weight", None, None])
                self.assertEqual(recorded[2]["gradient_norm"], "0x7ff0000000000000")
                self.assertEqual(recorded[2]["parameter_norm"], recorded[1]["parameter_norm"])
                # Powers of two divide out: gradients are recorded without the scale.
                self.model = task.build()
                self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
                with Recorder(Path(folder) / "plain", self.model, self.optimizer) as record:
                    self.run_steps(record, 1, 2)
                plain = lines(Path(folder) / "plain", "metrics")
                self.assertEqual([line["gradient_norm"] for line in plain], [line["gradient_norm"] for line in recorded[:2]])
                self.assertNotIn("loss_scale", plain[0])

    def test_a_scaler_that_is_off_or_static_needs_no_state(self):
        with Recorder(self.run, self.model, self.optimizer) as record:
            for step, scale in enumerate((torch.amp.GradScaler("cpu", enabled=False).state_dict(), 128.0, (64, 3)), start=1):
                self.optimizer.zero_grad()
                loss = task.loss(self.model, task.micro_batches(step, 1)[0])
                loss.backward()
                self.optimizer.step()
                record.step(step, loss=loss, loss_scale=scale)
        expected = [None, {"scale": 128.0, "finite_steps": 0}, {"scale": 64.0, "finite_steps": 3}]
        self.assertEqual([line.get("loss_scale") for line in lines(self.run, "metrics")], expected)

    def test_a_scale_that_would_be_a_wrong_record_is_refused(self):
        with Recorder(self.run, self.model, self.optimizer) as record:
            self.run_steps(record, 1, 1)
            # Cleared, and no update has seen them.
            with self.assertRaisesRegex(ValueError, "step 2 has no gradients any more"):
                record.step(2, loss=1.0, loss_scale=2.0)
            with self.assertRaisesRegex(ValueError, r"\['scale'\] is not a GradScaler's state"):
                record.step(2, loss=1.0, loss_scale={"scale": 2.0})

    @unittest.skipUnless(CHECKPOINTS, "safetensors and blake3 are not installed")
    def test_a_checkpoint_has_the_digests_of_the_last_step(self):
        with Recorder(self.run, self.model, self.optimizer) as record:
            self.run_steps(record, 1, 2)
            record.save_checkpoint()
        manifest = json.loads((self.run / "checkpoints" / "step-00000002" / "manifest.json").read_text())
        last = {(line["phase"], line["tensor"]): line["digest"] for line in lines(self.run, "digests") if line["step"] == 2}
        for entry in manifest["tensors"]:
            kind, _, name = entry["name"].partition("/")
            self.assertEqual(entry["digest"], last["parameters" if kind == "model" else "optimizer", name])
        self.assertEqual(manifest["state"]["samples_seen"], 2 * task.SIZE)


class ExamplesTest(unittest.TestCase):
    def test_recording_takes_fewer_than_ten_lines(self):
        examples = [path for path in EXAMPLES.glob("*.py") if path.name != "task.py"]
        self.assertGreaterEqual(len(examples), 5)
        for path in examples:
            text = path.read_text()
            added = [line for line in text.splitlines() if "# record" in line]
            self.assertTrue(1 <= len(added) < 10, (path, added))
            # Every line that mentions the recorder is counted.
            for line in text.splitlines():
                self.assertTrue("ecord" not in line or "# record" in line or '"""' in line or "recording" in line, (path, line))


if __name__ == "__main__":
    unittest.main()
