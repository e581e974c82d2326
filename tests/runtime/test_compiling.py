"""Compiled networks give what they give otherwise; where nothing can be compiled they say so and go on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from core.models.controlnet import ControlNet
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit
from core.runtime import compiling
from core.runtime.compiling import CACHE, Compiled, can_compile, compile_cache, compile_network
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
CPU = torch.device("cpu")


def compiled_pipeline() -> ControlNetPipeline:
    networks = tiny_networks(CONFIG)
    compile_network(networks.unet)

    def load(name: str) -> ControlNet:
        net = tiny_control(CONFIG, name)
        compile_network(net)
        return net

    return ControlNetPipeline(CONFIG, networks, load)


Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def standing_in(monkeypatch: pytest.MonkeyPatch, compile: Compile) -> list[bool]:
    """Have ``compile`` do the work of torch's; return a list of whether sizes were to be dynamic."""
    calls: list[bool] = []

    def listen(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        calls.append(dynamic)
        return compile(function)

    monkeypatch.setattr(torch, "compile", listen)
    return calls


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def no_iterators(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stand for a compiler, which knows tensors, numbers and sequences of them."""

    def call(*args: Any) -> Any:
        assert all(isinstance(arg, Tensor | tuple | list | float | int | None) for arg in args)
        return function(*args)

    return call


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guess mode": {"guess_mode": True},
    "two controls": {"controls": (ControlUnit("canny", hint(1)), ControlUnit("depth", hint(2), 0.5))},
    "no control": {"controls": (), "size": (64, 64)},
    "wide": {"controls": (ControlUnit("canny", hint(0, 64, 128)),)},
    "deep features taken over": {"cache_interval": 2, "control_interval": 2, "steps": 4},
    "tokens merged": {"token_merging_ratio": 0.5},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_compiled_is_given_its_part_of_the_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    standing_in(monkeypatch, no_iterators)
    request = tiny_request(**REQUESTS[name])
    assert same_pictures(compiled_pipeline()(request), tiny_pipeline()(request))


@pytest.mark.compiler
@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_can_be_compiled_without_a_gap(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request, trace = tiny_request(**REQUESTS[name]), torch.compile
    standing_in(monkeypatch, lambda function: trace(function, dynamic=False, backend="eager", fullgraph=True))
    made, wanted = (pipe(request).images[0].astype(int) for pipe in (compiled_pipeline(), tiny_pipeline()))
    assert np.abs(made - wanted).max() <= 1
    assert not [record for record in caplog.records if record.name.startswith("core")]


def test_encoder_and_decoder_are_compiled_for_one_size_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = standing_in(monkeypatch, as_it_is)
    compile_network(tiny_networks(CONFIG).unet)
    assert calls == [False, False]
    compile_network(tiny_control(CONFIG, "canny"))
    assert calls == [False] * 3


def test_a_network_that_cannot_be_compiled_runs_and_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            next(iter(args[2]))
            raise TorchDynamoException("\n  no kernel for this\nand a long trace")

        return call

    standing_in(monkeypatch, broken)
    pipe, request = compiled_pipeline(), tiny_request()
    with caplog.at_level(logging.WARNING, "core"):
        made = pipe(request)
    assert np.array_equal(made.images[0], tiny_pipeline()(request).images[0])
    told = [record.getMessage() for record in caplog.records if record.name == "core.runtime.compiling"]
    assert len(told) == 3  # two parts of the UNet, one ControlNet; not every step
    assert set(told) == {"Compiling failed, so this runs as without --compile: no kernel for this"}


def test_without_a_compiler_one_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(function: Any) -> Any:
        def call(x: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand a long trace")

        return call

    standing_in(monkeypatch, missing)
    assert can_compile(CPU) is False
    assert [record.getMessage() for record in caplog.records] == [
        "Nothing is compiled and all runs as without --compile, which needs a C++ compiler: "
        "InvalidCxxCompiler: No working C++ compiler found"
    ]
    caplog.clear()
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(*size))
    assert can_compile(torch.device("cuda")) is False
    assert "needs triton, which comes with torch for CUDA on Linux" in caplog.text


def test_compiled_code_is_kept_in_the_users_cache_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = tmp_path / "controlnet-suite" / "compiled"
    monkeypatch.delenv(CACHE, raising=False)
    assert compile_cache() == own == Path(os.environ[CACHE])
    monkeypatch.setenv(CACHE, str(Path(compiling.tempfile.gettempdir()) / "torchinductor_ann"))
    assert compile_cache() == own  # torch's own default
    monkeypatch.setenv(CACHE, "/elsewhere")
    assert compile_cache() == Path("/elsewhere") == Path(os.environ[CACHE])


def test_an_error_of_the_network_itself_is_not_taken_for_a_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    standing_in(monkeypatch, as_it_is)
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(full)()


@pytest.mark.compiler
def test_compiled_for_real_the_latents_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    if not can_compile(CPU):
        pytest.skip("no C++ compiler")
    made, wanted = (
        pipe(tiny_request()).images[0].astype(int) for pipe in (compiled_pipeline(), tiny_pipeline())
    )
    assert np.abs(made - wanted).max() <= 1
    assert any(tmp_path.iterdir())
