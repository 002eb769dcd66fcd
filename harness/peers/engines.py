"""Ways to train: each turns micro-batches into the step's gradient, and that into an update.

An engine is made on every rank of the world, from the model with its initial weights. What its methods do is the
library's own work; no engine waits, copies or computes for the record's sake unless it is asked for tensors.
"""

import contextlib
import time

import torch

from optimizers import STATE_NAMES, decay, groups, recipe
from record import tree_sum, versions

# Engine: the strategy's name in the run record.
STRATEGIES = {
    "single": "single",
    "ddp": "ddp",
    "zero_redundancy": "zero_redundancy",
    "deepspeed": "deepspeed_zero1",
}


def build(name, model, config, world, accumulate):
    """The engine of that name, trained on by all ranks of the world."""
    if name == "deepspeed":
        from deepspeed_engine import DeepSpeed

        return DeepSpeed(model, config, world)
    if name == "zero_redundancy":
        return ZeroRedundancy(model, config, world)
    if name == "ddp":
        return Ddp(model, config, world)
    return Tree(model, config, world) if accumulate == "tree" else Single(model, config, world)


def timed_backward(loss, scale, seconds, begin):
    """Backward of the scaled loss; adds the times of forward (since `begin`) and backward."""
    middle = time.perf_counter()
    (loss if scale == 1 else loss * scale).backward()
    seconds["forward"] += middle - begin
    seconds["backward"] += time.perf_counter() - middle


class Single:
    """One process that adds its micro-batches into `.grad`, one after the other."""

    def __init__(self, model, config, world):
        self.named, self.settings, self.world = model.named(), config["optim"], world
        self.parameters = [parameter for _, parameter in self.named]
        self.module = self.wrap(model)
        self.optimizer = self.make_optimizer()

    def wrap(self, model):
        return model

    def make_optimizer(self):
        optimizer, options = recipe(self.settings)
        return optimizer(groups(self.named, self.settings), **options)

    def without_sync(self):
        """The context of all micro-batches but the last."""
        return contextlib.nullcontext()

    def gradient(self, batches, objective, seconds):
        """Accumulates the step's gradient over this rank's micro-batches; `objective` knows the global batch.

        Returns the numbers of the micro-batches' shares.
        """
        self.optimizer.zero_grad(set_to_none=True)
        shares = []
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with contextlib.nullcontext() if is_last else self.without_sync():
                begin = time.perf_counter()
                share = objective.share(self.module(**batch))
                # Data-parallel modules divide the sum over ranks by their number.
                timed_backward(share.total, self.world.size, seconds, begin)
            shares.append(share.numbers())
        return shares

    def update(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        decay(self.named, self.settings, lr)
        self.optimizer.step()

    def local_gradients(self):
        """Each micro-batch's gradients, where the engine keeps them apart."""
        return []

    def gradients(self):
        """The step's gradients; all ranks call it, between `gradient` and `update`."""
        return [(name, parameter.grad) for name, parameter in self.named]

    def gradient_norm(self):
        """The norm of the step's gradient after `update`, in single precision."""
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in self.parameters]).item()

    def state(self):
        """The whole optimizer state under the record's names; all ranks call it."""
        return self.named_state(lambda parameter, key: self.optimizer.state[parameter].get(key))

    def named_state(self, state_of):
        for name, key in STATE_NAMES[self.settings["kind"]].items():
            for parameter_name, parameter in self.named:
                tensor = state_of(parameter, key)
                # SGD without momentum has no buffers; the trainer's stay zero.
                yield f"{name}/{parameter_name}", torch.zeros_like(parameter) if tensor is None else tensor

    def owned_elements(self):
        """Elements that this rank updates."""
        return sum(parameter.numel() for parameter in self.parameters)

    def versions(self):
        return versions()


class Tree(Single):
    """Each micro-batch's gradient on its own, then their sum along the tree of the ordered sum."""

    def gradient(self, batches, objective, seconds):
        self.leaves, shares = [], []
        for batch in batches:
            begin = time.perf_counter()
            share = objective.share(self.module(**batch))
            middle = time.perf_counter()
            self.leaves.append(torch.autograd.grad(share.total, self.parameters))
            seconds["forward"] += middle - begin
            seconds["backward"] += time.perf_counter() - middle
            shares.append(share.numbers())
        for index, parameter in enumerate(self.parameters):
            parameter.grad = tree_sum([leaf[index] for leaf in self.leaves])
        return shares

    def local_gradients(self):
        names = [name for name, _ in self.named]
        return [list(zip(names, leaf, strict=True)) for leaf in self.leaves]


class Ddp(Single):
    """torch.nn.parallel.DistributedDataParallel; the last micro-batch's backward reduces."""

    def wrap(self, model):
        # Gradients live in the buckets, so nothing is copied into them.
        return torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    def without_sync(self):
        return self.module.no_sync()


class ZeroRedundancy(Ddp):
    """torch.distributed.optim.ZeroRedundancyOptimizer under DistributedDataParallel: gradients are all-reduced, each
    rank updates whole parameters of its own and broadcasts them."""

    def make_optimizer(self):
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer, options = recipe(self.settings)
        return ZeroRedundancyOptimizer(
            groups(self.named, self.settings),
            optimizer_class=optimizer,
            parameters_as_bucket_view=True,
            lr=self.settings["lr"],
            **options,
        )

    def state(self):
        owned = self.optimizer.optim.state

        def from_owner(parameter, key):
            tensor = owned[parameter].get(key) if parameter in owned else None
            holders = torch.tensor([self.world.rank if tensor is not None else -1])
            torch.distributed.all_reduce(holders, op=torch.distributed.ReduceOp.MAX)
            if holders.item() < 0:
                return None
            tensor = torch.empty_like(parameter) if tensor is None else tensor.clone()
            torch.distributed.broadcast(tensor, src=int(holders.item()))
            return tensor

        return self.named_state(from_owner)

    def owned_elements(self):
        return sum(parameter.numel() for group in self.optimizer.optim.param_groups for parameter in group["params"])
