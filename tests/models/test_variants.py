"""ControlNets that look at neither x_t nor t keep the promises of the trainable copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.config import CONTROL_VARIANTS, ModelConfig, load_config, with_variant
from core.models.blocks import zero_module
from core.models.unet import UNet
from core.models.variants import (
    VARIANTS,
    AnyControlNet,
    MLPControlNet,
    PrecomputedControlNet,
    control_class,
)
from tests.deterministic_weights import fill_module
from tests.tiny_model import latents, tiny_config

STATIC = tuple(name for name in CONTROL_VARIANTS if name != "full")


def make(variant: str, unet: UNet, config: ModelConfig) -> AnyControlNet:
    own = with_variant(config, variant).control
    torch.manual_seed(0)
    return control_class(own).from_unet(unet, own)


def filled(variant: str, unet: UNet, config: ModelConfig) -> AnyControlNet:
    """Return one that has been trained, as it were: no convolution is zero."""
    net = make(variant, unet, config).eval().requires_grad_(False)
    fill_module(net, "control_model.", variant)
    return net


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return tiny_config()


@pytest.fixture(scope="module")
def unet(config: ModelConfig) -> UNet:
    net = UNet(config.unet).eval().requires_grad_(False)
    fill_module(net, "model.diffusion_model.", "variants")
    return net


@pytest.fixture(scope="module")
def context() -> Tensor:
    return torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_every_variant_has_its_class() -> None:
    assert tuple(VARIANTS) == CONTROL_VARIANTS
    assert [VARIANTS[name].static for name in CONTROL_VARIANTS] == [False, True, True, True]


@pytest.mark.parametrize("variant", CONTROL_VARIANTS)
def test_a_fresh_one_changes_no_bit(
    variant: str, unet: UNet, config: ModelConfig, context: Tensor, picture: Tensor
) -> None:
    net, x, t = make(variant, unet, config), latents(2), torch.tensor([5, 700])
    with torch.inference_mode():
        residuals = net(x, t, context, net.embed_hint(picture))
        assert all((r == 0).all() for r in residuals)
        assert torch.equal(unet(x, t, context, residuals), unet(x, t, context))


@pytest.mark.parametrize("model", ["demo", "sd15", "sd21"])
@pytest.mark.parametrize("variant", CONTROL_VARIANTS)
def test_residuals_have_the_shapes_of_the_skips(variant: str, model: str) -> None:
    config = with_variant(load_config(model), variant)
    with torch.device("meta"):
        unet = UNet(config.unet)
        net = control_class(config.control).from_unet(unet, config.control)
        x = torch.empty(1, config.unet.in_channels, 16, 24)
        t, context = torch.empty(1), torch.empty(1, 77, config.unet.context_dim)
        *skips, middle = unet.encode(x, unet.embed_time(t, x.dtype), iter(unet.project_context(context)))
        residuals = net(x, t, context, net.embed_hint(torch.empty(1, 3, 128, 192)))
    assert [r.shape for r in residuals] == [s.shape for s in [*skips, middle]]
    assert len(residuals) == net.num_residuals == unet.num_residuals


@pytest.mark.parametrize("variant", CONTROL_VARIANTS)
def test_once_the_zero_convolutions_have_moved_every_parameter_learns(
    variant: str, unet: UNet, config: ModelConfig, context: Tensor, picture: Tensor
) -> None:
    net, x, t = make(variant, unet, config), latents(2), torch.tensor([5, 700])
    net.requires_grad_(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # the hint block's last convolution is zero too in the full one, and moves second
        optimizer.zero_grad()
        residuals = net(x, t, context, net.embed_hint(picture))
        unet(x, t, context, residuals).square().mean().backward()
        optimizer.step()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("variant", STATIC)
def test_neither_x_t_nor_t_is_looked_at_and_the_hint_is(
    variant: str, unet: UNet, config: ModelConfig, context: Tensor, picture: Tensor
) -> None:
    net = filled(variant, unet, config)
    embedding = net.embed_hint(picture)
    with torch.inference_mode():
        one = net(latents(2, seed=1), torch.tensor([1, 2]), context, embedding)
        other = net(latents(2, seed=9), torch.tensor([900, 3]), context, embedding)
        none = net(None, None, context, embedding)
        moved = net(None, None, context, net.embed_hint(1.0 - picture))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, other, none, strict=True))
    assert all(not torch.allclose(a, b) for a, b in zip(none, moved, strict=True))


@pytest.mark.parametrize(("variant", "reads"), [("lite", False), ("mlp", False), ("precomputed", True)])
def test_the_precomputed_one_alone_reads_the_text(
    variant: str, reads: bool, unet: UNet, config: ModelConfig, context: Tensor, picture: Tensor
) -> None:
    net = filled(variant, unet, config)
    embedding = net.embed_hint(picture)
    with torch.inference_mode():
        a, b = (net(None, None, words, embedding)[-1] for words in (context, context.flip(0)))
        kv = net(None, None, net.project_context(context), embedding)[-1]
    assert torch.equal(a, b) is not reads
    assert torch.equal(a, kv)


def test_the_precomputed_one_starts_as_the_encoder_at_the_mean_of_all_times(
    unet: UNet, config: ModelConfig
) -> None:
    net = make("precomputed", unet, config)
    assert isinstance(net, PrecomputedControlNet)
    own, base = net.state_dict(), unet.state_dict()
    shared = [key for key in base if key.startswith(("input_blocks.", "middle_block."))]
    assert [key for key in shared if key not in own] == ["input_blocks.0.0.weight", "input_blocks.0.0.bias"]
    assert all(torch.equal(own[key], base[key]) for key in shared if key in own)
    rows = torch.stack([unet.embed_time(torch.tensor([t]), torch.float32)[0] for t in range(1000)])
    assert torch.allclose(net.emb[0], rows.mean(0), atol=1e-5)


def reach(net: AnyControlNet, context: Tensor, residual: int) -> int:
    """Return how many latent cells a change of one cell's pixels reaches in a residual of full size."""
    blank = torch.full((1, 3, 128, 128), 0.4)
    dotted = blank.clone()
    dotted[:, :, 64:72, 64:72] = 0.9
    with torch.inference_mode():
        a, b = (net(None, None, context[:1], net.embed_hint(h))[residual] for h in (blank, dotted))
    return int((a != b).any(1).sum())


