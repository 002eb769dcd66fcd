"""The trainer's GPT in PyTorch: GPT-2's names, order and arithmetic (Radford et al. 2019)."""

import torch
import torch.nn.functional as F

NORM_EPS = 1e-5


class Gpt(torch.nn.Module):
    """Parameters are kept under the names of the run record; a module's name may not hold a dot, so `__` stands
    for it inside."""

    def __init__(self, config, weights):
        super().__init__()
        self.layers, self.heads = config["layers"], config["heads"]
        for name, tensor in weights.items():
            self.register_parameter(name.replace(".", "__"), torch.nn.Parameter(tensor))

    def parameter(self, name):
        return getattr(self, name.replace(".", "__"))

    def named(self):
        """(name as in the run record, parameter), in the model's order."""
        return [(name.replace("__", "."), parameter) for name, parameter in self.named_parameters()]

    def linear(self, name, x):
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return torch.addmm(bias, x.view(-1, weight.size(0)), weight).view(*x.shape[:-1], weight.size(1))

    def norm(self, name, x):
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, NORM_EPS)

    def attention(self, name, x):
        batch, time, width = x.shape
        heads = [
            part.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
            for part in self.linear(f"{name}.c_attn", x).split(width, dim=2)
        ]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.linear(f"{name}.c_proj", mixed.transpose(1, 2).contiguous().view(batch, time, width))

    def forward(self, inputs, targets):
        """Cross-entropy summed over the micro-batch's tokens."""
        tokens = self.parameter("wte.weight")
        x = F.embedding(inputs, tokens) + self.parameter("wpe.weight")
        for layer in range(self.layers):
            x = x + self.attention(f"h.{layer}.attn", self.norm(f"h.{layer}.ln_1", x))
            hidden = F.gelu(self.linear(f"h.{layer}.mlp.c_fc", self.norm(f"h.{layer}.ln_2", x)), approximate="tanh")
            x = x + self.linear(f"h.{layer}.mlp.c_proj", hidden)
        x = self.norm("ln_f", x)
        logits = x.view(-1, x.size(-1)).matmul(tokens.t())
        return F.cross_entropy(logits, targets.view(-1), reduction="sum")
