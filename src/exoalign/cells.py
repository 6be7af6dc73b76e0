"""The runs of a comparison: of each method with each strength and seed, the recipe that it is. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exoalign.config import Recipe
from exoalign.config_compare import Comparison, MethodSection
from exoalign.config_train import PAIRED, UNREAD
from exoalign.errors import ConfigError
from exoalign.recipe import build_recipe

NOTHING = ("sft_best",)
"""Objectives without a KL penalty: one run a seed, whatever the strengths."""


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        name: of its folder.
        method: its method.
        beta: the strength of the KL penalty, None where the method has none.
        seed: of the training.
        recipe: the task with the method's settings.
        trial: the learning rate, where this is a trial of the search.
    """

    name: str
    method: str
    beta: float | None
    seed: int
    recipe: Recipe
    trial: float | None = None


def cells_of(comparison: Comparison, task: Recipe) -> list[Cell]:
    """All trainings of a comparison: for each trained method first the trials of the search, then each beta and seed.

    Raises:
        ConfigError: naming the method and the key, if its settings do not fit the task.
    """
    return [
        cell
        for name, method in comparison.methods.items()
        if method.best_of is None
        for cell in _of_method(comparison, task, name, method)
    ]


def _of_method(comparison: Comparison, task: Recipe, name: str, method: MethodSection) -> Iterator[Cell]:
    search = comparison.search
    objective = method.align.get("objective", task.align.objective)
    for beta in [None] if objective in NOTHING else comparison.betas:
        strength = "" if beta is None else f".b{beta:g}"
        if search is not None:
            for i, rate in enumerate(search.learning_rate):
                recipe = method_recipe(task, name, method.align, beta, search.seed, rate)
                yield Cell(f"{name}{strength}.search{i + 1}", name, beta, search.seed, recipe, rate)
        for seed in comparison.seeds:
            yield Cell(
                f"{name}{strength}.s{seed}", name, beta, seed, method_recipe(task, name, method.align, beta, seed)
            )


def method_recipe(
    task: Recipe, name: str, changes: dict[str, Any], beta: float | None, seed: int, learning_rate: float | None = None
) -> Recipe:
    """The task's recipe with a method's changes to `align`, its strength and its seed.

    What the task sets for its own objective and the method's does not read is left out.

    Raises:
        ConfigError: naming the method and the key.
    """
    values = task.model_dump(exclude_unset=True)
    given = dict(values.get("align", {}))
    align = _merged(given, changes)
    objective = align.get("objective", "exo_rw")
    for key in UNREAD.get(objective, ()):
        if key not in changes:
            align.pop(key, None)
    if objective not in PAIRED and "completions" not in changes:
        align.pop("completions", None)
    if align.get("online") is not None:  # it draws its own, so many of each prompt as it says itself
        values["sample"] = {key: value for key, value in values.get("sample", {}).items() if key != "k"}
    if beta is not None:
        align = _merged(align, _strength(objective, align, beta))
    if learning_rate is not None:
        align["learning_rate"] = learning_rate
    values |= {"align": align, "seed": seed}
    try:
        return build_recipe(values, origin=f"methods.{name}", files=False)
    except ConfigError as error:
        raise ConfigError(f"methods.{name}: with this method the task's recipe is wrong:\n{error}") from error


def _strength(objective: str, align: dict[str, Any], beta: float) -> dict[str, Any]:
    """The settings that make beta the strength of the KL penalty."""
    if objective in PAIRED:
        return {"beta_pi": beta}
    return {"beta_r": beta / align.get("beta_pi", 0.5)}


def _merged(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes win, section by section."""
    found = dict(before)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found
