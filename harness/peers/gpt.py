"""The trainer's GPT in PyTorch (Radford et al. 2019)."""

import torch.nn.functional as F

from transformer import Transformer


class Gpt(Transformer):
    """Causal decoder with tied embeddings and learned positions."""

    def forward(self, inputs, targets):
        """Cross-entropy summed over the micro-batch's tokens."""
        tokens = self.parameter("wte.weight")
        x = F.embedding(inputs, tokens) + self.parameter("wpe.weight")
        x = self.norm("ln_f", self.blocks(x))
        logits = x.view(-1, x.size(-1)).matmul(tokens.t())
        return (F.cross_entropy(logits, targets.view(-1), reduction="sum"),)
