"""Half precision where the autoencoder stays in its range, float32 where it does not."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from core.errors import NumericalError
from core.models.vae import AutoencoderKL
from core.runtime.placement import Placement
from core.sampling.coding import PictureCoder
from tests.tiny_model import hint, latents, tiny_config, tiny_networks

CPU = torch.device("cpu")
TOO_LARGE = 3e4  # a factor for weights, which stay in range; what they make does not


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def autoencoder(scale: float = 1.0) -> AutoencoderKL:
    """Return one in float16, whose first maps are ``scale`` times as large as they were."""
    with torch.inference_mode(False):
        vae = tiny_networks(tiny_config()).vae
        for conv in (vae.decoder.conv_in, vae.encoder.conv_in):
            conv.weight *= scale
        return vae.half()


def coder(vae: AutoencoderKL, dtype: torch.dtype, strips: bool | None = None) -> PictureCoder:
    return PictureCoder(vae, Placement(CPU), CPU, dtype, strips)


def exact(vae: AutoencoderKL) -> AutoencoderKL:
    with torch.inference_mode(False):
        wanted = AutoencoderKL(vae.config).eval().requires_grad_(False)
        wanted.load_state_dict(vae.state_dict())  # the same rounded weights, in float32
        return wanted


def spread(vae: AutoencoderKL) -> float:
    """Return the largest number in any map while decoding in float32."""
    found = []
    for module in vae.modules():
        module.register_forward_hook(lambda m, args, out: found.append(float(out.abs().max())))
    vae.decode(latents(1))
    return max(found)


def test_pictures_in_range_are_decoded_in_float16_within_two_grey_levels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    vae = autoencoder()
    wanted = coder(exact(vae), torch.float32).decode(latents(2))
    with caplog.at_level(logging.INFO):
        made = coder(vae, torch.float16).decode(latents(2))
    assert not caplog.records
    errors = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(made, wanted, strict=True)]
    assert max(errors) <= 2 and len(errors) == 2


@pytest.mark.parametrize("strips", [False, True])
def test_a_picture_that_leaves_the_range_is_what_float32_gives(
    strips: bool, caplog: pytest.LogCaptureFixture
) -> None:
    vae = autoencoder(TOO_LARGE)
    assert spread(exact(vae)) > torch.finfo(torch.float16).max
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    wanted = coder(exact(vae), torch.float32, strips).decode(latents(2))
    with caplog.at_level(logging.INFO):
        made = coder(vae, torch.float16, strips).decode(latents(2))
    assert all(np.array_equal(a, b) for a, b in zip(made, wanted, strict=True))
    assert [record.levelname for record in caplog.records] == ["INFO"] * 2
    assert "left float16's range after decoding: computed again in float32" in caplog.text
    for name, weight in vae.state_dict().items():
        assert weight.dtype == torch.float16 and torch.equal(weight, before[name]), name
        assert not weight.is_inference()  # it could not be moved any more


def test_a_picture_to_start_from_is_encoded_in_range_too() -> None:
    vae = autoencoder(4.0 * TOO_LARGE)
    assert not vae.encode(torch.ones(1, 3, 64, 64).half()).isfinite().all()
    wanted = coder(exact(vae), torch.float32).encode(hint())
    made = coder(vae, torch.float16).encode(hint())
    assert made.dtype == torch.float32 and torch.equal(made, wanted)


def test_the_preview_is_fitted_in_float32() -> None:
    vae = autoencoder(TOO_LARGE)
    wanted, made = coder(exact(vae), torch.float32).preview(), coder(vae, torch.float16).preview()
    assert np.array_equal(made(latents(1)), wanted(latents(1)))


def test_what_is_not_finite_in_float32_either_is_an_error_and_weights_return() -> None:
    vae = autoencoder()
    with torch.inference_mode(False):
        vae.post_quant_conv.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="after decoding"):
        coder(vae, torch.float16).decode(latents(1))
    assert next(vae.parameters()).dtype == torch.float16
