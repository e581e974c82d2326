"""ControlNets made of others: what the original's tools compute, key for key and value for value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from core.config import load_config
from core.errors import CheckpointMismatch
from core.weights.checkpoint import load_base, load_control
from core.weights.controls import add_control, copied_control, diff, extract, transfer
from core.weights.convert import CONTROL, TEXT, UNET, VAE
from core.weights.formats import TensorFile, TensorInfo
from core.weights.published import base_entries, open_base, schedule_buffers
from tests.golden_networks import load_manifest
from tests.weights.files import (
    CPU,
    Networks,
    State,
    assert_same,
    base_state,
    cast,
    difference_control,
    diffusers_control,
    make_networks,
    own,
    prefixed,
    tiny_config,
    write,
)

FP32 = torch.float32
GOLDEN = Path(__file__).parents[1] / "golden" / "sampling"


class Made:
    """A base model, another of its kind, and a ControlNet that grew from the first, in files."""

    def __init__(self, folder: Path, family: str) -> None:
        self.nets, self.others = (make_networks(tiny_config(family), seed) for seed in (0, 1))
        self.metadata = own(self.nets.config)
        self.states = {
            "base": base_state(self.nets) | published_rest(self.nets),
            "other": base_state(self.others) | published_rest(self.others),
        }
        control = prefixed(self.nets.control, CONTROL)
        self.states["full"] = self.states["base"] | control
        self.states["control"] = control
        self.states["bare"] = prefixed(self.nets.control, "")
        self.states["diffusers"] = diffusers_control(self.nets.control)
        self.states["difference"] = difference_control(self.nets.control, self.nets.unet)
        self.paths = {name: self.write(folder / name, state) for name, state in self.states.items()}

    def write(self, path: Path, state: State) -> Path:
        return write(path.with_suffix(".safetensors"), state, metadata=self.metadata)


def published_rest(nets: Networks) -> State:
    """The schedule's tables at their full length: the original moves them with the weights."""
    return schedule_buffers(nets.config)


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("controls"), request.param)


@pytest.fixture(scope="module")
def made15(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("controls15"), "sd15")


def original_name(key: str) -> str:
    """Where the original's tools look for a key of the control model, in a base model."""
    return f"model.diffusion_{key.removeprefix('control_')}" if key.startswith("control_") else key


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class Names(TensorFile):
    """A file of which only names, shapes and formats are known."""

    def __init__(self, tensors: dict[str, TensorInfo]) -> None:
        self.path, self.tensors = Path("manifest"), tensors

    def _open(self) -> None:
        raise NotImplementedError

    def _get(self, key: str) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(("name", "manifest"), [("sd15", "cldm_v15"), ("sd21", "cldm_v21")])
def test_add_control_gives_exactly_the_published_keys_and_shapes(name: str, manifest: str) -> None:
    whole = load_manifest(manifest)
    infos = {
        key: TensorInfo(shape, torch.int64 if key.endswith("position_ids") else FP32)
        for key, shape in whole.items()
        if not key.startswith(CONTROL)
    }
    config = load_config(name)
    base = open_base(config, Names(infos))
    entries = base_entries(base) | copied_control(base.unet, config, 0)
    assert {key: entry.info.shape for key, entry in entries.items()} == whole


def test_the_schedules_tables_are_the_originals() -> None:
    golden = load_file(GOLDEN / "schedule_buffers.safetensors")
    del golden["lvlb_weights"]
    tables = schedule_buffers(load_config("sd15"))
    assert tables.keys() == golden.keys()
    for key, value in golden.items():
        torch.testing.assert_close(tables[key], value, rtol=3e-7, atol=0)


def test_add_control_copies_what_the_originals_tool_copies(made: Made, tmp_path: Path) -> None:
    add_control(made.paths["base"], tmp_path / "out.safetensors")
    got, base = load_file(tmp_path / "out.safetensors"), made.states["base"]
    assert set(base) <= set(got) and len(got) > len(base)
    fresh = [key for key in got if original_name(key) not in base]
    for key in got.keys() - set(fresh):
        assert same_bits(got[key], base[original_name(key)]), key
    hints = [key for key in fresh if "input_hint_block" in key]
    assert all(got[key].any() for key in hints if key.endswith("weight") and ".14." not in key)
    zero = [key for key in fresh if "zero_convs" in key or "middle_block_out" in key or ".14." in key]
    assert len(zero) + len(hints) == len(fresh) + 2 and not any(got[key].any() for key in zero)


