"""How much memory this process may have: of the accelerator, or of the machine and the container that it runs in."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

import torch

_CGROUPS = [
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
]
"""Limit and use of a container, of version 2 and 1."""


def memory_for(device: torch.device) -> int | None:
    """Bytes that this process can hold on the device, what it holds already among them; None where nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + int(torch.cuda.memory_reserved(device))
    if device.type != "cpu":
        return None
    limits = [free for free in (_available(), _left_in_container()) if free is not None]
    return min(limits) + resident() if limits else None


def resident() -> int:
    """Bytes of main memory that this process holds now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024  # the highest so far, where the present is not told
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no Linux: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_container() -> int | None:
    for limit, use in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max": none
            return max(int(Path(limit).read_text()) - int(Path(use).read_text()), 0)
    return None
