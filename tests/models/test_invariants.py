"""What must hold for networks of any weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.config import load_config
from core.models.controlnet import ControlNet, add_residuals
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from tests.golden_networks import (
    SMALL21_UNET,
    SMALL_CONTROL,
    SMALL_UNET,
    SMALL_VAE,
    load_golden,
    materialise,
)

BATCH_NOISE = 1e-5  # float32, values around 1: another batch size may sum in another order


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return load_golden("small")


@pytest.fixture(scope="module", params=[SMALL_UNET, SMALL21_UNET], ids=["small", "small21"])
def unet(request: pytest.FixtureRequest) -> UNet:
    return materialise(UNet(request.param), "model.diffusion_model.", "invariants")


@pytest.fixture(scope="module")
def control(unet: UNet) -> ControlNet:
    return materialise(ControlNet(unet.config, SMALL_CONTROL), "control_model.", "invariants")


def predict(unet: UNet, inputs: dict[str, Tensor], residuals: list[Tensor] | None = None) -> Tensor:
    return unet(inputs["x"], inputs["t"], inputs["context"], residuals)


def residuals_of(control: ControlNet, inputs: dict[str, Tensor]) -> list[Tensor]:
    return control(inputs["x"], inputs["t"], inputs["context"], control.embed_hint(inputs["hint"]))


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < BATCH_NOISE)


def test_a_fresh_controlnet_changes_no_bit(unet: UNet, inputs: dict[str, Tensor]) -> None:
    fresh = ControlNet.from_unet(unet, SMALL_CONTROL).eval().requires_grad_(False)
    residuals = residuals_of(fresh, inputs)
    assert all((r == 0).all() for r in residuals)
    assert torch.equal(predict(unet, inputs, residuals), predict(unet, inputs))


def test_a_fresh_controlnet_is_a_copy_that_trains_without_the_unet(unet: UNet) -> None:
    fresh = ControlNet.from_unet(unet, SMALL_CONTROL)
    copied, source = fresh.state_dict(), unet.state_dict()
    encoder = [key for key in source if key.startswith(("time_embed.", "input_blocks.", "middle_block."))]
    assert encoder == [key for key in copied if key in source]
    assert all(torch.equal(copied[key], source[key]) for key in encoder)
    assert not {t.data_ptr() for t in copied.values()} & {t.data_ptr() for t in source.values()}


def test_text_projected_once_gives_the_same_bits(
    unet: UNet, control: ControlNet, inputs: dict[str, Tensor]
) -> None:
    hint = control.embed_hint(inputs["hint"])
    once = control(inputs["x"], inputs["t"], control.project_context(inputs["context"]), hint)
    residuals = residuals_of(control, inputs)
    assert all(torch.equal(a, b) for a, b in zip(once, residuals, strict=True))
    eps = unet(inputs["x"], inputs["t"], unet.project_context(inputs["context"]), residuals)
    assert torch.equal(eps, predict(unet, inputs, residuals))


def test_one_hint_embedding_serves_every_row(control: ControlNet, inputs: dict[str, Tensor]) -> None:
    one = control.embed_hint(inputs["hint"][:1])
    both = one.expand(2, -1, -1, -1).contiguous()
    x, t, context = inputs["x"], inputs["t"], inputs["context"]
    pairs = zip(control(x, t, context, one), control(x, t, context, both), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_row_does_not_depend_on_the_others(
    unet: UNet, control: ControlNet, inputs: dict[str, Tensor]
) -> None:
    second = {k: v[1:2] for k, v in inputs.items() if k in {"x", "t", "context", "hint"}}
    together = predict(unet, inputs, residuals_of(control, inputs))[1:2]
    assert close(predict(unet, second, residuals_of(control, second)), together)


def test_channels_last_gives_the_same_values(
    unet: UNet, control: ControlNet, inputs: dict[str, Tensor]
) -> None:
    last = dict(inputs, x=inputs["x"].contiguous(memory_format=torch.channels_last))
    eps = predict(unet, inputs, residuals_of(control, inputs))
    assert close(predict(unet, last, residuals_of(control, last)), eps)


def test_zero_residuals_and_no_residuals_are_the_same(unet: UNet, inputs: dict[str, Tensor]) -> None:
    nothing: list[Tensor | None] = [None] * unet.num_residuals
    x, t, context = inputs["x"], inputs["t"], inputs["context"]
    assert torch.equal(unet(x, t, context, nothing), predict(unet, inputs))


def test_residuals_of_several_controlnets_add_up(control: ControlNet, inputs: dict[str, Tensor]) -> None:
    residuals = residuals_of(control, inputs)
    kept = [r.clone() for r in residuals]
    total = add_residuals(add_residuals(None, residuals), residuals)
    assert all(torch.equal(a, 2 * b) for a, b in zip(total, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(residuals, kept, strict=True))


@pytest.mark.parametrize("side", [(8, 24), (24, 8), (40, 16)])
def test_oblong_latents_keep_their_shape(unet: UNet, control: ControlNet, side: tuple[int, int]) -> None:
    height, width = side
    x, t, context = torch.randn(1, 4, height, width), torch.tensor([5]), torch.randn(1, 77, 64)
    hint = control.embed_hint(torch.rand(1, 3, 8 * height, 8 * width))
    assert unet(x, t, context, control(x, t, context, hint)).shape == x.shape


def test_vae_samples_around_the_mean_and_repeats_with_the_generator(inputs: dict[str, Tensor]) -> None:
    vae = materialise(AutoencoderKL(SMALL_VAE), "first_stage_model.", "invariants")
    image = inputs["vae.image"]
    mean, logvar = vae.moments(image)
    samples = [vae.encode(image, torch.Generator().manual_seed(3)) for _ in range(2)]
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(*samples)
    assert torch.equal(samples[0], (mean + (0.5 * logvar).exp() * noise) * SMALL_VAE.scale_factor)


def build(model: str) -> list[nn.Module]:
    c = load_config(model)
    return [UNet(c.unet), ControlNet(c.unet, c.control), AutoencoderKL(c.vae), TextEncoder(c.text)]


@pytest.mark.parametrize("model", ["demo", "sd15", "sd21"])
def test_networks_build_on_the_meta_device_without_memory(model: str) -> None:
    with torch.device("meta"):
        modules = build(model)
    assert all(tensor.is_meta for module in modules for tensor in module.state_dict().values())


def test_a_meta_network_takes_a_state_dict_and_computes_the_same(
    unet: UNet, inputs: dict[str, Tensor]
) -> None:
    with torch.device("meta"):
        other = UNet(unet.config)
    other.load_state_dict(unet.state_dict(), strict=True, assign=True)
    assert torch.equal(predict(other.eval(), inputs), predict(unet, inputs))


def norms(module: nn.Module) -> set[tuple[int, float]]:
    return {(m.num_groups, m.eps) for m in module.modules() if isinstance(m, nn.GroupNorm)}


def test_group_norms_have_the_published_groups_and_eps(unet: UNet, control: ControlNet) -> None:
    for module in (unet, control):
        for name, m in module.named_modules():
            if isinstance(m, nn.GroupNorm):
                in_transformer = name.endswith(".1.norm")
                assert (m.num_groups, m.eps) == (32, 1e-6 if in_transformer else 1e-5), name
    assert norms(AutoencoderKL(SMALL_VAE)) == {(32, 1e-6)}
    assert {m.eps for m in unet.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
