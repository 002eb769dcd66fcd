"""What the trainer's transformers are made of: GPT-2's pre-norm blocks, names, order and arithmetic (Radford et al. 2019)."""

import torch
import torch.nn.functional as F

from named import Named

NORM_EPS = 1e-5


class Transformer(Named):
    """A trunk of blocks; embeddings and heads are a model's own."""

    def __init__(self, config, weights):
        super().__init__(weights)
        self.layers, self.heads = config["layers"], config["heads"]

    def linear(self, name, x):
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return torch.addmm(bias, x.view(-1, weight.size(0)), weight).view(*x.shape[:-1], weight.size(1))

    def norm(self, name, x):
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, NORM_EPS)

    def attention(self, name, x, mask):
        batch, time, width = x.shape
        heads = [
            part.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
            for part in self.linear(f"{name}.c_attn", x).split(width, dim=2)
        ]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=mask is None)
        return self.linear(f"{name}.c_proj", mixed.transpose(1, 2).contiguous().view(batch, time, width))

    def blocks(self, x, mask=None):
        """Runs `x` through all of them. Where `mask` is true a row's position sees a column's; without one, all before it."""
        for layer in range(self.layers):
            x = x + self.attention(f"h.{layer}.attn", self.norm(f"h.{layer}.ln_1", x), mask)
            hidden = F.gelu(self.linear(f"h.{layer}.mlp.c_fc", self.norm(f"h.{layer}.ln_2", x)), approximate="tanh")
            x = x + self.linear(f"h.{layer}.mlp.c_proj", hidden)
        return x
