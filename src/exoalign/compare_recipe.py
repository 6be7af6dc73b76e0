"""Reads the recipe of a comparison and that of its task. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exoalign.config import Recipe
from exoalign.config_compare import Comparison
from exoalign.errors import ConfigError
from exoalign.recipe import load_recipe, load_section
from exoalign.recipe_paths import with_sources


def load_comparison(
    path: str | Path, overrides: Sequence[str] = (), *, small: bool = False
) -> tuple[Comparison, Recipe]:
    """Read and check a comparison and its task.

    Args:
        path: a YAML file; `task` is looked for beside it.
        overrides: `key=value` settings that win over the file.
        small: the comparison of `--small`.

    Raises:
        ConfigError: naming file, key and line.
    """
    path = Path(path)
    comparison, place = load_section(Comparison, path, overrides)
    if small:
        comparison = comparison.smaller()
    task = path.parent / comparison.task
    try:
        recipe = load_recipe(task, comparison.settings)
    except ConfigError as error:
        raise ConfigError(f"{place('task')}: the task is wrong: {error}") from error
    if comparison.held_out_model is not None:
        data = with_sources(comparison.held_out_model.data, "held_out_model.data", place, lambda at: path.parent)
        section = comparison.held_out_model.model_copy(update={"data": data})
        comparison = comparison.model_copy(update={"held_out_model": section})
    return comparison, recipe
