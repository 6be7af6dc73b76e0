"""Reads a recipe (YAML) into `exoalign.config.Recipe`: every mistake is told with its line, key and the nearest valid key.

A recipe holds data only: sections, lists, texts, numbers, true, false and null. Tags, aliases and whatever else YAML can do
are refused before anything is made of them.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from exoalign.config import Recipe
from exoalign.errors import ConfigError
from exoalign.recipe_paths import resolve_paths

MOST_BYTES = 100_000
"""A recipe is a page of text; what is larger was meant for something else."""

Kind = TypeVar("Kind", bound=BaseModel)
_TAG = "tag:yaml.org,2002:"
_SCALARS = {"str", "int", "float", "bool", "null"}


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
    values, lines = _read(path)
    if {"task", "methods"} <= set(values):
        raise ConfigError(f"{path} is a comparison; run it with `exoalign compare {path}`")
    return build_recipe(values, overrides, lines=lines, origin=str(path), folder=path.parent)


def load_section(kind: type[Kind], path: Path, overrides: Sequence[str] = ()) -> tuple[Kind, Callable[[str], str]]:
    """Read and check a file that holds a section of any kind; see `load_recipe`.

    Returns:
        The section, and where each of its dotted keys stands.
    """
    values, lines = _read(path)
    found, where, _ = _checked(kind, values, overrides, lines, str(path))
    return found, lambda key: _place(where, key, str(path))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The sections of a file, and where each dotted key stands."""
    reader = _Reader(lambda line: f"{path}:{line}")
    values = reader.read(_text_of(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path}: expected sections (model, prompts, align, ...), found {found}")
    return values, reader.lines


def build_recipe(
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    lines: Mapping[str, str] | None = None,
    origin: str = "command line",
    folder: Path | None = None,
    files: bool = True,
) -> Recipe:
    """Check a nested dict as a recipe; see `load_recipe`. `lines` says where each dotted key stands.

    With `files` False, input files need not exist.
    """
    recipe, where, by_hand = _checked(Recipe, values, overrides, lines, origin)
    if not files:
        return recipe
    return resolve_paths(
        recipe, lambda key: _place(where, key, origin), lambda place: None if place in by_hand else folder
    )


def build_section(
    kind: type[Kind],
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    lines: Mapping[str, str] | None = None,
    origin: str = "command line",
) -> Kind:
    """Check a nested dict as a section of any kind, with `key=value` settings that win over it; see `build_recipe`.

    Raises:
        ConfigError: naming key, place and the nearest valid key.
    """
    return _checked(kind, values, overrides, lines, origin)[0]


def _checked(
    kind: type[Kind],
    values: dict[str, Any],
    overrides: Sequence[str],
    lines: Mapping[str, str] | None,
    origin: str,
) -> tuple[Kind, dict[str, str], set[str]]:
    """The section, where each of its keys stands, and the places of overrides."""
    values, where = copy.deepcopy(values), dict(lines or {})
    by_hand: set[str] = set()
    for override in overrides:
        place = f"override {_short(repr(override))}"
        key, equals, text = override.partition("=")
        *parents, last = key.split(".")
        if not equals or not all((*parents, last)):
            raise ConfigError(f"{place}: expected section.key=value, for example align.beta_r=0.5")
        section = values
        for depth, parent in enumerate(parents, 1):
            if section.get(parent) is None:
                section[parent] = {}
                where.setdefault(".".join(parents[:depth]), place)
            section = section[parent]
            if not isinstance(section, dict):
                raise ConfigError(f"{place}: {parent} is a value, not a section")
        section[last] = _Reader(lambda line, place=place: place).read(text)  # type: ignore[misc]
        where = {name: at for name, at in where.items() if not name.startswith(f"{key}.")} | {key: place}
        by_hand.add(place)
    try:
        return kind.model_validate(values), where, by_hand
    except ValidationError as error:
        found = sorted(error.errors(), key=lambda item: item["type"] == "missing")  # a typo explains what is missing
        raise ConfigError("\n".join(_describe(item, where, origin, kind) for item in found[:5])) from None


def _text_of(path: Path) -> str:
    if os.path.isdir(path):
        raise ConfigError(f"recipe {path} is a folder; expected a YAML file")
    if not os.path.isfile(path):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.4)
        raise ConfigError(
            f"recipe {path} does not exist" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"recipe {path} is larger than {MOST_BYTES} bytes; is it a recipe?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x}") from error


