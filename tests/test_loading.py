"""A model is found by name, by its YAML file or by its checkpoint, and loaded once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

import core
import core.loading
from core.config import ConfigError, ModelConfig
from core.errors import CheckpointMismatch, WeightsMissing
from core.loading import load_pipeline, own_control_name
from core.models import packing, winograd
from core.models.packed import Packed
from core.models.packing import can_pack
from core.models.winograd import WinogradConv2d
from core.request import ControlUnit, Request
from tests.tiny_model import hint, tiny_config, tiny_control, tiny_networks, tiny_pipeline

CONFIG = tiny_config()
REQUEST = Request("a red car", (ControlUnit("canny", hint()),), steps=2, cfg_scale=3.0)


def keyed(net: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value.contiguous() for key, value in net.state_dict().items()}


def base_state() -> dict[str, Tensor]:
    nets = tiny_networks(CONFIG)
    parts = (
        (nets.unet, "model.diffusion_model."),
        (nets.vae, "first_stage_model."),
        (nets.text, "cond_stage_model.model."),
    )
    return {key: value for net, prefix in parts for key, value in keyed(net, prefix).items()}


class Files:
    """A registry over a folder: NAME is NAME.safetensors there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def locate(self, name: str) -> Path:
        self.asked.append(name)
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise WeightsMissing(f"{name} is not here. Get it: python -m core.weights get {name}")
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "ckpts"
    folder.mkdir()
    save_file(base_state(), folder / "tiny.safetensors")
    save_file(keyed(tiny_control(CONFIG, "canny"), ""), folder / "tiny_canny.safetensors")
    return Files(folder)


def write_yaml(path: Path, config: ModelConfig) -> Path:
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return path


@pytest.fixture
def named_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny config stand for the bundled model's."""
    monkeypatch.setattr(core.loading, "load_config", lambda name: CONFIG)


def test_a_pipeline_from_files_draws_what_one_from_memory_draws(files: Files, tmp_path: Path) -> None:
    yaml = write_yaml(tmp_path / "tiny.yaml", CONFIG)
    pipe = load_pipeline(yaml, device="cpu", dtype="float32", registry=files)
    assert (pipe.name, pipe.dtype, pipe.device.type) == ("tiny", torch.float32, "cpu")
    assert files.asked == ["tiny"]  # no ControlNet before one is used
    assert np.array_equal(pipe(REQUEST).images[0], tiny_pipeline()(REQUEST).images[0])
    assert pipe.available_controls() == ("canny",)
    assert "get tiny_depth" in (pipe.explain_missing("depth") or "")


def test_weights_may_lie_beside_ones_own_yaml(files: Files, tmp_path: Path) -> None:
    config = tiny_config()
    config.weights, config.controls = "ckpts/tiny.safetensors", {"canny": "ckpts/tiny_canny.safetensors"}
    pipe = load_pipeline(
        write_yaml(tmp_path / "own.yaml", config), device="cpu", dtype="float32", registry=files
    )
    assert files.asked == [] and pipe.available_controls() == ("canny",)
    assert pipe(REQUEST).images


def test_a_full_checkpoint_brings_its_own_control(files: Files, named_demo: None, tmp_path: Path) -> None:
    path = tmp_path / "control_sd15_canny.safetensors"
    state = base_state() | keyed(tiny_control(CONFIG, "own"), "control_model.")
    save_file(state, path, metadata={"format": "controlnet-suite", "config": "name: demo"})
    pipe = load_pipeline(str(path), device="cpu", dtype="float32", registry=files)
    assert pipe.controls == ("canny", "depth", "seg") and pipe.explain_missing("canny") is None
    own = pipe(REQUEST).images[0]
    assert not np.array_equal(own, tiny_pipeline()(REQUEST).images[0])  # not the one in the folder
    assert files.asked == []


def test_a_plain_checkpoint_is_drawn_from_with_the_registrys_controls(
    files: Files, named_demo: None, tmp_path: Path
) -> None:
    path = tmp_path / "some.safetensors"
    save_file(base_state(), path, metadata={"format": "controlnet-suite", "config": "name: demo"})
    pipe = load_pipeline(path, device="cpu", dtype="float32", registry=files)
    assert np.array_equal(pipe(REQUEST).images[0], tiny_pipeline()(REQUEST).images[0])
    assert files.asked == ["tiny_canny"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("tiny_canny", "canny"),
        ("control_sd15_seg", "seg"),
        ("control_anime", "anime"),
        ("my_model", "my_model"),
    ],
)
def test_the_own_control_of_a_checkpoint_gets_a_speaking_name(stem: str, name: str) -> None:
    assert own_control_name(Path(f"/weights/{stem}.pth"), CONFIG) == name


