"""Nothing of a request stays behind, and the networks are where they should be."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from core.models.controlnet import ControlNet
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Result
from tests.tiny_model import hint, tiny_config, tiny_control, tiny_networks, tiny_pipeline
from tests.tiny_model import same_pictures as same
from tests.tiny_model import tiny_request as request


@pytest.mark.parametrize("cancel", [False, True])
def test_nothing_of_a_request_stays_in_memory(pipe: ControlNetPipeline, cancel: bool) -> None:
    pipe(request())  # what is kept on purpose, the ControlNet and the preview, is there now
    picture = hint(3)
    traces: list[weakref.ref[object]] = [weakref.ref(picture)]
    updates = pipe.sample(request(controls=(ControlUnit("canny", picture),)))
    handle = pipe.networks.unet.register_forward_hook(
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
        self.names = {
            id(n): type(n).__name__ for n in (pipe.networks.unet, pipe.networks.vae, pipe.networks.text)
        }
        self.device = torch.device("meta")  # stands for a device that is not the resting one
        pipe._placement.device = self.device
        pipe._placement._move = self.move

    def move(self, module: torch.nn.Module, device: torch.device) -> None:
        name = type(module).__name__
        (self.here.add if device == self.device else self.here.discard)(name)
        self.events.append(f"{name} {'in' if device == self.device else 'out'}")


@pytest.fixture
def recorded() -> Iterator[tuple[ControlNetPipeline, Recorder]]:
    pipe = tiny_pipeline(low_vram=True)
    recorder = Recorder(pipe)
    yield pipe, recorder


def test_low_vram_keeps_only_the_network_in_use_on_the_device(
    recorded: tuple[ControlNetPipeline, Recorder],
) -> None:
    pipe, recorder = recorded
    used: list[tuple[str, frozenset[str]]] = []
    for module in (pipe.networks.unet, pipe.networks.text):
        module.register_forward_pre_hook(
            lambda m, args: used.append((type(m).__name__, frozenset(recorder.here)))
        )
    pipe.networks.vae.decoder.register_forward_pre_hook(
        lambda m, args: used.append(("VAE", frozenset(recorder.here)))
    )
    wanted = tiny_pipeline()(request())
    assert same(pipe(request()), wanted)
    assert set(used) == {
        ("TextEncoder", frozenset({"TextEncoder"})),
        ("UNet", frozenset({"UNet", "ControlNet"})),
        ("VAE", frozenset({"AutoencoderKL"})),
    }
    assert recorder.here == set()
    assert recorder.events.count("UNet in") == 1  # for the request, not for each step


def test_low_vram_brings_everything_back_after_a_cancel(
    recorded: tuple[ControlNetPipeline, Recorder],
) -> None:
    pipe, recorder = recorded
    updates = pipe.sample(request())
    next(updates)
    assert recorder.here == {"UNet", "ControlNet"}
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
