from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.config import load_config
from core.errors import CheckpointMismatch
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.weights.checkpoint import inspect_checkpoint, load_base, load_control
from tests.weights.files import (
    CPU,
    State,
    base_state,
    difference_control,
    diffusers_control,
    make_networks,
    prefixed,
    tiny_config,
    write,
)

CROSS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def keys(*names: str) -> State:
    return {name: torch.zeros(2) for name in names}


def sd(width: int, channels: int = 4, prefix: str = "model.diffusion_model.") -> State:
    """A full checkpoint's outline: text of ``width``, an input of ``channels``."""
    return {
        prefix + "input_blocks.0.0.weight": torch.zeros(2, channels, 3, 3),
        prefix + CROSS: torch.zeros(2, width),
        prefix + "output_blocks.0.0.in_layers.0.weight": torch.zeros(2),
    }


def whole(width: int, channels: int = 4) -> State:
    rest = keys("first_stage_model.quant_conv.bias", "cond_stage_model.transformer.text_model.x")
    return sd(width, channels) | rest


def control(width: int, prefix: str = "") -> State:
    return {
        prefix + "zero_convs.0.0.weight": torch.zeros(2),
        prefix + "input_blocks.0.0.weight": torch.zeros(2, 4, 3, 3),
        prefix + CROSS: torch.zeros(2, width),
    }


def diffusers(width: int) -> State:
    return {
        "controlnet_cond_embedding.conv_in.weight": torch.zeros(2),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, width),
    }


