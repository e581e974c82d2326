"""DDIM with ControlNet, guidance and guess mode walks the original's trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from core.config import ScheduleConfig
from core.images import to_uint8
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.sampling.guidance import ActiveControl, GuidedDenoiser
from core.sampling.samplers import StepState, ddim
from core.sampling.schedule import Schedule
from tests.golden_networks import NOISE, SMALL_CONTROL, SMALL_UNET, SMALL_VAE, materialise, sampled

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling" / "ddim_small.safetensors"
# The original against itself, on two thread settings, differs by this much; latents have deviation 7 to 9.5.
NOISE_X_PREV, NOISE_PRED_X0, MARGIN = 6e-5, 1.4e-4, 5
STEPS = 10


@dataclass
class Model:
    unet: UNet
    control: ControlNet
    vae: AutoencoderKL
    golden: dict[str, Tensor]
    schedule: Schedule

    def denoiser(self, guess_mode: bool) -> GuidedDenoiser:
        g = self.golden
        both = torch.cat([g["cond"], g["uncond"]])
        seen = g["cond"] if guess_mode else both
        hint = self.control.embed_hint(g["hint"])  # a hint of its own for each picture
        control = ActiveControl(
            net=self.control,
            hint_embedding=hint if guess_mode else torch.cat([hint, hint]),
            kv=self.control.project_context(seen),
            strength=1.0,
            start=0.0,
            end=1.0,
        )
        kv = self.unet.project_context(both)
        return GuidedDenoiser(self.unet, self.schedule, kv, [control], 9.0, guess_mode, STEPS)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with torch.inference_mode():
        yield Model(
            materialise(UNet(SMALL_UNET), "model.diffusion_model.", "public-small"),
            materialise(ControlNet(SMALL_UNET, SMALL_CONTROL), "control_model.", "public-small"),
            materialise(AutoencoderKL(SMALL_VAE), "first_stage_model.", "public-small"),
            load_file(GOLDEN),
            Schedule(ScheduleConfig()),
        )


def trajectory(model: Model, case: str) -> list[StepState]:
    g = model.golden
    noises = iter(g["eta05.noise"])
    denoiser = model.denoiser(guess_mode=case == "guess")
    eta = 0.5 if case == "eta05" else 0.0
    return list(ddim(denoiser, g["x_T"], model.schedule, STEPS, eta, lambda: next(noises)))


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


@pytest.mark.parametrize("case", ["eta0", "eta05", "guess"])
def test_every_step_and_the_picture_are_the_originals(model: Model, case: str) -> None:
    g = model.golden
    states = trajectory(model, case)
    for state, x_prev, pred_x0 in zip(states, g[f"{case}.x_prev"], g[f"{case}.pred_x0"], strict=True):
        assert largest(state.x_t - x_prev) <= MARGIN * NOISE_X_PREV, f"x_prev of step {state.step}"
        assert largest(state.x_0 - pred_x0) <= MARGIN * NOISE_PRED_X0, f"pred_x0 of step {state.step}"
    decoded = model.vae.decode(states[-1].x_t)
    assert largest(sampled(decoded) - g[f"{case}.decoded"]) <= MARGIN * NOISE["vae"]
    levels = torch.stack([torch.from_numpy(image) for image in to_uint8(decoded)])
    off = (sampled(levels).int() - g[f"{case}.image_u8"].int()).abs()
    assert largest(off) <= 1
    assert (off > 0).float().mean().item() <= MARGIN * 4e-4


def test_the_model_is_asked_at_the_originals_time_steps(model: Model) -> None:
    asked: list[float] = []

    def record(x_t: Tensor, t: float, step_index: int) -> Tensor:
        asked.append(t)
        return torch.zeros_like(x_t)

    list(ddim(record, model.golden["x_T"], model.schedule, STEPS, 0.0, lambda: model.golden["x_T"]))
    assert asked == model.golden["eta0.t"].tolist()


def test_the_noise_of_each_step_has_the_originals_deviation(model: Model) -> None:
    """With no signal and no predicted noise, a step adds sigma times the noise and nothing else."""
    nothing = torch.zeros(1, dtype=torch.float64)
    ones = torch.ones(1, dtype=torch.float64)
    states = list(ddim(lambda x, t, i: nothing, nothing, model.schedule, STEPS, 0.5, lambda: ones))
    alphas = [model.schedule.alphas_cumprod[t] for t in [*model.schedule.timesteps(STEPS), 0]]
    x = 0.0
    for i, (state, sigma) in enumerate(zip(states, model.golden["eta05.sigmas"].flip(0), strict=True)):
        x = x * (alphas[i + 1] / alphas[i]) ** 0.5 + sigma.item()
        assert state.x_t.item() == pytest.approx(x, rel=1e-6)


def test_the_last_step_ends_at_the_noise_of_time_step_0(model: Model) -> None:
    assert model.schedule.alphas_cumprod[0] == pytest.approx(model.golden["alphas_prev"][0].item(), rel=1e-6)
    ones = torch.ones(1, dtype=torch.float64)
    last = list(ddim(lambda x, t, i: 0 * x, ones, model.schedule, STEPS, 0.0, lambda: ones))[-1]
    assert last.x_t.item() / last.x_0.item() == pytest.approx(model.schedule.alphas_cumprod[0] ** 0.5)
