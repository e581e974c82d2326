"""The networks compute what the original's do, on small models shaped like SD 1.5 and SD 2.1."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from core.config import UNetConfig
from core.models import blocks
from core.models.blocks import FeedForward, timestep_embedding
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from tests.golden_networks import (
    GUESS_SCALES,
    SMALL21_UNET,
    SMALL_CONTROL,
    SMALL_UNET,
    SMALL_VAE,
    assert_same,
    load_golden,
    materialise,
)


@dataclass
class Case:
    unet: UNet
    golden: dict[str, Tensor]
    residuals: list[Tensor]

    def eps(self, residuals: list[Tensor | None] | list[Tensor] | None) -> Tensor:
        g = self.golden
        return self.unet(g["x"], g["t"], g["context"], residuals)


@pytest.fixture(scope="module", params=[("small", SMALL_UNET), ("small21", SMALL21_UNET)], ids=lambda p: p[0])
def case(request: pytest.FixtureRequest) -> Case:
    name, config = request.param
    golden = load_golden("small") | load_golden(name)
    return build_case(config, golden, f"public-{name}")


def build_case(config: UNetConfig, golden: dict[str, Tensor], salt: str) -> Case:
    unet = materialise(UNet(config), "model.diffusion_model.", salt)
    control = materialise(ControlNet(config, SMALL_CONTROL), "control_model.", salt)
    hint = control.embed_hint(golden["hint"])
    return Case(unet, golden, control(golden["x"], golden["t"], golden["context"], hint))


def test_control_residuals_are_the_originals(case: Case) -> None:
    assert len(case.residuals) == case.unet.num_residuals
    for i, residual in enumerate(case.residuals):
        assert_same(residual, case.golden[f"control.{i}"], "control")


def test_eps_with_control_is_the_originals(case: Case) -> None:
    assert_same(case.eps(case.residuals), case.golden["eps"], "eps")


def test_eps_without_control_is_the_originals(case: Case) -> None:
    assert_same(case.eps(None), case.golden["eps_nocontrol"], "eps")


def test_eps_with_control_on_the_middle_block_alone_is_the_originals(case: Case) -> None:
    *others, middle = case.residuals
    assert_same(case.eps([*(None for _ in others), middle]), case.golden["eps_only_mid"], "eps")


def test_eps_with_residuals_scaled_as_in_guess_mode_is_the_originals(case: Case) -> None:
    scaled = [r * s for r, s in zip(case.residuals, GUESS_SCALES, strict=False)]
    assert_same(case.eps(scaled), case.golden["eps_guess"], "eps")


def test_a_wrong_number_of_residuals_is_refused_with_both_numbers(case: Case) -> None:
    wanted = case.unet.num_residuals
    with pytest.raises(ValueError, match=rf"{wanted - 1}.*{wanted}"):
        case.eps(case.residuals[1:])


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return materialise(AutoencoderKL(SMALL_VAE), "first_stage_model.", "public-small")


def test_vae_moments_are_the_originals(vae: AutoencoderKL) -> None:
    golden = load_golden("small")
    moments = torch.cat(vae.moments(golden["vae.image"]), dim=1)
    assert_same(moments, golden["vae.moments"], "vae")


def test_vae_encodes_to_the_scaled_mean(vae: AutoencoderKL) -> None:
    golden = load_golden("small")
    mean = golden["vae.moments"].reshape(2, 8, 16, 16)[:, :4]
    assert_same(vae.encode(golden["vae.image"]), mean * 0.18215, "vae")


def test_vae_decodes_to_the_originals_picture(vae: AutoencoderKL) -> None:
    golden = load_golden("small")
    assert_same(vae.decode(golden["vae.z"]), golden["vae.decoded"], "vae")


@pytest.mark.parametrize("dim", [32, 320])
def test_timestep_embedding_is_the_originals(dim: int) -> None:
    golden = load_golden("timestep_embedding")
    difference = (timestep_embedding(golden["t"], dim) - golden[str(dim)]).abs().max().item()
    assert difference <= 999 * 2**-24  # one rounding of the frequency, at the largest time step


@pytest.mark.parametrize("shape", [(2, 37, 16), (2, 5, 7, 16), (1, 3, 16)])
def test_a_feed_forward_network_in_pieces_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = FeedForward(16).requires_grad_(False)
    x = torch.randn(shape)
    seen: list[int] = []
    net.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel() // 16))
    with torch.inference_mode():
        whole = net(x)
        monkeypatch.setattr(blocks, "REUSED_BYTES", 1000)
        monkeypatch.setattr(blocks, "PIECE_BYTES", 8 * 16 * 4 * 10)  # ten rows
        pieces = net(x)
    assert torch.equal(pieces, whole) and pieces.shape == x.shape
    rows = x.numel() // 16
    assert seen == [rows, *[10] * (rows // 10), *[rows % 10] * (rows % 10 > 0)]


def test_a_feed_forward_network_that_learns_takes_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "REUSED_BYTES", 0)
    net = FeedForward(16)
    seen: list[int] = []
    net.net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    net(torch.randn(4, 9, 16)).sum().backward()
    assert seen == [4] and all(p.grad is not None for p in net.parameters())