def test_what_is_no_base_model_is_named(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"some.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointMismatch, match="seems to be something unknown: give a checkpoint"):
        load_pipeline(path, registry=files)


def test_a_missing_file_or_name_is_answered_with_the_choices(files: Files, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no such file. Give .* one of demo, sd15, sd21"):
        load_pipeline(tmp_path / "nowhere.ckpt", registry=files)
    with pytest.raises(ConfigError, match="no such model. Give one of demo, sd15, sd21"):
        load_pipeline("sd14", registry=files)
    with pytest.raises(WeightsMissing, match="get sd15"):
        load_pipeline("sd15", registry=files)


def test_device_and_dtype_are_checked_before_anything_is_read(files: Files) -> None:
    with pytest.raises(ValueError, match="device is 'gpu'"):
        load_pipeline("sd15", device="gpu", registry=files)
    with pytest.raises(ValueError, match="dtype is 'half'"):
        load_pipeline("sd15", dtype="half", registry=files)
    assert files.asked == []


@pytest.mark.skipif(not can_pack(), reason="this processor has no bfloat16 products")
def test_bfloat16_weights_are_packed_on_the_cpu_and_draw_the_same(files: Files, tmp_path: Path) -> None:
    yaml = write_yaml(tmp_path / "tiny.yaml", CONFIG)
    pipe = load_pipeline(yaml, device="cpu", dtype="bfloat16", registry=files)
    picture = pipe(REQUEST).images[0]
    net = pipe._cache.get(["canny"])["canny"]
    for network in (pipe.networks.unet, pipe.networks.vae, pipe.networks.text, net):
        assert any(isinstance(module, Packed) for module in network.modules())
    assert pipe(REQUEST).extra["dtype"] == "bfloat16"
    exact = tiny_pipeline()(REQUEST).images[0]
    assert np.abs(picture.astype(float) - exact.astype(float)).mean() < 8


def test_float32_takes_fewer_products_on_a_cpu_unless_memory_is_to_be_saved(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "WIDE", 4)  # so that the tiny networks have wide convolutions
    monkeypatch.setattr(packing, "memory_for_winograd", lambda: True)
    yaml = write_yaml(tmp_path / "tiny.yaml", CONFIG)
    exact = tiny_pipeline()(REQUEST).images[0]
    for low_vram in (False, True):
        pipe = load_pipeline(yaml, device="cpu", dtype="float32", low_vram=low_vram, registry=files)
        picture = pipe(REQUEST).images[0]
        assert np.abs(picture.astype(int) - exact.astype(int)).max() <= 1
        for network in (pipe.networks.unet, pipe.networks.vae, pipe._cache.get(["canny"])["canny"]):
            assert any(isinstance(m, WinogradConv2d) for m in network.modules()) is not low_vram


def test_low_vram_draws_the_same_on_a_cpu(files: Files, tmp_path: Path) -> None:
    yaml = write_yaml(tmp_path / "tiny.yaml", CONFIG)
    pipe = load_pipeline(yaml, device="cpu", dtype="float32", low_vram=True, registry=files)
    assert np.array_equal(pipe(REQUEST).images[0], tiny_pipeline()(REQUEST).images[0])


def test_core_gives_its_names_and_no_others() -> None:
    assert core.load_pipeline is load_pipeline and core.Request is Request
    assert set(core.__all__) <= set(dir(core))
    for name in core.__all__:
        assert getattr(core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'load_pipelines'"):
        _ = core.load_pipelines


def test_importing_core_imports_nothing_heavy() -> None:
    code = "import sys, core; print([m for m in ('torch', 'numpy', 'omegaconf') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_clip_skip_reads_an_earlier_layer_and_is_told_with_the_pictures(files: Files, tmp_path: Path) -> None:
    config = tiny_config()
    config.text.layers = 2
    nets = tiny_networks(config)
    save_file(base_state() | keyed(nets.text, "cond_stage_model.model."), files.folder / "tiny.safetensors")
    yaml = write_yaml(tmp_path / "tiny.yaml", config)
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "registry": files}
    plain, skipping = load_pipeline(yaml, **options), load_pipeline(yaml, **options, clip_skip=2)
    assert plain(REQUEST).extra.get("clip_skip") is None
    found = skipping(REQUEST)
    assert found.extra["clip_skip"] == "2"
    assert not np.array_equal(found.images[0], plain(REQUEST).images[0])
    with pytest.raises(ValueError, match=r"clip_skip is 3: give a whole number from 1 to 2"):
        load_pipeline(yaml, **options, clip_skip=3)


def test_embeddings_of_a_folder_are_used_by_their_names(files: Files, tmp_path: Path) -> None:
    yaml = write_yaml(tmp_path / "tiny.yaml", CONFIG)
    folder = tmp_path / "words"
    folder.mkdir()
    save_file({"emb_params": torch.full((2, 32), 3.0)}, folder / "car.safetensors")
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "registry": files}
    found = load_pipeline(yaml, **options, embeddings=folder)(REQUEST).images[0]
    assert not np.array_equal(found, load_pipeline(yaml, **options)(REQUEST).images[0])
    with pytest.raises(ValueError, match="there is no such folder"):
        load_pipeline(yaml, **options, embeddings=tmp_path / "none")


def test_traits_of_controls_must_name_controls(tmp_path: Path) -> None:
    config = tiny_config()
    config.pooled_controls = ["shuffle"]
    with pytest.raises(ConfigError, match="'shuffle' is not among the controls"):
        core.config.load_config(write_yaml(tmp_path / "tiny.yaml", config))


def test_shuffle_is_pooled_and_inpaint_masked_in_stable_diffusion() -> None:
    config = core.config.load_config("sd15")
    assert (config.pooled_controls, config.masked_controls) == (["shuffle"], ["inpaint"])


def moved(name: str, seed: int) -> nn.Module:
    """The tiny base's or a control's network with other weights."""
    net = tiny_networks(CONFIG).unet if name == "unet" else tiny_networks(CONFIG).vae
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return net


def write_lora(path: Path) -> Path:
    """A LoRA for two layers of the tiny model, strong enough to be seen."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, out, inner in (
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 64, 64),
        ("lora_te_text_model_encoder_layers_0_self_attn_v_proj", 32, 32),
    ):
        state[f"{layer}.lora_down.weight"] = torch.randn(4, inner, generator=generator)
        state[f"{layer}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
    save_file(state, path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loras_change_the_pictures_are_told_with_them_and_come_off_without_a_trace(
    files: Files, tmp_path: Path, dtype: str
) -> None:
    yaml, path = write_yaml(tmp_path / "tiny.yaml", CONFIG), write_lora(tmp_path / "style.safetensors")
    pipe = load_pipeline(yaml, device="cpu", dtype=dtype, registry=files, loras=[f"{path}:0.8"])
    styled = pipe(REQUEST)
    assert styled.extra["loras"] == "style:0.8"
    pipe.set_loras([])
    bare = pipe(REQUEST)
    plain = load_pipeline(yaml, device="cpu", dtype=dtype, registry=files)
    assert np.array_equal(bare.images[0], plain(REQUEST).images[0]) and "loras" not in bare.extra
    assert not np.array_equal(bare.images[0], styled.images[0])
    pipe.set_loras([path])
    pipe.set_loras([f"{path}:0.8"])
    assert np.array_equal(pipe(REQUEST).images[0], styled.images[0])


def test_a_lora_leaves_a_control_that_is_a_difference_to_the_base_as_it_is(
    files: Files, tmp_path: Path
) -> None:
    unet, control = tiny_networks(CONFIG).unet.state_dict(), tiny_control(CONFIG, "canny").state_dict()
    difference = {key: value - unet[key] if key in unet else value for key, value in control.items()}
    save_file(difference | {"difference": torch.ones(())}, files.folder / "tiny_canny.safetensors")
    yaml = write_yaml(tmp_path / "tiny.yaml", CONFIG)
    lora = write_lora(tmp_path / "style.safetensors")
    nets = []
    for loras in ([], [lora]):
        pipe = load_pipeline(yaml, device="cpu", dtype="float32", registry=files, loras=loras)
        nets.append(pipe._cache.get(["canny"])["canny"].state_dict())
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())


def test_a_wrong_lora_is_told_and_the_pipeline_draws_on(files: Files, tmp_path: Path) -> None:
    yaml = write_yaml(tmp_path / "tiny.yaml", CONFIG)
    bad = tmp_path / "bad.safetensors"
    save_file({"lora_te2_text_model_x.lora_down.weight": torch.zeros(4, 1280)}, bad)
    with pytest.raises(CheckpointMismatch, match="a LoRA for SDXL; needed is a LoRA for Tiny test model"):
        load_pipeline(yaml, device="cpu", dtype="float32", registry=files, loras=[bad])
    pipe = load_pipeline(yaml, device="cpu", dtype="float32", registry=files)
    before = pipe(REQUEST).images[0]
    with pytest.raises(CheckpointMismatch, match="bad.safetensors"):
        pipe.set_loras([bad])
    with pytest.raises(ValueError, match="the weight of bad.safetensors is 99"):
        pipe.set_loras([f"{bad}:99"])
    assert np.array_equal(pipe(REQUEST).images[0], before)
    with pytest.raises(ValueError, match="cannot take LoRAs"):
        tiny_pipeline().set_loras([])


def test_another_autoencoder_draws_and_is_told(files: Files, tmp_path: Path) -> None:
    yaml, path = write_yaml(tmp_path / "tiny.yaml", CONFIG), tmp_path / "other.vae.safetensors"
    save_file(keyed(moved("vae", 1), ""), path)
    pipe = load_pipeline(yaml, device="cpu", dtype="float32", registry=files, vae=path)
    result = pipe(REQUEST)
    assert result.extra["vae"] == "other.vae.safetensors"
    expected = tiny_pipeline()
    expected.networks.vae.load_state_dict(moved("vae", 1).state_dict())
    assert np.array_equal(result.images[0], expected(REQUEST).images[0])
    with pytest.raises(CheckpointMismatch, match="needed is an autoencoder"):
        load_pipeline(yaml, registry=files, vae=files.folder / "tiny_canny.safetensors")


def test_controls_are_moved_to_the_model_that_draws_when_asked(
    files: Files, named_demo: None, tmp_path: Path
) -> None:
    state = base_state() | keyed(moved("unet", 2), "model.diffusion_model.")
    path = tmp_path / "other.safetensors"
    save_file(state, path, metadata={"format": "controlnet-suite", "config": "name: demo"})
    pipe = load_pipeline(
        path,
        device="cpu",
        dtype="float32",
        registry=files,
        transfer_from=files.folder / "tiny.safetensors",
    )
    got = pipe._cache.get(["canny"])["canny"].state_dict()
    old, new = tiny_networks(CONFIG).unet.state_dict(), moved("unet", 2).state_dict()
    for key, value in tiny_control(CONFIG, "canny").state_dict().items():
        assert torch.equal(got[key], value + new[key] - old[key] if key in new else value), key
    assert pipe(REQUEST).extra["transfer_from"] == "tiny.safetensors"
    usual = load_pipeline(path, device="cpu", dtype="float32", registry=files)
    unmoved = usual._cache.get(["canny"])["canny"].state_dict()
    assert all(torch.equal(unmoved[k], v) for k, v in tiny_control(CONFIG, "canny").state_dict().items())
    with pytest.raises(WeightsMissing, match="nowhere.ckpt: no such file. Give the base model"):
        load_pipeline(path, registry=files, transfer_from="nowhere.ckpt")


def test_a_control_is_not_moved_to_where_it_grew(files: Files, named_demo: None, tmp_path: Path) -> None:
    path = tmp_path / "control_own.safetensors"
    state = base_state() | keyed(tiny_control(CONFIG, "own"), "control_model.")
    save_file(state, path, metadata={"format": "controlnet-suite", "config": "name: demo"})
    for source in (path, files.folder / "tiny.safetensors"):
        pipe = load_pipeline(path, device="cpu", dtype="float32", registry=files, transfer_from=source)
        got = pipe._cache.get(["own"])["own"].state_dict()
        assert all(torch.equal(got[k], v) for k, v in tiny_control(CONFIG, "own").state_dict().items())


def test_networks_are_packed_or_compiled_but_not_both(
    files: Files, named_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(core.loading, "compile_network", lambda net: compiled.append(type(net).__name__))
    for there in (True, False):
        monkeypatch.setattr(core.loading, "can_compile", lambda device, there=there: there)
        pipe = load_pipeline("demo", device="cpu", dtype="bfloat16", registry=files, compile=True)
        pipe(REQUEST)
        packed = any(isinstance(module, Packed) for module in pipe.networks.unet.modules())
        assert compiled == ["UNet", "ControlNet"] and packed is (can_pack() and not there)


def test_the_autoencoder_may_have_a_format_of_its_own(files: Files, named_demo: None) -> None:
    pipe = load_pipeline("demo", device="cpu", dtype="bfloat16", registry=files, vae_dtype="float32")
    exact = tiny_networks(CONFIG).vae.state_dict()
    for name, weight in pipe.networks.vae.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, exact[name])  # not rounded on the way
    assert pipe.networks.unet.state_dict()["out.2.weight"].dtype == torch.bfloat16
    pipe(REQUEST)
    with pytest.raises(ValueError, match="graphs is True, but the device is cpu"):
        load_pipeline("demo", device="cpu", registry=files, graphs=True)
