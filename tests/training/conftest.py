"""The tiny base and its data, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.own_data import write_base, write_data


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of the tiny base."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs of 64 px."""
    return write_data(tmp_path_factory.mktemp("circles"))
