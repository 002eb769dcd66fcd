"""The recorder of a PyTorch training loop."""

import json
import math
import time

import torch
import xxhash

from .adapters import adapt, unwrapped
from .digests import fingerprint, global_norm
from .directory import DTYPES, RECORD_VERSION, RunDirectory
from .lines import digest_lines, real, tree_sum
from .machine import rank_info, resident_bytes_max, versions
from .world import World

PARTS = ("data", "forward", "backward", "communication", "optimizer", "record")


class Recorder:
    """Writes the run record of a training. Every rank makes one, after the process group; rank 0 writes the files.

        with Recorder("runs/mine", model, optimizer, config={"lr": 1e-3}) as record:
            for step, (ids, batch) in enumerate(batches, start=1):
                ...  # forward, backward, optimizer.step(), as without it
                record.step(step, loss=loss, samples=ids)

    `model` is what the loop calls (a module, DistributedDataParallel, FullyShardedDataParallel, a DeepSpeed engine; then
    `optimizer` may be None). Gradients are taken when an update begins; where they are clipped before that, call
    `record.gradients()` before clipping. `config` is all that decides the result, and must be the same for two runs that
    are compared: no ranks, no paths.
    """

    def __init__(
        self,
        run_dir,
        model,
        optimizer=None,
        config=None,
        *,
        every=1,
        sketches=False,
        seed=None,
        train_samples=0,
        data_digest="unknown",
        from_step=0,
    ):
        """`every`: digests of each so-manieth step and the first, 0 for none. `sketches`: beside each digest what
        `compare --tolerance auto` needs. `from_step`: the step whose checkpoint this run goes on from, in the same run
        directory."""
        self.world = World()
        self.adapter = adapt(model, optimizer)
        self.every, self.sketches, self.last_step = every, sketches, from_step
        self.device = next((parameter.device for _, parameter in self.adapter.named), None)
        data = {
            "digest": data_digest,
            "tokenizer": "unknown",
            "tokenizer_digest": "unknown",
            "vocabulary": 0,
            "train_samples": train_samples,
            "validation_samples": 0,
        }
        self.facts = {"seed": torch.initial_seed() if seed is None else seed, "data": data}
        ranks = self.world.gather(self._rank())
        manifest = self._manifest(config or {}, from_step, ranks)
        self.directory = self.world.together(lambda: RunDirectory(run_dir, manifest, from_step))
        self.samples_seen = self.directory.samples_seen if self.directory else 0
        self.pending = self.explicit = None
        self.masks = []
        self.undo = [self.adapter.before_update(self._update_begins)]
        if any(type(module).__name__.startswith(("Dropout", "AlphaDropout")) and module.p > 0 for module in model.modules()):
            self.undo.append(unwrapped(model).register_forward_pre_hook(self._forward_begins).remove)
        if from_step == 0 and every > 0:
            self._write_digests(0, "parameters", self._entries(self.adapter.parameters(), 0))
        self.clock = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """A run that an exception ends has no end in its manifest."""
        for undo in self.undo:
            undo()
        if self.directory and kind is None:
            self.directory.end(self.last_step)
        elif self.directory:
            self.directory.close()

    def gradients(self):
        """Takes the step's gradients now: where they are clipped, call it after backward and before clipping, on every rank."""
        self.explicit = self._take_gradients()

    def step(self, step, *, loss, samples=None, lr=None, epoch=0, tokens=None, validation_loss=None, loss_scale=None):
        """Records a finished update; every rank calls it, after `optimizer.step()`.

        `loss` and `samples` are this rank's: a mean loss and a list of sample ids, or a list of either with one entry a
        micro-batch. `lr` is the rate of this update, `tokens` the targets of the global batch (default: its samples).
        `loss_scale` is what the loss was multiplied by before backward: `GradScaler.state_dict()` of before `update()`, or
        (scale, finite steps since it last changed), or a number that never changes. A step whose gradient is not finite is
        then one whose update was left out, as GradScaler does.
        """
        begin = time.perf_counter()
        if step != self.last_step + 1:
            raise ValueError(f"record.step({step}) after step {self.last_step}: call it once for each update, counted from 1")
        loss_scale = scale_line(loss_scale)
        clipped = self.pending or self._take_gradients()
        reduced = self.explicit or clipped
        skipped_for = first_not_finite(step, reduced["entries"]) if loss_scale else None
        mine = self._report(loss, samples)
        ranks = self.world.gather(mine | {"step": step})
        if any(rank["step"] != step for rank in ranks):
            raise ValueError(f"ranks are at different steps: {[rank['step'] for rank in ranks]}")
        gradient_norm = self._write_digests(step, "reduced_gradient", reduced["entries"])
        if self._is_due(step):
            self._write_digests(step, "optimizer", self._entries(self.adapter.state(), step))
        parameter_norm = self._write_digests(step, "parameters", self._entries(self.adapter.parameters(), step))
        losses, weights, ids = micro_batches(ranks)
        line = {
            "step": step,
            "epoch": epoch,
            "loss": real(tree_sum(losses)),
            "micro_batch_losses": [real(value) for value in losses],
            "gradient_norm": real(gradient_norm),
            "parameter_norm": real(parameter_norm),
            "clip_coefficient": real(clip_coefficient(gradient_norm, clipped) if self.explicit else 1.0),
            "learning_rate": real(lr if lr is not None else clipped["lr"]),
            "tokens": tokens or sum(weights),
            "resident_bytes_max": max(rank["resident"] for rank in ranks),
        }
        if validation_loss is not None:
            line["validation_loss"] = real(validation_loss)
        if loss_scale:
            line["loss_scale"] = loss_scale
        if skipped_for is not None:
            line["skipped_for"] = skipped_for
        self._write(step, line, ids, ranks, begin)
        self.last_step, self.pending, self.explicit, self.masks = step, None, None, []
        self.samples_seen += sum(len(micro_batch) for micro_batch in ids)

    def save_checkpoint(self):
        """Saves parameters and optimizer state after the last recorded step, for `lockstep-harness compare`; every rank calls
        it. Your own checkpoints stay what a resume reads."""
        tensors = {f"model/{name}": copied(tensor, self.directory) for name, tensor in self.adapter.parameters()}
        tensors |= {f"optimizer/{name}": copied(tensor, self.directory) for name, tensor in self.adapter.state()}
        state = {
            "step": self.last_step,
            "seed": self.facts["seed"],
            "samples_seen": self.samples_seen,
            "optimizer": self.adapter.optimizer_name(),
            "tokenizer_digest": self.facts["data"]["tokenizer_digest"],
            "data_digest": self.facts["data"]["digest"],
            "world_size": self.world.size,
            "strategy": self.adapter.strategy,
        }
        self.world.together(lambda: self.directory.save_checkpoint(self.last_step, state, tensors))

    def _is_due(self, step):
        return self.every > 0 and (step % self.every == 0 or step == 1)

    def _rank(self):
        return rank_info(self.world.rank, self.adapter.state_bytes(), 4 * self.adapter.owned_elements(), self.device)

    def _manifest(self, config, from_step, ranks):
        strategy = self.adapter.strategy
        segment = {
            "from_step": from_step,
            "started_unix_s": int(time.time()),
            "world_size": self.world.size,
            "strategy": strategy,
            "reduction": "native",
            "backend": self.world.backend,
            "threads_per_rank": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "versions": versions() | self.adapter.versions(),
            "ranks": ranks,
        }
        tensors = [
            {"name": name, "shape": shape, "dtype": DTYPES[str(dtype).removeprefix("torch.")]}
            for name, shape, dtype in self.adapter.shapes()
        ]
        config = json.loads(json.dumps(config, default=str))
        return self.facts | {
            "record_version": RECORD_VERSION,
            "program": {"name": "pytorch", "version": torch.__version__, "git_commit": torch.version.git_version or "unknown"},
            "config": config | {"parallel": config.get("parallel", {}) | {"strategy": strategy}},
            "model": {"parameters": sum(math.prod(tensor["shape"]) for tensor in tensors), "tensors": tensors},
            "segments": [segment],
        }

    def _update_begins(self):
        self.pending = self._take_gradients()

    def _take_gradients(self):
        return {"lr": self.adapter.learning_rate(), "entries": self._entries(self.adapter.gradients(), self.last_step + 1)}

    def _forward_begins(self, module, _inputs):
        """Dropout masks follow from the generator's state: a digest of it is evidence of which masks a micro-batch has."""
        if module.training and torch.is_grad_enabled():
            cuda = self.device is not None and self.device.type == "cuda"
            state = torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state()
            self.masks.append(xxhash.xxh3_128(state.numpy().tobytes()).hexdigest())

    def _entries(self, tensors, step):
        """(tensor, digest or None where none is due, sum of squares, sketch or None)."""
        if not self._is_due(step):
            return [(name, None, float(tensor.detach().double().square().sum()), None) for name, tensor in tensors]
        return [(name, *fingerprint(tensor, self.sketches)) for name, tensor in tensors]

    def _write_digests(self, step, phase, entries):
        """Gathers digests where they are due, and writes them on rank 0; returns the norm of all."""
        if self._is_due(step):
            mine = [(name, None, value, math.sqrt(squares), bins) for name, value, squares, bins in entries]
            per_rank = self.world.gather(mine)
            if self.directory:
                self.directory.write("digests", digest_lines(step, phase, per_rank, self.adapter.sharded[phase]))
        return global_norm(squares for _, _, squares, _ in entries)

    def _report(self, loss, samples):
        """What this rank says of the step."""
        losses = [float(value) for value in (loss if isinstance(loss, (list, tuple)) else [loss])]
        samples = [] if samples is None else as_lists(samples)
        if samples and len(samples) != len(losses):
            raise ValueError(f"{len(losses)} losses but {len(samples)} lists of samples: give one of each for a micro-batch")
        masks = self.masks if len(self.masks) == len(losses) else []
        return {
            "losses": losses,
            "samples": samples,
            "masks": masks,
            "resident": resident_bytes_max(),
            "optimizer_bytes": self.adapter.state_bytes(),
        }

    def _write(self, step, line, ids, ranks, begin):
        if not self.directory:
            return
        now = time.perf_counter()
        seconds = dict.fromkeys(PARTS, 0.0) | {"record": now - begin, "total": now - self.clock}
        self.clock = now
        line |= {"seconds": seconds, "tokens_per_second": line["tokens"] / seconds["total"]}
        sample_line = {"step": step, "micro_batches": ids}
        masks = [mask for rank in ranks for mask in rank["masks"]]
        if masks and len(masks) == len(line["micro_batch_losses"]):
            sample_line["masks"] = masks
        self.directory.write("samples", [sample_line])
        self.directory.write("metrics", [line])
        infos = self.directory.manifest["segments"][-1]["ranks"]
        if step == 1 or any(info["optimizer_bytes"] != rank["optimizer_bytes"] for info, rank in zip(infos, ranks)):
            # Most optimizers make their state in the first update.
            for info, rank in zip(infos, ranks, strict=True):
                info["optimizer_bytes"] = rank["optimizer_bytes"]
            self.directory.write_manifest()


