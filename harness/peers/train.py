"""The training loop of the PyTorch peer."""

import math
import os
import sys
import time

import torch

from golden import load_initial_weights, load_tokens
from gpt import Gpt
from gradients import Sequential, Tree, share, tree_sum
from images import Images
from ranks import gather, join_world
from record import RECORD_VERSION, RunDirectory, digest, digest_lines, flat, global_norm, rank_info, real
from record import resident_bytes_max, square_sum
from resnet import Resnet

MODELS = {"gpt": Gpt, "resnet": Resnet}


def learning_rate(schedule, peak, step):
    """Of update `step` (from 1): linear warmup, then cosine, linear or constant."""
    warmup, last, floor = schedule["warmup_steps"], schedule["steps"], schedule["final_fraction"]
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (last - warmup)
    if schedule["kind"] == "cosine":
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if schedule["kind"] == "linear":
        return peak * (floor + (1 - floor) * (1 - progress))
    return peak


class Optimizer:
    """torch.optim's fused kernels; weight decay is decoupled and spares vectors (biases and norms)."""

    def __init__(self, named, settings):
        self.named, self.settings = named, settings
        matrices = [parameter for _, parameter in named if parameter.dim() >= 2]
        vectors = [parameter for _, parameter in named if parameter.dim() < 2]
        self.matrices = matrices
        if settings["kind"] == "adamw":
            groups = [
                {"params": matrices, "weight_decay": settings["weight_decay"]},
                {"params": vectors, "weight_decay": 0.0},
            ]
            self.torch = torch.optim.AdamW(groups, betas=tuple(settings["betas"]), eps=settings["eps"], fused=True)
            self.state_names = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
        else:
            self.torch = torch.optim.SGD(matrices + vectors, momentum=settings["momentum"], fused=True)
            self.state_names = {"momentum": "momentum_buffer"}

    @torch.no_grad()
    def step(self, lr):
        for group in self.torch.param_groups:
            group["lr"] = lr
        if self.settings["kind"] == "sgd" and self.settings["weight_decay"] != 0:
            for parameter in self.matrices:
                parameter.mul_(1 - lr * self.settings["weight_decay"])
        self.torch.step()

    def state(self):
        """(name as in the run record, tensor) of all state, kind by kind in the model's order."""
        for name, key in self.state_names.items():
            for parameter_name, parameter in self.named:
                tensor = self.torch.state[parameter].get(key)
                # SGD without momentum has no buffers; the trainer's stay zero.
                yield f"{name}/{parameter_name}", torch.zeros_like(parameter) if tensor is None else tensor


class Text:
    """Cuts samples out of the text: sample i starts at token i * context; targets are shifted by one."""

    def __init__(self, golden):
        self.tokens = torch.frombuffer(bytearray(load_tokens(golden)), dtype=torch.uint8)
        self.context = golden.config["model"]["context"]

    def micro_batch(self, ids):
        rows = torch.stack([self.tokens[i * self.context : (i + 1) * self.context + 1] for i in ids]).long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def values(tensors):
    """Per tensor: (name, digest, sum of squares)."""
    arrays = [(name, flat(tensor)) for name, tensor in tensors]
    return [(name, digest(array), square_sum(array)) for name, array in arrays]


class Recorder:
    """Gathers every rank's digests and norms; rank 0 writes them."""

    def __init__(self, directory, world_size, record, last_step):
        self.directory, self.world_size = directory, world_size
        self.every, self.last_step, self.local_gradients = record["digests_every"], last_step, record["local_gradients"]

    def is_due(self, step):
        return self.every > 0 and (step % self.every == 0 or step in (1, self.last_step))

    def digests(self, step, phase, measured, micro_batch=None):
        if not self.is_due(step):
            return
        entries = [(name, micro_batch, value, math.sqrt(squares)) for name, value, squares in measured]
        per_rank = gather(entries, self.world_size)
        if self.directory:
            self.directory.write("digests", digest_lines(step, phase, per_rank))


def manifest_of(golden, arguments, optimizer_bytes, master_bytes):
    strategy = "ddp" if arguments.ranks > 1 else "single"
    reduction = "ordered" if arguments.accumulate == "tree" else "native"
    config = golden.config | {"parallel": golden.config["parallel"] | {"strategy": strategy, "reduction": reduction}}
    segment = {
        "from_step": 0,
        "started_unix_s": int(time.time()),
        "world_size": arguments.ranks,
        "strategy": strategy,
        "reduction": reduction,
        "backend": "gloo" if arguments.ranks > 1 else "solo",
        "threads_per_rank": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"torch": torch.__version__},
        "ranks": [rank_info(rank, optimizer_bytes, master_bytes) for rank in range(arguments.ranks)],
    }
    program = {"name": "pytorch", "version": torch.__version__, "git_commit": torch.version.git_version}
    kept = {key: golden.manifest[key] for key in ("seed", "model", "data")}
    return {"record_version": RECORD_VERSION, "program": program, "config": config, **kept, "segments": [segment]}


