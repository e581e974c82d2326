"""What only an NVIDIA GPU can show; everything else about these paths is tested on stand-ins."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.models import fused
from core.models.norms import GroupNorm
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request, Result
from core.runtime.lanes import Lanes
from core.sampling.graphs import StepGraphs
from core.sampling.guidance import GuidedDenoiser, prepare_control, text_rows
from core.sampling.samplers import SAMPLERS
from core.sampling.schedule import Schedule
from core.sampling.step import StepInputs, predict
from tests.tiny_model import hint, same_pictures, tiny_config, tiny_control, tiny_networks, tiny_request

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda")
CONFIG = tiny_config()
TWO = (ControlUnit("canny", hint(1)), ControlUnit("depth", hint(2), 0.5))


@pytest.fixture(autouse=True)
def heuristics() -> Iterator[None]:
    """Have libraries choose kernels by rule, not by timing: else two runs may differ in rounding."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    yield
    torch.backends.cudnn.benchmark = before


def pipeline(
    dtype: torch.dtype = torch.float16, device: torch.device = CUDA, **options: Any
) -> ControlNetPipeline:
    networks = tiny_networks(CONFIG)
    for module in (networks.unet, networks.vae, networks.text):
        module.to(dtype)
    return ControlNetPipeline(
        CONFIG, networks, lambda name: tiny_control(CONFIG, name).to(dtype), device=device, **options
    )


def watched(pipe: ControlNetPipeline) -> list[Tensor]:
    """Return a list that fills with what the networks give at every step."""
    seen: list[Tensor] = []
    inner = pipe._draw._walk._predict

    def listen(inputs: StepInputs, x: Tensor, time: Tensor) -> Tensor:
        seen.append(inner(inputs, x, time))
        return seen[-1]

    pipe._draw._walk._predict = listen
    return seen


REQUESTS = (
    tiny_request(),
    tiny_request(5, controls=TWO),
    tiny_request(6, controls=TWO, guess_mode=True, num_samples=2),
    tiny_request(7, controls=(ControlUnit("canny", hint(3), 0.7, 0.3, 0.7),), steps=4),
    tiny_request(8, cfg_scale=1.0, sampler="euler_a"),
    tiny_request(9, token_merging_ratio=0.5),
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_replayed_steps_are_computed_ones_to_the_bit(dtype: torch.dtype) -> None:
    replaying, computing = pipeline(dtype), pipeline(dtype, graphs=False)
    assert isinstance(replaying._predict, StepGraphs) and computing._predict is predict
    ours, plain = watched(replaying), watched(computing)
    for request in (*REQUESTS, *REQUESTS):  # recorded, then found again
        assert same_pictures(replaying(request), computing(request))
    assert len(ours) == len(plain) and all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert len(replaying._predict) == 7  # one each, and two where a control acts in part of the steps


def test_a_recording_is_made_while_another_thread_uses_the_gpu() -> None:
    pipe, wanted, done = pipeline(), pipeline(graphs=False), threading.Event()

    def busy() -> None:
        while not done.is_set():
            torch.ones(1 << 20, device=CUDA).sum()

    other = threading.Thread(target=busy)
    other.start()
    try:
        made = [pipe(tiny_request(num_samples=count)) for count in (1, 2, 3)]
    finally:
        done.set()
        other.join()
    assert isinstance(pipe._predict, StepGraphs) and len(pipe._predict) == 3
    for count, result in enumerate(made, start=1):
        assert same_pictures(result, wanted(tiny_request(num_samples=count)))


def inputs(dtype: torch.dtype = torch.float16) -> GuidedDenoiser:
    """Return a denoiser with two controls."""
    unet = tiny_networks(CONFIG).unet.to(CUDA, dtype).to(memory_format=torch.channels_last)
    nets = [tiny_control(CONFIG, name).to(CUDA, dtype) for name in ("canny", "depth")]
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0)).to(CUDA, dtype)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    controls = [prepare_control(net, unit, picture, context, 1) for net, unit in zip(nets, TWO, strict=True)]
    kv = text_rows(unet, context, 1)
    return GuidedDenoiser(unet, Schedule(CONFIG.schedule), kv, controls, 7.0, False, 10)


