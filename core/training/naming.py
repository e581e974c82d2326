"""Let the base, or a ControlNet, learn from whether what is drawn can be named, beside its usual loss.

Sources: a judge's gradients through a drawing, Xu et al. 2023 (ReFL, arXiv 2304.05977) and Clark et al. 2023
(DRaFT, 2309.17400); through the way from step to step alone, not through what the networks look at, Wu et al.
2024 (DRTune, 2405.00760).
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.config import ModelConfig
from core.models.variants import AnyControlNet
from core.runtime.device import CPU, autocast, for_training, training_attention, training_dtype
from core.training.base import BaseBatch, SceneBatches, base_loss, open_framed
from core.training.control import SceneControlBatches, control_loss, trained_over
from core.training.data import LatentScenes
from core.training.diffusion import DiffusionLoss, draw
from core.training.export import export_base, export_control
from core.training.hints import HINT_MAKERS, CachedHints, canny_hint, in_colour
from core.training.loop import LoopConfig, Trainer
from core.training.namer import Namer
from core.training.toyworld.captions import ADDED_PROMPT, NEGATIVE_PROMPT
from core.weights.checkpoint import BaseNetworks, load_base, load_control

TRUNK = "canny"  # the ControlNet that the others lie over; the base learns under its maps
STEPS = 6  # of a drawing
LEARNING = 2  # of them, picked by chance, have gradients: each is as dear as three others
LAST = 150  # the latest time step that is looked at, of 1000; the earliest is 950
JITTER = 50  # by how much all of them are earlier at most
WEIGHT = 0.02  # gradients of names are some hundred times those of the usual loss
CONTROLLED = 3  # every so many-eth step draws under a map
SIDES = (80, 96, 96, 112, 128)  # px: of what the namers are shown
GRAIN = 0.08  # the most noise in it, where 2 is from black to white


@lru_cache(maxsize=1)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"\b({either})\b")


def named_thing(caption: str, names: tuple[str, ...]) -> int | None:
    """Return the number of the one name in a caption, or None where there is none, or more than one."""
    found = _any_of(names).findall(caption)
    return names.index(found[0]) if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Asked:
    """Drawings that are asked for: their captions, what they should show (B,), maps (B, 3, H, W) if any."""

    captions: list[str]
    wanted: Tensor
    hint: Tensor | None = None


class Things:
    """Scenes whose captions name one thing."""

    def __init__(
        self,
        scenes: LatentScenes,
        names: tuple[str, ...],
        cached: CachedHints | None = None,
        *,
        maps: bool = False,
    ) -> None:
        """Find them; with ``maps`` each is asked for with its map: of ``cached`` ones, else its Canny edges.

        Raises:
            ValueError: there are none.
        """
        self.scenes, self.cached, self.maps = scenes, cached, maps
        held = len(scenes.latents)
        rows = range(held) if cached is None else cached.scenes.tolist()
        self.found: list[tuple[int, int, int]] = []  # which map, which scene, what its caption names
        for which, row in enumerate(rows):
            number = named_thing(scenes.scenes.captions[row], names) if row < held else None
            if number is not None:
                self.found.append((which, row, number))
        if not self.found:
            raise ValueError("no scene's caption names one thing alone: render more, or others.")

    def __call__(self, size: int, generator: torch.Generator, device: torch.device) -> Asked:
        """Draw ``size`` of them."""
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        drawn = [self.found[rng.randrange(len(self.found))] for _ in range(size)]
        told = [self.scenes.scenes.captions[row] for _, row, _ in drawn]
        told = [caption + ADDED_PROMPT if rng.random() < 0.5 else caption for caption in told]
        wanted, hint = torch.tensor([number for *_, number in drawn], device=device), None
        if self.maps:
            hints = [in_colour(self._map(which, row, rng)) for which, row, _ in drawn]
            hint = torch.from_numpy(np.stack(hints)).to(device).permute(0, 3, 1, 2).float().div_(255.0)
        return Asked(told, wanted, hint)

    def _map(self, which: int, row: int, rng: random.Random) -> NDArray[np.uint8]:
        if self.cached is not None:
            return np.asarray(self.cached.hints[which])
        return canny_hint(np.asarray(self.scenes.scenes.images[row]), rng)


class Painter:
    """Draws as the page does, in a few steps, some of which have gradients."""

    def __init__(self, config: ModelConfig, networks: BaseNetworks, net: AnyControlNet) -> None:
        """Take the networks, which lie on one device; the UNet learns, or the ControlNet."""
        self.networks, self.net = networks, net
        self.criterion, self.scale = DiffusionLoss(config.schedule), config.cfg_scale
        self.device = networks.text.positional_embedding.device
        self.dtype = training_dtype(self.device.type)
        # The UNet once more, for what has no gradients.
        self.quick = copy.deepcopy(networks.unet).requires_grad_(False)
        self.quick.to(self.dtype).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def follow(self) -> None:
        """Let the copy be as the UNet is now."""
        for own, learned in zip(self.quick.parameters(), self.networks.unet.parameters(), strict=True):
            own.copy_(learned)

    @torch.no_grad()
    def read(self, captions: list[str]) -> Tensor:
        """Return the context (B, tokens, width) of captions."""
        with autocast(self.device.type):
            return self.networks.text.encode(captions).float()

    def residuals(self, x_t: Tensor, t: Tensor, context: Tensor, hint: Tensor | None) -> list[Tensor] | None:
        """Return what the ControlNet adds, None without a hint."""
        if hint is None:
            return None
        with autocast(self.device.type):
            made: list[Tensor] = self.net(x_t, t, context, self.net.embed_hint(hint))
        return made

    def predict(
        self, x_t: Tensor, t: Tensor, contexts: tuple[Tensor, Tensor], hint: Tensor | None, learning: bool
    ) -> Tensor:
        """Return the guided prediction at ``t`` (B,), told and not told; only the told half has gradients."""
        told, untold = contexts
        untaught = self._quickly(x_t, t, untold, hint)
        if not learning:
            taught = self._quickly(x_t, t, told, hint)
        else:
            with training_attention(self.device.type):
                residuals = self.residuals(x_t, t, told, hint)
            with autocast(self.device.type), training_attention(self.device.type):
                taught = self.networks.unet(x_t, t, told, residuals).float()
        return untaught + self.scale * (taught - untaught)

    @torch.no_grad()
    def _quickly(self, x_t: Tensor, t: Tensor, context: Tensor, hint: Tensor | None) -> Tensor:
        residuals = self.residuals(x_t, t, context, hint)
        x = x_t.to(self.dtype, memory_format=torch.channels_last)
        added = None if residuals is None else [residual.to(self.dtype) for residual in residuals]
        return self.quick(x, t, context.to(self.dtype), added).float()

    def draw(self, asked: Asked, noise: Tensor, times: Sequence[int], learning: set[int]) -> Tensor:
        """Draw from ``noise`` (B, C, h, w) over ``times``; return latents.

        The steps whose numbers are in ``learning`` have gradients. What the networks are shown has none: they
        go through what each step's prediction adds to the drawing.
        """
        rows = len(noise)
        nothing = [NEGATIVE_PROMPT if row % 2 else "" for row in range(rows)]
        contexts = self.read(asked.captions), self.read(nothing)
        x_t, steps = noise, [torch.full((rows,), t, device=noise.device) for t in times]
        for number, t in enumerate(steps):
            prediction = self.predict(x_t.detach(), t, contexts, asked.hint, number in learning)
            x_0, eps = self.criterion.parts(x_t, prediction, t)
            x_t = self.criterion.noised(x_0, eps, steps[number + 1]) if t is not steps[-1] else x_0
        return x_t


def steps_of_a_drawing(generator: torch.Generator) -> tuple[list[int], set[int]]:
    """Return its time steps, the noisiest first, and which of them have gradients, as chance has it."""
    earlier = int(torch.randint(JITTER, (1,), generator=generator))
    times = [round(t) - earlier for t in np.linspace(950, LAST, STEPS)]
    return times, set(torch.randperm(STEPS, generator=generator)[:LEARNING].tolist())


def shown(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures (B, 3, H, W) as namers are shown them: smaller, at times mirrored, with some noise."""
    side = SIDES[int(torch.randint(len(SIDES), (1,), generator=generator))]
    small = F.interpolate(pictures.clamp(-1, 1), size=(side, side), mode="area")
    amount, mirrored = torch.rand(2, generator=generator).tolist()
    grain = torch.randn(small.shape, generator=generator).to(small.device)
    small = small + GRAIN * amount * grain
    return small.flip(3) if mirrored < 0.5 else small