SDXL = sd(2048) | keys("conditioner.embedders.0.transformer.x", "first_stage_model.quant_conv.bias")
WRONG: dict[str, tuple[State, str, str]] = {
    "sd1": (whole(768), "base", "a checkpoint of Stable Diffusion 1.x"),
    "sd1 inpainting": (whole(768, 9), "base", "Stable Diffusion 1.x for inpainting"),
    "sd1 pix2pix": (whole(768, 8), "base", "editing by instruction"),
    "sd1 unet only": (sd(768), "base", "UNet only or without some parts"),
    "sd1 with control": (
        whole(768) | control(768, "control_model."),
        "full_control",
        "Stable Diffusion 1.x and a ControlNet",
    ),
    "sd2": (whole(1024), "base", "a checkpoint of Stable Diffusion 2.x"),
    "sd2 depth": (whole(1024, 5), "base", "Stable Diffusion 2.x with depth input"),
    "sdxl": (SDXL, "base", "a checkpoint of SDXL"),
    "control sd1": (control(768), "control", "a ControlNet for Stable Diffusion 1.x"),
    "control sd2": (control(1024, "control_model."), "control", "a ControlNet for Stable Diffusion 2.x"),
    "control sdxl": (control(2048), "control", "a ControlNet for SDXL"),
    "difference": (control(768) | keys("difference"), "control_difference", "difference of a ControlNet"),
    "diffusers control sd1": (
        diffusers(768),
        "diffusers_control",
        "Stable Diffusion 1.x in the diffusers layout",
    ),
    "diffusers control sdxl": (diffusers(2048), "diffusers_control", "for SDXL in the diffusers layout"),
    "diffusers unet": (
        keys("conv_in.weight", "down_blocks.0.resnets.0.norm1.weight", "up_blocks.0.resnets.0.norm1.weight"),
        "diffusers_unet",
        "a UNet in the diffusers layout",
    ),
    "unet": (sd(768, prefix=""), "unet", "a UNet alone"),
    "vae": (keys("encoder.down.0.block.0.norm1.weight", "decoder.up.0.block.0.norm1.weight"), "vae", "VAE"),
    "vae with prefix": (keys("first_stage_model.decoder.conv_in.weight"), "vae", "VAE"),
    "diffusers vae": (
        keys("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"),
        "diffusers_vae",
        "VAE in the diffusers layout",
    ),
    "kohya lora": (
        keys("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_te_text_model.alpha"),
        "lora",
        "a LoRA",
    ),
    "peft lora": (keys("unet.down_blocks.0.attentions.0.to_q.lora_A.weight"), "lora", "a LoRA"),
    "control-lora": (control(768) | keys("lora_controlnet"), "control_lora", "a Control-LoRA"),
    "embedding": (keys("emb_params"), "embedding", "textual inversion"),
    "sdxl embedding": (keys("clip_g", "clip_l"), "embedding", "textual inversion"),
    "t2i-adapter": (keys("body.0.block1.weight", "conv_in.weight"), "t2i_adapter", "a T2I-Adapter"),
    "ip-adapter": (
        keys("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
        "ip_adapter",
        "an IP-Adapter",
    ),
    "text": (keys("text_model.encoder.layers.0.x"), "text", "text encoder"),
    "hed": (keys("norm", "block1.convs.0.weight", "block5.projection.weight"), "hed", "HED"),
    "old hed": (keys("netVggOne.0.weight", "netCombine.0.weight"), "hed", "first layout"),
    "midas": (keys("pretrained.model.pos_embed", "scratch.output_conv.0.weight"), "midas", "MiDaS"),
    "mlsd": (keys("backbone.features.0.0.weight", "block23.conv3.weight"), "mlsd", "M-LSD"),
    "openpose body": (keys("conv1_1.weight", "Mconv7_stage6_L1.weight"), "openpose_body", "OpenPose's body"),
    "openpose hand": (keys("conv1_1.weight", "Mconv7_stage6.weight"), "openpose_hand", "OpenPose's hand"),
    "uniformer": (keys("backbone.patch_embed1.norm.weight", "decode_head.x"), "uniformer", "UniFormer"),
    "unknown": (keys("fc.weight"), "unknown", "something unknown"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", WRONG)
def test_every_kind_of_file_is_recognised(tmp_path: Path, name: str, suffix: str) -> None:
    state, kind, title = WRONG[name]
    info = inspect_checkpoint(write(tmp_path / f"file{suffix}", state))
    assert info.kind == kind
    assert title in info.title


@pytest.mark.parametrize("load", [load_base, load_control])
@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_file_is_refused_with_what_it_seems_to_be(
    tmp_path: Path, name: str, load: Callable[..., object]
) -> None:
    state, _, title = WRONG[name]
    path = write(tmp_path / "file.safetensors", state)
    with pytest.raises(CheckpointMismatch) as caught:
        load(tiny_config(), path, device=CPU, dtype=torch.float32)
    message = str(caught.value)
    assert message.startswith(f"{path} seems to be ")
    assert title in message
    assert "Missing: " in message
    assert message.splitlines()[-1].startswith("Get one that fits: python -m core.weights get ")


@pytest.mark.parametrize(("width", "model"), [(768, None), (1024, "sd21")])
def test_a_file_for_another_model_says_which(tmp_path: Path, width: int, model: str | None) -> None:
    path = write(tmp_path / "file.safetensors", control(width))
    with pytest.raises(CheckpointMismatch) as caught:
        load_control(tiny_config(), path, device=CPU, dtype=torch.float32)
    assert (f"It may fit the model {model}." in str(caught.value)) == (model is not None)


def test_real_layouts_are_recognised() -> None:
    nets = make_networks(tiny_config())
    layouts: dict[str, dict[str, Tensor]] = {
        "base": base_state(nets),
        "control": prefixed(nets.control, "control_model."),
        "diffusers_control": diffusers_control(nets.control),
        "control_difference": difference_control(nets.control, nets.unet),
        "full_control": base_state(nets) | prefixed(nets.control, "control_model."),
    }
    for kind, state in layouts.items():
        assert _kind_of(state) == kind


def _kind_of(state: dict[str, Tensor]) -> str:
    from core.weights.formats import TensorInfo
    from core.weights.recognise import recognise

    class Names:
        path = Path("file")
        tensors = {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in state.items()}
        metadata: dict[str, str] = {}
        other_keys = ()

    return recognise(Names()).kind  # type: ignore[arg-type]


def test_full_size_networks_are_of_their_family() -> None:
    for name, family in (("sd15", "sd1"), ("sd21", "sd2")):
        config = load_config(name)
        with torch.device("meta"):
            unet, net = UNet(config.unet), ControlNet(config.unet, config.control)
        assert _kind_of(prefixed(net, "")) == "control"
        assert _family_of(prefixed(unet, "model.diffusion_model.")) == family


def _family_of(state: dict[str, Tensor]) -> str | None:
    from core.weights.formats import TensorInfo
    from core.weights.recognise import _family

    return _family({key: TensorInfo(tuple(value.shape), value.dtype) for key, value in state.items()})[0]


def test_a_file_of_this_project_names_its_model(tmp_path: Path) -> None:
    config = "name: demo\ntitle: Toy-world demo model\n"
    metadata = {"format": "controlnet-suite", "config": config}
    info = inspect_checkpoint(write(tmp_path / "base.safetensors", whole(192), metadata=metadata))
    assert (info.family, info.model_config, info.has_base) == ("demo", config, True)
    assert "this suite's model 'demo'" in info.title


def test_a_header_whose_length_looks_like_a_pickle_is_read_as_safetensors(tmp_path: Path) -> None:
    for filling in range(400, 700):
        metadata = {"format": "controlnet-suite", "config": "name: demo\n" + "#" * filling}
        path = write(tmp_path / "base.safetensors", keys("a"), metadata=metadata)
        if path.read_bytes()[:2] == b"\x80\x02":
            assert inspect_checkpoint(path).family == "demo"
            return
    raise AssertionError("no header had the length 640")


def test_an_embedding_pickle_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(1, 768)}}, path)
    assert inspect_checkpoint(path).kind == "embedding"


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "page after blanks": (b"\n  <html lang='en'>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 5\n", "git-lfs pointer"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "neither a .safetensors file nor"),
    "text": (b"Not found", "neither a .safetensors file nor"),
    "json": (b'{"error":"Repository not found"}', "neither a .safetensors file nor"),
    "short pickle": (b"\x80\x02}q\x00(", "corrupt"),
    "short zip": (b"PK\x03\x04" + b"\0" * 200, "cut off or corrupt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_checkpoint_is_told_apart(tmp_path: Path, name: str) -> None:
    content, said = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=said) as caught:
        inspect_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_told(tmp_path: Path, name: str, kept: float) -> None:
    path = write(tmp_path / name, {"a": torch.rand(20000), "b": torch.rand(20000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointMismatch, match="cut off or corrupt"):
        inspect_checkpoint(path)


def test_a_path_to_nothing_and_to_a_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(CheckpointMismatch, match="no such file"):
            inspect_checkpoint(path)
