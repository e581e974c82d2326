"""To the diffusers layout and back, bit for bit; and diffusers itself computes what we compute."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import core.weights.diffusers_folders as folders
from core.config import load_config
from core.errors import CheckpointMismatch
from core.models.controlnet import ControlNet
from core.models.tokenizer import tokenizer
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.weights.checkpoint import load_base, load_control
from core.weights.convert import CONTROL
from core.weights.diffusers_configs import tokenizer_files, unet_json
from core.weights.diffusers_folders import from_diffusers, to_diffusers
from core.weights.diffusers_names import unet_key, vae_key
from core.weights.vae_file import load_vae
from core.weights.writing import WriteError
from tests.weights.files import (
    CPU,
    Networks,
    assert_same,
    base_state,
    cast,
    difference_control,
    make_networks,
    own,
    prefixed,
    tiny_config,
    write,
)

FP32 = torch.float32


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def nets(request: pytest.FixtureRequest) -> Networks:
    config = tiny_config(request.param)
    config.text.penultimate = request.param == "sd21"  # as published
    networks = make_networks(config)
    for net in (networks.unet, networks.vae, networks.text, networks.control):
        for parameter in net.parameters():
            parameter.data *= 0.2  # activations of a common size
    return networks


@pytest.fixture(scope="module")
def full(nets: Networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with everything."""
    path = tmp_path_factory.mktemp("full") / "full.safetensors"
    return write(path, base_state(nets) | prefixed(nets.control, CONTROL), metadata=own(nets.config))


@pytest.fixture(scope="module")
def folder(full: Path) -> Path:
    """The same in the diffusers layout."""
    assert to_diffusers(full, full.parent / "folder") == []
    return full.parent / "folder"