def run(golden, arguments):
    torch.set_num_threads(golden.config["run"]["threads_per_rank"])
    torch.use_deterministic_algorithms(True)
    rank, world_size = join_world(arguments.timeout_s)
    model = MODELS[golden.config["model"]["kind"]](golden.config["model"], load_initial_weights(golden))
    named = model.named()
    module = torch.nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    optimizer = Optimizer(named, golden.config["optim"])
    master_bytes = 4 * sum(parameter.numel() for _, parameter in named)
    directory = None
    if rank == 0:
        manifest = manifest_of(golden, arguments, len(optimizer.state_names) * master_bytes, master_bytes)
        directory = RunDirectory(arguments.run_dir, manifest)
    last_step = arguments.steps or len(golden.samples)
    recorder = Recorder(directory, world_size, golden.config["record"], last_step)
    accumulate = Tree(module) if arguments.accumulate == "tree" else Sequential(module, world_size)
    owned = share(golden.config["batch"]["micro_batches"], world_size, rank)
    recorder.digests(0, "parameters", values(named))
    batches = Images(golden) if golden.config["data"]["kind"] == "images" else Text(golden)
    for step in range(1, last_step + 1):
        line = train_step(golden, step, batches, owned, named, accumulate, optimizer, recorder)
        if directory:
            directory.write("samples", [{"step": step, "micro_batches": golden.samples[step - 1]}])
            directory.write("metrics", [line])
            print(f"step {step}/{last_step}  loss {line['loss']}  gradient norm {line['gradient_norm']}", flush=True)
    if directory:
        tensors = {f"model/{name}": parameter for name, parameter in named}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.state()}
        directory.save_checkpoint(last_step, training_state(golden, manifest, last_step), tensors)
        directory.end(last_step)
    if world_size > 1:
        leave_world()


def leave_world():
    """Ends this rank once all ranks are done. Tearing gloo down was seen to hang now and then, long after everything
    was written, so the process ends without it."""
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def train_step(golden, step, batches, owned, named, accumulate, optimizer, recorder):
    """One update; returns its line of metrics.jsonl."""
    config, ids = golden.config, golden.samples[step - 1]
    samples_seen = config["batch"]["micro_batches"] * config["batch"]["micro_batch_size"]
    # The loss is a mean over targets: a sample of text has one a token, an image has one.
    tokens = samples_seen * (config["model"]["context"] if config["data"]["kind"] == "text" else 1)
    seconds = dict.fromkeys(("data", "forward", "backward", "communication", "optimizer", "record"), 0.0)
    clock = Clock(seconds)
    local_batches = [batches.micro_batch(ids[index]) for index in owned]
    clock.lap("data")
    local_losses, leaves = accumulate.step([parameter for _, parameter in named], local_batches, tokens, seconds)
    clock.lap(None)
    losses = [loss for part in gather(local_losses, recorder.world_size) for loss in part]
    clock.lap("communication")
    if recorder.local_gradients:
        for index, leaf in enumerate(leaves):
            gradients = zip((name for name, _ in named), leaf, strict=True)
            recorder.digests(step, "local_gradient", values(gradients), micro_batch=index)
    gradients = values((name, parameter.grad) for name, parameter in named)
    recorder.digests(step, "reduced_gradient", gradients)
    clock.lap("record")
    lr = learning_rate(config["schedule"], config["optim"]["lr"], step)
    optimizer.step(lr)
    clock.lap("optimizer")
    if recorder.is_due(step):
        recorder.digests(step, "optimizer", values(optimizer.state()))
    parameters = values(named)
    recorder.digests(step, "parameters", parameters)
    clock.lap("record")
    seconds["total"] = clock.total()
    return {
        "step": step,
        "epoch": (step - 1) * samples_seen // golden.manifest["data"]["train_samples"],
        "loss": real(tree_sum(losses)),
        "micro_batch_losses": [real(loss) for loss in losses],
        "gradient_norm": real(global_norm(squares for _, _, squares in gradients)),
        "parameter_norm": real(global_norm(squares for _, _, squares in parameters)),
        "clip_coefficient": 1.0,
        "learning_rate": real(lr),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds["total"],
        "seconds": seconds,
        "resident_bytes_max": max(gather(resident_bytes_max(), recorder.world_size)),
    }


class Clock:
    """Adds the time since the last lap to one part of a step."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.start = self.last = time.perf_counter()

    def lap(self, part):
        now = time.perf_counter()
        if part:
            self.seconds[part] += now - self.last
        self.last = now

    def total(self):
        return time.perf_counter() - self.start


def training_state(golden, manifest, step):
    batch, data = golden.config["batch"], golden.manifest["data"]
    return {
        "step": step,
        "seed": golden.manifest["seed"],
        "samples_seen": step * batch["micro_batches"] * batch["micro_batch_size"],
        "optimizer": golden.config["optim"]["kind"],
        "tokenizer_digest": data["tokenizer_digest"],
        "data_digest": data["digest"],
        "world_size": manifest["segments"][0]["world_size"],
        "strategy": manifest["segments"][0]["strategy"],
    }
