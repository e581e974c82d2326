"""Means of ControlNets and of base models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.errors import CheckpointMismatch
from core.weights.checkpoint import load_base, load_control
from core.weights.convert import CONTROL
from core.weights.merging import merge
from tests.weights.files import (
    CPU,
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

A, B = (make_networks(tiny_config("sd15"), seed) for seed in (0, 1))
METADATA = own(A.config)
BASES = [{key: v for key, v in base_state(nets).items() if key.count(".")} for nets in (A, B)]
CONTROLS = [prefixed(nets.control, CONTROL) for nets in (A, B)]


def files(folder: Path, *states: State) -> list[Path]:
    return [write(folder / f"{i}.safetensors", state, metadata=METADATA) for i, state in enumerate(states)]


@pytest.mark.parametrize("parts", ["base", "control", "both"])
def test_a_merged_file_is_the_mean_of_what_both_hold(tmp_path: Path, parts: str) -> None:
    given = {"base": BASES, "control": CONTROLS, "both": [{**b, **c} for b, c in zip(BASES, CONTROLS)]}[parts]  # noqa: B905
    first, second = files(tmp_path, *given)
    merge(first, second, tmp_path / "out.safetensors", alpha=0.25)
    got = load_file(tmp_path / "out.safetensors")
    for key, value in given[0].items():
        expected = 0.75 * value + 0.25 * given[1][key] if value.is_floating_point() else value
        assert torch.equal(got[key], expected), key


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_files_themselves(tmp_path: Path, alpha: float) -> None:
    first, second = files(tmp_path, BASES[0] | CONTROLS[0], BASES[1] | CONTROLS[1])
    path = tmp_path / "out.safetensors"
    merge(first, second, path, alpha=alpha)
    expected = B if alpha else A
    networks = load_base(A.config, path, device=CPU, dtype=torch.float32)
    assert_same(networks.unet, expected.unet)
    assert_same(networks.vae, expected.vae)
    assert_same(networks.text, expected.text)
    assert_same(load_control(A.config, path, device=CPU, dtype=torch.float32), expected.control)


def test_layouts_and_number_formats_may_differ_and_the_firsts_format_stays(tmp_path: Path) -> None:
    half = cast(prefixed(A.control, ""), torch.float16)
    first, second = files(tmp_path, half, diffusers_control(B.control))
    merge(first, second, tmp_path / "out.safetensors")
    got = load_file(tmp_path / "out.safetensors")
    for key, value in half.items():
        assert torch.equal(
            got[CONTROL + key], (0.5 * value.float() + 0.5 * CONTROLS[1][CONTROL + key]).half()
        )


def test_the_mean_of_differences_is_a_difference_and_what_one_leaves_out_is_nothing(tmp_path: Path) -> None:
    one, other = (difference_control(nets.control, nets.unet) for nets in (A, B))
    key = "time_embed.0.weight"
    value = other[key].clone()
    del one[key]
    first, second = files(tmp_path, one, other)
    merge(first, second, tmp_path / "out.safetensors", alpha=0.25)
    got = load_file(tmp_path / "out.safetensors")
    assert torch.equal(got[CONTROL + key], 0.25 * value) and CONTROL + "difference" in got


def test_what_has_nothing_in_common_is_refused(tmp_path: Path) -> None:
    difference = difference_control(A.control, A.unet)
    base, control, relative = files(tmp_path, BASES[0], CONTROLS[0], difference)
    for first, second in ((base, control), (control, relative)):
        with pytest.raises(CheckpointMismatch, match="seems to be .*: give two ControlNets, two differences"):
            merge(first, second, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="--alpha is 1.5: give a number from 0"):
        merge(control, control, tmp_path / "out.safetensors", alpha=1.5)


def test_models_of_other_sizes_or_tokens_do_not_merge(tmp_path: Path) -> None:
    other = make_networks(tiny_config("sd21"))
    first, second = files(tmp_path, CONTROLS[0], prefixed(other.control, CONTROL))
    with pytest.raises(CheckpointMismatch, match="1.safetensors seems to be"):
        merge(first, second, tmp_path / "out.safetensors")
    key = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    first, second = files(tmp_path, BASES[0], BASES[1] | {key: BASES[1][key] + 1})
    with pytest.raises(CheckpointMismatch, match="position_ids differs: files that number"):
        merge(first, second, tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("*out*"))