@torch.inference_mode()
def test_controls_on_streams_of_their_own_change_nothing() -> None:
    given, time = inputs().inputs(1, 0), torch.full((2,), 400.0, device=CUDA)
    lanes = Lanes(CUDA)
    for seed in range(20):
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).to(CUDA).half()
        assert torch.equal(predict(given, x, time, lanes), predict(given, x, time))


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.inference_mode()
def test_nothing_in_a_step_waits_for_the_gpu(sampler: str) -> None:
    model = inputs()
    x = torch.randn(1, 4, 8, 8, device=CUDA)
    walk = SAMPLERS[sampler](model, x, model.schedule, 4, 0.0, lambda: torch.randn_like(x))
    next(walk)  # libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(walk)) == 3
    finally:
        torch.cuda.set_sync_debug_mode("default")


def latents(pipe: ControlNetPipeline, request: Request) -> Tensor:
    """Return what is decoded."""
    kept: list[Tensor] = []
    decode = pipe._draw._coder.decode

    def listen(values: Tensor) -> Any:
        kept.append(values.float().cpu())
        return decode(values)

    pipe._draw._coder.decode = listen  # type: ignore[method-assign, assignment]
    pipe(request)
    return kept[0]


def test_latents_in_float16_are_those_of_a_cpu_in_float32() -> None:
    request = tiny_request(controls=TWO, steps=10)
    exact = latents(pipeline(torch.float32, torch.device("cpu")), request)
    assert (latents(pipeline(), request) - exact).norm() / exact.norm() < 2e-2


def test_latents_in_float32_are_those_of_a_cpu() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # as load_pipeline has it
    try:
        request = tiny_request(controls=TWO, steps=10)
        exact = latents(pipeline(torch.float32, torch.device("cpu")), request)
        assert (latents(pipeline(torch.float32), request) - exact).norm() / exact.norm() < 1e-4
    finally:
        torch.backends.cudnn.allow_tf32 = before


def peak(pipe: ControlNetPipeline) -> int:
    """Return the bytes that a second picture takes at the most, with the networks that are there."""
    pipe(tiny_request())
    torch.cuda.reset_peak_memory_stats()
    pipe(tiny_request())
    return torch.cuda.max_memory_allocated()


def test_low_vram_takes_less_memory_and_draws_the_same() -> None:
    torch.cuda.empty_cache()
    frugal = pipeline(low_vram=True)
    least = peak(frugal)
    usual = pipeline()
    assert peak(usual) > least
    a, b = frugal(tiny_request()), usual(tiny_request())
    assert np.abs(a.images[0].astype(int) - b.images[0].astype(int)).max() <= 1  # decoded in strips


def test_a_cancelled_request_leaves_the_next_one_as_it_would_have_been() -> None:
    pipe = pipeline()
    updates = pipe.sample(tiny_request(3))
    next(updates)
    updates.close()  # type: ignore[attr-defined]
    result = pipe(tiny_request())
    assert isinstance(result, Result) and same_pictures(result, pipeline(graphs=False)(tiny_request()))


@torch.inference_mode()
def test_the_fused_kernels_agree_with_torch() -> None:
    assert fused.works(CUDA)
    torch.manual_seed(0)
    x = torch.randn(2, 320, 40, 24, device=CUDA, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(32, 320).to(CUDA, torch.float16)
    assert fused.suits_norm(x)
    right = F.silu(F.group_norm(x.float(), 32, norm.weight.float(), norm.bias.float(), norm.eps))
    assert torch.allclose(norm.silu(x).float(), right, atol=5e-3)
    rows = torch.randn(2, 96, 640, device=CUDA, dtype=torch.float16)
    value, gate = rows.float().chunk(2, dim=-1)
    assert torch.allclose(fused.geglu(rows).float(), value * F.gelu(gate), atol=1e-2)
