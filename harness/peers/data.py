"""Samples of a golden run, cut before the first step: a peer's steps are timed without their data.

A source has `micro_batch(ids, epochs)`, the tensors that a model's `forward` takes by the names that the record has for them;
and `targets(ids)`, how many targets each of the model's losses has in these samples.
"""

from itertools import count

import torch

from golden import load_tokens


class Text:
    """Sample i starts at token i * context; targets are shifted by one."""

    def __init__(self, golden):
        self.tokens = torch.frombuffer(bytearray(load_tokens(golden)), dtype=torch.uint8)
        self.context = golden.config["model"]["context"]

    def micro_batch(self, ids, epochs):
        """The same in all epochs."""
        rows = torch.stack([self.tokens[i * self.context : (i + 1) * self.context + 1] for i in ids]).long()
        return {"inputs": rows[:, :-1].contiguous(), "targets": rows[:, 1:].contiguous()}

    def targets(self, ids):
        """Of the loss: tokens."""
        return [len(ids) * self.context]


def source(golden):
    """Where the golden run's samples come from."""
    kind = golden.config["data"].get("kind")
    if kind == "images":
        from images import Images

        return Images(golden)
    if kind == "arm":
        from arm import Arm

        return Arm(golden)
    return Text(golden)


def epochs(samples, train_samples):
    """Of each sample of each micro-batch of each step, the epoch that it is visited in: a step may straddle two."""
    visits = count()
    return [[[next(visits) // train_samples for _ in ids] for ids in step] for step in samples]


def batches(source, samples, train_samples, owned, device="cpu"):
    """Per step: the micro-batches of a rank that owns those with the numbers `owned`, where it computes."""

    def micro_batch(ids, epochs):
        return {name: tensor.to(device) for name, tensor in source.micro_batch(ids, epochs).items()}

    steps = zip(samples, epochs(samples, train_samples))
    return [[micro_batch(ids[index], visited[index]) for index in owned] for ids, visited in steps]
