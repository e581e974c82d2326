"""Let base and controls learn from whether what they draw is nameable, beside their usual loss.

Sources: a judge's gradients through one step of a drawing, Xu et al. 2023 (ReFL, arXiv 2304.05977); judged
in the latents' own space, Kang et al. 2024 (arXiv 2405.05967).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.config import ModelConfig
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.variants import AnyControlNet
from core.training.control import SceneControlBatches
from core.training.data import LatentScenes
from core.training.diffusion import draw
from core.training.hints import in_colour
from core.training.namer import Namer, hazed, misnamed
from core.training.redraw import Artist
from core.training.toyworld.captions import ADDED_PROMPT

STEPS = 5  # of a drawing
LOOKS = (1, 4)  # after how many of them the namer looks: at least, and fewer than
BASE_BEGINS = 0.85  # of the schedule: under so much noise that what there is must be told, but not where
WEIGHT = 0.02  # gradients of names are some hundred times those of the usual loss


@dataclass(frozen=True, slots=True)
class NamedScenes:
    """Scenes and the names (N, h, w) of their places; with a control ``hints`` draws their maps."""

    scenes: LatentScenes
    names: Tensor
    hints: SceneControlBatches | None = None


class Naming:
    """The further loss of each turn: how far what is drawn is from the names of the scenes' things."""

    def __init__(
        self,
        config: ModelConfig,
        text: TextEncoder,
        namer: Namer,
        sources: Mapping[str, NamedScenes],
        size: int,
        weight: float = WEIGHT,
    ) -> None:
        """Judge ``size`` drawings in the turns that ``sources`` has scenes for; the others have no more."""
        self.config, self.text, self.namer = config, text, namer
        self.sources, self.size, self.weight = sources, size, weight

    def __call__(
        self, turn: str, unet: UNet, net: AnyControlNet | None, generator: torch.Generator
    ) -> Tensor:
        """Draw some scenes of a turn up to a step that chance picks; return the loss, which has gradients."""
        source = self.sources.get(turn)
        device = self.text.positional_embedding.device
        if source is None:
            return torch.zeros((), device=device)
        artist = Artist(self.config, unet, self.text, net)
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        if source.hints is None:
            which, hint = torch.randint(len(source.scenes.latents), (self.size,), generator=generator), None
        else:
            rows, maps = source.hints.some(self.size, generator, rng)
            which = torch.from_numpy(rows)
            pictures = torch.from_numpy(np.stack([in_colour(picture) for picture in maps])).to(device)
            hint = pictures.permute(0, 3, 1, 2).float().div_(255.0)
        captions = [source.scenes.scenes.captions[i] for i in which.tolist()]
        captions = [c + ADDED_PROMPT if rng.random() < 0.5 else c for c in captions]
        told = artist.told(captions, hint)
        latents = source.scenes.latents[which.to(device)].float()
        noise, _ = draw(tuple(latents.shape), artist.criterion.timesteps, generator, device=device)
        last, begin = rng.randrange(*LOOKS), artist.criterion.timesteps - 1
        if hint is None:
            begin = round(BASE_BEGINS * begin)
        spaced = torch.linspace(begin, 0, STEPS + 1).long()[: last + 1]
        times = [t.expand(self.size).to(device) for t in spaced]
        x_t = artist.draw(told, artist.criterion.noised(latents, noise, times[0]), times)
        found = artist.criterion.parts(x_t, artist.predict(told, x_t, times[-1]), times[-1])[0]
        logits = self.namer(hazed(found, generator))
        return self.weight * misnamed(logits, source.names[which].to(device))
