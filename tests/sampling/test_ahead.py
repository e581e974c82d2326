"""A GPU has the next step in hand before anybody looks at the last one; on the way nothing is read back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import NumericalError
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Progress, Request, Result
from core.runtime.transfer import Reading, to_device
from core.sampling.guidance import GuidedDenoiser, prepare_control, text_rows
from core.sampling.repaint import Repaint
from core.sampling.samplers import SAMPLERS
from core.sampling.schedule import Schedule
from core.sampling.step import StepInputs, predict
from tests.tiny_model import (
    hint,
    same_pictures,
    tiny_config,
    tiny_control,
    tiny_networks,
    tiny_pipeline,
    tiny_request,
)

CONFIG = tiny_config()
META = torch.device("meta")


@pytest.fixture
def ahead(pipe: ControlNetPipeline) -> Iterator[ControlNetPipeline]:
    """A pipeline that goes ahead as on a GPU."""
    pipe._draw._walk._ahead = 1
    yield pipe
    pipe._draw._walk._ahead = 0


def test_going_ahead_changes_no_picture_and_tells_every_step_in_turn(ahead: ControlNetPipeline) -> None:
    request = tiny_request(steps=4)
    *steps, result = ahead.sample(request)
    assert isinstance(result, Result) and same_pictures(result, tiny_pipeline()(request))
    told = [update for update in steps if isinstance(update, Progress)]
    assert [update.step for update in told] == [1, 2, 3, 4] and len(told) == len(steps)
    assert all(update.seconds_per_step > 0.0 for update in told)


class Order:
    """Writes down when the networks compute, and breaks what they give from a step on."""

    def __init__(self, breaks: int = 1000) -> None:
        self.events: list[str] = []
        self.breaks, self.calls = breaks, 0

    def __call__(self, inputs: StepInputs, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        self.events.append(f"compute {self.calls}")
        out = predict(inputs, x, time)
        return out * float("nan") if self.calls >= self.breaks else out


def drawn(pipe: ControlNetPipeline, order: Order, request: Request) -> list[str]:
    pipe._draw._walk._predict = order
    try:
        for update in pipe.sample(request):
            order.events.append(f"told {update.step}" if isinstance(update, Progress) else "result")
    finally:
        pipe._draw._walk._predict = predict
    return order.events


def test_a_step_is_told_of_once_the_next_one_is_under_way(ahead: ControlNetPipeline) -> None:
    assert drawn(ahead, Order(), tiny_request(steps=3)) == [
        *("compute 1", "compute 2", "told 1", "compute 3", "told 2", "told 3", "result")
    ]


def test_on_a_cpu_a_step_is_told_of_at_once(pipe: ControlNetPipeline) -> None:
    assert drawn(pipe, Order(), tiny_request(steps=2)) == [
        *("compute 1", "told 1", "compute 2", "told 2", "result")
    ]


@pytest.mark.parametrize("broken", [1, 2, 4])
def test_the_step_that_went_wrong_is_named_as_without_going_ahead(
    ahead: ControlNetPipeline, broken: int
) -> None:
    order = Order(broken)
    with pytest.raises(NumericalError, match=f"in the latents after step {broken} of 4, computed in float32"):
        drawn(ahead, order, tiny_request(steps=4))
    assert order.calls == min(broken + 1, 4)


def test_cancelling_leaves_the_model_free(ahead: ControlNetPipeline) -> None:
    updates = ahead.sample(tiny_request())
    next(updates)
    updates.close()  # type: ignore[attr-defined]
    assert same_pictures(ahead(tiny_request(1)), tiny_pipeline()(tiny_request(1)))


def on_meta(module: nn.Module) -> Any:
    return module.to(META)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["eps", "v"])
@torch.inference_mode()
def test_no_sampler_and_no_network_reads_a_value_back_in_a_step(sampler: str, kind: str) -> None:
    # Tensors without values: whoever asks for one, or copies it to main memory, is told that there is none.
    unet, net = on_meta(tiny_networks(CONFIG).unet), on_meta(tiny_control(CONFIG, "canny"))
    context, picture = torch.empty(2, 77, 32, device=META), torch.empty(1, 3, 64, 64, device=META)
    units = [ControlUnit("canny", hint(), 0.5), ControlUnit("canny", hint(), 1.0, 0.3, 0.6)]
    guess_mode = sampler == "ddim"
    seen = context[:1] if guess_mode else context
    controls = [prepare_control(net, unit, picture, seen, 2) for unit in units]
    schedule = Schedule(tiny_config(kind).schedule)
    kv = text_rows(unet, context, 2)
    model = GuidedDenoiser(unet, schedule, kv, controls, 7.0, guess_mode, 4)
    x = torch.empty(2, 4, 8, 8, device=META)
    painted = Repaint(model, schedule, x[:1], x, torch.empty(1, 1, 8, 8, device=META))
    walk = SAMPLERS[sampler](painted, x, schedule, 4, 1.0, lambda: to_device(torch.randn(2, 4, 8, 8), META))
    assert [state.x_t.device for state in walk] == [META] * 4
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.isfinite(x).all())  # the check would have seen it


def test_a_reading_gives_the_values() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert torch.equal(Reading(values).value(), values)
    assert torch.equal(to_device(values, torch.device("cpu")), values)


class Event:
    """Stands in for an event of a stream."""

    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


def test_a_reading_waits_for_its_own_copy_only() -> None:
    reading, arrived = Reading(torch.ones(2)), Event()
    reading._arrived = arrived  # type: ignore[assignment]
    assert arrived.waits == 0
    assert reading.value().tolist() == [1.0, 1.0] and arrived.waits == 1
