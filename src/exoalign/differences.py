"""What differs between two nested dicts, in lines for people."""

from __future__ import annotations

import json
from typing import Any


def differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """A line for each value that differs between two nested dicts."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in dict.fromkeys([*before, *now])
            for line in differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(before, list) and isinstance(now, list) and before != now:
        if len(before) != len(now):
            return [f"{prefix} had {len(before)} items and has {len(now)}"]
        return [
            line
            for i, pair in enumerate(zip(before, now, strict=True))
            for line in differences(*pair, f"{prefix}[{i}]")
        ]
    return [] if before == now else [f"{prefix} was {_short(before)} and is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
