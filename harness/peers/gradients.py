"""The step's gradient: accumulated as PyTorch does, alone or under DDP, or along the tree of the ordered sum."""

import contextlib
import time


def tree_sum(leaves, add=lambda left, right: left + right):
    """The sum along the fixed binary tree: neighbours in pairs, level by level; one left over rises alone."""
    while len(leaves) > 1:
        pairs = [add(left, right) for left, right in zip(leaves[::2], leaves[1::2])]
        leaves = pairs + leaves[len(pairs) * 2 :]
    return leaves[0]


def share(items, parts, part):
    """The contiguous share of `part`: sizes differ by one at most, and the first parts get more."""
    size, more = divmod(items, parts)
    start = part * size + min(part, more)
    return range(start, start + size + (part < more))


class Sequential:
    """`.grad` accumulation over this rank's micro-batches; under DDP the last one's backward reduces."""

    def __init__(self, module, world_size):
        self.module, self.world_size = module, world_size

    def step(self, parameters, batches, tokens, seconds):
        """Leaves the step's gradient in `.grad`; returns the micro-batches' losses per token of the step."""
        for parameter in parameters:
            parameter.grad = None
        losses = []
        for index, (inputs, targets) in enumerate(batches):
            is_last = index == len(batches) - 1
            with contextlib.nullcontext() if is_last or self.world_size == 1 else self.module.no_sync():
                begin = time.perf_counter()
                loss = self.module(inputs, targets) / tokens
                middle = time.perf_counter()
                # DDP divides the sum over ranks by their number.
                (loss if self.world_size == 1 else loss * self.world_size).backward()
                seconds["forward"] += middle - begin
                seconds["backward"] += time.perf_counter() - middle
            losses.append(loss.item())
        return losses, []


class Tree:
    """Each micro-batch's gradient on its own, then their sum along the tree."""

    def __init__(self, module):
        self.module = module

    def step(self, parameters, batches, tokens, seconds):
        """As Sequential.step; also returns each micro-batch's gradients."""
        import torch

        losses, leaves = [], []
        for inputs, targets in batches:
            begin = time.perf_counter()
            loss = self.module(inputs, targets) / tokens
            middle = time.perf_counter()
            leaves.append(torch.autograd.grad(loss, parameters))
            seconds["forward"] += middle - begin
            seconds["backward"] += time.perf_counter() - middle
            losses.append(loss.item())
        for index, parameter in enumerate(parameters):
            parameter.grad = tree_sum([leaf[index] for leaf in leaves])
        return losses, leaves
