"""Runs an example with a bug in the library that it calls: `planted.py BUG EXAMPLE ARGUMENTS...`. The harness must find it."""

import runpy
import sys
from pathlib import Path

import torch


def no_all_reduce():
    """Ranks never exchange gradients (PyTorch #104336, Lightning #17424)."""
    forward = torch.nn.parallel.DistributedDataParallel.forward

    def without_sync(self, *arguments, **options):
        with self.no_sync():
            return forward(self, *arguments, **options)

    torch.nn.parallel.DistributedDataParallel.forward = without_sync


def no_broadcast():
    """A rank's updated parameters never reach the others (RamTorch #13)."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    ZeroRedundancyOptimizer._sync_params = lambda self: None


def no_reduction():
    """DeepSpeed's partitions keep their own rank's gradients (Burn #3581, and many more)."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    DeepSpeedZeroOptimizer.average_tensor = lambda self, *_: None


def no_reduce_scatter():
    """FSDP never exchanges gradients: each shard has its own rank's."""
    import torch.distributed as dist

    def keep_own(output, input, **_):
        output.copy_(input.chunk(dist.get_world_size())[dist.get_rank()].view_as(output))

    # Its name in PyTorch 2.13, and before.
    dist.reduce_scatter_single = dist.reduce_scatter_tensor = keep_own


def no_zero_grad():
    """Gradients of earlier steps are never cleared."""
    torch.optim.Optimizer.zero_grad = lambda self, set_to_none=True: None


def same_samples():
    """All ranks read the first rank's samples (Accelerate #2694, Lightning #17713)."""
    import task

    micro_batches = task.micro_batches
    task.micro_batches = lambda step, count, rank=0, size=1: micro_batches(step, count, 0, size)


def same_masks():
    """All ranks draw the same dropout masks: each goes on from the seed of the initial weights (Transformers #31412)."""


def own_masks():
    """No bug: each rank seeds its dropout."""
    import torch.distributed as dist

    import task

    build = task.build

    def build_and_seed(dropout):
        model = build(dropout)
        torch.manual_seed(100 + (dist.get_rank() if dist.is_initialized() else 0))
        return model

    task.build = build_and_seed


def none():
    """No bug."""


if __name__ == "__main__":
    _, bug, example, *rest = sys.argv
    folder = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(folder), str(folder / "examples")]
    {function.__name__: function for function in (
        no_all_reduce, no_broadcast, no_reduction, no_reduce_scatter, no_zero_grad, same_samples, same_masks, own_masks, none,
    )}[bug]()
    sys.argv = [example, *rest]
    runpy.run_path(str(folder / "examples" / f"{example}.py"), run_name="__main__")
