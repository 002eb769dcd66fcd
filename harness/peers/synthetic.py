"""A small golden run directory, as the trainer would leave it, without results: for tests of the peer."""

import blake3
import numpy
import torch

import episodes
from golden import SHAKESPEARE
from record import RECORD_VERSION, RunDirectory

WIDTH, LAYERS, HEADS, CONTEXT, STEPS, SAMPLES = 16, 1, 2, 8, 4, 20
TURNS, CHUNK = 2, 4
# The transformers' keys, then what is a model's own, and what it reads.
TRUNK = {"layers": LAYERS, "heads": HEADS, "width": WIDTH, "dropout": 0.0, "positions": "learned"}
MODELS = {
    "gpt": {"kind": "gpt", **TRUNK, "context": CONTEXT},
    "vla": {"kind": "vla", **TRUNK, "turns": TURNS, "chunk": CHUNK, "ar_weight": 1.0, "fm_weight": 2.0},
}
DATA = {
    "gpt": {"kind": "text", "path": "embedded:shakespeare"},
    "vla": {"kind": "arm", "path": "embedded:reach"},
}


def config(micro_batches, kind="gpt", **changes):
    """A resolved configuration; `changes` are dotted keys with `__` for the dot."""
    tree = {
        "run": {"name": "golden", "dir": "runs", "seed": 1, "deterministic": True, "threads_per_rank": 1},
        "model": dict(MODELS[kind]),
        "data": {**DATA[kind], "tokenizer": "bytes", "validation_fraction": 0.1, "max_samples": SAMPLES},
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


def shapes(kind):
    if kind == "vla":
        positions = TURNS * (episodes.TURN_TOKENS + CHUNK)
        yield from (("wte.weight", (episodes.VOCABULARY, WIDTH)), ("wpe.weight", (positions, WIDTH)))
        yield from linear("action_in", episodes.JOINTS, WIDTH)
        yield from linear("time_in", WIDTH, WIDTH)
    else:
        yield from (("wte.weight", (256, WIDTH)), ("wpe.weight", (CONTEXT, WIDTH)))
    for layer in range(LAYERS):
        for norm, linears in (
            ("ln_1", (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH))),
            ("ln_2", (("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH))),
        ):
            yield from ((f"h.{layer}.{norm}.weight", (WIDTH,)), (f"h.{layer}.{norm}.bias", (WIDTH,)))
            for name, inputs, outputs in linears:
                yield from linear(f"h.{layer}.{name}", inputs, outputs)
    yield from (("ln_f.weight", (WIDTH,)), ("ln_f.bias", (WIDTH,)))
    if kind == "vla":
        yield from linear("action_out", WIDTH, episodes.JOINTS)


def linear(name, inputs, outputs):
    yield from ((f"{name}.weight", (inputs, outputs)), (f"{name}.bias", (outputs,)))


def source_bytes(kind):
    """What the data's digest is taken of."""
    if kind == "vla":
        return episodes.simulate(range(episodes.EPISODES), TURNS, CHUNK).tobytes()
    return SHAKESPEARE.read_bytes()


def write_golden(path, micro_batches, steps=STEPS, kind="gpt", **changes):
    """Writes manifest, configuration, sample ids and the initial state."""
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) * 0.1 for name, shape in shapes(kind)}
    tree = config(micro_batches, kind, **changes)
    tree["schedule"]["steps"] = steps
    data = {
        "digest": blake3.blake3(source_bytes(kind)).hexdigest(),
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