def unnamed(namers: Sequence[Namer], pictures: Tensor, wanted: Tensor) -> Tensor:
    """Return how far the namers are from naming the pictures (B, 3, h, w) as they should be, (B,)."""
    wrong = [F.cross_entropy(namer(pictures).float(), wanted, reduction="none") for namer in namers]
    return torch.stack(wrong).mean(0)


@dataclass(frozen=True, slots=True)
class Namers:
    """What drawings are shown to: ``networks``, and the decoder that makes pictures of latents."""

    networks: Sequence[Namer]
    painter: Painter

    def loss(self, asked: Asked, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw what is asked for, latents of ``shape`` (B, C, h, w); return how far from its names it is."""
        painter = self.painter
        noise, _ = draw(shape, painter.criterion.timesteps, generator, device=painter.device)
        drawn = painter.draw(asked, noise, *steps_of_a_drawing(generator))
        with autocast(painter.device.type):
            pictures = painter.networks.vae.decode(drawn).float()
        return WEIGHT * unnamed(self.networks, shown(pictures, generator), asked.wanted).mean()


def _load(
    config: ModelConfig, ckpts: Path, control: str, device: torch.device
) -> tuple[BaseNetworks, AnyControlNet]:
    file = ckpts / "base.safetensors"
    base = load_base(config, file, device=device, dtype=torch.float32)
    net = load_control(
        config, ckpts / f"{control}.safetensors", device=device, dtype=torch.float32, base=file
    )
    for module in (base.unet, base.vae, net):
        for_training(module.requires_grad_(False), device)
    return base, net


def train_naming(
    config: ModelConfig,
    data: Path,
    framed: Path,
    ckpts: Path,
    namers: Sequence[Namer],
    loop: LoopConfig,
    *,
    batch_size: int,
    device: torch.device = CPU,
) -> None:
    """Train the UNet in ``ckpts`` by what ``namers`` find in its drawings, and write the base anew.

    ``batch_size`` drawings a step are of what a framed scene's caption asks for, in every third of a scene in
    ``data``, with its edges; the usual loss is of twice as many scenes. The controls stay as they are. It
    resumes from ``loop.output``.

    Raises:
        FileNotFoundError: there are no scenes or latents; with the command that makes them.
        ValueError: no caption names one thing alone, or the scenes in ``framed`` are not framed.
    """
    torch.manual_seed(loop.seed)
    base, net = _load(config, ckpts, TRUNK, device)
    base.unet.requires_grad_(True)
    scenes, in_the_middle = LatentScenes.open(data, device), open_framed(framed, device)
    assert in_the_middle is not None
    names = namers[0].names
    alone, with_maps = Things(in_the_middle, names), Things(scenes, names, maps=True)
    usual = SceneBatches(scenes, base.text, 2 * batch_size, framed=in_the_middle)
    judged = Namers(namers, Painter(config, base, net))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        judged.painter.follow()
        batch: BaseBatch = usual(generator)
        as_usual = base_loss(judged.painter.criterion, base.unet, batch, generator)
        things = with_maps if step % CONTROLLED == CONTROLLED - 1 else alone
        asked = things(batch_size, generator, device)
        return as_usual + judged.loss(asked, (batch_size, *batch.x_0.shape[1:]), generator)

    trainer = Trainer(base.unet.named_parameters(), loop)
    trainer.run(loss, batch_size)
    trainer.use_average()
    export_base(config, base.unet, base.vae, base.text, ckpts / "base.safetensors")


def train_control_naming(
    config: ModelConfig,
    data: Path,
    ckpts: Path,
    control: str,
    namers: Sequence[Namer],
    loop: LoopConfig,
    *,
    batch_size: int,
    device: torch.device = CPU,
) -> None:
    """Train what a ControlNet in ``ckpts`` has of its own by what ``namers`` find in drawings under its maps.

    ``batch_size`` drawings a step are of scenes in ``data`` whose caption names one thing; the usual loss is
    of twice as many scenes. The base, the trunk and the other controls stay. It resumes from ``loop.output``.

    Raises:
        FileNotFoundError: there are no scenes, latents or maps; with the command that makes them.
        ValueError: ``control`` is none, or no caption names one thing alone.
    """
    torch.manual_seed(loop.seed)
    base, net = _load(config, ckpts, control, device)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(trained_over(net, name))
    scenes = LatentScenes.open(data, device)
    cached = CachedHints.open(data, control) if control in HINT_MAKERS else None
    things = Things(scenes, namers[0].names, cached, maps=True)
    usual = SceneControlBatches(data, base.text, control, 2 * batch_size, scenes=scenes)
    judged = Namers(namers, Painter(config, base, net))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch = usual(generator)
        as_usual = control_loss(judged.painter.criterion, base.unet, net, batch, generator)
        asked = things(batch_size, generator, device)
        return as_usual + judged.loss(asked, (batch_size, *batch.x_0.shape[1:]), generator)

    trainer = Trainer(net.named_parameters(), loop)
    trainer.run(loss, batch_size)
    trainer.use_average()
    over = None if control == TRUNK else ckpts / f"{TRUNK}.safetensors"
    export_control(config, net, ckpts / f"{control}.safetensors", over)
