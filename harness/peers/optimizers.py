"""torch.optim's fused kernels as the golden run's configuration asks for them."""

import torch

# Names of the state in the run record, and in torch's optimizers.
STATE_NAMES = {
    "adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "sgd": {"momentum": "momentum_buffer"},
}


def recipe(settings):
    """The optimizer's class and its options."""
    if settings["kind"] == "adamw":
        return torch.optim.AdamW, {"betas": tuple(settings["betas"]), "eps": settings["eps"], "fused": True}
    return torch.optim.SGD, {"momentum": settings["momentum"], "fused": True}


def groups(named, settings):
    """Parameter groups: weight decay spares vectors (biases and norms). Torch's SGD couples its decay to the
    momentum, so SGD's is left to `decay`."""
    matrices = [parameter for _, parameter in named if parameter.dim() >= 2]
    vectors = [parameter for _, parameter in named if parameter.dim() < 2]
    decay_of_group = settings["weight_decay"] if settings["kind"] == "adamw" else 0.0
    both = ({"params": matrices, "weight_decay": decay_of_group}, {"params": vectors, "weight_decay": 0.0})
    return [group for group in both if group["params"]]


@torch.no_grad()
def decay(named, settings, lr):
    """Decoupled weight decay, where the optimizer itself does none."""
    if settings["kind"] == "sgd" and settings["weight_decay"] != 0:
        for _, parameter in named:
            if parameter.dim() >= 2:
                parameter.mul_(1 - lr * settings["weight_decay"])
