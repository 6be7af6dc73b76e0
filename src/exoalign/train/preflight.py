"""Before the first step: how many tokens go through the model at once, and what the training will take."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence
from typing import Any

from exoalign.errors import ExoalignError
from exoalign.estimate.budget import ADAM_BYTES, largest_pass
from exoalign.estimate.lines import lines, warning
from exoalign.estimate.preflight import Estimate, estimate
from exoalign.estimate.shapes import DataShape, shape_of
from exoalign.groups import Group
from exoalign.logprobs.passes import TOGETHER, TOKENS, budget_for
from exoalign.models import default_device
from exoalign.progress import plain
from exoalign.train.arguments import GroupConfig

logger = logging.getLogger(__name__)

SMALL_STEP = 1024
"""A step of so many tokens is one pass: to divide it saves little memory, and to find out how takes time."""


def tokens_per_pass(model: Any, arguments: GroupConfig, *data: Sequence[Group]) -> int:
    """The tokens of a pass: `max_tokens_per_pass`, or what fits into memory and is of use, and at least what the groups need.

    Raises:
        DataError: naming a group that is larger than `max_tokens_per_pass` by its prompt and longest completion alone.
    """
    if arguments.max_tokens_per_pass is not None:
        return budget_for(itertools.chain(*data), arguments.max_tokens_per_pass)
    shape = shape_of(itertools.chain(*data))
    most = TOKENS
    if arguments.per_device_train_batch_size * shape.largest_group > SMALL_STEP:
        try:
            most = largest_pass(
                model,
                bf16=arguments.bf16,
                prompt=shape.prompt,
                completion=shape.completion,
                checkpointing=arguments.gradient_checkpointing or None,
                optimizer_bytes=_state_bytes(arguments),
            )
        except ExoalignError as error:
            logger.info("%d tokens a pass, without regard to memory: %s", most, error)
    return max(most, shape.longest)


def estimate_training(model: Any, arguments: GroupConfig, shape: DataShape, *, tokens: int | None = None) -> Estimate:
    """What training on data of a shape will take with the trainer's settings; the model may be without weights."""
    most = arguments.per_device_train_batch_size * shape.largest_group
    if default_device().type == "cpu":  # groups are put together up to so much only
        most = min(most, max(TOGETHER, shape.largest_group))
    return estimate(
        model,
        shape,
        bf16=arguments.bf16,
        tokens_per_pass=tokens or arguments.max_tokens_per_pass,
        most=most,
        epochs=arguments.num_train_epochs,
        checkpointing=arguments.gradient_checkpointing or None,
        optimizer_bytes=_state_bytes(arguments),
    )


def say_estimate(model: Any, arguments: GroupConfig, groups: Sequence[Group], *, tokens: int, show: bool) -> None:
    """Print the estimate on stderr, and warn where it is over the memory."""
    try:
        found = estimate_training(model, arguments, shape_of(groups), tokens=tokens)
    except Exception as error:  # an estimate is a service: whatever an architecture does to it, the run goes on
        logger.warning("no estimate of memory and time can be made: %s", plain(str(error).partition("\n")[0]))
        return
    if show:
        sys.stderr.write("".join(f"  {line}\n" for line in lines(found)))
    if over := warning(found):
        logger.warning("%s", over)


def _state_bytes(arguments: GroupConfig) -> int:
    """Bytes of the optimizer's state for each trainable weight."""
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    return 0 if optimizer in ("sgd", "adafactor") else 2 if "8bit" in optimizer else ADAM_BYTES
