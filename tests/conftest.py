"""What many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core.pipeline import ControlNetPipeline
from tests.tiny_model import tiny_pipeline


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
