"""JSON read strictly: what Python's parser lets through is refused with its place.

Refused are duplicate keys, NaN and Infinity, lone surrogates, NUL characters, text that is not UTF-8, and what is cut.
`check_values` holds rows of other sources (Parquet, CSV, the hub) to the same.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from exoalign.errors import DataError

ARRAY_KEYS = ("data", "instances")
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_MEND = "mend the line or write the file again"
_TOO_DEEP = "nested too deeply; flatten it or leave the row out"
_ROW = '{"prompt": "...", ...}'


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """The file's bytes, unpacked where its name ends with `.gz`.

    Raises:
        DataError: if it cannot be opened, or what is read inside the block is cut or damaged.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; get the file again") from error


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1; a byte order mark is left out."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """The rows of a JSONL file with "file:line"; in place of a malformed one its error. Blank lines are no rows."""
    for number, line in lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, _as_row(parse_text(text_of_line(line.rstrip(b"\r\n"), where), where), where)
            except DataError as error:
                yield where, error


def read_document(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """The rows of a JSON file, an array of objects or an object that has it as `data` or `instances`, with "file:line".

    The text of the whole file is held, of its rows only one at a time.

    Raises:
        DataError: where the file is no such document; rows before that place have been handed out.
    """
    with opened(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 at byte {error.start + 1} of the file; save it as UTF-8") from error
    if not text.strip():
        return
    document = _Document(path, text)
    if document.peek() == "[":
        yield from document.array()
    elif document.peek() == "{":
        yield from document.object()
    else:
        raise document.error("expected an array of objects")
    if document.peek():
        raise document.error("more follows the end; a file with one object on each line must be called .jsonl")


class _Document:
    """A place in a JSON text that moves on as values are read."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text, self.at, self._counted, self._line = path, text, 0, 0, 1

    @property
    def where(self) -> str:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return f"{self.path}:{self._line}"

    def error(self, message: str) -> DataError:
        found = repr(self.text[self.at : self.at + 20]) if self.at < len(self.text) else "the end of the file"
        return DataError(f"{self.where}: found {found}: {message}")

    def peek(self) -> str:
        """The next character that is no space, or nothing at the end."""
        found = _NO_SPACE.search(self.text, self.at)
        self.at = found.start() if found else len(self.text)
        return self.text[self.at : self.at + 1]

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise self.error(f"expected {character!r}; the file is cut or broken here")
        self.at += 1

    def value(self) -> tuple[Any, list[str]]:
        """The next value, and what is wrong inside it."""
        self.peek()
        parser = _Parser()
        try:
            value, self.at = parser.decoder.raw_decode(self.text, self.at)
        except RecursionError:
            raise DataError(f"{self.where}: {_TOO_DEEP}") from None
        except json.JSONDecodeError as error:
            self.at = error.pos
            raise self.error(f"not JSON: {error.msg}; the file is cut or broken here") from error
        except ValueError as error:
            raise DataError(f"{self.where}: {error}") from error
        return value, parser.faults

    def array(self) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.peek()
            where = self.where
            value, faults = self.value()
            try:
                if faults:
                    raise DataError(f"{where}: {faults[0]}")
                yield where, _as_row(value, where)
            except DataError as error:
                yield where, error
            if self.peek() == "]":
                self.at += 1
                return
            self.take(",")

    def object(self) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
        start, found = self.where, list[str]()
        self.take("{")
        while self.peek() != "}":
            if found:
                self.take(",")
                self.peek()
            where = self.where
            key, _ = self.value()
            if not isinstance(key, str) or key in found:
                raise DataError(f"{where}: the key `{key}` stands twice or is no text")
            found.append(key)
            self.take(":")
            if key in ARRAY_KEYS and self.peek() == "[":
                if any(other in ARRAY_KEYS for other in found[:-1]):
                    raise DataError(f"{where}: `data` and `instances` both hold rows; leave one")
                yield from self.array()
            elif faults := self.value()[1]:
                raise DataError(f"{where}: {faults[0]}")
        self.at += 1
        if not any(key in ARRAY_KEYS for key in found):
            raise DataError(
                f"{start}: found an object with {', '.join(found[:8]) or 'no key'}; expected an array of objects, or"
                ' {"data": [...]} or {"instances": [...]}; one object on each line is a .jsonl file'
            )


class _Parser:
    """A JSON decoder that notes what Python's lets through, so that the value's end is found all the same."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self.faults.append(f"the key `{twice}` stands twice; leave one")
        return row

    def _constant(self, name: str) -> Any:
        self.faults.append(f"{name} is no number; expected finite values; mend it or leave the row out")
        return None


def parse_text(text: str, where: str) -> Any:
    """One JSON value that fills the whole text.

    Raises:
        DataError: with `where`.
    """
    parser = _Parser()
    try:
        value = parser.decoder.decode(text)
    except RecursionError:
        raise DataError(f"{where}: {_TOO_DEEP}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON at column {error.colno}: {error.msg}; {_MEND}") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if parser.faults:
        raise DataError(f"{where}: {parser.faults[0]}")
    return value


def text_of_line(line: bytes, where: str) -> str:
    """The line as text.

    Raises:
        DataError: if it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8") from error


def _as_row(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {type(value).__name__}, expected a JSON object; write each row as {_ROW}")
    check_values(value, where)
    return value


def checked(row: dict[str, Any], where: str) -> dict[str, Any] | DataError:
    """The row, or what `check_values` raises for it."""
    try:
        check_values(row, where)
    except DataError as error:
        return error
    return row


def check_values(row: dict[str, Any], where: str) -> None:
    """Hold a row to what any source must keep: numbers finite, text without lone surrogates and NUL.

    Raises:
        DataError: naming the column.
    """
    for column, value in row.items():
        try:
            fault = _fault(value) or _fault(column)
        except RecursionError:
            fault = f"is {_TOO_DEEP}"
        if fault is not None:
            name = column.encode("utf-8", "replace").decode()[:60] if isinstance(column, str) else repr(column)
            raise DataError(f"{where}: `{name}` {fault}")


def _fault(value: Any) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character, which ends a text in many programs; take it out"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "holds a lone surrogate, which is no character; mend the text"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"holds {value}; expected finite numbers; leave such rows out"
    elif isinstance(value, list | tuple):
        return next((fault for item in value if (fault := _fault(item)) is not None), None)
    elif isinstance(value, dict):
        for key, item in value.items():
            if (fault := _fault(key) or _fault(item)) is not None:
                return fault
    return None
