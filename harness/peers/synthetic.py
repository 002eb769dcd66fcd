"""A small golden run directory, as the trainer would leave it, without results: for tests of the peer."""

import blake3
import numpy
import torch

from golden import SHAKESPEARE
from record import RECORD_VERSION, RunDirectory

WIDTH, LAYERS, HEADS, CONTEXT, STEPS, SAMPLES = 16, 1, 2, 8, 4, 20


def config(micro_batches, **changes):
    """A resolved configuration; `changes` are dotted keys with `__` for the dot."""
    tree = {
        "run": {"name": "golden", "dir": "runs", "seed": 1, "deterministic": True, "threads_per_rank": 1},
        "model": {
            "kind": "gpt",
            "layers": LAYERS,
            "heads": HEADS,
            "width": WIDTH,
            "context": CONTEXT,
            "dropout": 0.0,
            "positions": "learned",
        },
        "data": {
            "kind": "text",
            "path": "embedded:shakespeare",
            "tokenizer": "bytes",
            "validation_fraction": 0.1,
            "max_samples": SAMPLES,
        },
        "batch": {"micro_batches": micro_batches, "micro_batch_size": 2},
        "parallel": {"strategy": "single", "reduction": "ordered"},
        "optim": {
            "kind": "adamw",
            "lr": 1e-2,
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "momentum": 0.9,
            "weight_decay": 0.1,
            "clip_norm": None,
        },
        "schedule": {"kind": "cosine", "warmup_steps": 2, "steps": STEPS, "final_fraction": 0.1},
        "precision": "fp32",
        "record": {"digests_every": 1, "local_gradients": False},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        tree[section][name] = value
    return tree


def shapes():
    yield from (("wte.weight", (256, WIDTH)), ("wpe.weight", (CONTEXT, WIDTH)))
    for layer in range(LAYERS):
        for norm, linears in (
            ("ln_1", (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH))),
            ("ln_2", (("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH))),
        ):
            yield from ((f"h.{layer}.{norm}.weight", (WIDTH,)), (f"h.{layer}.{norm}.bias", (WIDTH,)))
            for name, inputs, outputs in linears:
                yield from ((f"h.{layer}.{name}.weight", (inputs, outputs)), (f"h.{layer}.{name}.bias", (outputs,)))
    yield from (("ln_f.weight", (WIDTH,)), ("ln_f.bias", (WIDTH,)))


def write_golden(path, micro_batches, steps=STEPS, **changes):
    """Writes manifest, configuration, sample ids and the initial state."""
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) * 0.1 for name, shape in shapes()}
    tree = config(micro_batches, **changes)
    tree["schedule"]["steps"] = steps
    data = {
        "digest": blake3.blake3(SHAKESPEARE.read_bytes()).hexdigest(),
        "tokenizer": "bytes",
        "tokenizer_digest": "00",
        "vocabulary": 256,
        "train_samples": SAMPLES,
        "validation_samples": 1,
    }
    manifest = {
        "record_version": RECORD_VERSION,
        "program": {"name": "synthetic", "version": "0", "git_commit": "none"},
        "seed": 1,
        "config": tree,
        "model": {
            "parameters": sum(weight.numel() for weight in weights.values()),
            "tensors": [{"name": name, "shape": list(w.shape), "dtype": "F32"} for name, w in weights.items()],
        },
        "data": data,
        "segments": [{}],
    }
    directory = RunDirectory(path, manifest)
    generator = numpy.random.default_rng(0)
    for step in range(1, steps + 1):
        ids = generator.integers(0, SAMPLES, (micro_batches, 2)).tolist()
        directory.write("samples", [{"step": step, "micro_batches": ids}])
    directory.save_checkpoint(0, {"step": 0}, {f"model/{name}": weight for name, weight in weights.items()})
    directory.end(steps)
