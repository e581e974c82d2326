"""Train the demo model's denoiser on cached latents and captions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.config import ModelConfig
from core.models.text_encoder import TextEncoder
from core.models.tokenizer import END_TOKEN, START_TOKEN, tokenizer
from core.models.unet import UNet
from core.runtime.device import CPU, autocast, for_training, training_attention
from core.training.data import LatentScenes, made_of
from core.training.diffusion import DiffusionLoss, draw
from core.training.loop import LoopConfig, Trainer
from core.training.toyworld.captions import ADDED_PROMPT, NEGATIVE_PROMPT
from core.training.toyworld.vocabulary import vocabulary

TEXT = "text.safetensors"
START = "start.safetensors"  # a trained UNet to go on from
FRAMED_SHARE = 0.8  # of the base's pictures, where there are framed scenes
UNKNOWN_WORD = "qwzrtx"  # its tokens are not in the vocabulary


def kept_token_ids(layout: str) -> Tensor:
    """Return the sorted token ids of the toy world's vocabulary."""
    encode = tokenizer(layout).encode
    return torch.tensor(sorted({START_TOKEN, END_TOKEN, *(i for word in vocabulary() for i in encode(word))}))


def vary_caption(caption: str, rng: random.Random) -> str:
    """Return what the model is told of a scene: mostly its caption, at times less or more.

    10 % are empty (classifier-free guidance and guess mode) and 5 % the page's default negative prompt; half
    of the others carry the page's added prompt, and some a word that the vocabulary lacks: none of these may
    throw the model.
    """
    chance = rng.random()
    if chance < 0.10:
        return ""
    if chance < 0.15:
        return NEGATIVE_PROMPT
    if rng.random() < 0.06:
        caption = rng.choice((f"{UNKNOWN_WORD} {caption}", f"{caption}, {UNKNOWN_WORD}"))
    return caption + ADDED_PROMPT if rng.random() < 0.5 else caption


def varied_captions(captions: Sequence[str], generator: torch.Generator) -> list[str]:
    """Vary every caption, as ``generator`` says."""
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    return [vary_caption(caption, rng) for caption in captions]


def init_text(text: TextEncoder) -> None:
    """Make a fixed random code of the words: each stands out, and each knows a little of those before it.

    Trained together with the UNet, the text encoder collapsed: as long as the UNet cannot read, words are
    only noise to it, and after 500 steps all prompts had the same context. A fixed code cannot.
    """
    nn.init.normal_(text.token_embedding.weight, std=0.5)
    nn.init.normal_(text.positional_embedding, std=0.1)
    for name, p in text.transformer.named_parameters():
        if name.endswith(("out_proj.weight", "c_proj.weight")):
            nn.init.normal_(p, std=0.02)
        elif name.endswith(("out_proj.bias", "c_proj.bias")):
            nn.init.zeros_(p)


class Denoiser(nn.Module):
    """UNet and text encoder as one module."""

    def __init__(self, config: ModelConfig) -> None:
        """Build both from ``config``, with the toy world's vocabulary; the text encoder is locked."""
        super().__init__()
        self.unet = UNet(config.unet)
        for name, p in self.unet.named_parameters():
            if name.endswith("proj_out.weight"):  # zero otherwise, which shuts the words out for long
                nn.init.normal_(p, std=0.05)
        self.text = TextEncoder(config.text)
        init_text(self.text)
        self.text.token_ids.copy_(kept_token_ids(config.text.layout))
        self.text.requires_grad_(False)


def load_text(model: Denoiser, run: Path) -> None:
    """Load the text encoder's code from ``run``; a run's first call writes it there."""
    path = run / TEXT
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        save_file(model.text.state_dict(), path)
    model.text.load_state_dict(load_file(path))


@dataclass(frozen=True, slots=True)
class BaseBatch:
    """What one step of the UNet's training sees, beside noise.

    ``x_0`` (B, C, h, w) scaled latents, ``context`` (B, tokens, width).
    """

    x_0: Tensor
    context: Tensor


