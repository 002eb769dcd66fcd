"""The learning rate as a function of the step."""

import math


def learning_rate(schedule, peak, step):
    """Of update `step` (from 1): linear warmup, then cosine, linear or constant."""
    warmup, last, floor = schedule["warmup_steps"], schedule["steps"], schedule["final_fraction"]
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (last - warmup)
    if schedule["kind"] == "cosine":
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if schedule["kind"] == "linear":
        return peak * (floor + (1 - floor) * (1 - progress))
    return peak
