"""What the examples train: a small classifier of points that a fixed seed draws, with the same samples for any number of ranks."""

import argparse

import torch
import torch.nn.functional as F

STEPS, SAMPLES, FEATURES, WIDTH, CLASSES, SIZE = 12, 96, 32, 64, 16, 4
CONFIG = {"seed": 7, "lr": 1e-2, "width": WIDTH, "micro_batch_size": SIZE, "steps": STEPS}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--micro-batches", type=int, default=2, help="of the global batch, over all ranks")
    parser.add_argument("--dropout", type=float, default=0.0)
    return parser.parse_args()


def build(dropout=0.0):
    """The model with its initial weights, the same on each rank."""
    torch.manual_seed(CONFIG["seed"])
    layers = [torch.nn.Linear(FEATURES, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, CLASSES)]
    if dropout:
        layers.insert(2, torch.nn.Dropout(dropout))
    return torch.nn.Sequential(*layers)


def points():
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    return inputs, (inputs @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(dim=1)


INPUTS, TARGETS = points()


def micro_batches(step, count, rank=0, size=1):
    """Ids of this rank's micro-batches of a step: all `count` of them follow the epochs' permutations, in order."""
    per_step = count * SIZE
    ids = []
    for position in range((step - 1) * per_step, step * per_step):
        epoch, place = divmod(position, SAMPLES)
        ids.append(permutation(epoch)[place])
    mine = count // size
    every = [ids[i * SIZE : (i + 1) * SIZE] for i in range(count)]
    return every[rank * mine : (rank + 1) * mine]


def permutation(epoch):
    generator = torch.Generator().manual_seed(1000 * CONFIG["seed"] + epoch)
    return torch.randperm(SAMPLES, generator=generator).tolist()


def loss(model, ids):
    """Mean cross-entropy of a micro-batch."""
    return F.cross_entropy(model(INPUTS[ids]), TARGETS[ids])
