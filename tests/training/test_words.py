"""Things' words say what things look like; all others stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.config import ModelConfig
from core.errors import SuiteError
from core.models.blocks import BasicTransformerBlock
from core.models.tokenizer import tokenizer
from core.models.vae import AutoencoderKL
from core.training.base import START, TEXT, Denoiser, load_text
from core.training.data import to_tensor
from core.training.vae import FITTED
from core.training.vae_init import init_as_pyramid, without_idle_branches
from core.training.words import (
    LOOKING,
    fit_words,
    look_at_things,
    looks,
    name_tokens,
    portrait,
    reserved_tokens,
    shared_out,
    write_looks,
)
from tests.training.test_toyworld import LIBRARY


@pytest.fixture(scope="module")
def vae(config: ModelConfig) -> AutoencoderKL:
    torch.manual_seed(0)
    net = AutoencoderKL(config.vae).requires_grad_(False)
    init_as_pyramid(net, to_tensor(np.stack([portrait(LIBRARY, spec) for spec in LIBRARY.specs[:16]])))
    return net


def test_a_portrait_shows_the_whole_thing_on_grey() -> None:
    picture = portrait(LIBRARY, LIBRARY.specs[0])
    assert picture.shape == (96, 96, 3)
    assert (picture[0] == 128).all() and (picture[:, 0] == 128).all()
    assert (picture != 128).any()


def test_looks_keep_who_resembles_whom(vae: AutoencoderKL) -> None:
    pictures = [portrait(LIBRARY, spec) for spec in LIBRARY.specs[:12]]
    codes = looks(vae, [*pictures, pictures[3]], components=8)
    assert codes.shape == (13, 8)
    assert float(codes.square().mean()) == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(codes[3], codes[12], atol=1e-3)
    assert float(codes.mean(0).abs().max()) < 1e-3


def test_shared_words_mean_the_middle_and_own_words_the_rest() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    tokens, shared = shared_out([[7, 1], [7, 2], [3]], codes)
    at = {token: shared[i] for i, token in enumerate(tokens)}
    assert torch.allclose((at[7] + at[1]) / 2, codes[0], atol=0.02)
    assert torch.allclose((at[7] + at[2]) / 2, codes[1], atol=0.02)
    assert torch.allclose(at[3], codes[2], atol=0.02)


def test_colours_numbers_and_small_words_are_nobodys_look(config: ModelConfig) -> None:
    reserved = reserved_tokens(config.text.layout)
    encode = tokenizer(config.text.layout).encode
    assert {*encode("red two behind of")} <= reserved
    assert all(names for names in name_tokens(LIBRARY, config.text.layout))


def test_only_the_things_words_change(config: ModelConfig, vae: AutoencoderKL, tmp_path: Path) -> None:
    model = Denoiser(config)
    load_text(model, tmp_path / "base")
    (tmp_path / "vae").mkdir()
    save_file(vae.state_dict(), tmp_path / "vae" / FITTED)
    before = load_file(tmp_path / "base" / TEXT)
    count = fit_words(config, LIBRARY, tmp_path / "vae", tmp_path / "base")
    after = load_file(tmp_path / "base" / TEXT)
    changed = (before["token_embedding.weight"] != after["token_embedding.weight"]).any(1)
    assert int(changed.sum()) == count
    assert all(torch.equal(before[key], after[key]) for key in before if key != "token_embedding.weight")
    model.text.load_state_dict(after)
    words = model.text.embed(model.text.tokenize(["a red car"]))
    assert 0.3 < float(words.std()) < 0.8  # things' words are not louder than others
    started = load_file(tmp_path / "base" / START)
    with pytest.raises(SuiteError, match="nothing was changed"):
        fit_words(config, LIBRARY, tmp_path / "vae", tmp_path / "base")
    for name, wanted in ((TEXT, after), (START, started)):
        assert all(
            torch.equal(value, wanted[key]) for key, value in load_file(tmp_path / "base" / name).items()
        )


def test_a_run_that_has_begun_keeps_its_words(
    config: ModelConfig, vae: AutoencoderKL, tmp_path: Path
) -> None:
    (tmp_path / "vae").mkdir()
    save_file(vae.state_dict(), tmp_path / "vae" / FITTED)
    load_text(Denoiser(config), tmp_path / "base")
    (tmp_path / "base" / "checkpoint.pt").touch()
    with pytest.raises(SuiteError, match="another --runs"):
        fit_words(config, LIBRARY, tmp_path / "vae", tmp_path / "base")
    assert not (tmp_path / "base" / START).exists()


@torch.no_grad()
def test_the_first_heads_look_at_things_whatever_is_asked(config: ModelConfig, vae: AutoencoderKL) -> None:
    torch.manual_seed(0)
    model = Denoiser(config)
    write_looks(model.text, LIBRARY, vae)
    look_at_things(model.unet)
    blocks = [module for module in model.unet.modules() if isinstance(module, BasicTransformerBlock)]
    tokens = model.text.tokenize(["a camera on a plain red background"])
    things = {token for names in name_tokens(LIBRARY, config.text.layout) for token in names}
    looked_at = torch.tensor([int(token) in things for token in tokens[0]])
    assert 5 < int(looked_at.sum()) < 20
    context = model.text(tokens)
    for block in blocks:
        asked = block.norm2(torch.randn(1, 9, block.norm2.normalized_shape[0]) * 3)
        query, key = block.attn2._split(block.attn2.to_q(asked)), block.attn2.key_value(context)[0]
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)[0, ..., looked_at]
        shares = weights.sum(-1)
        assert float(shares[:LOOKING].mean()) > 0.6 > 2 * float(looked_at.float().mean())


@torch.no_grad()
def test_an_encoder_without_idle_branches_gives_the_same_latents(vae: AutoencoderKL) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = vae.encoder(x)
    lean = without_idle_branches(vae.encoder)
    assert torch.equal(lean(x), whole)
    assert sum(1 for _ in lean.modules()) < sum(1 for _ in vae.encoder.modules())
    vae.encoder.mid.block_1.conv2.weight.fill_(0.01)  # now it adds something
    assert torch.allclose(without_idle_branches(vae.encoder)(x), vae.encoder(x))
    assert not torch.allclose(vae.encoder(x), whole)
    vae.encoder.mid.block_1.conv2.weight.zero_()
