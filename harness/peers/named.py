"""What the models have in common: parameters under the run record's names, and the losses that they learn from."""

import torch


class Named(torch.nn.Module):
    """Parameters are kept under the names of the run record; a module's name may not hold a dot, so `__` stands
    for it inside."""

    # Name and weight of each loss that `forward` returns.
    terms = (("loss", 1.0),)

    def __init__(self, weights):
        super().__init__()
        for name, tensor in weights.items():
            self.register_parameter(name.replace(".", "__"), torch.nn.Parameter(tensor))

    def parameter(self, name):
        return getattr(self, name.replace(".", "__"))

    def has(self, name):
        return hasattr(self, name.replace(".", "__"))

    def named(self):
        """(name as in the run record, parameter), in the model's order."""
        return [(name.replace("__", "."), parameter) for name, parameter in self.named_parameters()]
