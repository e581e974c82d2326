"""Give the things' words a code of what they look like: principal components of their sprites' latents.

With a random code the UNet must learn every thing by heart; after 50,000 pictures it had learned none. From
this code like things have like words, and one way of reading them serves all.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from core.config import ModelConfig
from core.errors import SuiteError
from core.models.blocks import BasicTransformerBlock
from core.models.text_encoder import TextEncoder
from core.models.tokenizer import tokenizer
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.training.base import START, TEXT, Denoiser, load_text
from core.training.data import to_tensor
from core.training.start import load_start
from core.training.toyworld.captions import HELD_OUT_OPENERS, NUMBERS, OPENERS, RELATIONS
from core.training.toyworld.objects import ObjectSpec
from core.training.toyworld.palette import PAINTS
from core.training.toyworld.sprites import SpriteLibrary
from core.training.vae import load_fitted

SIDE, LARGEST = 96, 88  # px: of the picture that a thing is shown in, and of its longer side
GREY = 128
COMPONENTS = 160
LOOKS = 0.65  # of a word's energy; the rest says that it is a thing
RIDGE = 1e-3
LOOKING = 2  # heads of an attention over the text that look at things from the start
AHEAD = 4.0  # by which a thing's logit exceeds the others' there
STEADY = 4.0  # the constant among a norm's values, which are about 1


def portrait(library: SpriteLibrary, spec: ObjectSpec) -> NDArray[np.uint8]:
    """Return a thing alone on grey, (96, 96, 3) uint8 RGB."""
    sprite = library.sprite(spec.name)
    scale = LARGEST / max(1.0, sprite.aspect)
    width, height = max(1, round(scale * sprite.aspect)), max(1, round(scale))
    drawn = sprite.at(width, height).astype(np.float32)
    image = np.full((SIDE, SIDE, 3), GREY, np.float32)
    x, y = (SIDE - width) // 2, (SIDE - height) // 2
    under = image[y : y + height, x : x + width]
    under[:] = drawn[..., :3] + under * (1 - drawn[..., 3:] / 255)
    return cv2.convertScaleAbs(image)


@torch.inference_mode()
def looks(vae: AutoencoderKL, pictures: Iterable[NDArray[np.uint8]], components: int = COMPONENTS) -> Tensor:
    """Return what things look like, (things, components) float32 of mean 0 and mean square 1.

    They are principal components of the latents, half whitened: the large ones stay larger.
    """
    flat = torch.cat([vae.encode(to_tensor(picture[None])).flatten(1) for picture in pictures]).double()
    left, values, _ = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    kept = (left * values.sqrt())[:, :components].float()
    return kept / kept.square().mean().sqrt()


def reserved_tokens(layout: str) -> set[int]:
    """Return the tokens that say colour, number, place or nothing: they stay as they are."""
    encode = tokenizer(layout).encode
    words = " ".join((*PAINTS, *NUMBERS.values(), *RELATIONS, *OPENERS, *HELD_OUT_OPENERS))
    return set(encode(words.replace("{}", "") + " a an and of on in with the big cute small old open four"))


def name_tokens(library: SpriteLibrary, layout: str) -> list[list[int]]:
    """Return the tokens of every thing's name and plural that may say what it looks like."""
    encode, reserved = tokenizer(layout).encode, reserved_tokens(layout)
    names = [name for spec in library.specs for name in (spec.name, spec.plural)]
    free = [[token for token in encode(name) if token not in reserved] for name in names]
    return [tokens or list(encode(name)) for tokens, name in zip(free, names, strict=True)]


def shared_out(names: list[list[int]], codes: Tensor) -> tuple[list[int], Tensor]:
    """Return all tokens and codes (tokens, C) whose means over each name come nearest to ``codes``."""
    tokens = sorted({token for name in names for token in name})
    column = {token: i for i, token in enumerate(tokens)}
    means = torch.zeros(len(names), len(tokens), dtype=torch.float64)
    for row, name in enumerate(names):
        for token in name:
            means[row, column[token]] += 1.0 / len(name)
    system = means.T @ means + RIDGE * torch.eye(len(tokens), dtype=torch.float64)
    return tokens, torch.linalg.solve(system, means.T @ codes.double()).float()