def as_lists(samples):
    """Ids as one list a micro-batch: a flat list is one micro-batch's."""
    samples = samples.tolist() if hasattr(samples, "tolist") else list(samples)
    samples = [ids.tolist() if hasattr(ids, "tolist") else ids for ids in samples]
    nested = all(isinstance(ids, (list, tuple)) for ids in samples)
    return [[int(i) for i in ids] for ids in (samples if nested else [samples])]


def micro_batches(ranks):
    """Each micro-batch's share of the global batch's mean loss, its number of samples, and their ids, over all ranks."""
    losses = [loss for rank in ranks for loss in rank["losses"]]
    ids = [sample for rank in ranks for sample in rank["samples"]]
    weights = [len(one) for one in ids] if len(ids) == len(losses) else [1] * len(losses)
    total = sum(weights)
    return [loss * weight / total for loss, weight in zip(losses, weights)], weights, ids


def scale_line(given):
    """The loss scale of a step as the record has it; None where the loss was not scaled: GradScaler has no state when it is off."""
    if given is None or given == {}:
        return None
    if isinstance(given, dict):
        if not {"scale", "_growth_tracker"} <= given.keys():
            raise ValueError(f"loss_scale: {sorted(given)} is not a GradScaler's state: give its state_dict() of before update()")
        given = given["scale"], given["_growth_tracker"]
    scale, finite_steps = given if isinstance(given, (list, tuple)) else (given, 0)
    return {"scale": real(scale), "finite_steps": int(finite_steps)}


def first_not_finite(step, entries):
    """The first tensor whose gradient is not finite: then an update with a scaled loss is left out."""
    if not entries:
        raise ValueError(
            f"step {step} has no gradients any more: its update was left out, so they were not seen; call record.step before they "
            "are cleared, or record.gradients() before scaler.step"
        )
    return next((name for name, _, squares, _ in entries if not math.isfinite(squares)), None)


def clip_coefficient(norm, clipped):
    """The factor between the gradient before clipping and what was applied: 1 where the bits are the same."""
    after = global_norm(squares for _, _, squares, _ in clipped["entries"])
    return 1.0 if after == norm or norm == 0 else after / norm


def copied(tensor, wanted):
    """A copy on the CPU where it is wanted: on rank 0. The others only take part in the gathering."""
    return tensor.detach().cpu().clone() if wanted else None
