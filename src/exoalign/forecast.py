"""What a stage will take, before anything is loaded: from the model's configuration and the speed of matrix products here."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from exoalign.errors import ExoalignError
from exoalign.estimate.preflight import EFFICIENCY, skeleton
from exoalign.estimate.rate import product_rate
from exoalign.models import default_device
from exoalign.progress import duration

SAMPLING = 0.2
"""Share of the rate of matrix products that drawing tokens reaches at some 64 rows (docs/sampling.md)."""


class Forecast:
    """Rough times of a model's work.

    Args:
        path: a folder, a hub id or `demo`.
        bf16: whether it computes in bfloat16.
        revision, trust_remote_code: as for `load_model`.
    """

    def __init__(self, path: str, *, bf16: bool, revision: str | None = None, trust_remote_code: bool = False) -> None:
        self._path, self._bf16 = path, bf16
        self._loading = {"revision": revision, "trust_remote_code": trust_remote_code}

    def sampling(self, tokens: int) -> str:
        """Of drawing so many tokens at most, as people say it; nothing where the architecture allows no forecast."""
        return self._time(2 * tokens, SAMPLING)

    def training(self, tokens: float) -> str:
        """Of passing so many tokens forward and back."""
        return self._time(6 * tokens, EFFICIENCY)

    def _time(self, operations: float, share: float) -> str:
        """Of so many operations for each parameter."""
        if self._known is None:
            return "time not known"
        parameters, rate = self._known
        return f"about {duration(operations * parameters / (share * rate))}"

    @cached_property
    def _known(self) -> tuple[int, float] | None:
        """Parameters and operations a second; None where the configuration allows no forecast."""
        loading: dict[str, Any] = self._loading
        try:
            model = skeleton(self._path, **loading)
            rate = product_rate(model, bf16=self._bf16, device=default_device(), rows=1024)
        except ExoalignError:  # a service: whatever it is, the run itself will say it better
            return None
        return sum(weight.numel() for weight in model.parameters()), rate
