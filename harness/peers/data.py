"""Samples of a golden run, cut before the first step: a peer's steps are timed without their data."""

import torch

from golden import load_tokens


class Text:
    """Sample i starts at token i * context; targets are shifted by one."""

    def __init__(self, golden):
        self.tokens = torch.frombuffer(bytearray(load_tokens(golden)), dtype=torch.uint8)
        self.context = golden.config["model"]["context"]

    def micro_batch(self, ids):
        """(inputs, targets) of one micro-batch."""
        rows = torch.stack([self.tokens[i * self.context : (i + 1) * self.context + 1] for i in ids]).long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def targets(self, samples):
        """Terms of the loss in this many samples."""
        return samples * self.context


def source(golden):
    """Where the golden run's samples come from."""
    if golden.config["data"].get("kind") == "images":
        from images import Images

        return Images(golden)
    return Text(golden)


def batches(source, samples, owned, device="cpu"):
    """Per step: the micro-batches of a rank that owns those with the numbers `owned`, where it computes."""

    def micro_batch(ids):
        return tuple(tensor.to(device) for tensor in source.micro_batch(ids))

    return [[micro_batch(step[index]) for index in owned] for step in samples]
