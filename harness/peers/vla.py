"""The trainer's vla in PyTorch: one transformer over tokens, learnt autoregressively, and chunks of continuous actions, learnt
by flow matching (Lipman et al. 2023), as in π0 (Black et al. 2024)."""

import math

import torch
import torch.nn.functional as F

from episodes import TURN_TOKENS
from transformer import Transformer

# The shortest and the longest period of the sines and cosines that tell the time.
PERIODS = (4e-3, 4.0)


class Vla(Transformer):
    """Turns of tokens and of a chunk of actions each; docs/models.md has a picture of who sees whom."""

    def __init__(self, config, weights):
        super().__init__(config, weights)
        self.terms = (("ar", config["ar_weight"]), ("fm", config["fm_weight"]))
        # Constants, but no buffers: those DistributedDataParallel would broadcast before each forward pass.
        self.mask = mask(config["turns"], config["chunk"])
        self.frequencies = frequencies(config["width"])

    def forward(self, inputs, targets, actions, counted, noise, times):
        """Cross-entropy summed over the plans' words, and squared error of the velocity summed over the actions that count."""
        velocity = actions - noise
        logits, predicted = self.predict(inputs, noise + velocity * times[..., None, None], times)
        autoregressive = F.cross_entropy(logits, targets.view(-1), reduction="sum")
        error = (predicted - velocity) * counted
        return autoregressive, error.square().sum(dtype=torch.float32)

    def predict(self, inputs, noisy, times):
        """What each token is followed by, and the velocity of chunks that have come from noise as far as `times`."""
        embeddings = self.parameter("wte.weight")
        tokens = F.embedding(inputs, embeddings)
        chunks = self.linear("action_in", noisy) + self.linear("time_in", self.clock(times)).unsqueeze(2)
        x = torch.cat([tokens, chunks], dim=2)
        shape, width = x.shape, x.size(-1)
        x = x.view(shape[0], -1, width) + self.parameter("wpe.weight")
        x = self.norm("ln_f", self.blocks(x, self.mask.to(x.device))).view(shape)
        of_tokens = x[:, :, :TURN_TOKENS].reshape(-1, width)
        of_actions = x[:, :, TURN_TOKENS:].contiguous()
        return of_tokens.matmul(embeddings.t()), self.linear("action_out", of_actions)

    def clock(self, times):
        """Sines and cosines of the times."""
        angles = times.unsqueeze(-1) * self.frequencies.to(times.device)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def mask(turns, chunk):
    """True where a row's position sees a column's: tokens are seen from behind, an action by its own chunk alone."""
    length = TURN_TOKENS + chunk
    positions = torch.arange(turns * length)
    turn, is_action = positions // length, positions % length >= TURN_TOKENS
    before = positions <= positions[:, None]
    same_chunk = is_action[:, None] & (turn == turn[:, None])
    return torch.where(is_action, same_chunk, before)


def frequencies(width):
    """2π ÷ periods that lie between the shortest and the longest at equal ratios."""
    (shortest, longest), count = PERIODS, width // 2
    exponents = torch.arange(count, dtype=torch.float64) * (math.log(longest / shortest) / count)
    return (exponents.exp() * (math.tau / longest)).to(torch.float32)