def test_add_control_makes_a_file_that_loads_and_changes_nothing_yet(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    add_control(made.paths["base"], path)
    net = load_control(made.nets.config, path, device=CPU, dtype=FP32)
    hint = net.embed_hint(torch.rand(1, 3, 64, 64))
    context = torch.randn(1, 7, made.nets.config.unet.context_dim)
    assert not any(r.any() for r in net(torch.randn(1, 4, 8, 8), torch.tensor([5]), context, hint))
    assert_same(load_base(made.nets.config, path, device=CPU, dtype=FP32).unet, made.nets.unet)


def test_the_seed_decides_the_fresh_hint_block_and_leaves_torchs_alone(made15: Made, tmp_path: Path) -> None:
    key, got = CONTROL + "input_hint_block.0.weight", []
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for i, seed in enumerate((0, 0, 1)):
        add_control(made15.paths["base"], tmp_path / f"{i}.safetensors", seed=seed)
        got.append(load_file(tmp_path / f"{i}.safetensors")[key])
    assert torch.equal(got[0], got[1]) and not torch.equal(got[0], got[2])
    assert torch.equal(torch.rand(3), expected)


def test_add_control_supplies_what_community_files_lack(made15: Made, tmp_path: Path) -> None:
    lean = {key: v for key, v in made15.states["base"].items() if key.startswith((UNET, VAE, TEXT))}
    lean.pop(TEXT + "transformer.text_model.embeddings.position_ids")
    lean = {key.replace("transformer.text_model.", "transformer."): v for key, v in lean.items()}
    add_control(made15.write(tmp_path / "lean", lean), tmp_path / "out.safetensors")
    add_control(made15.paths["base"], tmp_path / "whole.safetensors")
    got, whole = load_file(tmp_path / "out.safetensors"), load_file(tmp_path / "whole.safetensors")
    assert got.keys() == whole.keys()
    assert all(same_bits(got[key], whole[key]) for key in whole)


def test_transfer_computes_what_the_originals_tool_computes(made: Made, tmp_path: Path) -> None:
    paths, path = made.paths, tmp_path / "out.safetensors"
    transfer(paths["full"], paths["base"], paths["other"], path)
    got, (full, base, other) = load_file(path), (made.states[name] for name in ("full", "base", "other"))
    expected = {}
    for key, p in full.items():
        if key.startswith(("first_stage_model", "cond_stage_model")):
            expected[key] = other[key]
        elif original_name(key) in other:
            expected[key] = p + other[original_name(key)] - base[original_name(key)]
        else:
            expected[key] = p
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert same_bits(got[key], value), key


@pytest.mark.parametrize("kind", ["control", "bare", "diffusers"])
def test_a_control_alone_is_moved_to_the_same_numbers(made15: Made, tmp_path: Path, kind: str) -> None:
    paths = made15.paths
    transfer(paths["full"], paths["base"], paths["other"], tmp_path / "full.safetensors")
    transfer(paths[kind], paths["base"], paths["other"], tmp_path / "alone.safetensors")
    full, alone = load_file(tmp_path / "full.safetensors"), load_file(tmp_path / "alone.safetensors")
    assert alone.keys() == {key for key in full if key.startswith(CONTROL)}
    assert all(same_bits(alone[key], full[key]) for key in alone)


def test_a_difference_is_added_to_the_new_base(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    transfer(made.paths["difference"], None, made.paths["other"], path)
    got, other = load_file(path), made.others.unet.state_dict()
    for key, value in made.states["difference"].items():
        if key != "difference":
            assert same_bits(got[CONTROL + key], value + other[key] if key in other else value), key
    assert CONTROL + "difference" not in got


@pytest.mark.parametrize(
    ("kind", "dtype"), [("full", FP32), ("control", torch.bfloat16), ("difference", torch.bfloat16)]
)
def test_moving_on_the_fly_gives_the_numbers_of_moving_by_file(
    made15: Made, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    paths, path = made15.paths, tmp_path / "out.safetensors"
    source = None if kind == "difference" else paths["base"]
    transfer(paths[kind], source, paths["other"], path)
    by_file = load_control(made15.nets.config, path, device=CPU, dtype=dtype)
    flying = load_control(
        made15.nets.config,
        paths[kind],
        device=CPU,
        dtype=dtype,
        base=paths["other"],
        trained_on=paths["base"],
    )
    assert_same(flying, by_file, dtype=dtype)


def test_half_precision_files_are_moved_in_float32(made15: Made, tmp_path: Path) -> None:
    halves = {
        name: made15.write(tmp_path / name, cast(made15.states[name], torch.float16))
        for name in ("control", "base", "other")
    }
    transfer(halves["control"], halves["base"], halves["other"], tmp_path / "out.safetensors")
    got, key = load_file(tmp_path / "out.safetensors"), "time_embed.0.weight"
    own_, base, other = (
        net.state_dict()[key].half().float()
        for net in (made15.nets.control, made15.nets.unet, made15.others.unet)
    )
    assert same_bits(got[CONTROL + key], own_ + other - base)


def test_transfer_without_the_old_base_or_with_another_models_is_refused(
    made15: Made, tmp_path: Path
) -> None:
    out, paths = tmp_path / "out.safetensors", made15.paths
    with pytest.raises(ValueError, match="give --from"):
        transfer(paths["control"], None, paths["other"], out)
    config = tiny_config("sd15")
    config.unet.context_dim = config.text.width = 32
    stranger = make_networks(config)
    path = write(tmp_path / "stranger.safetensors", base_state(stranger), metadata=own(config))
    for source, target in ((path, paths["other"]), (paths["base"], path)):
        with pytest.raises(CheckpointMismatch, match="(?s)stranger.safetensors seems to be .*Other shapes"):
            transfer(paths["full"], source, target, out)
    with pytest.raises(CheckpointMismatch, match="needed is a base model"):
        transfer(paths["control"], paths["base"], paths["control"], out)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("kind", ["full", "control", "bare", "diffusers"])
def test_extract_takes_the_control_alone(made: Made, tmp_path: Path, kind: str) -> None:
    extract(made.paths[kind], tmp_path / "half.safetensors")
    extract(made.paths[kind], tmp_path / "whole.safetensors", dtype=None)
    half, whole = (load_file(tmp_path / f"{name}.safetensors") for name in ("half", "whole"))
    for key, value in made.states["control"].items():
        assert same_bits(whole[key], value) and same_bits(half[key], value.half()), key
    assert len(half) == len(whole) == len(made.states["control"])


def test_the_model_that_a_file_names_is_passed_on(made15: Made, tmp_path: Path) -> None:
    extract(made15.paths["full"], tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == made15.metadata


def test_a_difference_comes_back_as_the_control(made: Made, tmp_path: Path) -> None:
    paths = made.paths
    diff(paths["control"], paths["base"], tmp_path / "diff.safetensors", dtype=None)
    transfer(tmp_path / "diff.safetensors", None, paths["base"], tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    for key, value in made.states["control"].items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=1e-6)


def test_a_difference_of_half_precision_files_comes_back_bit_for_bit(made15: Made, tmp_path: Path) -> None:
    # Weights below 1, as real ones are: then float32 holds the difference of two float16 numbers well enough.
    states = {
        name: cast({key: value * 0.1 for key, value in made15.states[name].items()}, torch.float16)
        for name in ("control", "base")
    }
    control, base = (made15.write(tmp_path / name, state) for name, state in states.items())
    diff(control, base, tmp_path / "diff.safetensors", dtype=None)
    back = tmp_path / "back.safetensors"
    transfer(tmp_path / "diff.safetensors", None, base, back, dtype=torch.float16)
    got = load_file(back)
    assert all(same_bits(got[key], value) for key, value in states["control"].items())


def test_a_difference_is_not_extracted_but_says_how(made15: Made, tmp_path: Path) -> None:
    for command in (extract, lambda a, out: diff(a, made15.paths["base"], out)):
        with pytest.raises(CheckpointMismatch, match="is a difference: add it .* transfer .* --to BASE"):
            command(made15.paths["difference"], tmp_path / "out.safetensors")


def test_a_file_of_a_model_unknown_here_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "control.safetensors", {"zero_convs.0.0.weight": torch.zeros(2)})
    with pytest.raises(CheckpointMismatch, match="an unknown model: give a file for Stable Diffusion 1.x"):
        extract(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
