"""Reads a recipe (YAML) into `exoalign.config.Recipe`: every mistake is told with its line, key and the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from exoalign.config import Recipe
from exoalign.errors import ConfigError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value` settings that win over the file; values are read as YAML.

    Returns:
        The recipe, with the paths of input files resolved.

    Raises:
        ConfigError: naming key, line and the nearest valid key.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.4)
        raise ConfigError(
            f"recipe {path} does not exist" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    try:
        document = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        where = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = (error.problem or "").split(" with value")[0].replace("found ", "")
        raise ConfigError(f"{path}{where}: {problem}: the key stands twice; remove one") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {error.problem or error.context}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML in UTF-8: {error}") from error
    lines: dict[str, str] = {}
    values = _plain(document, "", lines, path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections (model, prompts, align, ...), found {type(values).__name__}")
    return build_recipe(values, overrides, lines=lines, origin=str(path), folder=path.parent)


def build_recipe(
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    lines: Mapping[str, str] | None = None,
    origin: str = "command line",
    folder: Path | None = None,
) -> Recipe:
    """Check a nested dict as a recipe; see `load_recipe`. `lines` says where each dotted key stands."""
    where = dict(lines or {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected section.key=value, for example align.beta_r=0.5")
        section = values
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        try:
            section[last] = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise ConfigError(f"override {override!r}: {text!r} is no YAML value") from error
        where[key] = f"override {override!r}"
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(item, where, origin) for item in error.errors()[:5])) from None
    return _resolve_paths(recipe, where, origin, folder)


def _plain(node: Any, prefix: str, lines: dict[str, str], path: Path) -> Any:
    """Plain dicts and lists from a round-trip document, with the line of each dotted key noted."""
    if isinstance(node, CommentedMap):
        if node.tag is not None and node.tag.value not in (None, "tag:yaml.org,2002:map"):
            raise ConfigError(
                f"{path}:{node.lc.line + 1}: the tag {node.tag.value} is refused: a recipe holds data only"
            )
        for key in node:
            lines[f"{prefix}{key}"] = f"{path}:{node.lc.key(key)[0] + 1}"
        return {str(key): _plain(value, f"{prefix}{key}.", lines, path) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(value, prefix, lines, path) for value in node]
    if isinstance(node, TaggedScalar):
        where = lines.get(prefix.rstrip("."), str(path))
        raise ConfigError(f"{where}: the tag {node.tag.value} is refused: a recipe holds data only")
    for kind in (bool, int, float, str):  # ruamel's own scalar types remember their spelling
        if isinstance(node, kind):
            return kind(node)
    return node


def _section(location: Sequence[Any]) -> type[BaseModel] | None:
    """The section that the keys lead to, or None where a key is unknown."""
    model: type[BaseModel] = Recipe
    for key in location:
        field = model.model_fields.get(str(key))
        inner = (
            None
            if field is None
            else next(
                (
                    a
                    for a in (field.annotation, *get_args(field.annotation))
                    if isinstance(a, type) and issubclass(a, BaseModel)
                ),
                None,
            )
        )
        if inner is None:
            return None
        model = inner
    return model


def _describe(item: Any, where: Mapping[str, str], origin: str) -> str:
    """One validation error as: place, key, what was found, what was expected, the nearest valid key."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    place = next(
        (where[".".join(location[:n])] for n in range(len(location), 0, -1) if ".".join(location[:n]) in where), origin
    )
    if item["type"] == "extra_forbidden":
        section = _section(location[:-1])
        known = list(section.model_fields) if section else []
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(known)}"
        return f"{place}: unknown key `{key}`; {hint}"
    if item["type"] == "missing":
        return f"{place}: `{key}` is missing; it has no default"
    if item["type"] == "value_error":
        return f"{place}: {key + ': ' if key else ''}{item['ctx']['error']}"
    if item["type"] == "literal_error":
        expected = item["ctx"]["expected"]
        near = difflib.get_close_matches(
            str(item["input"]), expected.replace("'", "").replace(" or ", ", ").split(", "), n=1
        )
        return f"{place}: `{key}` is {item['input']!r}; expected {expected}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    return f"{place}: `{key}` is {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _resolve_paths(recipe: Recipe, where: Mapping[str, str], origin: str, folder: Path | None) -> Recipe:
    """The recipe with input files found beside it or in the working directory."""
    updates: dict[str, Any] = {}
    for name in ("prompts", "data"):
        section = getattr(recipe, name)
        if section is None:
            continue
        found: dict[str, str] = {}
        for key in ("train", "evaluation"):
            value = getattr(section, key)
            if value is not None:
                place = where.get(f"{name}.{key}", origin)
                found[key] = str(_find(value, f"{name}.{key}", place, None if "override" in place else folder))
        updates[name] = section.model_copy(update=found)
    local = folder / recipe.model.path if folder else None
    if local is not None and "override" not in where.get("model.path", "") and local.is_dir():
        updates["model"] = recipe.model.model_copy(update={"path": str(local)})
    return recipe.model_copy(update=updates)


def _find(value: str, key: str, place: str, folder: Path | None) -> Path:
    candidates = [base / Path(value).expanduser() for base in (folder, Path()) if base is not None]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = {p.name: p for candidate in candidates if candidate.parent.is_dir() for p in candidate.parent.iterdir()}
    near = difflib.get_close_matches(Path(value).name, list(names), n=1)
    looked = " and ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    raise ConfigError(
        f"{place}: `{key}`: file {value} does not exist (looked for {looked})"
        + (f"; did you mean {names[near[0]]}?" if near else "")
    )
