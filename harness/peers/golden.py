"""Reads what a peer takes from the golden run: configuration, sample ids, initial weights and text."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import blake3

import model

SHAKESPEARE = Path(__file__).resolve().parents[2] / "data" / "shakespeare.txt"
# Exit codes of the project (harness/record/src/exit.rs).
USAGE = 2
NO_CHECKPOINT = 72


class Refused(Exception):
    """The golden run cannot be repeated here: the message says why, and what to change."""

    def __init__(self, message, exit_code=USAGE):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Golden:
    """A golden run, without its results."""

    path: Path
    config: dict
    manifest: dict
    # Per step, per micro-batch: sample ids.
    samples: list


def load_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {path}: {error}") from error


def load(path):
    """Reads and checks the golden run; refuses what PyTorch would not repeat bit for bit."""
    path = Path(path)
    manifest = load_json(path / "manifest.json")
    if manifest.get("record_version") != 1:
        raise Refused(f"{path}/manifest.json: record version {manifest.get('record_version')}, this program reads 1")
    try:
        # Not config.yaml: YAML libraries of another language may read a number such as 1e-8 as text.
        config = manifest["config"]
        check_config(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path}/manifest.json: no resolved configuration in it ({error!r})") from error
    return Golden(path, config, manifest, load_samples(path / "samples.jsonl", config["batch"]))


def check_config(config):
    unsupported = [
        *model.unsupported(config),
        (config["optim"]["clip_norm"] is not None, "optim.clip_norm is not null"),
        (config["optim"]["kind"] not in ("adamw", "sgd"), "optim.kind is neither adamw nor sgd"),
        (config["precision"] not in ("fp32", "bf16"), "precision is neither fp32 nor bf16"),
        (config.get("reduce_dtype", "fp32") != "fp32", "reduce_dtype is not fp32"),
    ]
    for is_unsupported, what in unsupported:
        if is_unsupported:
            raise Refused(f"{what}; set that key otherwise in the golden run")


def load_samples(path, batch):
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {path}: {error}") from error
    expected = [batch["micro_batch_size"]] * batch["micro_batches"]
    for number, line in enumerate(lines, start=1):
        if line["step"] != number or [len(ids) for ids in line["micro_batches"]] != expected:
            raise Refused(
                f"{path}:{number}: expected step {number} with {batch['micro_batches']} micro-batches of "
                f"{batch['micro_batch_size']} samples; the golden run must have started at step 0"
            )
    if not lines:
        raise Refused(f"{path} has no steps")
    return [line["micro_batches"] for line in lines]


def load_tokens(golden):
    """The train part of the text as bytes; a step's samples are cut from it."""
    data = golden.config["data"]
    path = SHAKESPEARE if data["path"] == "embedded:shakespeare" else Path(data["path"])
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Refused(f"data.path: cannot read {path}: {error}") from error
    recorded = golden.manifest["data"]
    if blake3.blake3(text).hexdigest() != recorded["digest"]:
        raise Refused(f"{path} is not the text that the golden run was trained on (BLAKE3 {recorded['digest']})")
    train = text[: math.floor(len(text) * (1.0 - data["validation_fraction"]))]
    samples = (len(train) - 1) // golden.config["model"]["context"]
    samples = min(samples, data["max_samples"] or samples)
    if samples != recorded["train_samples"]:
        raise Refused(f"{path} has {samples} train samples, the golden run had {recorded['train_samples']}")
    return train


def load_initial_weights(golden):
    """Parameters at step 0 by name, in the model's order, each checked against its digest."""
    import torch
    from safetensors import safe_open

    from record import digest, flat

    folder = golden.path / "checkpoints" / "step-00000000"
    if not (folder / "manifest.json").is_file():
        raise Refused(f"no initial state at {folder}: run the golden with --set checkpoint.at_start=true", NO_CHECKPOINT)
    entries = {entry["name"]: entry for entry in load_json(folder / "manifest.json")["tensors"]}
    weights = {}
    for name in (tensor["name"] for tensor in golden.manifest["model"]["tensors"]):
        entry = entries.get(f"model/{name}")
        if entry is None:
            raise Refused(f"{folder}/manifest.json has no tensor model/{name}", NO_CHECKPOINT)
        pieces = []
        for piece in entry["pieces"]:
            if Path(piece["file"]).name != piece["file"]:
                raise Refused(f"{folder}/manifest.json: `{piece['file']}` is not a plain file name", NO_CHECKPOINT)
            with safe_open(str(folder / piece["file"]), framework="pt") as file:
                pieces.append(file.get_tensor(piece["key"]).reshape(-1))
        tensor = torch.cat(pieces).reshape(entry["shape"])
        if digest(flat(tensor)) != entry["digest"]:
            raise Refused(f"{folder}: model/{name} does not have the digest {entry['digest']}", NO_CHECKPOINT)
        weights[name] = tensor
    return weights
