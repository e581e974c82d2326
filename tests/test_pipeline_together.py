"""Several requests drawn as one batch: each gets what it gets alone, and nothing of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import NumericalError, WeightsMissing
from core.models.variants import control_class
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Progress, Request, Result
from core.sampling.samplers import SAMPLERS
from tests.deterministic_weights import fill_module
from tests.tiny_model import hint, tiny_config, tiny_control, tiny_networks, tiny_pipeline
from tests.tiny_model import tiny_request as request

PICTURE = hint(9)
TOLERANCE = 1e-4  # of the latents in float32, as the pipeline states


def mask(left: int) -> np.ndarray:
    covered = np.zeros((64, 64), np.uint8)
    covered[16:48, left:] = 255
    return covered


def four(**shared: Any) -> list[Request]:
    """Four requests that share what they must, and nothing else."""
    return [
        request(3, prompt="a red car", negative_prompt="blurry", **shared),
        request(40, prompt="two blue trees by the sea", negative_prompt="", cfg_scale=7.5, **shared),
        request(3, prompt="", num_samples=2, cfg_scale=2.0, **shared),
        request(77, prompt="(a house:1.3)", negative_prompt="red", **shared),
    ]


def with_units(requests: list[Request], *shared: dict[str, Any]) -> list[Request]:
    """Give each request its own hints and strengths for the same controls."""

    def units(i: int) -> tuple[ControlUnit, ...]:
        strength = 0.4 + 0.3 * i
        return tuple(ControlUnit(hint=hint(10 * i + j), strength=strength, **u) for j, u in enumerate(shared))

    return [replace(r, controls=units(i)) for i, r in enumerate(requests)]


CANNY, DEPTH = {"control": "canny"}, {"control": "depth"}
CASES: dict[str, list[Request]] = {
    **{sampler: with_units(four(sampler=sampler, eta=0.6, steps=4), CANNY) for sampler in SAMPLERS},
    "guess mode": with_units(four(guess_mode=True), CANNY),
    "no guidance": [replace(r, cfg_scale=1.0) for r in with_units(four(), CANNY)],
    "two controls, one for half": with_units(four(steps=4), CANNY, {**DEPTH, "end": 0.5}),
    "no control": [replace(r, controls=(), size=(64, 64)) for r in four()],
    "from pictures": [
        replace(r, init=hint(60 + i)) for i, r in enumerate(four(denoise=0.6, steps=5, init=PICTURE))
    ],
    "masks": [replace(r, mask=mask(8 * i)) for i, r in enumerate(four(init=PICTURE, mask=mask(0)))],
    "long prompts": [replace(r, prompt=r.prompt + ", by the sea" * 30) for r in four()],
}


def drawn(pipe: ControlNetPipeline, requests: list[Request]) -> list[Result]:
    """Draw the requests as one batch."""
    last = dict(pipe.sample_together(requests))
    results = [last[i] for i in range(len(requests))]
    assert all(isinstance(result, Result) for result in results)
    return results  # type: ignore[return-value]


@pytest.fixture
def latents(pipe: ControlNetPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """Collect the latents that are decoded."""
    found: list[torch.Tensor] = []
    decode = pipe.networks.vae.decode

    def listen(x_0: torch.Tensor) -> torch.Tensor:
        found.append(x_0)
        return decode(x_0)

    monkeypatch.setattr(pipe.networks.vae, "decode", listen)
    yield found


@pytest.mark.parametrize("case", CASES)
def test_each_picture_is_what_it_is_alone(
    pipe: ControlNetPipeline, case: str, latents: list[torch.Tensor]
) -> None:
    asked = CASES[case]
    together = drawn(pipe, asked)
    in_batch = latents[:]
    latents.clear()
    alone = [pipe(r) for r in asked]
    assert len(in_batch) == len(latents) == 5
    for x_0, wanted in zip(in_batch, latents, strict=True):
        assert float((x_0 - wanted).abs().max()) < TOLERANCE * float(wanted.abs().max())
    for a, b in zip(together, alone, strict=True):
        assert a.request is b.request and (a.seeds, a.model, a.extra) == (b.seeds, b.model, b.extra)
        for x, y in zip(a.images, b.images, strict=True):
            off = np.abs(x.astype(int) - y.astype(int))
            assert off.max() <= 1 and (off > 0).mean() < 0.01
    for a in alone:  # and so each is its own, not another's
        assert sum(np.array_equal(a.images[0], b.images[0]) for b in alone) == 1


@pytest.mark.parametrize("variant", ["lite", "mlp", "precomputed"])
@pytest.mark.parametrize("shared", [{}, {"guess_mode": True}], ids=["plain", "guess mode"])
def test_controls_that_are_computed_once_are_each_requests_own(variant: str, shared: dict[str, Any]) -> None:
    config = tiny_config()
    control = replace(config.control, variant=variant)
    net = control_class(control)(config.unet, control).eval().requires_grad_(False)
    fill_module(net, "control_model.", variant)
    pipe = ControlNetPipeline(config, tiny_networks(config), lambda name: net)
    asked = with_units(four(**shared), CANNY)
    for a, r in zip(drawn(pipe, asked), asked, strict=True):
        for x, y in zip(a.images, pipe(r).images, strict=True):
            assert np.abs(x.astype(int) - y.astype(int)).max() <= 1


def test_the_networks_are_called_once_a_step_for_all(pipe: ControlNetPipeline) -> None:
    rows: list[int] = []
    nets = (pipe.networks.unet, pipe._cache.get(["canny"])["canny"])
    handles = [n.register_forward_pre_hook(lambda m, args: rows.append(len(args[0]))) for n in nets]
    drawn(pipe, CASES["ddim"])
    for handle in handles:
        handle.remove()
    assert rows == [10, 10] * 4  # five pictures, with the prompt and without


def test_every_step_is_told_to_every_request_with_its_own_preview(pipe: ControlNetPipeline) -> None:
    asked = [request(i, steps=3) for i in range(3)]
    alone = [[u for u in pipe.sample(r) if isinstance(u, Progress)][0].preview for r in asked]
    updates = list(pipe.sample_together(asked))
    assert [i for i, _ in updates] == [0, 1, 2] * 4
    first = [update for _, update in updates[:3]]
    for update, wanted in zip(first, alone, strict=True):
        assert isinstance(update, Progress) and (update.step, update.total) == (1, 3)
        assert update.preview is not None and wanted is not None
        assert np.abs(update.preview.astype(int) - wanted.astype(int)).max() <= 1


# What may be drawn together


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 4},
        {"sampler": "unipc"},
        {"eta": 0.5},
        {"guess_mode": True},
        {"cfg_scale": 1.0},
        {"prompt": "a car" + ", by the sea" * 30},
        {"controls": (ControlUnit("depth", hint()),)},
        {"controls": (ControlUnit("canny", hint(), end=0.5),)},
        {"controls": (ControlUnit("canny", hint(), strength=0.0),)},
        {"controls": (ControlUnit("canny", hint()), ControlUnit("depth", hint()))},
        {"controls": (ControlUnit("canny", hint(0, 64, 128)),)},
        {"init": PICTURE, "denoise": 0.5},
        {"init": PICTURE, "mask": mask(0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_drawn_together_has_another_key(
    pipe: ControlNetPipeline, change: dict[str, Any]
) -> None:
    assert pipe.batch_key(request()) != pipe.batch_key(request(**change))
    with pytest.raises(ValueError, match="one batch_key"):
        pipe.sample_together([request(), request(**change)])


def test_a_request_that_cannot_be_drawn_has_no_key(pipe: ControlNetPipeline) -> None:
    with pytest.raises(ValueError, match="control is 'cany'"):
        pipe.batch_key(request(controls=(ControlUnit("cany", hint()),)))
    with pytest.raises(ValueError, match="shorten it to at most 16"):
        pipe.batch_key(request(prompt="a BREAK " * 20))


# Errors and cancelling


def test_latents_of_one_that_turn_nan_end_that_one_alone() -> None:
    pipe = tiny_pipeline()
    asked = [request(i) for i in range(3)]
    alone = [pipe(r) for r in asked]

    def spoil(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        out[1] = float("nan")  # of six rows the second picture's, with the prompt
        return out

    handle = pipe.networks.unet.register_forward_hook(spoil)
    updates: list[list[object]] = [[], [], []]
    for i, update in pipe.sample_together(asked):
        updates[i].append(update)
    handle.remove()
    (error,) = updates[1]
    assert isinstance(error, NumericalError) and "after step 1 of 3" in str(error)
    for i in (0, 2):
        result = updates[i][-1]
        assert len(updates[i]) == 4 and isinstance(result, Result)
        assert np.abs(result.images[0].astype(int) - alone[i].images[0].astype(int)).max() <= 1


def test_a_picture_to_start_from_that_cannot_be_encoded_ends_its_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = tiny_pipeline()
    asked = [request(i, init=hint(i), denoise=0.5) for i in range(2)]
    encode, calls = pipe.networks.vae.encode, list[int]()

    def spoil(picture: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return encode(picture) * (float("nan") if len(calls) == 1 else 1.0)

    pipe(request())  # the preview is fitted
    monkeypatch.setattr(pipe.networks.vae, "encode", spoil)
    last = dict(pipe.sample_together(asked))
    assert isinstance(last[0], NumericalError) and isinstance(last[1], Result)


def test_weights_that_are_missing_are_of_all() -> None:
    config = tiny_config()

    def load(name: str) -> Any:
        if name == "depth":
            raise WeightsMissing("depth is not here. Get it: python -m core.weights get depth")
        return tiny_control(config, name)

    pipe = ControlNetPipeline(config, tiny_networks(config), load)
    with pytest.raises(WeightsMissing, match="get depth"):
        list(pipe.sample_together(with_units(four(), DEPTH)))
    assert pipe(request()).images


def test_who_is_no_longer_waited_for_is_neither_told_nor_decoded(
    pipe: ControlNetPipeline, latents: list[torch.Tensor]
) -> None:
    asked = [request(i) for i in range(3)]
    gone: set[int] = set()
    told: list[int] = []
    for i, update in pipe.sample_together(asked, lambda i: i not in gone):
        told.append(i)
        if i == 1 and isinstance(update, Progress) and update.step == 2:
            gone.add(1)
    assert told == [0, 1, 2, 0, 1, 2, 0, 2, 0, 2]
    assert len(latents) == 2
    assert not pipe._lock.locked()


def test_a_walk_that_nobody_waits_for_any_longer_ends(pipe: ControlNetPipeline) -> None:
    updates = list(pipe.sample_together([request(i, steps=1000) for i in range(2)], lambda i: False))
    assert updates == [] and not pipe._lock.locked()


def test_closing_a_batch_frees_the_model(pipe: ControlNetPipeline) -> None:
    updates = pipe.sample_together([request(0), request(1)])
    next(updates)
    assert pipe._lock.locked()
    updates.close()
    assert not pipe._lock.locked()


def test_running_out_of_memory_is_of_the_batch_and_leaves_the_pipeline_usable() -> None:
    pipe = tiny_pipeline()

    def exhaust(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    pipe.networks.unet.register_forward_pre_hook(exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        list(pipe.sample_together([request(0), request(1)]))
    assert pipe(request()).images
