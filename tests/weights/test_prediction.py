"""Whether a checkpoint predicts eps or v is told by the file, its name or an option."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.config import load_config
from core.loading import find_source, predicting
from core.weights.diffusers_configs import PREDICTIONS, schedule_json
from core.weights.formats import open_tensors
from core.weights.prediction import predicted
from core.weights.published import config_of
from core.weights.registry import Registry

PLAIN = {"modelspec.title": "x"}


def checkpoint(
    path: Path, width: int = 1024, metadata: dict[str, str] | None = None, v_key: bool = False
) -> Path:
    """Write what makes a file a checkpoint of SD 1.x (width 768) or 2.x (1024), and no more."""
    state = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(
            4, width
        ),
        "first_stage_model.decoder.conv_in.bias": torch.zeros(4),
        "cond_stage_model.model.ln_final.bias": torch.zeros(4),
    }
    save_file(state | ({"v_pred": torch.zeros(0)} if v_key else {}), path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("name", "metadata", "yaml", "v_key", "expected"),
    [
        ("v2-1_768-ema-pruned", PLAIN, None, False, "v"),
        ("v2-1_512-ema-pruned", PLAIN, None, False, None),
        ("any", {"modelspec.prediction_type": "v"}, None, False, "v"),
        ("any-768", {"modelspec.prediction_type": "epsilon"}, None, False, "eps"),
        ("any", PLAIN, 'model:\n  params:\n    parameterization: "v"\n', False, "v"),
        ("any-768", PLAIN, "model:\n  params:\n    parameterization: eps\n", False, "eps"),
        ("any", PLAIN, "model:\n  params:\n    timesteps: 1000\n", False, None),
        ("any", PLAIN, None, True, "v"),
    ],
)
def test_what_is_predicted_is_told_as_far_as_the_file_says(
    tmp_path: Path, name: str, metadata: dict[str, str], yaml: str | None, v_key: bool, expected: str | None
) -> None:
    path = checkpoint(tmp_path / f"{name}.safetensors", metadata=metadata, v_key=v_key)
    if yaml is not None:
        path.with_suffix(".yaml").write_text(yaml)
    assert predicted(open_tensors(path), "sd2") == expected
    source = find_source(path)
    assert source.config.schedule.parameterization == (expected or "eps")
    assert source.config.name == ("sd21_768" if expected == "v" else "sd21")


def test_768_in_the_name_of_another_family_says_nothing(tmp_path: Path) -> None:
    config = find_source(checkpoint(tmp_path / "some-768.safetensors", 768)).config
    assert (config.name, config.schedule.parameterization) == ("sd15", "eps")
    config = find_source(checkpoint(tmp_path / "v.safetensors", 768, v_key=True)).config
    assert (config.name, config.schedule.parameterization) == ("sd15", "v")


def test_the_option_decides_over_everything_else() -> None:
    assert predicting(load_config("sd21_768"), "eps") == load_config("sd21")
    assert predicting(load_config("sd21"), "v") == load_config("sd21_768")
    sd15 = predicting(load_config("sd15"), "v")
    assert sd15.name == "sd15" and sd15.schedule.parameterization == "v"
    with pytest.raises(ValueError, match="parameterization is 'x': give one of eps, v"):
        predicting(load_config("sd15"), "x")


def test_both_models_2_1_have_the_same_shapes_and_controls() -> None:
    one, other = load_config("sd21"), load_config("sd21_768")
    assert (one.unet, one.control, one.vae, one.text) == (other.unet, other.control, other.vae, other.text)
    assert one.controls == other.controls
    assert (one.resolution, one.schedule.parameterization) == (512, "eps")
    assert (other.resolution, other.schedule.parameterization) == (768, "v")


def test_every_control_of_2_1_has_a_row_with_its_published_file() -> None:
    registry = Registry.load()
    for name, weights in load_config("sd21").controls.items():
        row = registry[weights]
        published = "ade20k" if name == "seg" else name
        assert row.file == f"control_v11p_sd21_{published}.safetensors"
        assert row.repo == "thibaud/controlnet-sd21"


@pytest.mark.parametrize(("name", "told"), [("v2-1_768.safetensors", "v"), ("v2-1_512.safetensors", "eps")])
def test_a_converted_scheduler_says_what_the_file_predicts(tmp_path: Path, name: str, told: str) -> None:
    config = config_of(open_tensors(checkpoint(tmp_path / name)))
    assert config.schedule.parameterization == told
    assert schedule_json(config.schedule)["prediction_type"] == PREDICTIONS[told]