def test_a_base_model_comes_back_bit_for_bit(nets: Networks, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "back.safetensors"
    from_diffusers(folder, path)
    back = load_base(nets.config, path, device=CPU, dtype=FP32)
    assert_same(back.unet, nets.unet)
    assert_same(back.vae, nets.vae)
    unread = f"transformer.resblocks.{nets.config.text.layers - 1}."
    for key, value in back.text.state_dict().items():
        if nets.config.text.penultimate and key.startswith(unread):
            assert not value.any()  # diffusers leaves out the layer that is not read
        else:
            assert torch.equal(value, nets.text.state_dict()[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_control_comes_back_bit_for_bit(nets: Networks, tmp_path: Path, dtype: torch.dtype) -> None:
    state = cast(prefixed(nets.control, CONTROL), dtype)
    path = write(tmp_path / "control.safetensors", state, metadata=own(nets.config))
    to_diffusers(path, tmp_path / "folder")
    from_diffusers(tmp_path / "folder", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    assert all(back[key].dtype == dtype and torch.equal(back[key], state[key]) for key in state)
    lone = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    assert_same(load_control(nets.config, lone, device=CPU, dtype=FP32), nets.control, via=dtype)


def test_an_autoencoder_comes_back_bit_for_bit(nets: Networks, tmp_path: Path) -> None:
    path = write(tmp_path / "vae.safetensors", prefixed(nets.vae, ""), metadata=own(nets.config))
    to_diffusers(path, tmp_path / "folder")
    from_diffusers(tmp_path / "folder", tmp_path / "back.safetensors")
    assert_same(load_vae(nets.config, tmp_path / "back.safetensors", device=CPU, dtype=FP32), nets.vae)
    assert_same(load_vae(nets.config, tmp_path / "folder", device=CPU, dtype=FP32), nets.vae)


def test_the_bundled_model_goes_without_its_text_encoder(tmp_path: Path) -> None:
    left_out = to_diffusers(Path("ckpts/demo/base.safetensors").absolute(), tmp_path / "demo")
    assert left_out == ["the text encoder, which reads a vocabulary of its own"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["scheduler", "unet", "vae"]


def test_a_folder_is_not_written_over_and_old_ones_go_only_when_the_new_is_whole(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(ValueError, match="is there already: give another name, or --overwrite"):
        to_diffusers(full, out)

    def fail(*args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(folders, "write_tensors", fail)
        with pytest.raises(WriteError, match="No space left on device"):
            to_diffusers(full, out, overwrite=True)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(WriteError, match=f"^{out}/unet/.*Nothing was written"):
            to_diffusers(full, out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and (out / "precious").exists()
    to_diffusers(full, out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and not (out / "precious").exists()


def test_what_cannot_be_converted_is_told(nets: Networks, full: Path, tmp_path: Path) -> None:
    difference = difference_control(nets.control, nets.unet)
    path = write(tmp_path / "difference.safetensors", difference, metadata=own(nets.config))
    with pytest.raises(CheckpointMismatch, match="is a difference: add it"):
        to_diffusers(path, tmp_path / "out")
    with pytest.raises(CheckpointMismatch, match="seems to be .*: give a ControlNet, an autoencoder"):
        from_diffusers(full, tmp_path / "out.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointMismatch, match="none of diffusion_pytorch_model.safetensors"):
        from_diffusers(tmp_path / "empty", tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("*out*"))


def test_the_tokenizers_files_number_every_token_once() -> None:
    files = tokenizer_files(load_config("sd15").text)
    vocabulary = files["vocab.json"]
    assert isinstance(vocabulary, dict)
    assert sorted(vocabulary.values()) == list(range(49408))
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49406, 49407)
    json.dumps(files)


# From here on: against the library itself.


def close(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).norm() / expected.norm()) < 1e-4


def inputs(nets: Networks) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    context = torch.randn(2, 7, nets.config.unet.context_dim, generator=generator)
    return x, torch.tensor([3, 801]), context


@pytest.mark.parity
@torch.inference_mode()
def test_diffusers_computes_the_same_noise_with_and_without_control(nets: Networks, folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    unet, info = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", output_loading_info=True)
    net = diffusers.ControlNetModel.from_pretrained(folder / "controlnet")
    assert not any(info.values())
    x, t, context = inputs(nets)
    hint = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    assert close(unet(x, t, context).sample, nets.unet(x, t, context))
    down, middle = net(x, t, context, controlnet_cond=hint, return_dict=False)
    residuals = nets.control(x, t, context, nets.control.embed_hint(hint))
    assert len(residuals) == len(down) + 1
    assert all(close(a, b) for a, b in zip([*down, middle], residuals, strict=True))
    theirs = unet(
        x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    assert close(theirs, nets.unet(x, t, context, residuals))


@pytest.mark.parity
@torch.inference_mode()
def test_diffusers_computes_the_same_pictures_and_latents(nets: Networks, folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    latents = nets.vae.encode(image)
    factor = vae.config.scaling_factor
    assert factor == nets.config.vae.scale_factor
    assert close(vae.encode(image).latent_dist.mean * factor, latents)
    assert close(vae.decode(latents / factor).sample, nets.vae.decode(latents))


@pytest.mark.parity
@torch.inference_mode()
def test_transformers_reads_the_same_meaning(nets: Networks, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokens = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    assert close(text(tokens).last_hidden_state, nets.text.eval()(tokens))


@pytest.mark.parity
def test_transformers_splits_prompts_the_same_way(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    # "!" is left out: these models pad with it, and the library keeps paddings apart from words.
    for prompt in ("a photo of a cat, best quality", "Café déjà-vu? (masterpiece:1.2) 1girl", "日本語 🦊"):
        assert theirs(prompt).input_ids == [49406, *tokenizer("hf").encode(prompt), 49407]


@pytest.mark.parity
def test_the_whole_folder_is_a_pipeline_of_diffusers(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.scheduler.config.beta_schedule == "scaled_linear" and pipe.safety_checker is None


@pytest.mark.parity
def test_levels_of_different_depth_are_named_as_diffusers_does() -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    config = load_config("demo")
    assert len(set(config.unet.res_blocks)) > 1
    with torch.device("meta"):
        ours = {
            unet_key(key, config.unet): value.shape for key, value in UNet(config.unet).state_dict().items()
        }
        theirs = diffusers.UNet2DConditionModel.from_config(unet_json(config)).state_dict()
    assert ours == {key: value.shape for key, value in theirs.items()}


def test_a_control_of_levels_of_different_depth_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=r"\[2, 3, 1\] residual blocks .* as many at each"):
        to_diffusers(Path("ckpts/demo/canny.safetensors").absolute(), tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_full_size_names_and_shapes_are_those_of_diffusers(name: str) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    config = load_config(name)
    with torch.device("meta"):
        ours: dict[str, tuple[int, ...]] = {
            unet_key(key, config.unet): tuple(value.shape)
            for key, value in UNet(config.unet).state_dict().items()
        }
        theirs = diffusers.UNet2DConditionModel.from_config(unet_json(config)).state_dict()
        sizes = {vae_key(k, config.vae): v.numel() for k, v in AutoencoderKL(config.vae).state_dict().items()}
        vae = diffusers.AutoencoderKL.from_config(folders.configs.vae_json(config)).state_dict()
        control = diffusers.ControlNetModel.from_config(folders.configs.control_json(config)).state_dict()
        own_control = ControlNet(config.unet, config.control).state_dict()
    assert ours == {key: tuple(value.shape) for key, value in theirs.items()}
    assert sizes == {key: value.numel() for key, value in vae.items()}
    named = {
        folders.diffusers_key(key, config.unet, config.control): v.shape for key, v in own_control.items()
    }
    assert named == {key: value.shape for key, value in control.items()}
