"""One training step of a ControlNet is the original's: loss, gradients and parameters, base locked or not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from core.config import ScheduleConfig
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.training.control import ControlBatch, control_prediction
from core.training.diffusion import DiffusionLoss
from tests.golden_networks import (
    MARGIN,
    SMALL_CONTROL,
    SMALL_UNET,
    load_golden,
    materialise,
    sampled,
)

UNET, CONTROL = "model.diffusion_model.", "control_model."
GRADIENT_NOISE = 3e-5  # relative to the largest; the original against itself on two thread settings
LEARNING_RATE = 1e-5


@dataclass
class Step:
    unet: UNet
    control: ControlNet
    loss: Tensor
    golden: dict[str, Tensor]

    def parameter(self, key: str) -> nn.Parameter:
        """Return the parameter with the published ``key``."""
        module, prefix = (self.control, CONTROL) if key.startswith(CONTROL) else (self.unet, UNET)
        return module.get_parameter(key.removeprefix(prefix))

    def expected(self, kind: str) -> list[tuple[nn.Parameter, Tensor]]:
        """Return parameters and what the golden file stores of their ``kind``."""
        names = [name for name in self.golden if name.startswith(kind + ".")]
        assert names
        return [(self.parameter(name.removeprefix(kind + ".")), self.golden[name]) for name in names]


def take_step(unlocked: bool) -> Step:
    golden = load_golden("train_small")
    unet = materialise(UNet(SMALL_UNET), UNET, "public-small")
    control = materialise(ControlNet(SMALL_UNET, SMALL_CONTROL), CONTROL, "public-small")
    control.requires_grad_(True)
    if unlocked:
        unet.output_blocks.requires_grad_(True)
        unet.out.requires_grad_(True)
    batch = ControlBatch(golden["x_start"], golden["context"], golden["hint"])
    criterion = DiffusionLoss(ScheduleConfig())
    x_t = criterion.noised(batch.x_0, golden["noise"], golden["t"])
    assert (x_t - golden["x_noisy"]).abs().max() < 1e-6
    prediction = control_prediction(unet, control, batch, x_t, golden["t"])
    loss = criterion(prediction, batch.x_0, golden["noise"], golden["t"])
    loss.backward()
    return Step(unet, control, loss.detach(), golden)


@pytest.fixture(params=[False, True], ids=["locked", "unlocked"])
def unlocked(request: pytest.FixtureRequest) -> bool:
    return request.param


def assert_gradients(pairs: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, golden in pairs:
        assert parameter.grad is not None
        gradient = parameter.grad.flatten() if parameter.shape == golden.shape else sampled(parameter.grad)
        error = (gradient - golden.flatten()).abs().max() / golden.abs().max()
        assert error < MARGIN * GRADIENT_NOISE


def test_loss_and_gradients_are_the_originals(unlocked: bool) -> None:
    step = take_step(unlocked)
    assert step.loss.item() == pytest.approx(step.golden["loss"].item(), rel=1e-6)
    assert_gradients(step.expected("grad"))
    if unlocked:
        assert_gradients(step.expected("grad_decoder"))


def test_one_optimiser_step_moves_the_parameters_as_the_originals(unlocked: bool) -> None:
    step = take_step(unlocked)
    trained = [p for module in (step.control, step.unet) for p in module.parameters() if p.requires_grad]
    pairs = step.expected("delta_unlocked" if unlocked else "delta_locked")
    before = [p.detach().clone() for p, _ in pairs]
    torch.optim.AdamW(trained, lr=LEARNING_RATE).step()
    for (parameter, golden), old in zip(pairs, before, strict=True):
        delta = parameter.detach() - old
        delta = delta.flatten() if delta.shape == golden.shape else sampled(delta)
        # A first step is about as long as the learning rate; its bits are those of the parameters, about 1.
        assert (delta - golden.flatten()).abs().max() < 0.05 * LEARNING_RATE


def test_a_locked_base_gets_no_gradients_and_the_whole_copy_does() -> None:
    step = take_step(unlocked=False)
    assert all(p.grad is None for p in step.unet.parameters())
    assert all(p.grad is not None and p.grad.any() for p in step.control.parameters())
