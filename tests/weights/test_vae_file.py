"""An autoencoder loads from whatever file holds one, bit for bit, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.config import load_config
from core.errors import CheckpointMismatch
from core.models.vae import AutoencoderKL
from core.weights.checkpoint import load_base
from core.weights.diffusers_names import OLD_VAE_ATTENTION, vae_key
from core.weights.vae_file import load_vae, open_vae
from tests.weights.files import (
    CPU,
    State,
    assert_same,
    base_state,
    cast,
    make_networks,
    prefixed,
    tiny_config,
    write,
)

FP32 = torch.float32
NETS = make_networks(tiny_config("sd15"))
PLAIN = prefixed(NETS.vae, "")
BALLAST = {"loss.discriminator.main.0.weight": torch.ones(2), "model_ema.decay": torch.ones(())}


def diffusers(old: bool) -> State:
    state: dict[str, Tensor] = {}
    for key, value in PLAIN.items():
        theirs = vae_key(key, NETS.config.vae)
        if ".attentions." in theirs and value.ndim == 4:
            value = value.flatten(1)
        for new, former in OLD_VAE_ATTENTION.items() if old else ():
            theirs = theirs.replace(f".0.{new}.", f".0.{former}.")
        state[theirs] = value
    return state


LAYOUTS: dict[str, State] = {
    "plain": PLAIN,
    "plain with what training left": PLAIN | BALLAST,
    "with the prefix": prefixed(NETS.vae, "first_stage_model."),
    "in a full checkpoint": base_state(NETS) | prefixed(NETS.control, "control_model."),
    "diffusers": diffusers(old=False),
    "older diffusers": diffusers(old=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["vae.safetensors", "vae.ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_layout_loads_bit_for_bit(tmp_path: Path, layout: str, name: str, dtype: torch.dtype) -> None:
    path = write(tmp_path / name, cast(LAYOUTS[layout], dtype), wrappers=1)
    assert_same(load_vae(NETS.config, path, device=CPU, dtype=FP32), NETS.vae, via=dtype)


def test_it_takes_the_place_of_the_base_models_which_may_lack_its_own(tmp_path: Path) -> None:
    other = make_networks(tiny_config("sd15"), seed=1)
    vae = open_vae(NETS.config, write(tmp_path / "vae.safetensors", prefixed(other.vae, "")))
    whole = base_state(NETS)
    lacking = {key: value for key, value in whole.items() if not key.startswith("first_stage_model.")}
    for state in (whole, lacking):
        path = write(tmp_path / "base.safetensors", state)
        base = load_base(NETS.config, path, device=CPU, dtype=FP32, vae=vae)
        assert_same(base.vae, other.vae)
        assert_same(base.unet, NETS.unet)
        assert_same(base.text, NETS.text)


def wrong() -> dict[str, tuple[State, str]]:
    config = tiny_config("sd15")
    config.vae.ch = 64
    missing = {key: value for key, value in PLAIN.items() if key != "decoder.conv_out.bias"}
    return {
        "control": (prefixed(NETS.control, "control_model."), "a ControlNet for an unknown model"),
        "other sizes": (
            prefixed(make_networks(config).vae, ""),
            "Other shapes: encoder.conv_in.weight is (64",
        ),
        "missing": (missing, "Missing: decoder.conv_out.bias."),
        "unexpected": (PLAIN | {"decoder.extra": torch.ones(1)}, "Unexpected: decoder.extra."),
        "tiny autoencoder": ({"decoder.layers.0.weight": torch.ones(2)}, "something unknown"),
    }


@pytest.mark.parametrize("kind", wrong())
def test_what_is_none_is_told(tmp_path: Path, kind: str) -> None:
    state, said = wrong()[kind]
    path = write(tmp_path / "vae.safetensors", state)
    with pytest.raises(CheckpointMismatch) as caught:
        open_vae(NETS.config, path)
    message = str(caught.value)
    assert message.startswith(f"{path} seems to be ") and said in message
    assert "needed is an autoencoder (VAE) for tiny sd15" in message and message.endswith(
        "Give another file."
    )


def test_a_published_autoencoder_fits_both_families() -> None:
    with torch.device("meta"):
        one, other = (AutoencoderKL(load_config(name).vae).state_dict() for name in ("sd15", "sd21"))
    assert {key: value.shape for key, value in one.items()} == {k: v.shape for k, v in other.items()}
