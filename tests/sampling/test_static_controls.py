"""What does not depend on x_t and t is computed once a request, and counts as if computed at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import with_variant
from core.images import hint_to_tensor
from core.models.variants import AnyControlNet, control_class
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request, Result
from core.sampling.guidance import fixed_residuals
from tests.deterministic_weights import fill_module
from tests.tiny_model import hint, tiny_config, tiny_control, tiny_networks, tiny_request

STATIC = ("lite", "mlp", "precomputed")
CONFIG = tiny_config()
ROUNDING = 1  # grey level: rows computed alone, or in a larger batch


def static_control(variant: str) -> AnyControlNet:
    control = with_variant(CONFIG, variant).control
    net = control_class(control)(CONFIG.unet, control).eval().requires_grad_(False)
    fill_module(net, "control_model.", variant)
    return net


class Calls:
    """Counts the calls of a network."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.count = 0
        net.register_forward_pre_hook(self._add)

    def _add(self, module: torch.nn.Module, args: Any) -> None:
        self.count += 1


class Anew(torch.nn.Module):
    """Hides from the sampler that a network is static, so that it is called at every step."""

    static = False

    def __init__(self, net: AnyControlNet) -> None:
        super().__init__()
        self.net = net
        self.num_residuals = net.num_residuals

    def embed_hint(self, picture: Tensor) -> Tensor:
        return self.net.embed_hint(picture)

    def project_context(self, context: Tensor) -> Any:
        return self.net.project_context(context)

    def forward(
        self, x: Tensor, t: Tensor, context: Any, embedding: Tensor, *options: object
    ) -> list[Tensor]:
        assert len(x) == len(t)
        return [r.expand(len(x), -1, -1, -1) for r in self.net(x, t, context, embedding)]


def pipeline(nets: dict[str, Any]) -> ControlNetPipeline:
    return ControlNetPipeline(CONFIG, tiny_networks(CONFIG), nets.__getitem__, controls=list(nets))


def draw(net: Any, request: Request) -> Result:
    return pipeline({"canny": net})(request)


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strength": {"controls": (ControlUnit("canny", hint(), 0.6),)},
    "window": {"controls": (ControlUnit("canny", hint(), 1.0, 0.4, 0.8),)},
    "guess mode": {"guess_mode": True},
    "two pictures": {"num_samples": 2},
    "two pictures in guess mode": {"guess_mode": True, "num_samples": 2},
    "no guidance": {"cfg_scale": 1.0, "num_samples": 2},
}


@pytest.mark.parametrize("variant", STATIC)
@pytest.mark.parametrize("changes", REQUESTS.values(), ids=list(REQUESTS))
def test_one_call_a_request_gives_what_a_call_a_step_gives(changes: dict[str, Any], variant: str) -> None:
    net = static_control(variant)
    request = tiny_request(**{"steps": 5, **changes})
    calls = Calls(net)
    once = draw(net, request)
    assert calls.count == 1
    anew = draw(Anew(net), request)
    assert calls.count > 2
    rounding = 0 if request.num_samples == 1 else ROUNDING
    for a, b in zip(once.images, anew.images, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= rounding
    without = draw(net, replace(request, controls=(), size=(64, 64)))
    assert all((a != b).any() for a, b in zip(once.images, without.images, strict=True))


def test_every_request_computes_its_own() -> None:
    net = static_control("precomputed")
    calls = Calls(net)
    pipe = pipeline({"canny": net})
    first = pipe(tiny_request())
    again = pipe(tiny_request())
    other = pipe(tiny_request(controls=(ControlUnit("canny", hint(5)),)))
    words = pipe(tiny_request(prompt="a blue house"))
    assert calls.count == 4
    assert np.array_equal(first.images[0], again.images[0])
    assert not np.array_equal(first.images[0], other.images[0])
    assert not np.array_equal(first.images[0], words.images[0])


def test_it_adds_up_with_a_control_that_looks_at_every_step() -> None:
    nets = {"canny": static_control("lite"), "depth": tiny_control(CONFIG, "depth")}
    calls = {name: Calls(net) for name, net in nets.items()}
    units = (ControlUnit("canny", hint(1)), ControlUnit("depth", hint(2)))
    both = pipeline(nets)(tiny_request(controls=units, steps=4))
    assert (calls["canny"].count, calls["depth"].count) == (1, 4)
    anew = pipeline({**nets, "canny": Anew(nets["canny"])})(tiny_request(controls=units, steps=4))
    assert np.array_equal(both.images[0], anew.images[0])


def test_one_that_never_acts_is_not_computed_at_all() -> None:
    net = static_control("lite")
    calls = Calls(net)
    draw(net, tiny_request(controls=(ControlUnit("canny", hint(), 0.0),)))
    assert calls.count == 0


@pytest.mark.parametrize("variant", STATIC)
def test_rows_are_those_of_the_text_each_repeated_for_the_pictures(variant: str) -> None:
    net = static_control(variant)
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0))
    embedding = net.embed_hint(hint_to_tensor(hint()))
    for r, row in zip(
        fixed_residuals(net, context, embedding, 3), net(None, None, context, embedding), strict=True
    ):
        assert len(r) == 6
        conditional, unconditional = r.chunk(2)
        for half, single in ((conditional, row[0]), (unconditional, row[-1])):
            assert all(torch.equal(one, single) for one in half)
