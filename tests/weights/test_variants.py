"""A control file says which variant it holds; what it says decides which network is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.config import CONTROL_VARIANTS, ModelConfig, load_config, with_variant
from core.errors import CheckpointMismatch
from core.models.unet import UNet
from core.models.variants import VARIANTS, AnyControlNet, control_class
from core.training.export import export_control
from core.weights.checkpoint import inspect_checkpoint, load_control
from core.weights.controls import diff, extract, transfer
from core.weights.describe import advice
from core.weights.diffusers_folders import to_diffusers
from tests.deterministic_weights import fill_module
from tests.tiny_model import tiny_config

CPU = torch.device("cpu")
DEMO = Path(__file__).parents[2] / "ckpts" / "demo"


@pytest.fixture
def config() -> ModelConfig:
    return tiny_config()


def written(config: ModelConfig, variant: str, folder: Path) -> tuple[AnyControlNet, Path]:
    own = with_variant(config, variant)
    net = control_class(own.control)(own.unet, own.control)
    fill_module(net, "control_model.", variant)
    path = folder / f"{variant}.safetensors"
    export_control(own, net, path)
    return net, path


def load(config: ModelConfig, path: Path) -> AnyControlNet:
    return load_control(config, path, device=CPU, dtype=torch.float32)


def relabelled(path: Path, variant: str) -> Path:
    """Return a copy of a file whose metadata names another variant."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    metadata["config"] = metadata["config"].replace(f"variant: {path.stem}", f"variant: {variant}")
    other = path.with_name(f"{path.stem}_as_{variant}.safetensors")
    save_file(tensors, other, metadata=metadata)
    return other


@pytest.mark.parametrize("asked", CONTROL_VARIANTS)
@pytest.mark.parametrize("variant", CONTROL_VARIANTS)
def test_a_file_comes_back_as_what_it_is_whatever_the_config_says(
    variant: str, asked: str, config: ModelConfig, tmp_path: Path
) -> None:
    net, path = written(config, variant, tmp_path)
    loaded = load(with_variant(config, asked), path)
    assert type(loaded) is VARIANTS[variant]
    sent = net.state_dict()
    assert loaded.state_dict().keys() == sent.keys()
    assert all(torch.equal(v, sent[k].half().float()) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("variant", CONTROL_VARIANTS)
def test_without_metadata_the_config_decides(variant: str, config: ModelConfig, tmp_path: Path) -> None:
    net, _ = written(config, variant, tmp_path)
    bare = tmp_path / "bare.safetensors"
    save_file(net.state_dict(), bare)
    assert type(load(with_variant(config, variant), bare)) is VARIANTS[variant]
    other = "lite" if variant != "lite" else "full"
    with pytest.raises(CheckpointMismatch, match="needed is a ControlNet"):
        load(with_variant(config, other), bare)


@pytest.mark.parametrize("name", ["canny", "depth"])
def test_files_from_before_there_were_variants_are_full(name: str, tmp_path: Path) -> None:
    for path in {DEMO / "canny.safetensors", DEMO / f"{name}.safetensors"}:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata())
        assert "  variant: full\n" in metadata["config"]
        metadata["config"] = metadata["config"].replace("  variant: full\n", "")
        save_file(tensors, tmp_path / path.name, metadata=metadata)
    assert type(load(load_config("demo"), tmp_path / f"{name}.safetensors")) is VARIANTS["full"]


@pytest.mark.parametrize(("holds", "says"), [("full", "mlp"), ("lite", "mlp"), ("precomputed", "full")])
def test_a_file_that_is_not_what_it_says_is_refused(
    holds: str, says: str, config: ModelConfig, tmp_path: Path
) -> None:
    path = relabelled(written(config, holds, tmp_path)[1], says)
    needed = "a ControlNet for" if says == "full" else f"a ControlNet of the variant '{says}' for"
    with pytest.raises(CheckpointMismatch, match=f"needed is {needed}") as caught:
        load(config, path)
    assert str(path) in str(caught.value)


def test_a_variant_from_a_later_version_is_told(config: ModelConfig, tmp_path: Path) -> None:
    path = relabelled(written(config, "lite", tmp_path)[1], "huge")
    with pytest.raises(CheckpointMismatch, match="variant 'huge', and known are full, lite, mlp, precomp"):
        load(config, path)


@pytest.mark.parametrize("variant", CONTROL_VARIANTS)
def test_inspection_names_the_variant(variant: str, config: ModelConfig, tmp_path: Path) -> None:
    info = inspect_checkpoint(written(config, variant, tmp_path)[1])
    named = f" of the variant '{variant}'" if variant != "full" else ""
    kind = "control_variant" if named else "control"
    assert (info.kind, info.title) == (kind, f"a ControlNet{named} for this suite's model 'tiny'")
    assert info.has_control and not info.has_base


def unet_file(config: ModelConfig, folder: Path) -> Path:
    unet = UNet(config.unet)
    fill_module(unet, "model.diffusion_model.", "base")
    path = folder / "base.safetensors"
    save_file({f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("variant", CONTROL_VARIANTS)
def test_a_difference_to_the_base_and_back_and_an_extract_keep_the_variant(
    variant: str, config: ModelConfig, tmp_path: Path
) -> None:
    net, path = written(config, variant, tmp_path)
    base, less, whole, alone = unet_file(config, tmp_path), *(tmp_path / f"{n}.safetensors" for n in "abc")
    extract(path, alone)
    diff(path, base, less, dtype=torch.float32)
    transfer(less, None, base, whole)
    sent = {key: value.half().float() for key, value in net.state_dict().items()}
    for file, noise in ((alone, 0.0), (whole, 1e-6)):
        loaded = load(config, file)
        assert type(loaded) is VARIANTS[variant]
        assert all((v - sent[k]).abs().max() <= noise for k, v in loaded.state_dict().items())


def test_diffusers_has_no_such_network_and_nothing_is_written(config: ModelConfig, tmp_path: Path) -> None:
    _, path = written(config, "precomputed", tmp_path)
    with pytest.raises(CheckpointMismatch, match="variant 'precomputed', a network that diffusers does not"):
        to_diffusers(path, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert not any("diffusers" in line for line in advice(inspect_checkpoint(path)))
