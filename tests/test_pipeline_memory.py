"""Nothing of a request stays behind, and the networks are where they should be."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import SuiteError
from core.models.controlnet import ControlNet
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Result
from core.sampling import coding
from tests.tiny_model import hint, tiny_config, tiny_control, tiny_networks, tiny_pipeline
from tests.tiny_model import tiny_request as request


@pytest.mark.parametrize("options", [{}, {"cache_interval": 3, "control_interval": 2}])
@pytest.mark.parametrize("cancel", [False, True])
def test_nothing_of_a_request_stays_in_memory(
    pipe: ControlNetPipeline, cancel: bool, options: dict[str, Any]
) -> None:
    pipe(request())  # what is kept on purpose, the ControlNet and the preview, is there now
    picture = hint(3)
    traces: list[weakref.ref[object]] = [weakref.ref(picture)]
    updates = pipe.sample(request(controls=(ControlUnit("canny", picture),), **options))
    handle = pipe.networks.unet.out[-1].register_forward_hook(
        lambda module, args, out: traces.extend([weakref.ref(out), weakref.ref(args[0])])
    )
    next(updates)
    handle.remove()
    if cancel:
        updates.close()  # type: ignore[attr-defined]
    else:
        assert isinstance(list(updates)[-1], Result)
    del picture, updates
    gc.collect()
    assert len(traces) == 3
    assert all(trace() is None for trace in traces)


class Recorder:
    """Writes down which network is moved where, and when the networks compute."""

    def __init__(self, pipe: ControlNetPipeline) -> None:
        self.events: list[str] = []
        self.here: set[str] = set()
        self.most = 0
        self.names = {
            id(n): type(n).__name__ for n in (pipe.networks.unet, pipe.networks.vae, pipe.networks.text)
        }
        self.device = torch.device("meta")  # stands for a device that is not the resting one
        pipe._placement.device = self.device
        pipe._placement._move = self.move
        self.pipe = pipe

    def move(self, module: torch.nn.Module, device: torch.device) -> None:
        name = self.names.get(id(module)) or self._control_name(module)
        (self.here.add if device == self.device else self.here.discard)(name)
        self.most = max(self.most, len(self.here))
        self.events.append(f"{name} {'in' if device == self.device else 'out'}")

    def _control_name(self, module: torch.nn.Module) -> str:
        kept = self.pipe._cache._nets
        return next(f"ControlNet {name}" for name, net in kept.items() if net is module)


@pytest.fixture
def recorded() -> Iterator[tuple[ControlNetPipeline, Recorder]]:
    pipe = tiny_pipeline(low_vram=True)
    recorder = Recorder(pipe)
    yield pipe, recorder


def watch(pipe: ControlNetPipeline, recorder: Recorder) -> list[tuple[str, frozenset[str]]]:
    """Return a list that fills with what computes and what is on the device then."""
    used: list[tuple[str, frozenset[str]]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args: used.append((name, frozenset(recorder.here)))

    pipe.networks.text.token_embedding.register_forward_pre_hook(note("TextEncoder"))
    pipe.networks.unet.register_forward_pre_hook(note("UNet"))
    pipe.networks.vae.decoder.conv_in.register_forward_pre_hook(note("VAE"))
    return used


def test_low_vram_keeps_only_the_network_in_use_on_the_device(
    recorded: tuple[ControlNetPipeline, Recorder],
) -> None:
    pipe, recorder = recorded
    used = watch(pipe, recorder)
    wanted = tiny_pipeline()(request())
    made = pipe(request())  # decoded in strips: sums are rounded in another order
    assert np.abs(made.images[0].astype(int) - wanted.images[0].astype(int)).max() <= 1
    assert set(used) == {
        ("TextEncoder", frozenset({"TextEncoder"})),
        ("UNet", frozenset({"UNet", "ControlNet canny"})),
        ("VAE", frozenset({"AutoencoderKL"})),
    }
    assert recorder.here == set()
    assert recorder.events.count("UNet in") == 1  # for the request, not for each step


def test_low_vram_has_only_the_controls_on_the_device_that_act_in_the_step(
    recorded: tuple[ControlNetPipeline, Recorder],
) -> None:
    pipe, recorder = recorded
    used = watch(pipe, recorder)
    units = (
        ControlUnit("canny", hint(0), end=0.5),
        ControlUnit("depth", hint(1), start=0.5),
        ControlUnit("seg", hint(2), strength=0.0),
    )
    pipe(request(controls=units, steps=4))
    seen = [here - {"UNet"} for name, here in used if name == "UNet"]
    assert seen == [{"ControlNet canny"}] * 2 + [{"ControlNet depth"}] * 2
    assert recorder.most == 2 and recorder.here == set()


def test_a_network_that_cannot_be_moved_does_not_stay_behind() -> None:
    pipe = tiny_pipeline(low_vram=True)
    recorder = Recorder(pipe)
    move, full = pipe._placement._move, torch.OutOfMemoryError("full")

    def fail(module: torch.nn.Module, device: torch.device) -> None:
        move(module, device)
        if module is pipe.networks.unet and device == recorder.device:
            raise full

    pipe._placement._move = fail
    with pytest.raises(SuiteError, match="ran out of memory"):
        pipe(request())
    assert recorder.here == set()


@pytest.mark.parametrize(
    ("size", "strips", "expected"),
    [((64, 64), None, False), ((64, 1088), None, True), ((64, 1024), None, False), ((64, 64), True, True)],
)
def test_large_pictures_are_decoded_in_strips(
    size: tuple[int, int], strips: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, called = tiny_config(), list[Any]()
    pipe = ControlNetPipeline(
        config, tiny_networks(config), lambda name: tiny_control(config, name), strips=strips
    )
    real = coding.decode_in_strips

    def decode(*args: Any, **options: Any) -> torch.Tensor:
        called.append(args)
        return real(*args, **options)

    monkeypatch.setattr(coding, "decode_in_strips", decode)
    result = pipe(request(controls=(), size=size, steps=1))
    assert result.images[0].shape == (*size, 3) and bool(called) == expected


def test_low_vram_brings_everything_back_after_a_cancel(
    recorded: tuple[ControlNetPipeline, Recorder],
) -> None:
    pipe, recorder = recorded
    updates = pipe.sample(request())
    next(updates)
    assert recorder.here == {"UNet", "ControlNet canny"}
    updates.close()  # type: ignore[attr-defined]
    assert recorder.here == set()


def test_without_low_vram_nothing_is_moved() -> None:
    pipe = tiny_pipeline()
    moved: list[object] = []
    pipe._placement._move = lambda module, device: moved.append(module)
    pipe(request())
    assert moved == []


def test_pictures_are_decoded_one_at_a_time() -> None:
    pipe = tiny_pipeline()
    rows: list[int] = []
    pipe.networks.vae.decoder.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    pipe(request(num_samples=4))
    assert rows == [1] * 4


def test_control_nets_are_swapped_and_reused() -> None:
    config, loaded = tiny_config(), list[str]()

    def load(name: str) -> ControlNet:
        loaded.append(name)
        return tiny_control(config, name)

    pipe = ControlNetPipeline(config, tiny_networks(config), load, max_controls=2)
    unet = pipe.networks.unet
    for name in ("canny", "depth", "canny", "seg", "canny", "depth"):
        pipe(request(controls=(ControlUnit(name, hint()),)))
    assert loaded == ["canny", "depth", "seg", "depth"]
    assert pipe.networks.unet is unet
