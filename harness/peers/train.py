"""The training loop of the peer: the same steps for every engine, timed without what the record needs."""

import math
import time
from itertools import chain

import torch

import data
import engines
import model as models
from device import BACKENDS, RECORDED, device_of, finish, memory_of
from golden import load_initial_weights
from gradients import share
from objective import Objective
from record import RECORD_VERSION, RunDirectory, digest, digest_line, digest_lines, flat, global_norm, rank_info, real
from record import resident_bytes_max, sketch, spelled, square_sum
from schedule import learning_rate
from world import gather, gather_numbers, join, leave

PARTS = ("data", "forward", "backward", "communication", "optimizer", "record")


def run(golden, arguments, world):
    """Trains on all ranks of the world; rank 0 writes the run directory."""
    config = golden.config
    torch.set_num_threads(config["run"]["threads_per_rank"])
    torch.use_deterministic_algorithms(config["run"]["deterministic"])
    # Deterministic mode also fills every new tensor with NaN, which costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False
    device = device_of(arguments.device, config, world)
    join(world, arguments.timeout_s, BACKENDS[arguments.device])
    source = data.source(golden)
    model = models.build(config, load_initial_weights(golden), device)
    engine = engines.build(arguments.engine, model, config, world, arguments.accumulate)
    last_step = arguments.steps or len(golden.samples)
    ranks = gather(rank_of(engine, config, world, device), world)
    manifest = manifest_of(golden, arguments, world, ranks, engine.versions())
    directory = RunDirectory(arguments.run_dir, manifest) if world.rank == 0 else None
    owned = share(config["batch"]["micro_batches"], world.size, world.rank)
    digests = Digests(directory, world, config["record"], last_step, owned)
    samples = golden.samples[:last_step]
    batches = data.batches(source, samples, golden.manifest["data"]["train_samples"], owned, device)
    digests.write(0, "parameters", engine.named)
    for step in range(1, last_step + 1):
        # Every rank knows all sample ids, so counting the global batch's targets takes no communication.
        objective = Objective(model.terms, source.targets([i for ids in samples[step - 1] for i in ids]))
        line = train_step(golden, step, batches[step - 1], objective, engine, digests, world, device)
        if directory:
            directory.write("samples", [{"step": step, "micro_batches": golden.samples[step - 1]}])
            directory.write("metrics", [line])
            print(f"step {step}/{last_step}  loss {line['loss']}  gradient norm {line['gradient_norm']}", flush=True)
    if not arguments.no_checkpoint:
        save_checkpoint(golden, engine, directory, last_step)
    if directory:
        directory.end(last_step)
    leave(world)


def train_step(golden, step, batches, objective, engine, digests, world, device):
    """One update on this rank's micro-batches; returns its line of metrics.jsonl.

    The clock stops before ranks exchange what the line needs (losses, memory) and before norms that nothing but the
    record wants: a step's time is its training, and digests where they are due.
    """
    config, batch = golden.config, golden.config["batch"]
    samples = batch["micro_batches"] * batch["micro_batch_size"]
    lr = learning_rate(config["schedule"], config["optim"]["lr"], step)
    clock = Clock()
    digests.write_data(step, batches)
    clock.lap("record")
    shares = engine.gradient(batches, objective, clock.seconds)
    clock.lap(None)
    for index, gradients in enumerate(engine.local_gradients() if digests.local_gradients else []):
        digests.write(step, "local_gradient", gradients, micro_batch=index)
    gradient_norm = digests.write(step, "reduced_gradient", engine.gradients)
    clock.lap("record")
    engine.update(lr)
    finish(device)
    clock.lap("optimizer")
    digests.write(step, "optimizer", engine.state)
    parameter_norm = digests.write(step, "parameters", engine.named)
    clock.lap("record")
    seconds = clock.seconds | {"total": clock.total()}
    tokens, width = sum(objective.targets), 1 + len(objective.names)
    gathered = gather_numbers([resident_bytes_max(), *chain(*shares)], 1 + batch["micro_batches"] * width, world)
    numbers = [number for of_rank in gathered for number in of_rank[1:]]
    if gradient_norm is None:
        gradient_norm = engine.gradient_norm()
        parameter_norm = torch.nn.utils.get_total_norm([parameter.detach() for _, parameter in engine.named]).item()
    return {
        "step": step,
        "epoch": (step - 1) * samples // golden.manifest["data"]["train_samples"],
        **objective.recorded([numbers[i : i + width] for i in range(0, len(numbers), width)]),
        "gradient_norm": real(gradient_norm),
        "parameter_norm": real(parameter_norm),
        "clip_coefficient": 1.0,
        "learning_rate": real(lr),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds["total"],
        "seconds": seconds,
        "resident_bytes_max": int(max(of_rank[0] for of_rank in gathered)),
        **memory_of(device),
    }


