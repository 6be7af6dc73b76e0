"""Which prompts are sampled when, and which of their groups a step trains on: the plan of training on the policy's own samples.

The steps stand in blocks. A block samples its prompts once and trains on the groups `passes` times; then come the next
prompts. Prompts come in an endless stream: all of them in an order drawn by the seed, then all again in another order. So the
plan of any step follows from the seed and the step's number alone, and nothing of it is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """The plan of a training.

    Attributes:
        prompts: how many there are.
        per_step: groups of one optimizer step.
        every: steps that go over a block's groups once; so a block samples `every * per_step` prompts.
        passes: how often a block's groups are trained on, each time in another order (the first time in their own).
        steps: optimizer steps of the whole training.
        seed: of all orders.
    """

    prompts: int
    per_step: int
    every: int
    passes: int
    steps: int
    seed: int

    @classmethod
    def for_epochs(cls, prompts: int, per_step: int, every: int, passes: int, epochs: float, seed: int) -> Schedule:
        """The plan that samples each prompt `epochs` times; the last step is filled up with the prompts that come next.

        >>> Schedule.for_epochs(10, 2, 2, 3, 1.0, 0).steps  # blocks of 4, 4 and 2 prompts, 3 times 2, 2 and 1 steps
        15
        """
        whole, rest = divmod(math.ceil(epochs * prompts / per_step), every)
        return cls(prompts, per_step, every, passes, (whole * every + rest) * passes, seed)

    @property
    def blocks(self) -> int:
        """How many blocks there are; the last may be short."""
        return math.ceil(self.steps / (self.every * self.passes))

    def block_of(self, step: int) -> int:
        """The block that a step, counted from 0, belongs to."""
        return step // (self.every * self.passes)

    def steps_of_a_pass(self, block: int) -> int:
        """How many steps go over the block's groups once: `every`, or fewer in the last block."""
        left = self.steps - block * self.every * self.passes
        return min(self.every, math.ceil(left / self.passes))

    def prompts_of(self, block: int) -> list[int]:
        """The numbers of the prompts that a block samples, in order; one may come twice where two rounds meet."""
        first = block * self.every * self.per_step
        count = self.steps_of_a_pass(block) * self.per_step
        return [self._prompt(place) for place in range(first, first + count)]

    def rows_of(self, step: int) -> list[int]:
        """Which of its block's groups a step trains on: [per_step] places in `prompts_of`."""
        block = self.block_of(step)
        in_a_pass = self.steps_of_a_pass(block)
        number, place = divmod(step - block * self.every * self.passes, in_a_pass)
        count = in_a_pass * self.per_step
        order = _order(count, (self.seed, 1, block, number)) if number else range(count)
        return [int(row) for row in order[place * self.per_step : (place + 1) * self.per_step]]

    def _prompt(self, place: int) -> int:
        around, rest = divmod(place, self.prompts)
        return int(_order(self.prompts, (self.seed, 0, around))[rest])


@lru_cache(maxsize=8)
def _order(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
