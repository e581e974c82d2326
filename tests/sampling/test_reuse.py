"""What a step takes over is what was planned, and exact wherever nothing has changed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.images import hint_to_tensor
from core.models.unet import SHALLOW
from core.pipeline import ControlNetPipeline
from core.request import SPEED_OPTIONS, ControlUnit, Result
from core.sampling.guidance import GuidedDenoiser, prepare_control, text_rows
from core.sampling.reuse import Reuse, plan_reuse, plan_steps
from core.sampling.samplers import SAMPLERS
from core.sampling.schedule import Schedule
from tests.tiny_model import (
    hint,
    latents,
    same_pictures,
    tiny_config,
    tiny_control,
    tiny_networks,
    tiny_pipeline,
    tiny_request,
)

ALL = 5  # residuals of the tiny model
ON: dict[str, Any] = {"control_interval": 2, "cache_interval": 3, "token_merging_ratio": 0.5}


def always(steps: int, controls: int = 1) -> list[tuple[bool, ...]]:
    return [(True,) * controls] * steps


def whole(acting: Sequence[tuple[bool, ...]], control: int, cache: int) -> list[bool]:
    return [plan.whole for plan in plan_steps(acting, ALL, control, cache)]


def computed(acting: Sequence[tuple[bool, ...]], control: int, cache: int, index: int = 0) -> list[int]:
    return [plan.residuals[index] for plan in plan_steps(acting, ALL, control, cache)]


# What is planned


def test_intervals_of_one_compute_everything_in_every_step() -> None:
    acting = [(True, False), (True, True), (False, True)]
    plans = plan_steps(acting, ALL, 1, 1)
    assert [(p.whole, p.residuals) for p in plans] == [(True, (5, 0)), (True, (5, 5)), (True, (0, 5))]


def test_a_control_computes_in_every_nth_step_from_its_first() -> None:
    assert computed(always(7), 3, 1) == [5, 0, 0, 5, 0, 0, 5]
    assert computed([(False,), (False,), *always(5)], 3, 1) == [0, 0, 5, 0, 0, 5, 0]
    assert all(whole(always(7), 3, 1))


def test_between_whole_steps_a_control_computes_its_shallow_part_alone() -> None:
    assert whole(always(7), 1, 3) == [True, False, False, True, False, False, True]
    assert computed(always(7), 1, 3) == [5, SHALLOW, SHALLOW, 5, SHALLOW, SHALLOW, 5]


def test_a_control_that_sets_in_or_ends_makes_the_step_whole() -> None:
    acting = [*always(2), (False,), (False,), *always(2)]
    assert whole(acting, 1, 10) == [True, False, True, False, True, False]
    assert computed(acting, 10, 10) == [5, 0, 0, 0, 0, 0]


def test_without_controls_only_the_unet_is_planned() -> None:
    assert whole([()] * 4, 5, 2) == [True, False, True, False]


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_nothing_is_taken_over_that_is_missing_or_too_old(
    acting: list[tuple[bool, bool]], control: int, cache: int
) -> None:
    kept, deep = [(0, 0), (0, 0)], -1
    for i, plan in enumerate(plan_steps(acting, ALL, control, cache)):
        deep = i if plan.whole else deep
        assert 0 <= i - deep < cache and acting[deep] == acting[i] == plan.acting
        for k, due in enumerate(plan.residuals):
            kept[k] = (due, i) if due else kept[k]
            needed = ALL if plan.whole else SHALLOW
            assert not acting[i][k] or (kept[k][0] >= needed and i - kept[k][1] < control)
            assert due in (0, needed) and (acting[i][k] or not due)


def test_a_request_without_intervals_has_no_plan() -> None:
    asked = tiny_request(token_merging_ratio=0.5)
    assert plan_reuse(asked, asked.controls, ALL) is None


# What is computed


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def denoiser(
    units: Sequence[ControlUnit], reuse: Reuse | None, *, scale: float = 7.0, guess_mode: bool = False
) -> GuidedDenoiser:
    config = tiny_config()
    unet = tiny_networks(config).unet
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(3))[: 1 if scale == 1.0 else 2]
    seen = context[:1] if guess_mode else context
    nets = [tiny_control(config, unit.control) for unit in units]
    controls = [
        prepare_control(net, unit, hint_to_tensor(unit.hint), seen, 2)
        for net, unit in zip(nets, units, strict=True)
    ]
    kv = text_rows(unet, context, 2)
    return GuidedDenoiser(unet, Schedule(config.schedule), kv, controls, scale, guess_mode, 10, reuse=reuse)


UNITS = (ControlUnit("canny", hint(0)), ControlUnit("depth", hint(1), strength=0.5, start=0.2, end=0.7))


def acting(units: Sequence[ControlUnit]) -> list[tuple[bool, ...]]:
    return [tuple(u.start <= i / 10 < u.end for u in units) for i in range(10)]


@pytest.mark.parametrize(("scale", "guess_mode"), [(7.0, False), (1.0, False), (7.0, True), (1.0, True)])
@pytest.mark.parametrize(("control", "cache"), [(1, 1), (3, 1), (1, 3), (2, 4)])
def test_what_is_taken_over_is_exact_where_nothing_changed(
    inference: None, scale: float, guess_mode: bool, control: int, cache: int
) -> None:
    """The same latents and time in every step: reuse must give what computing anew does."""
    x = latents(2)
    plans = plan_steps(acting(UNITS), ALL, control, cache)
    exact = denoiser(UNITS, None, scale=scale, guess_mode=guess_mode)
    saving = denoiser(UNITS, Reuse(plans), scale=scale, guess_mode=guess_mode)
    for i in range(10):
        assert torch.equal(saving(x, 401, i), exact(x, 401, i)), i


def test_between_whole_steps_the_deep_part_is_that_of_the_last_one(inference: None) -> None:
    x, other = latents(2), latents(2, seed=9)
    exact = denoiser(UNITS[:1], None)
    saving = denoiser(UNITS[:1], Reuse(plan_steps(always(10), ALL, 1, 3)))
    saving(x, 401, 0)
    near, far = saving(other, 301, 1), exact(other, 301, 1)
    assert 1e-4 < (near - far).abs().max() < (exact(x, 401, 0) - far).abs().max()


class Spy:
    """Writes down what computes in each step: the UNet whole or shallow, and residuals of each ControlNet."""

    def __init__(self, pipe: ControlNetPipeline, names: Sequence[str], patch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        unet = pipe.networks.unet
        for name in ("whole", "shallow"):
            patch.setattr(unet, name, self._told(name, getattr(unet, name)))
        for name, net in pipe._cache.get(names).items():
            net.register_forward_hook(lambda m, a, out, name=name: self.seen.append((name, len(out))))

    def _told(self, name: str, original: Any) -> Any:
        def call(*args: Any) -> Any:
            self.seen.append(name)
            return original(*args)

        return call


def test_a_request_computes_what_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    spy = Spy(pipe, ["canny", "depth"], monkeypatch)
    units = (ControlUnit("canny", hint(0)), ControlUnit("depth", hint(1), end=0.5))
    pipe(tiny_request(controls=units, steps=6, cache_interval=2, control_interval=3))
    assert spy.seen == [
        *[("canny", 5), ("depth", 5), "whole"],
        *["shallow"],
        *["whole"],  # the residuals are two steps old
        *[("canny", 5), "whole"],  # depth ends here
        *["shallow"],
        *["whole"],
    ]
    spy.seen.clear()
    pipe(tiny_request(controls=units[:1], steps=3))
    assert spy.seen == [("canny", 5), "whole"] * 3


# What comes out


@pytest.fixture(scope="module")
def pipe() -> ControlNetPipeline:
    return tiny_pipeline()


PICTURE, MASK = hint(7), np.repeat(np.arange(64, dtype=np.uint8)[None] * 4, 64, axis=0)
KINDS: dict[str, dict[str, Any]] = {
    "several controls": {"controls": (*tiny_request().controls, ControlUnit("depth", hint(1), start=0.4))},
    "guess mode": {"guess_mode": True},
    "no guidance": {"cfg_scale": 1.0},
    "no control": {"controls": (), "size": (64, 64)},
    "inpainting": {"init": PICTURE, "mask": MASK},
    "from a picture": {"init": PICTURE, "denoise": 0.6},
    "several pictures": {"num_samples": 3},
    **{sampler: {"sampler": sampler} for sampler in SAMPLERS},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_request_takes_every_option_and_leaves_nothing_behind(
    pipe: ControlNetPipeline, kind: str
) -> None:
    asked = {**KINDS[kind], "steps": 6}
    exact, saving = tiny_request(**asked), tiny_request(**asked, **ON)
    before, made = pipe(exact), pipe(saving)
    assert all(image.std() > 1 for image in made.images)
    assert not same_pictures(made, before)
    assert same_pictures(pipe(saving), made)
    assert same_pictures(pipe(exact), before)


@pytest.mark.parametrize("name", ON)
def test_each_option_changes_the_picture_and_its_off_does_not(pipe: ControlNetPipeline, name: str) -> None:
    asked = tiny_request(steps=4)
    off: dict[str, Any] = {name: SPEED_OPTIONS[name]}
    assert same_pictures(pipe(tiny_request(steps=4, **off)), pipe(asked))
    assert not same_pictures(pipe(tiny_request(steps=4, **{name: ON[name]})), pipe(asked))


def test_a_cancel_half_way_leaves_nothing_for_the_next(pipe: ControlNetPipeline) -> None:
    wanted = pipe(tiny_request(steps=4, **ON))
    updates = pipe.sample(tiny_request(seed=5, steps=4, **ON))
    next(updates)
    next(updates)
    updates.close()  # type: ignore[attr-defined]
    assert same_pictures(pipe(tiny_request(steps=4, **ON)), wanted)


def test_low_vram_draws_the_same_with_every_option(pipe: ControlNetPipeline) -> None:
    asked = tiny_request(steps=4, **ON)
    made: Result = tiny_pipeline(low_vram=True)(asked)
    assert np.abs(made.images[0].astype(int) - pipe(asked).images[0].astype(int)).max() <= 1


def test_only_requests_of_the_same_options_share_a_batch_and_each_picture_is_what_it_is_alone(
    pipe: ControlNetPipeline,
) -> None:
    units = [(ControlUnit("canny", hint(seed)),) for seed in (0, 1)]
    asked = [tiny_request(seed=i, controls=unit, steps=4, **ON) for i, unit in enumerate(units)]
    with pytest.raises(ValueError, match="one batch_key"):
        pipe.sample_together([asked[0], tiny_request(steps=4)])
    made = {i: update for i, update in pipe.sample_together(asked) if isinstance(update, Result)}
    for i, request in enumerate(asked):
        off = made[i].images[0].astype(int) - pipe(request).images[0].astype(int)
        assert np.abs(off).max() <= 1