@torch.no_grad()
def write_looks(text: TextEncoder, library: SpriteLibrary, vae: AutoencoderKL) -> int:
    """Replace the vectors of the things' words in ``text``; return how many."""
    rows, width = text.token_embedding.weight, text.config.width
    codes = looks(vae, (portrait(library, spec) for spec in library.specs))
    names = name_tokens(library, text.config.layout)
    tokens, shared = shared_out(names, codes.repeat_interleave(2, dim=0))
    axes = _axes(width)
    thing, turned = axes[0] * width**0.5, shared @ axes[1 : 1 + codes.shape[1]]
    turned = turned / turned.square().mean(1, keepdim=True).sqrt().clamp(min=0.2)
    at = text.rows(torch.tensor(tokens))
    energy = rows.std()
    rows[at] = energy * (LOOKS**0.5 * turned + (1 - LOOKS) ** 0.5 * thing)
    return len(tokens)


@torch.no_grad()
def has_looks(text: TextEncoder, library: SpriteLibrary) -> bool:
    """Tell whether the things' words in ``text`` say already that they are things."""
    tokens = sorted({token for name in name_tokens(library, text.config.layout) for token in name})
    rows = text.token_embedding.weight[text.rows(torch.tensor(tokens))]
    shares = rows @ _axes(text.config.width)[0] / rows.norm(dim=1)
    return float(shares.mean()) > 0.5 * (1 - LOOKS) ** 0.5  # of random rows it is about 0


def _axes(width: int) -> Tensor:
    """Return orthonormal axes (width, width): the first says that a word is a thing, others how it looks."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q


@torch.no_grad()
def look_at_things(unet: UNet) -> None:
    """Let the first heads of every attention over the text look at things, whatever they are asked.

    One channel of such a head's queries becomes nearly constant, carried by a bias of the norm before it, and
    that channel of its keys says whether a word is a thing.
    """
    for module in unet.modules():
        if not isinstance(module, BasicTransformerBlock):
            continue
        attention, norm = module.attn2, module.norm2
        queries, keys = attention.to_q.weight, attention.to_k.weight
        channels = len(queries) // attention.heads
        steady = torch.zeros(queries.shape[1])
        steady[0] = 1.0
        norm.bias.copy_(norm.bias * (1.0 - steady) + STEADY * steady)
        queries.mul_(1.0 - steady)  # no other channel sees what is constant now
        axis = _axes(keys.shape[1])[0]
        strength = (AHEAD * channels**0.5 / ((1 - LOOKS) * keys.shape[1]) ** 0.5) ** 0.5
        for head in range(LOOKING):
            row = (head + 1) * channels - 1
            queries[row] = strength / STEADY * steady
            keys[row] = strength * axis


def fit_words(config: ModelConfig, library: SpriteLibrary, vae_run: Path, base_run: Path) -> int:
    """Write the things' looks into the text encoder of ``base_run``, and let its UNet look at them.

    Return how many words have a look.

    Raises:
        FileNotFoundError: the autoencoder is not there; says what to run first.
        SuiteError: the run has begun with its words, or they have their looks: it would unlearn them.
    """
    model = Denoiser(config)
    load_text(model, base_run)
    if has_looks(model.text, library) or (base_run / "checkpoint.pt").exists():
        raise SuiteError(
            f"The words in {base_run} are in use or say what things look like already: nothing was changed. "
            "Go on with `base`, or give another --runs to begin anew."
        )
    count = write_looks(model.text, library, load_fitted(config, vae_run))
    save_file(model.text.state_dict(), base_run / TEXT)
    load_start(model.unet, base_run)
    look_at_things(model.unet)
    save_file({key: value.contiguous() for key, value in model.unet.state_dict().items()}, base_run / START)
    return count
