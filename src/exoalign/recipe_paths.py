"""Where the input files of a recipe lie: beside it, or in the working directory, or on the hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exoalign.config import Recipe
from exoalign.config_data import DataSection, PromptsSection, SourceSection
from exoalign.errors import ConfigError
from exoalign.files import HUB_ID


def resolve_paths(recipe: Recipe, place: Callable[[str], str], beside: Callable[[str], Path | None]) -> Recipe:
    """The recipe with input files found beside it or in the working directory (overrides: there only)."""
    updates: dict[str, Any] = {}
    for name in ("prompts", "data"):
        if (section := getattr(recipe, name)) is not None:
            updates[name] = with_sources(section, name, place, beside)
    for name in ("sft", "reward_model"):
        if (section := getattr(recipe, name)) is not None:
            data = with_sources(section.data, f"{name}.data", place, beside)
            updates[name] = section.model_copy(update={"data": data})
    folder = beside(place("model.path"))
    if folder is not None and os.path.isdir(folder / recipe.model.path):
        updates["model"] = recipe.model.model_copy(update={"path": str(folder / recipe.model.path)})
    return recipe.model_copy(update=updates)


def with_sources(
    section: DataSection | PromptsSection,
    name: str,
    place: Callable[[str], str],
    beside: Callable[[str], Path | None],
) -> DataSection | PromptsSection:
    """A section with its data sets found; arguments as `resolve_paths`, for the section of this dotted name."""
    found: dict[str, Any] = {}
    for key in ("train", "evaluation"):
        value, full = getattr(section, key), f"{name}.{key}"
        if isinstance(value, list):
            found[key] = [_resolved(item, f"{full}.{i}", place, beside) for i, item in enumerate(value)]
        elif value is not None:
            found[key] = _resolved(value, full, place, beside)
    return section.model_copy(update=found)


def _resolved(
    source: str | SourceSection, key: str, place: Callable[[str], str], beside: Callable[[str], Path | None]
) -> str | SourceSection:
    if isinstance(source, str):
        return _find(source, key, place(key), beside(place(key)))
    if source.local is not None:
        for folder in (beside(place(f"{key}.local")), Path()):
            copy = None if folder is None else folder / os.path.expanduser(source.local)
            if copy is not None and copy.exists():
                of_the_hub = {"split": None, "subset": None, "revision": None, "local": None}
                return source.model_copy(
                    update={"path": str(copy), **(of_the_hub if copy.is_file() else {"local": None})}
                )
        source = source.model_copy(update={"local": None})
    at = place(f"{key}.path")
    return source.model_copy(update={"path": _find(source.path, f"{key}.path", at, beside(at))})


def _find(value: str, key: str, place: str, folder: Path | None) -> str:
    """A file or folder, or what looks like a hub id (`owner/name`) and is neither."""
    candidates = [base / os.path.expanduser(value) for base in (folder, Path()) if base is not None]
    for candidate in candidates:
        if os.path.isfile(candidate) or (value and os.path.isdir(candidate)):
            return str(candidate)
    if HUB_ID.fullmatch(value) and not any(os.path.isdir(candidate.parent) for candidate in candidates):
        return value
    parents = [candidate.parent for candidate in candidates if os.path.isdir(candidate.parent)]
    names = {p.name: p for parent in parents for p in parent.iterdir() if p.is_file()}
    near = difflib.get_close_matches(Path(value).name, list(names), n=1)
    looked = " and ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    raise ConfigError(
        f"{place}: `{key}`: file {value} does not exist (looked for {looked})"
        + (f"; did you mean {names[near[0]]}?" if near else "")
    )
