"""Known data sets: from rows in their own schema to rows of the common formats. One small file for each family."""

from __future__ import annotations

import difflib

from exoalign.data.adapters import alpaca_eval, helpsteer, hh, nectar, reviews, shp, tldr, ultrafeedback
from exoalign.data.adapters.schema import Adapter, Row, describe, mismatch
from exoalign.errors import DataError

_FAMILIES = (hh, tldr, reviews, ultrafeedback, alpaca_eval, helpsteer, nectar, shp)
ADAPTERS: dict[str, Adapter] = {adapter.name: adapter for family in _FAMILIES for adapter in family.ADAPTERS}


def find_adapter(name: str) -> Adapter:
    """The adapter of that name.

    Raises:
        DataError: with the nearest name and the list, if there is none.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), ADAPTERS, 1)
    hint = f"; did you mean `{near[0]}`?" if near else "."
    raise DataError(f"no adapter `{name}`{hint} There are: {', '.join(ADAPTERS)}")


def adapt(name: str, row: Row, where: str) -> list[Row]:
    """Turn one raw row of a known data set into rows of the common formats.

    Args:
        name: the adapter, a key of `ADAPTERS`.
        row: the raw row; columns that the adapter does not read are left out.
        where: "file:line" or "file, row N", for errors.

    Returns:
        Plain dicts, as a JSONL file of the common formats holds them.

    Raises:
        DataError: if there is no such adapter, or the row is not of its schema.
    """
    adapter = find_adapter(name)
    fault = mismatch(row, adapter.schema)
    if fault is None:
        return adapter.convert(row, where)
    fitting = [f"`{other.name}`" for other in ADAPTERS.values() if mismatch(row, other.schema) is None]
    remedy = f"the row fits the adapter {' or '.join(fitting)}" if fitting else "`exoalign data adapters` lists all"
    raise DataError(f"{where}: {fault}; the adapter `{name}` expects {describe(adapter.schema)}; {remedy}")