def test_a_perceptron_sees_its_own_cell_alone_and_convolutions_their_neighbourhood(
    unet: UNet, config: ModelConfig, context: Tensor
) -> None:
    nets = {v: filled(v, unet, config) for v in ("mlp", "lite")}
    assert reach(nets["mlp"], context, 1) == 1
    assert reach(nets["lite"], context, 1) > 9
    assert all(m.kernel_size == (1, 1) for m in nets["mlp"].modules() if isinstance(m, nn.Conv2d))
    assert isinstance(nets["mlp"], MLPControlNet)


@pytest.mark.parametrize("variant", ["lite", "mlp"])
def test_from_scratch_a_signal_keeps_its_size_to_the_last_layer(variant: str) -> None:
    config = load_config("demo")
    with torch.device("meta"):
        unet = UNet(config.unet)
    net = make(variant, unet, config)
    assert not any(p.is_meta for p in net.parameters())
    for conv in [*net.zero_convs, net.middle_block_out]:
        nn.init.dirac_(conv[0].weight)
    picture = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, *others = (r.std() for r in net(None, None, torch.empty(0), net.embed_hint(picture)))
    least = 0.1 if variant == "mlp" else 0.5  # pooling halves what is noise
    assert all(least < size / first < 2.0 for size in others)


def test_an_unknown_variant_is_told_with_the_choices() -> None:
    with pytest.raises(ValueError, match="variant is 'tiny': give one of full, lite, mlp, precomputed"):
        with_variant(load_config("demo"), "tiny")


def test_the_zero_convolutions_are_all_that_makes_the_start_silent(
    unet: UNet, config: ModelConfig, context: Tensor, picture: Tensor
) -> None:
    for variant in STATIC:
        net = make(variant, unet, config)
        for conv in [*net.zero_convs, net.middle_block_out]:
            nn.init.dirac_(conv[0].weight)
        assert all(r.any() for r in net(None, None, context, net.embed_hint(picture)))
        zero_module(net.zero_convs)
        silent = net(None, None, context, net.embed_hint(picture))
        assert not any(r.any() for r in silent[:-1]) and silent[-1].any()
