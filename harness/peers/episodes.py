"""The trainer's simulated arm (`embedded:reach`), simulated again here: a planar arm of two links that reaches for a target,
what there is to see, a plan in words, and the actions of a controller. An episode is a pure function of its number.

The golden run's manifest holds the BLAKE3 of the whole set, so an episode that differed in one bit would be noticed.
"""

import numpy

import streams
from fdlibm import sincos

EPISODES = 4096
SEED = 0x0072656163686531
# Joints, words of an observation, of the longest plan (three a joint, and the end), and of both.
JOINTS = 2
OBSERVATION_TOKENS, PLAN_TOKENS = 5, 3 * JOINTS + 1
TURN_TOKENS = OBSERVATION_TOKENS + PLAN_TOKENS

# The vocabulary: words, then numbers from 0 to BINS - 1.
END, SLOWLY, QUICKLY, JOINT_WORDS, LEFT, RIGHT, NEAR, FAR, FIRST_NUMBER, BINS = 1, 2, 3, (4, 5), 6, 7, 8, 9, 10, 32
VOCABULARY = FIRST_NUMBER + BINS

# In radians: between what angles each joint stays, and how far it is at first from where it should be, at least.
LOW, HIGH = numpy.array([-1.5, 0.3]), numpy.array([1.5, 2.5])
START_MIN = numpy.array([0.2, 0.0])
REACH, GAIN, STEP_MAX, SLOW_STEP_MAX = 2.0, 0.5, 0.3, 0.15
THERE, WORTH_A_WORD, FAR_FROM = 0.05, 0.15, 0.8


def simulate(ids, turns, chunk):
    """The episodes with these numbers, as records of shape (episodes, turns) with the bytes that their digest is taken of."""
    turn = numpy.dtype([
        ("tokens", "u1", TURN_TOKENS),
        # Of the plan; control steps that were made before the episode was over.
        ("words", "<u4"),
        ("made", "<u4"),
        ("actions", "<f4", (chunk, JOINTS)),
    ])
    arms, records = Arms(ids), numpy.zeros((len(ids), turns), dtype=turn)
    for index in range(turns):
        arms.turn(records[:, index])
    return records


class Arms:
    """Many arms on their way at once: arrays of (arms, joints)."""

    def __init__(self, ids):
        drawn = streams.uniform(streams.draw(SEED, streams.EPISODE, ids, 2 * (2 * JOINTS + 1)))
        aim, away = drawn[:, 0:4:2], drawn[:, 1:4:2]
        width = HIGH - LOW
        self.aims = LOW + width * aim
        away = START_MIN + (width - 2.0 * START_MIN) * away
        # Beyond one end of the range it begins again at the other.
        self.angles = LOW + numpy.fmod(width * aim + away, width)
        self.is_slow = drawn[:, 4] < 0.5

    def errors(self):
        return self.aims - self.angles

    def on_their_way(self):
        return ~(abs(self.errors()) < THERE).all(axis=1)

    def turn(self, records):
        """Fills in one turn of each; of an episode that is over there is nothing."""
        moving = self.on_their_way()
        plan, words = self.plan()
        tokens = numpy.concatenate([self.observation(), plan], axis=1)
        records["tokens"] = numpy.where(moving[:, None], tokens, 0)
        records["words"] = numpy.where(moving, words, 0)
        for step in range(records["actions"].shape[1]):
            moving = self.on_their_way()
            records["actions"][moving, step] = self.act(moving)
            records["made"] += moving

    def observation(self):
        """How fast to move, both angles, and the target's place."""
        (sin, cos), (sin_of_both, cos_of_both) = sincos(self.aims[:, 0]), sincos(self.aims[:, 0] + self.aims[:, 1])
        angles = [number(self.angles[:, joint], LOW[joint], HIGH[joint]) for joint in range(JOINTS)]
        place = [number(coordinate, -REACH, REACH) for coordinate in (cos + cos_of_both, sin + sin_of_both)]
        return numpy.stack([numpy.where(self.is_slow, SLOWLY, QUICKLY), *angles, *place], axis=1)

    def plan(self):
        """For each joint that has to turn its name, the way, and whether it is far; then the end. And how many words those are."""
        errors = self.errors()
        plan = numpy.zeros((len(errors), PLAN_TOKENS), dtype=numpy.int64)
        words = numpy.zeros(len(errors), dtype=numpy.int64)
        for joint, name in enumerate(JOINT_WORDS):
            rows = numpy.flatnonzero(abs(errors[:, joint]) > WORTH_A_WORD)
            error, first = errors[rows, joint], words[rows]
            plan[rows, first] = name
            plan[rows, first + 1] = numpy.where(error > 0.0, LEFT, RIGHT)
            plan[rows, first + 2] = numpy.where(abs(error) > FAR_FROM, FAR, NEAR)
            words[rows] += 3
        plan[numpy.arange(len(errors)), words] = END
        return plan, words + 1

    def act(self, moving):
        """One control step of the arms that move: proportional, with a limit. As parts of the largest step."""
        limit = numpy.where(self.is_slow, SLOW_STEP_MAX, STEP_MAX)[:, None]
        steps = numpy.clip(GAIN * self.errors(), -limit, limit)[moving]
        self.angles[moving] += steps
        return (steps / STEP_MAX).astype(numpy.float32)


def number(values, low, high):
    """The tokens of measured values."""
    return FIRST_NUMBER + numpy.clip(numpy.floor((values - low) / (high - low) * BINS), 0, BINS - 1).astype(numpy.int64)
