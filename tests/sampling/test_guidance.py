"""Guidance is an equation; what a request does not use costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from core.errors import NumericalError
from core.images import hint_to_tensor
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.request import ControlUnit
from core.sampling.guidance import (
    ActiveControl,
    GuidedDenoiser,
    check_finite,
    is_active,
    prepare_control,
    residual_scales,
    text_rows,
)
from core.sampling.schedule import Schedule
from tests.tiny_model import hint, latents, tiny_config, tiny_control, tiny_networks

CONFIG = tiny_config()
STEPS, STEP, T = 10, 4, 401


class Counter:
    """Counts the calls of a network and the rows that it is given."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.rows: list[int] = []
        net.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def context() -> Tensor:
    return torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def unet() -> UNet:
    return tiny_networks(CONFIG).unet


@pytest.fixture
def net() -> ControlNet:
    return tiny_control(CONFIG, "canny")


def denoiser(
    unet: UNet,
    context: Tensor,
    controls: Sequence[tuple[ControlNet, ControlUnit]],
    *,
    batch: int = 1,
    scale: float = 7.0,
    guess_mode: bool = False,
    parameterization: str = "eps",
) -> GuidedDenoiser:
    rows = context[:1] if scale == 1.0 else context
    seen = rows[:1] if guess_mode else rows
    active = [prepare_control(net, unit, hint_to_tensor(unit.hint), seen, batch) for net, unit in controls]
    schedule = Schedule(tiny_config(parameterization).schedule)
    return GuidedDenoiser(unet, schedule, text_rows(unet, rows, batch), active, scale, guess_mode, STEPS)


def by_hand(
    unet: UNet, x: Tensor, context: Tensor, controls: Sequence[tuple[ControlNet, ControlUnit, list[float]]]
) -> Tensor:
    """One row of context, one plain forward pass: residual i of each net times its i-th factor, added up."""
    t = torch.full((len(x),), T)
    rows = context.expand(len(x), -1, -1)
    total: list[Tensor | None] | None = None
    for net, unit, scales in controls:
        embedding = net.embed_hint(hint_to_tensor(unit.hint))
        residuals = [s * r for s, r in zip(scales, net(x, t, rows, embedding), strict=True)]
        total = list(residuals) if total is None else [a + b for a, b in zip(total, residuals, strict=True)]
    return unet(x, t, rows, total)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_guidance_is_u_plus_s_times_c_minus_u_in_one_batch(
    unet: UNet, net: ControlNet, context: Tensor
) -> None:
    x, unit = latents(2), ControlUnit("canny", hint())
    ones = [1.0] * net.num_residuals
    c, u = (by_hand(unet, x, row, [(net, unit, ones)]) for row in context.split(1))
    model = denoiser(unet, context, [(net, unit)], batch=2)
    counts, control_counts = Counter(unet), Counter(net)
    close(model(x, T, STEP), u + 7.0 * (c - u))
    assert counts.rows == [4] and control_counts.rows == [4]
    assert (c - u).abs().max() > 1e-3  # else the equation says nothing


def test_without_guidance_the_unconditional_half_is_not_computed(
    unet: UNet, net: ControlNet, context: Tensor
) -> None:
    x, unit = latents(3), ControlUnit("canny", hint())
    for guess_mode in (False, True):
        model = denoiser(unet, context, [(net, unit)], batch=3, scale=1.0, guess_mode=guess_mode)
        counts, control_counts = Counter(unet), Counter(net)
        scales = residual_scales(1.0, net.num_residuals, guess_mode)
        eps = model(x, T, STEP)
        assert counts.rows == [3] and control_counts.rows == [3]
        close(eps, by_hand(unet, x, context[:1], [(net, unit, scales)]))


def test_guess_mode_decays_the_residuals_and_spares_the_unconditional_half(
    unet: UNet, net: ControlNet, context: Tensor
) -> None:
    x, unit = latents(2), ControlUnit("canny", hint(), strength=1.5)
    n = net.num_residuals
    scales = [1.5 * 0.825 ** (12 - i) for i in range(n)]  # 12 whatever the depth, as in the original
    c = by_hand(unet, x, context[:1], [(net, unit, scales)])
    u = by_hand(unet, x, context[1:], [])
    model = denoiser(unet, context, [(net, unit)], batch=2, guess_mode=True)
    counts, control_counts = Counter(unet), Counter(net)
    close(model(x, T, STEP), u + 7.0 * (c - u))
    assert counts.rows == [4] and control_counts.rows == [2]


def test_guess_mode_scales_are_the_originals() -> None:
    wanted = [
        0.0994,
        0.1205,
        0.1461,
        0.1770,
        0.2146,
        0.2601,
        0.3153,
        0.3822,
        0.4633,
        0.5615,
        0.6806,
        0.8250,
        1.0,
    ]
    assert residual_scales(1.0, 13, True) == pytest.approx(wanted, abs=6e-5)
    assert residual_scales(0.5, 13, True) == pytest.approx([w / 2 for w in wanted], abs=6e-5)
    assert residual_scales(1.5, 3, False) == [1.5] * 3


