"""What a rank computes on: the CPU, or a GPU of its own.

Of `cuda` nothing but the decisions has been run yet: no machine of this project had a GPU.
"""

import os

from golden import Refused

DEVICES = ("cpu", "cuda")
# Over what ranks exchange: tensors of the host (the record's numbers) and those of GPUs go different ways.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
# As the run record names what moved the gradients.
RECORDED = {"cpu": "gloo", "cuda": "nccl"}


def prepare_environment(kind, environment):
    """What CUDA's libraries read when they are first used: the trainer sets the same."""
    if kind == "cuda":
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def local_rank(environment, world):
    """This rank's number among those of its machine."""
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return world.rank


def ordinal(local, visible):
    """The GPU of a rank: one of its own, or none."""
    if local >= visible:
        raise Refused(
            f"--device cuda: this process sees {visible} GPU(s), and is rank {local} of its machine: start one rank for "
            "each GPU, or look at CUDA_VISIBLE_DEVICES"
        )
    return local


def device_of(kind, config, world):
    """The torch.device that this rank computes on, with kernels that repeat their bits and fp32 that is fp32."""
    import torch

    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", ordinal(local_rank(os.environ, world), torch.cuda.device_count()))
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = config["run"]["deterministic"]
    torch.backends.cudnn.benchmark = not config["run"]["deterministic"]
    return device


def finish(device):
    """Waits for the kernels that are under way: the next step would be charged for them."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def memory_of(device):
    """What the metrics say of a GPU's memory besides the host's: the most that tensors ever took."""
    if device.type != "cuda":
        return {}
    import torch

    return {"tensor_bytes_max": torch.cuda.max_memory_allocated(device)}