class Clock:
    """Adds the time since the last lap to one part of a step."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.start = self.last = time.perf_counter()

    def lap(self, part):
        now = time.perf_counter()
        if part:
            self.seconds[part] += now - self.last
        self.last = now

    def total(self):
        return time.perf_counter() - self.start


class Digests:
    """Gathers every rank's digests and norms where they are due; rank 0 writes them."""

    def __init__(self, directory, world, record, last_step, owned):
        """`owned` are the numbers of this rank's micro-batches."""
        self.directory, self.world, self.owned = directory, world, owned
        self.every, self.last_step, self.local_gradients = record["digests_every"], last_step, record["local_gradients"]
        self.sketches = record.get("sketches", False)

    def is_due(self, step):
        return self.every > 0 and (step % self.every == 0 or step in (1, self.last_step))

    def write(self, step, phase, tensors, micro_batch=None):
        """Digests of `tensors`, pairs of name and tensor or a function that makes them, if they are due.

        Returns their global norm, or None if they are not.
        """
        if not self.is_due(step):
            return None
        entries, squares = [], []
        for name, tensor in tensors() if callable(tensors) else tensors:
            elements = flat(tensor)
            squares.append(square_sum(elements))
            bins = sketch(elements) if self.sketches else None
            entries.append((name, micro_batch, digest(elements), math.sqrt(squares[-1]), bins))
        per_rank = gather(entries, self.world)
        if self.directory:
            self.directory.write("digests", digest_lines(step, phase, per_rank))
        return global_norm(squares)

    def write_data(self, step, batches):
        """Digests of what each micro-batch is made of, if they are due. As numbers in fp32: tokens and classes are small enough
        to be exact."""
        if not self.is_due(step):
            return
        entries = []
        for index, batch in zip(self.owned, batches, strict=True):
            for name, tensor in batch.items():
                elements = flat(tensor.float())
                entries.append((name, index, digest(elements), math.sqrt(square_sum(elements)), None))
        per_rank = gather(entries, self.world)
        if self.directory:
            lines = [
                digest_line(step, "data", spelled(entry), [[rank, rank]])
                for rank, entries in enumerate(per_rank)
                for entry in entries
            ]
            self.directory.write("digests", lines)


def rank_of(engine, config, world, device):
    """This rank's line of the manifest."""
    master_bytes = 4 * engine.owned_elements()
    return rank_info(world.rank, len(engines.STATE_NAMES[config["optim"]["kind"]]) * master_bytes, master_bytes, device)


def manifest_of(golden, arguments, world, ranks, versions):
    strategy = engines.STRATEGIES[arguments.engine]
    reduction = "ordered" if arguments.accumulate == "tree" else "native"
    config = golden.config | {"parallel": golden.config["parallel"] | {"strategy": strategy, "reduction": reduction}}
    segment = {
        "from_step": 0,
        "started_unix_s": int(time.time()),
        "world_size": world.size,
        "strategy": strategy,
        "reduction": reduction,
        "backend": RECORDED[arguments.device] if world.init_method else "solo",
        "threads_per_rank": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
        "ranks": ranks,
    }
    name, version = ("deepspeed", versions["deepspeed"]) if "deepspeed" in versions else ("pytorch", versions["torch"])
    program = {"name": name, "version": version, "git_commit": torch.version.git_version}
    kept = {key: golden.manifest[key] for key in ("seed", "model", "data")}
    return {"record_version": RECORD_VERSION, "program": program, "config": config, **kept, "segments": [segment]}


def save_checkpoint(golden, engine, directory, step):
    """All ranks call it, since each may hold a part of the state; rank 0 writes."""
    tensors = {f"model/{name}": parameter for name, parameter in engine.named}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in engine.state()}
    if directory:
        directory.save_checkpoint(step, training_state(golden, directory.manifest, step), tensors)


def training_state(golden, manifest, step):
    batch, text = golden.config["batch"], golden.manifest["data"]
    return {
        "step": step,
        "seed": golden.manifest["seed"],
        "samples_seen": step * batch["micro_batches"] * batch["micro_batch_size"],
        "optimizer": golden.config["optim"]["kind"],
        "tokenizer_digest": text["tokenizer_digest"],
        "data_digest": text["digest"],
        "world_size": manifest["segments"][0]["world_size"],
        "strategy": manifest["segments"][0]["strategy"],
    }