class SceneBatches:
    """Draws batches of latents and captions. They lie where the text encoder computes."""

    def __init__(
        self,
        dataset: LatentScenes,
        text: TextEncoder,
        size: int,
        crop: int | None = None,
        framed: LatentScenes | None = None,
    ) -> None:
        """Draw ``size`` of ``dataset``'s scenes a batch, or squares of ``crop`` pixels of them.

        Where there are ``framed`` scenes, FRAMED_SHARE of a batch are of those.

        Raises:
            ValueError: squares of framed scenes were asked for.
        """
        if framed is not None and crop is not None:
            raise ValueError("framed scenes are learned whole: leave out --crop, or --framed.")
        self.text = text
        self.cells = None if crop is None else crop // 8
        few = 0 if framed is None else round(FRAMED_SHARE * size)
        drawn = ((dataset, size - few), (framed, few))
        self.sources = [(source, count) for source, count in drawn if source is not None and count]

    def __call__(self, generator: torch.Generator) -> BaseBatch:
        """Draw one batch."""
        latents, captions = [], []
        for source, count in self.sources:
            which, x_0 = source.draw(count, generator, self.cells)
            latents.append(x_0)
            captions += [source.scenes.captions[i] for i in which]
        x_0 = torch.cat(latents)
        with torch.no_grad(), autocast(x_0.device.type):
            return BaseBatch(x_0, self.text.encode(varied_captions(captions, generator)))


def open_framed(folder: Path | None, device: torch.device) -> LatentScenes | None:
    """Open the latents of framed scenes, where a folder is named.

    Raises:
        FileNotFoundError: it holds no latents; with the command that makes them.
        ValueError: its scenes are not framed.
    """
    if folder is None:
        return None
    scenes = LatentScenes.open(folder, device)
    if not made_of(folder).framed:
        raise ValueError(f"the scenes in {folder} are not framed: make some with render --framed.")
    return scenes


def base_loss(
    criterion: DiffusionLoss,
    unet: UNet,
    batch: BaseBatch,
    generator: torch.Generator,
    *,
    late: bool = False,
) -> Tensor:
    """Return the denoising loss of a batch, with noise and time steps that ``generator`` draws.

    ``late`` is as for ``draw``.
    """
    device = batch.x_0.device
    noise, t = draw(tuple(batch.x_0.shape), criterion.timesteps, generator, late=late, device=device)
    x_t = criterion.noised(batch.x_0, noise, t)
    with autocast(device.type), training_attention(device.type):
        prediction = unet(x_t, t, batch.context)
    return criterion(prediction, batch.x_0, noise, t)


def train_base(
    config: ModelConfig,
    data: Path,
    loop: LoopConfig,
    *,
    batch_size: int = 32,
    crop: int | None = None,
    late: bool = False,
    framed: Path | None = None,
    device: torch.device = CPU,
) -> None:
    """Train the UNet on the latents in ``data``, or on squares of ``crop`` pixels of them.

    ``late`` is as for ``draw``; ``framed`` is a folder of framed scenes, see ``SceneBatches``. It resumes
    from ``loop.output``.
    """
    torch.manual_seed(loop.seed)
    model = Denoiser(config)
    dataset = LatentScenes.open(data, device)
    load_text(model, loop.output)
    if (loop.output / START).exists():
        model.unet.load_state_dict(load_file(loop.output / START))
    for_training(model, device)
    # Every time step counts alike: the noisiest, where only the words tell what there will be, too.
    criterion = DiffusionLoss(config.schedule)
    batches = SceneBatches(dataset, model.text, batch_size, crop, open_framed(framed, device))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return base_loss(criterion, model.unet, batches(generator), generator, late=late)

    trainer = Trainer(model.named_parameters(), loop)
    trainer.run(loss, batch_size)
