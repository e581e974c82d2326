from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import CheckpointMismatch
from core.weights.checkpoint import BaseNetworks, load_base, load_control
from tests.weights.files import (
    CPU,
    Networks,
    assert_same,
    base_state,
    cast,
    difference_control,
    diffusers_control,
    ema_state,
    hf_text,
    make_networks,
    prefixed,
    tiny_config,
    write,
)

FP32 = torch.float32


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def nets(request: pytest.FixtureRequest) -> Networks:
    return make_networks(tiny_config(request.param))


@pytest.fixture(scope="module")
def nets15() -> Networks:
    return make_networks(tiny_config("sd15"))


def assert_base(got: BaseNetworks, nets: Networks, via: torch.dtype | None = None) -> None:
    assert_same(got.unet, nets.unet, via=via)
    assert_same(got.vae, nets.vae, via=via)
    assert_same(got.text, nets.text, via=via)


@pytest.mark.parametrize("name", ["base.safetensors", "base.ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_base_model_comes_back_bit_for_bit(
    nets: Networks, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    path = write(tmp_path / name, cast(base_state(nets), dtype))
    assert_base(load_base(nets.config, path, device=CPU, dtype=FP32), nets, via=dtype)


@pytest.mark.parametrize("wrappers", [0, 1, 2])
def test_wrappers_and_averaged_copies_are_stepped_over(nets: Networks, tmp_path: Path, wrappers: int) -> None:
    path = write(tmp_path / "base.ckpt", base_state(nets) | ema_state(nets), wrappers)
    assert_base(load_base(nets.config, path, device=CPU, dtype=FP32), nets)


def test_the_suffix_does_not_matter(nets15: Networks, tmp_path: Path) -> None:
    path = write(tmp_path / "base.safetensors", base_state(nets15)).rename(tmp_path / "base.ckpt")
    assert_base(load_base(nets15.config, path, device=CPU, dtype=FP32), nets15)


def test_pickles_of_the_old_kind_load(nets15: Networks, tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": base_state(nets15)}, path, _use_new_zipfile_serialization=False)
    assert_base(load_base(nets15.config, path, device=CPU, dtype=FP32), nets15)


def test_text_keys_without_the_text_model_level_load(nets15: Networks, tmp_path: Path) -> None:
    state = {k: v for k, v in base_state(nets15).items() if not k.startswith("cond_stage_model.")}
    path = write(
        tmp_path / "merged.safetensors", state | hf_text(nets15.text, "cond_stage_model.transformer.")
    )
    assert_base(load_base(nets15.config, path, device=CPU, dtype=FP32), nets15)


def test_the_converted_text_encoder_computes_what_the_original_does(nets15: Networks, tmp_path: Path) -> None:
    path = write(tmp_path / "base.safetensors", base_state(nets15))
    text = load_base(nets15.config, path, device=CPU, dtype=FP32).text
    tokens = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(text(tokens), nets15.text(tokens), atol=1e-5, rtol=1e-5)  # two code paths


@pytest.mark.parametrize("name", ["control.safetensors", "control.pth"])
def test_a_full_file_gives_its_control_and_its_base(nets: Networks, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, base_state(nets) | prefixed(nets.control, "control_model."))
    assert_same(load_control(nets.config, path, device=CPU, dtype=FP32), nets.control)
    assert_base(load_base(nets.config, path, device=CPU, dtype=FP32), nets)


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["control.safetensors", "control.pth"])
def test_a_control_alone_loads_with_and_without_prefix(
    nets: Networks, tmp_path: Path, prefix: str, dtype: torch.dtype, name: str
) -> None:
    path = write(tmp_path / name, cast(prefixed(nets.control, prefix), dtype))
    assert_same(load_control(nets.config, path, device=CPU, dtype=FP32), nets.control, via=dtype)


def test_a_control_in_the_diffusers_layout_loads(nets: Networks, tmp_path: Path) -> None:
    path = write(tmp_path / "diffusion_pytorch_model.safetensors", diffusers_control(nets.control))
    assert_same(load_control(nets.config, path, device=CPU, dtype=FP32), nets.control)


def test_projections_stored_as_the_other_kind_of_layer_load(nets: Networks, tmp_path: Path) -> None:
    state = diffusers_control(nets.control)
    for key, value in state.items():
        if key.endswith(("proj_in.weight", "proj_out.weight")):
            state[key] = value[..., None, None] if value.ndim == 2 else value.flatten(1)
    path = write(tmp_path / "diffusion_pytorch_model.safetensors", state)
    assert_same(load_control(nets.config, path, device=CPU, dtype=FP32), nets.control)


@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_a_difference_is_added_to_the_base(nets15: Networks, tmp_path: Path, prefix: str) -> None:
    state = {prefix + k: v for k, v in difference_control(nets15.control, nets15.unet).items()}
    path = write(tmp_path / "difference.safetensors", state)
    base = write(tmp_path / "base.safetensors", base_state(nets15))
    got = load_control(nets15.config, path, device=CPU, dtype=FP32, base=base).state_dict()
    for key, value in nets15.control.state_dict().items():
        assert torch.allclose(got[key], value, atol=1e-6), key


def test_a_difference_of_nothing_may_be_left_out(nets15: Networks, tmp_path: Path) -> None:
    state = difference_control(nets15.control, nets15.unet)
    for key in ("time_embed.0.weight", "middle_block.0.out_layers.3.bias"):
        del state[key]
    path = write(tmp_path / "difference.safetensors", state)
    base = write(tmp_path / "base.safetensors", base_state(nets15))
    got = load_control(nets15.config, path, device=CPU, dtype=FP32, base=base).state_dict()
    assert torch.equal(got["time_embed.0.weight"], nets15.unet.state_dict()["time_embed.0.weight"])
    assert torch.allclose(
        got["time_embed.2.weight"], nets15.control.state_dict()["time_embed.2.weight"], atol=1e-6
    )


def test_a_difference_without_its_zero_convolutions_is_refused(nets15: Networks, tmp_path: Path) -> None:
    state = difference_control(nets15.control, nets15.unet)
    del state["zero_convs.0.0.weight"]
    path = write(tmp_path / "difference.safetensors", state)
    base = write(tmp_path / "base.safetensors", base_state(nets15))
    with pytest.raises(CheckpointMismatch, match=r"Missing: zero_convs\.0\.0\.weight\."):
        load_control(nets15.config, path, device=CPU, dtype=FP32, base=base)


def test_a_difference_without_a_base_says_what_it_needs(nets15: Networks, tmp_path: Path) -> None:
    path = write(tmp_path / "difference.safetensors", difference_control(nets15.control, nets15.unet))
    with pytest.raises(ValueError, match="base is None"):
        load_control(nets15.config, path, device=CPU, dtype=FP32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_cast_to_the_asked_dtype_and_buffers_are_not(tmp_path: Path, dtype: torch.dtype) -> None:
    config = tiny_config("sd21")
    config.text.kept_tokens = 20
    nets = make_networks(config)
    path = write(tmp_path / "base.safetensors", base_state(nets))
    got = load_base(config, path, device=CPU, dtype=dtype)
    assert_same(got.unet, nets.unet, dtype)
    assert_same(got.text, nets.text, dtype)
    assert got.text.token_ids.dtype == torch.int64


def test_loaded_networks_are_for_inference_and_own_their_memory(nets15: Networks, tmp_path: Path) -> None:
    path = write(tmp_path / "base.safetensors", base_state(nets15))
    got = load_base(nets15.config, path, device=CPU, dtype=FP32)
    path.write_bytes(b"\0" * path.stat().st_size)  # the file may change under a running program
    assert_base(got, nets15)
    for net in (got.unet, got.vae, got.text):
        assert not net.training
        assert not any(p.requires_grad or p.is_meta for p in net.parameters())


def test_an_unknown_key_is_an_error(nets15: Networks, tmp_path: Path) -> None:
    path = write(
        tmp_path / "base.safetensors", base_state(nets15) | {"model.diffusion_model.extra": torch.ones(1)}
    )
    with pytest.raises(CheckpointMismatch, match=r"Unexpected: model\.diffusion_model\.extra\."):
        load_base(nets15.config, path, device=CPU, dtype=FP32)


def test_a_missing_key_and_another_shape_are_named(nets15: Networks, tmp_path: Path) -> None:
    state = base_state(nets15)
    del state["first_stage_model.quant_conv.bias"]
    state["model.diffusion_model.out.2.bias"] = torch.ones(5)
    path = write(tmp_path / "base.safetensors", state)
    with pytest.raises(CheckpointMismatch) as caught:
        load_base(nets15.config, path, device=CPU, dtype=FP32)
    message = str(caught.value)
    assert str(path) in message
    assert "Missing: first_stage_model.quant_conv.bias." in message
    assert "Other shapes: model.diffusion_model.out.2.bias is (5,), should be (4,)." in message
    assert message.endswith("python -m core.weights get sd15")


@pytest.mark.parametrize("shape", [(), (24, 23), (23, 24), (24,)])
def test_query_keys_and_values_that_do_not_go_together_are_named(
    nets15: Networks, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    key = "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.k_proj.weight"
    path = write(tmp_path / "base.safetensors", base_state(nets15) | {key: torch.zeros(shape)})
    with pytest.raises(CheckpointMismatch, match=r"Other shapes: .*layers\.1\.self_attn\.q_proj\.weight is"):
        load_base(nets15.config, path, device=CPU, dtype=FP32)


def test_many_missing_keys_are_counted_and_not_all_listed(nets15: Networks, tmp_path: Path) -> None:
    path = write(tmp_path / "vae.safetensors", prefixed(nets15.vae, "first_stage_model."))
    with pytest.raises(CheckpointMismatch, match=r"and \d{3} more\.") as caught:
        load_base(nets15.config, path, device=CPU, dtype=FP32)
    assert len(str(caught.value)) < 1200


def test_whole_numbers_where_weights_belong_are_refused(nets15: Networks, tmp_path: Path) -> None:
    state = prefixed(nets15.control, "")
    state["time_embed.0.weight"] = state["time_embed.0.weight"].to(torch.int8)
    path = write(tmp_path / "control.safetensors", state)
    with pytest.raises(CheckpointMismatch, match=r"time_embed\.0\.weight holds torch\.int8"):
        load_control(nets15.config, path, device=CPU, dtype=FP32)


def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(nets15: Networks, tmp_path: Path) -> None:
    victim = tmp_path / "made"

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(victim), "w"))

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": base_state(nets15), "hook": Runs()}, path)
    with pytest.raises(CheckpointMismatch, match="run code of its own.*refused.*safetensors"):
        load_base(nets15.config, path, device=CPU, dtype=FP32)
    assert not victim.exists()


def test_what_trainers_left_in_published_pickles_is_stepped_over(
    nets15: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / "v1-5-pruned.ckpt"
    torch.save({"state_dict": base_state(nets15), "callbacks": {kind: {"best": kind()}}}, path)
    monkeypatch.undo()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # as it stands, the file is refused
    assert_base(load_base(nets15.config, path, device=CPU, dtype=FP32), nets15)


def test_a_file_over_another_takes_what_it_lacks_from_there(nets15: Networks, tmp_path: Path) -> None:
    state = nets15.control.state_dict()
    write(tmp_path / "under.safetensors", {key: value.clone() for key, value in state.items()})
    part = {"zero_convs.0.0.bias": torch.full_like(state["zero_convs.0.0.bias"], 7.0)}
    save_file(part, tmp_path / "over.safetensors", {"over": "under.safetensors"})
    got = load_control(nets15.config, tmp_path / "over.safetensors", device=CPU, dtype=FP32).state_dict()
    assert (got.pop("zero_convs.0.0.bias") == 7.0).all()
    assert all(torch.equal(value, state[key]) for key, value in got.items())


@pytest.mark.parametrize("below", ["../under.safetensors", "over.safetensors", "absent.safetensors"])
def test_a_file_over_one_that_is_not_beside_it_is_refused(
    nets15: Networks, tmp_path: Path, below: str
) -> None:
    save_file({"zero_convs.0.0.bias": torch.zeros(1)}, tmp_path / "over.safetensors", {"over": below})
    with pytest.raises(CheckpointMismatch, match="Give a"):
        load_control(nets15.config, tmp_path / "over.safetensors", device=CPU, dtype=FP32)
