"""Requests that start from a picture, paint inside a mask, or use the controls of ControlNet 1.1."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.metadata import read_parameters, read_request, save_png
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Progress, Request, Result
from core.sampling.noise import ImageNoise
from core.sampling.samplers import SAMPLERS
from core.sampling.schedule import Schedule
from tests.tiny_model import hint, same_pictures, tiny_config, tiny_control, tiny_networks, tiny_request

PICTURE = hint(7)


def mask() -> NDArray[np.uint8]:
    found = np.zeros((64, 64), np.uint8)
    found[16:48, 16:48] = 255
    found[16:48, 47] = 90
    return found


def pipeline_with(**traits: Any) -> ControlNetPipeline:
    config = tiny_config()
    for name, value in traits.items():
        setattr(config, name, value)
    return ControlNetPipeline(config, tiny_networks(config), lambda name: tiny_control(config, name))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_the_mask_leaves_out_stays_to_the_bit(pipe: ControlNetPipeline, sampler: str) -> None:
    result = pipe(tiny_request(init=PICTURE, mask=mask(), sampler=sampler, num_samples=2))
    for image in result.images:
        assert np.array_equal(image[mask() == 0], PICTURE[mask() == 0])
        assert not np.array_equal(image[mask() == 255], PICTURE[mask() == 255])


def test_an_empty_mask_gives_the_picture_back(pipe: ControlNetPipeline) -> None:
    nothing = np.zeros((64, 64), np.uint8)
    assert np.array_equal(pipe(tiny_request(init=PICTURE, mask=nothing)).images[0], PICTURE)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_walk_starts_from_the_picture_under_its_share_of_noise(
    monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    pipe = pipeline_with()
    seen: list[tuple[Tensor, float]] = []
    forward = pipe.networks.unet.forward

    def listen(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        seen.append((x, float(t[0])))
        return forward(x, t, *rest)

    monkeypatch.setattr(pipe.networks.unet, "forward", listen)
    pipe(tiny_request(steps=10, init=PICTURE, denoise=0.4, sampler=sampler, seed=5, num_samples=2))
    picture = torch.from_numpy(PICTURE).permute(2, 0, 1)[None] / 127.5 - 1.0
    x, t = seen[0]
    alpha = Schedule(pipe.config.schedule).alpha_cumprod(t)
    noise = ImageNoise((5, 6), (4, 8, 8), torch.device("cpu"))()
    wanted = alpha**0.5 * pipe.networks.vae.encode(picture) + (1 - alpha) ** 0.5 * noise
    torch.testing.assert_close(x[:2], wanted, atol=1e-4, rtol=1e-4)
    assert 0.01 < alpha < 0.99 and len(seen) == 4


def test_only_its_share_of_the_steps_is_walked_and_controls_count_by_those(pipe: ControlNetPipeline) -> None:
    request = tiny_request(steps=10, init=PICTURE, denoise=0.3)
    steps = [(e.step, e.total) for e in pipe.sample(request) if isinstance(e, Progress)]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    half = ControlUnit("canny", hint(0), end=0.5)
    alone = pipe(replace(request, controls=()))
    assert not same_pictures(pipe(replace(request, controls=(half,))), alone)


def test_drawing_all_of_it_anew_is_drawing_without_the_picture(pipe: ControlNetPipeline) -> None:
    assert same_pictures(pipe(tiny_request(init=PICTURE)), pipe(tiny_request()))


def test_a_picture_alone_tells_the_size(pipe: ControlNetPipeline) -> None:
    request = Request("a car", init=hint(1, 64, 128), denoise=0.5, steps=2)
    assert request.height_width == (64, 128)
    assert pipe(request).images[0].shape == (64, 128, 3)


def test_a_control_that_knows_masks_sees_minus_one_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline_with(masked_controls=["canny"])
    seen: list[Tensor] = []
    net = pipe._cache.get(["canny"])["canny"]
    embed = net.embed_hint

    def listen(picture: Tensor) -> Tensor:
        seen.append(picture)
        return embed(picture)

    monkeypatch.setattr(net, "embed_hint", listen)
    unit = ControlUnit("canny", PICTURE)
    pipe(tiny_request(controls=(unit,), init=PICTURE, mask=mask()))
    covered = torch.from_numpy(mask() > 127)
    assert (seen[0][0][:, covered] == -1.0).all()
    wanted = torch.from_numpy(PICTURE).permute(2, 0, 1)[:, ~covered] / 255.0
    torch.testing.assert_close(seen[0][0][:, ~covered], wanted)
    pipe(tiny_request(controls=(ControlUnit("depth", PICTURE),), init=PICTURE, mask=mask()))
    assert len(seen) == 1


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_a_pooled_control_gives_its_means_and_nothing_without_the_prompt(
    monkeypatch: pytest.MonkeyPatch, cfg_scale: float
) -> None:
    pipe = pipeline_with(pooled_controls=["canny"])
    net = pipe._cache.get(["canny"])["canny"]
    made: list[list[Tensor]] = []
    given: list[list[Tensor]] = []
    control, unet = net.forward, pipe.networks.unet.forward

    def control_forward(*args: Any) -> list[Tensor]:
        made.append(control(*args))
        return made[-1]

    def unet_forward(x: Tensor, t: Tensor, context: Any, residuals: Any, *options: Any) -> Tensor:
        given.append(residuals())
        return unet(x, t, context, given[-1], *options)

    monkeypatch.setattr(net, "forward", control_forward)
    monkeypatch.setattr(pipe.networks.unet, "forward", unet_forward)
    unit = ControlUnit("canny", hint(0), strength=0.7)
    pipe(tiny_request(controls=(unit,), num_samples=2, steps=1, cfg_scale=cfg_scale))
    for raw, pooled in zip(made[0], given[0], strict=True):
        assert len(raw) == 2  # the pictures, each for the prompt alone
        means = raw.mean((2, 3), keepdim=True) * 0.7
        torch.testing.assert_close(pooled[:2], means)
        assert (pooled[2:] == 0).all() and len(pooled) == (2 if cfg_scale == 1.0 else 4)


def test_a_pooled_control_adds_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline_with(pooled_controls=["canny"])
    both = (ControlUnit("canny", hint(0)), ControlUnit("depth", hint(1)))
    alone = pipe(tiny_request(controls=both[1:]))
    assert not same_pictures(pipe(tiny_request(controls=both)), alone)
    swapped = pipe(tiny_request(controls=both[::-1]))
    assert np.abs(swapped.images[0].astype(int) - pipe(tiny_request(controls=both)).images[0]).max() <= 1


@pytest.mark.parametrize("in_control", [True, False])
def test_a_picture_and_its_mask_come_back_out_of_the_png(in_control: bool) -> None:
    controls = (ControlUnit("inpaint", PICTURE),) if in_control else ()
    request = Request("x", controls, init=PICTURE, mask=mask(), denoise=0.75)
    file = io.BytesIO()
    save_png(PICTURE, file, request, seed=0, model="tiny")
    size = file.tell()
    found = read_request(file).to_request()
    assert found.denoise == 0.75 and found.init is not None and found.mask is not None
    assert np.array_equal(found.init, PICTURE) and np.array_equal(found.mask, mask())
    assert size < 60_000  # the picture is stored once: 64 x 64 pixels of noise take 16 kB as text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"denoise": 0.5}, "denoise is given, but init is None"),
        ({"mask": mask()}, "mask is given, but init is None"),
        ({"init": PICTURE, "denoise": 0.0}, r"denoise is 0\.0: give a number from 0\.01 to 1"),
        ({"init": PICTURE, "mask": mask()[:32]}, r"mask is uint8 \(32, 64\): give a uint8 array of init's"),
        ({"init": PICTURE[:, :, 0]}, r"init is uint8 \(64, 64\): give an \(H, W, 3\) uint8 RGB array"),
        ({"init": hint(0, 128, 64)}, r"sizes differ \(64x64, 64x128\)"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny_request(**changes)


def test_a_result_tells_of_the_request_with_all_its_steps(pipe: ControlNetPipeline) -> None:
    events = list(pipe.sample(tiny_request(steps=4, init=PICTURE, denoise=0.5)))
    assert isinstance(events[-1], Result) and events[-1].request.steps == 4 and len(events) == 3


def test_a_picture_too_large_to_be_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.stored_request.MAX_HINT_BYTES", 1000)
    file = io.BytesIO()
    save_png(PICTURE, file, Request("x", size=(64, 64), init=PICTURE, denoise=0.5), seed=0, model="tiny")
    found = read_request(file)
    assert found.init is None and "too large to be kept" in found.notes[0]
    assert found.to_request().init is None


def test_the_denoising_of_other_programs_pictures_is_read_and_needs_no_picture() -> None:
    found = read_parameters("a fox\nSteps: 20, Sampler: DDIM, Seed: 1, Size: 64x64, Denoising strength: 0.4")
    assert found.denoise == 0.4
    assert found.to_request().denoise == 1.0
