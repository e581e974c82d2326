"""The tiny base and its data, written once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.config import ModelConfig, load_config
from tests.training.own_data import write_base, write_data


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of the tiny base."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs of 64 px."""
    return write_data(tmp_path_factory.mktemp("circles"))


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    """The demo model, small enough for a test."""
    small = load_config("demo")
    small.unet = replace(
        small.unet, model_channels=32, channel_mult=[1, 2], level_res_blocks=None, attention_resolutions=[2]
    )
    small.vae = replace(small.vae, ch=8, ch_mult=[1, 1, 2, 2])
    return small