class _Reader:
    """Makes plain values of YAML and notes the place of each dotted key.

    Args:
        at: what the place in a line is called.
    """

    def __init__(self, at: Callable[[int], str]) -> None:
        self.at, self.lines = at, dict[str, str]()
        self._yaml, self._seen = YAML(typ="safe", pure=True), set[int]()

    def read(self, text: str) -> Any:
        """The value of a whole text."""
        try:
            root = self._yaml.compose(text)
            return None if root is None else self._value(root, "")
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise ConfigError(f"{self.at(mark.line + 1 if mark else 1)}: not valid YAML: {error.problem}") from error
        except YAMLError as error:
            raise ConfigError(f"{self.at(1)}: not valid YAML: {str(error).splitlines()[0]}") from error
        except RecursionError:
            raise ConfigError(f"{self.at(1)}: nested too deeply for a recipe") from None

    def _value(self, node: Node, prefix: str) -> Any:
        kind, place = str(node.tag).removeprefix(_TAG), self.at(node.start_mark.line + 1)
        if id(node) in self._seen:  # lists of aliases of lists of aliases would grow without end
            raise ConfigError(f"{place}: used again elsewhere by an alias (*); write it out where it is needed")
        self._seen.add(id(node))
        if isinstance(node, MappingNode) and kind == "map":
            return self._section(node, prefix)
        if isinstance(node, SequenceNode) and kind == "seq":
            for i, item in enumerate(node.value):
                self.lines[f"{prefix}{i}"] = self.at(item.start_mark.line + 1)
            return [self._value(item, f"{prefix}{i}.") for i, item in enumerate(node.value)]
        if kind == "timestamp":
            raise ConfigError(f"{place}: {node.value} is a date in YAML; put it in quotes to make it a text")
        if not isinstance(node, ScalarNode) or kind not in _SCALARS:
            raise ConfigError(f"{place}: the tag {node.tag} is refused: a recipe holds data only")
        try:
            value = self._yaml.constructor.construct_object(node)
            str(value).encode()
        except (ValueError, KeyError) as error:  # `!!int x`, 5,000 digits, half a surrogate pair
            raise ConfigError(f"{place}: {_short(ascii(node.value))} is no {kind}: {_short(error)}") from error
        return value

    def _section(self, node: MappingNode, prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value in node.value:
            place = self.at(key_node.start_mark.line + 1)
            if not isinstance(key_node, ScalarNode):
                raise ConfigError(f"{place}: a key is a list or a section; expected a name")
            key = str(key_node.value)
            if key in values:
                raise ConfigError(f"{place}: the key `{prefix}{key}` stands twice; remove one")
            self.lines[f"{prefix}{key}"] = place
            values[key] = self._value(value, f"{prefix}{key}.")
        return values


def _place(where: Mapping[str, str], key: str, origin: str) -> str:
    """Where a dotted key stands, or the nearest section around it, or the whole."""
    parts = key.split(".")
    around = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((where[name] for name in around if name in where), origin)


def _section(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """The section that the keys lead to from another, or None where they lead to something else."""
    for key in location:
        if key.isdecimal():  # an item of a list of sections
            continue
        field = model.model_fields.get(key)
        inner = _sections_in(field.annotation) if field else []
        if not inner:
            return None
        model = inner[0]
    return model


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type names, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def _describe(item: Any, where: Mapping[str, str], origin: str, kind: type[BaseModel]) -> str:
    """One validation error as: place, key, what was found, what was expected, the nearest valid key."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    place = _place(where, key, origin)
    found = "empty" if item["input"] is None else _short(repr(item["input"]))
    if item["type"] == "extra_forbidden":
        around = _section(kind, location[:-1])
        known = list(around.model_fields) if around else []
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(known)}"
        return f"{place}: unknown key `{_short(key)}`; {hint}"
    if item["type"] == "missing":
        return f"{place}: `{key}` is missing; it has no default"
    if item["type"] == "value_error":
        message = str(item["ctx"]["error"])
        named = (".".join([*location, name]) for name in re.findall(r"`([\w.]+)`", message))
        place = next((where[name] for name in named if name in where), place)
        return f"{place}: {key + ': ' if key else ''}{message}"
    section = _section(kind, location)
    if item["type"] == "model_type" and section:
        return f"{place}: `{key}` is {found}; expected a section with the keys {', '.join(section.model_fields)}"
    if item["type"] == "literal_error":
        expected = item["ctx"]["expected"]
        words = expected.replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(str(item["input"]), words, n=1)
        return f"{place}: `{key}` is {found}; expected {expected}" + (f"; did you mean {near[0]}?" if near else "")
    return f"{place}: `{key}` is {found}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