@pytest.mark.parametrize("guess_mode", [False, True])
def test_residuals_of_several_controls_add_up(unet: UNet, context: Tensor, guess_mode: bool) -> None:
    x = latents(1)
    nets = [tiny_control(CONFIG, name) for name in ("canny", "depth", "canny")]
    units = [ControlUnit("any", hint(i), strength=s) for i, s in enumerate((0.7, 1.3, 0.2))]
    n = nets[0].num_residuals
    scaled = [
        (net, u, residual_scales(u.strength, n, guess_mode)) for net, u in zip(nets, units, strict=True)
    ]
    c = by_hand(unet, x, context[:1], scaled)
    u = by_hand(unet, x, context[1:], [] if guess_mode else scaled)
    model = denoiser(unet, context, list(zip(nets, units, strict=True)), guess_mode=guess_mode)
    close(model(x, T, STEP), u + 7.0 * (c - u))


@pytest.mark.parametrize(
    ("start", "end", "active"),
    [
        (0.0, 1.0, range(10)),
        (0.5, 1.0, range(5, 10)),
        (0.0, 0.5, range(5)),
        (0.3, 0.7, range(3, 7)),
        (0.1 * 3, 0.1 * 7, range(3, 7)),  # 0.30000000000000004
        (0.25, 0.45, range(3, 5)),
        (0.0, 0.0, range(0)),
        (0.4, 0.4, range(0)),
        (1.0, 1.0, range(0)),
    ],
)
def test_start_and_end_are_shares_of_the_steps(start: float, end: float, active: range) -> None:
    assert [i for i in range(10) if is_active(start, end, i, 10)] == list(active)


def test_two_controls_that_meet_share_out_every_step() -> None:
    for steps in (1, 3, 7, 20, 999):
        for meet in (0.1, 1 / 3, 0.5, 0.77):
            for i in range(steps):
                assert is_active(0.0, meet, i, steps) != is_active(meet, 1.0, i, steps)


def test_an_inactive_control_is_not_computed(unet: UNet, net: ControlNet, context: Tensor) -> None:
    x = latents(1)
    model = denoiser(unet, context, [(net, ControlUnit("canny", hint(), start=0.5))])
    plain = denoiser(unet, context, [])
    control_counts = Counter(net)
    assert torch.equal(model(x, T, 4), plain(x, T, 4))
    assert control_counts.rows == []
    assert not torch.equal(model(x, T, 5), plain(x, T, 5))
    assert control_counts.rows == [2]


def test_v_prediction_becomes_eps(unet: UNet, context: Tensor) -> None:
    x = latents(2)
    v = denoiser(unet, context, [], batch=2)(x, T, 0)  # the network's own output, guided
    a = Schedule(CONFIG.schedule).alphas_cumprod[T]
    eps = denoiser(unet, context, [], batch=2, parameterization="v")(x, T, 0)
    close(eps, a**0.5 * v + (1 - a) ** 0.5 * x)


def test_the_denoiser_gives_float32_from_networks_in_bfloat16(context: Tensor) -> None:
    networks = tiny_networks(CONFIG)
    x = latents(1)
    unit = ControlUnit("canny", hint())
    exact = denoiser(networks.unet, context, [(tiny_control(CONFIG, "canny"), unit)], scale=2.0)(x, T, STEP)
    unet, net = networks.unet.bfloat16(), tiny_control(CONFIG, "canny").bfloat16()
    rough = denoiser(unet, context.bfloat16(), [(net, unit)], scale=2.0)(x, T, STEP)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_fractions_of_time_steps_are_passed_on(unet: UNet, context: Tensor) -> None:
    x = latents(1)
    model = denoiser(unet, context, [], scale=1.0)
    close(model(x, 400.5, 0), unet(x, torch.tensor([400.5]), context[:1]))
    assert not torch.equal(model(x, 400.5, 0), model(x, 400, 0))


def test_a_single_row_of_text_is_repeated_without_a_copy(unet: UNet, context: Tensor) -> None:
    for k, v in text_rows(unet, context[:1], 5):
        assert k.shape[0] == v.shape[0] == 5 and k.stride(0) == v.stride(0) == 0


def test_the_conditional_rows_come_first(unet: UNet, context: Tensor) -> None:
    for (k, _), (conditional, _) in zip(
        text_rows(unet, context, 3), unet.project_context(context[:1]), strict=True
    ):
        torch.testing.assert_close(k[:3], conditional.expand(3, -1, -1, -1))


def test_the_hint_is_embedded_once_for_all_pictures(net: ControlNet, context: Tensor) -> None:
    active: ActiveControl = prepare_control(
        net, ControlUnit("canny", hint()), hint_to_tensor(hint()), context, 4
    )
    assert active.hint_embedding.shape == (1, 32, 8, 8)


def test_latents_that_are_not_finite_are_reported_with_the_step_and_the_remedy() -> None:
    check_finite(torch.tensor([1.0, -3.0]), "after step 1 of 2", torch.float16)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericalError, match="after step 3 of 20.*float16.*use --dtype float32"):
            check_finite(torch.tensor([1.0, bad]), "after step 3 of 20", torch.float16)
    with pytest.raises(NumericalError, match="weights may be damaged"):
        check_finite(torch.tensor([float("nan")]), "after step 3 of 20", torch.float32)
