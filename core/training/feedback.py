"""Let a ControlNet learn from what a detector finds in the model's own drawings, beside its usual loss.

Sources: detectors as judges of a ControlNet, Li et al. 2024 (ControlNet++, arXiv 2404.07987); a judge's
gradients through one late step of a drawing, Xu et al. 2023 (ReFL, arXiv 2304.05977).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.config import ModelConfig
from core.runtime.device import CPU, for_training
from core.training.base import varied_captions
from core.training.control import ControlBatch, control_loss, trained_over
from core.training.data import LatentScenes, to_tensor
from core.training.detectors.critics import JUDGES
from core.training.diffusion import draw
from core.training.export import export_control
from core.training.hints import CachedHints
from core.training.loop import LoopConfig, Trainer
from core.training.redraw import Artist, Told
from core.weights.checkpoint import load_base, load_control

STEPS = 5  # of a drawing
EARLIEST = 2  # of them, after which the detector may look: what comes before is too vague for it
WEIGHT = 0.1  # of the detector's loss


@dataclass(frozen=True, slots=True)
class Sample:
    """Scenes to draw: their latents (B, C, h, w), captions, hints (B, H, W, 3) and pictures (B, 3, H, W)."""

    x_0: Tensor
    captions: list[str]
    hints: NDArray[np.uint8]
    true: Tensor

    @property
    def hint(self) -> Tensor:
        """The hints (B, 3, H, W) in [0, 1]."""
        return torch.from_numpy(self.hints).to(self.x_0.device).permute(0, 3, 1, 2).float().div_(255.0)


class Samples:
    """Draws samples of the scenes that have cached hints."""

    def __init__(self, data: Path, control: str, size: int, device: torch.device) -> None:
        """Open them, ``size`` a sample."""
        self.dataset, self.cached = LatentScenes.open(data, device), CachedHints.open(data, control)
        self.size, self.device = size, device

    def __call__(self, generator: torch.Generator) -> Sample:
        """Draw one sample."""
        rows = self.cached.draw(self.size, len(self.dataset.latents), generator)
        which, hints = self.cached.scenes[rows], self.cached.hints[rows]
        scenes = self.dataset.scenes
        return Sample(
            self.dataset.latents[which].float(),
            varied_captions([scenes.captions[i] for i in which], generator),
            hints if hints.ndim == 4 else np.repeat(hints[..., None], 3, axis=3),
            to_tensor(scenes.images[which]).to(self.device),
        )


def drawn_late(artist: Artist, told: Told, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from noise up to a step that chance picks; return what that step takes for x_0, with gradients."""
    last = int(torch.randint(EARLIEST, STEPS, (1,), generator=generator))
    noise, _ = draw(shape, artist.criterion.timesteps, generator, device=told.hint.device)
    spaced = torch.linspace(artist.criterion.timesteps - 1, 0, STEPS + 1).long()[: last + 1]
    times = [t.expand(shape[0]).to(told.hint.device) for t in spaced]
    x_t = artist.draw(told, noise, times)
    return artist.criterion.parts(x_t, artist.predict(told, x_t, times[-1]), times[-1])[0]


def train_feedback(
    config: ModelConfig,
    data: Path,
    ckpts: Path,
    control: str,
    loop: LoopConfig,
    *,
    batch_size: int,
    device: torch.device = CPU,
    trunk: str = "canny",
) -> None:
    """Train what the ControlNet in ``ckpts`` has of its own, over the trunk of another, and write it anew.

    Its base, its trunk and the detector stay. It resumes from ``loop.output``.

    Raises:
        ValueError: there is no detector that judges this control.
        WeightsMissing: the detector is not on this computer; says how to get it.
    """
    if control not in JUDGES:
        raise ValueError(f"control is {control!r}: no detector judges it here; give {', '.join(JUDGES)}.")
    torch.manual_seed(loop.seed)
    base_file, over = ckpts / "base.safetensors", ckpts / f"{trunk}.safetensors"
    base = load_base(config, base_file, device=device, dtype=torch.float32)
    net = load_control(
        config, ckpts / f"{control}.safetensors", device=device, dtype=torch.float32, base=base_file
    )
    for module in (base.unet, base.vae, net):
        for_training(module.requires_grad_(False), device)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(trained_over(net, name))
    artist, samples = Artist(config, base.unet, base.text, net), Samples(data, control, batch_size, device)
    judge = JUDGES[control](samples.dataset.scenes.images.shape[1], device)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        sample = samples(generator)
        told = artist.told(sample.captions, sample.hint)
        batch = ControlBatch(sample.x_0, told.context, told.hint)
        usual = control_loss(artist.criterion, base.unet, net, batch, generator)
        made = base.vae.decode(drawn_late(artist, told, tuple(sample.x_0.shape), generator)).float()
        return usual + WEIGHT * judge(made, sample.true, sample.hints)

    trainer = Trainer(net.named_parameters(), loop)
    trainer.run(loss, batch_size)
    trainer.use_average()
    export_control(config, net, ckpts / f"{control}.safetensors", over)
