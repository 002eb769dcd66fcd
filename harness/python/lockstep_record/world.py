"""The ranks that train together, as torch.distributed knows them."""

import os

import torch
import torch.distributed as dist


class World:
    """This rank's place. A process group that is missing where a launcher started several ranks is an error: each would
    train alone and call itself rank 0."""

    def __init__(self):
        self.rank, self.size, self.backend = 0, 1, "solo"
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size, self.backend = dist.get_rank(), dist.get_world_size(), dist.get_backend()
            return
        for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
            size = os.environ.get(name, "1")
            if size.isdigit() and int(size) > 1:
                raise RuntimeError(
                    f"{name} is {size}, but torch.distributed is not initialised: call init_process_group before Recorder, "
                    f"or unset {name}"
                )

    def gather(self, value):
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, action):
        """What `action` returns on rank 0, which alone runs it; its error is raised on every rank."""
        result, error = None, None
        if self.rank == 0:
            try:
                result = action()
            except OSError as caught:
                error = caught
            except Exception as caught:  # whatever it is, the other ranks must not wait for it
                error = RuntimeError(repr(caught))
        error = self.gather(error)[0]
        if error is not None:
            raise error
        return result

    def from_owner(self, tensor, like):
        """The tensor of the one rank that has it; None if no rank has."""
        if self.size == 1:
            return tensor
        holders = torch.tensor([self.rank if tensor is not None else -1], device=like.device)
        dist.all_reduce(holders, op=dist.ReduceOp.MAX)
        owner = int(holders.item())
        if owner < 0:
            return None
        # A copy: a broadcast into the optimizer's own tensor is none of ours to make.
        tensor = torch.empty_like(like) if self.rank != owner else tensor.detach().clone()
        dist.broadcast(tensor, src=owner)
        return tensor
