"""Samples of the trainer's simulated arm: tokens and their targets, actions, and what flow matching draws at each visit."""

import blake3
import numpy

import streams
from episodes import EPISODES, JOINTS, OBSERVATION_TOKENS, TURN_TOKENS, simulate
from golden import Refused

# What a target is that does not count.
IGNORED = -100


class Arm:
    """Micro-batches of the golden run's episodes."""

    def __init__(self, golden):
        model = golden.config["model"]
        self.episodes = simulate(range(EPISODES), model["turns"], model["chunk"])
        if blake3.blake3(self.episodes.tobytes()).hexdigest() != golden.manifest["data"]["digest"]:
            raise Refused("data.path: these are not the episodes that the golden run was trained on")
        self.seed = golden.manifest["seed"]

    def micro_batch(self, ids, epochs):
        """Tokens and targets (samples, turns, tokens); actions, whether each counts and noise (samples, turns, chunk, joints);
        times (samples, turns)."""
        import torch

        turns = self.episodes[ids]
        actions, made = turns["actions"], turns["made"][..., None]
        counted = numpy.arange(actions.shape[2]) < made
        arrays = {
            "inputs": turns["tokens"].astype(numpy.int64),
            "targets": targets_of(turns),
            "actions": actions.astype(numpy.float32),
            "counted": numpy.repeat(counted[..., None], JOINTS, axis=3).astype(numpy.float32),
            "noise": self.noise(ids, epochs, actions.shape),
            "times": self.times(ids, epochs, turns.shape[1]),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def noise(self, ids, epochs, shape):
        """What the flows begin with: a function of seed, epoch and sample, so neither ranks nor batches enter."""
        elements = shape[1] * shape[2] * shape[3]
        return streams.normal(streams.draw(self.seed, streams.FLOW_NOISE, ids, 2 * elements, epochs)).reshape(shape)

    def times(self, ids, epochs, chunks):
        """Where on their way the flows are looked at, likewise: in [0, 1), with as many bits as fp32 holds."""
        words = streams.draw(self.seed, streams.FLOW_TIMES, ids, chunks, epochs)
        return (words >> numpy.uint64(8)).astype(numpy.float32) / numpy.float32(1 << 24)

    def targets(self, ids):
        """Of each loss: words of the plans, and elements of actions that were made before the episode was over."""
        turns = self.episodes[ids]
        return [int(turns["words"].sum()), int(turns["made"].sum()) * JOINTS]


def targets_of(turns):
    """The words of each plan, each at the position before it; all else is not predicted."""
    targets = numpy.full((*turns.shape, TURN_TOKENS), IGNORED, dtype=numpy.int64)
    plan = turns["tokens"][..., OBSERVATION_TOKENS:]
    is_word = numpy.arange(plan.shape[-1]) < turns["words"][..., None]
    targets[..., OBSERVATION_TOKENS - 1 : -1] = numpy.where(is_word, plan.astype(numpy.int64), IGNORED)
    return targets
