"""What tests of log-probs share: one thread for their tiny models, and a way to be sure that no rows are computed."""

import pytest
import torch

from exoalign.logprobs import rows
from exoalign.logprobs.engine import shares_prefix


@pytest.fixture(autouse=True)
def one_thread():
    """Several gain nothing on these sizes, and on a busy machine they wait for each other: forty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_rows(monkeypatch):
    """Decides for the shared prefix, then takes the rows away."""

    def refuse(*args, **kwargs):
        raise AssertionError("computed by padded rows")

    def decide(*models):
        for model in models:
            assert shares_prefix(model)
            assert model.config._attn_implementation == "exoalign"
        monkeypatch.setattr(rows, "completion_logprobs", refuse)
        monkeypatch.setattr(rows, "compare_policies", refuse)

    return decide
