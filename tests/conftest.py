"""What many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.pipeline import ControlNetPipeline
from tests.tiny_model import tiny_pipeline


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here, and what takes a minute unless it is asked for."""
    chosen = config.getoption("markexpr")
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
        if item.get_closest_marker("compiler") and "compiler" not in chosen:
            item.add_marker(pytest.mark.skip(reason="takes minutes: give -m compiler"))


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute small tensors on one thread: waiting for each other costs much on a busy machine."""
    before = torch.get_num_threads()
    if request.node.get_closest_marker("full_size") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe() -> ControlNetPipeline:
    """A pipeline of tiny random networks."""
    return tiny_pipeline()
