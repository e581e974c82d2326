"""The command line beside list, get and verify: what is printed, the exit status, names of the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.weights.__main__ import main
from core.weights.convert import CONTROL
from core.weights.describe import describe
from core.weights.registry import Registry
from tests.weights.files import (
    base_state,
    difference_control,
    diffusers_control,
    ema_state,
    make_networks,
    own,
    prefixed,
    tiny_config,
    write,
)

NETS = make_networks(tiny_config("sd15"))
METADATA = own(NETS.config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    base, control = base_state(NETS), prefixed(NETS.control, CONTROL)
    states = {
        "base": {key: value for key, value in base.items() if "." in key},
        "full": base | control,
        "control": control,
        "diffusers": diffusers_control(NETS.control),
        "difference": difference_control(NETS.control, NETS.unet),
    }
    for name, state in states.items():
        write(folder / f"{name}.safetensors", state, metadata=METADATA)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "add-control {d}/base.safetensors {out}",
        "transfer {d}/full.safetensors --from {d}/base.safetensors --to {d}/base.safetensors {out}",
        "transfer {d}/difference.safetensors --to {d}/base.safetensors {out}",
        "extract {d}/full.safetensors {out}",
        "diff {d}/full.safetensors {d}/base.safetensors {out}",
        "merge {d}/full.safetensors {d}/control.safetensors {out} --alpha 0.3",
    ],
)
def test_each_command_writes_tells_what_and_refuses_to_write_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "out.safetensors"
    arguments = command.format(d=folder, out=out).split()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Wrote {out}, ") and "\nis:             " in printed
    before = out.read_bytes()
    assert main(arguments) == 2
    assert "is there already: give another name, or --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert out.read_bytes() == before  # the same command gives the same bytes


def test_a_wrong_file_is_told_with_status_1_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((folder / "full.safetensors").read_bytes()[:-1000])
    for name in (broken, folder / "base.safetensors", tmp_path / "none.safetensors"):
        assert main(["extract", str(name), str(tmp_path / "out.safetensors")]) == 1
        assert str(name) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [broken]


def test_names_of_the_registry_do_as_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["extract", "demo_depth", str(out)]) == 0  # lies over another file, which it brings along
    capsys.readouterr()
    registry = Registry.load()
    whole = load_file(registry.locate("demo_canny"))
    whole |= load_file(registry.locate("demo_depth"))
    got = load_file(out)
    assert got.keys() == {CONTROL + key for key in whole}
    assert all(torch.equal(got[CONTROL + key], value.half()) for key, value in whole.items())
    assert main(["info", "control_sd15_canny"]) == (0 if registry.find("control_sd15_canny") else 1)


SAID = {
    "base": ("a checkpoint of", "text encoder:", "python launch.py --model {}", "add-control {}"),
    "full": ("and a ControlNet", "ControlNet: ", "extract {}", "transfer {} --from sd15"),
    "control": ("a ControlNet for", "convert {} FOLDER"),
    "diffusers": ("in the diffusers layout", "convert {} OUT"),
    "difference": ("the difference of a ControlNet", "transfer {} --to BASE"),
}


@pytest.mark.parametrize("kind", SAID)
def test_info_tells_what_a_file_is_and_what_to_do_with_it(folder: Path, kind: str) -> None:
    path = folder / f"{kind}.safetensors"
    told = "\n".join(describe(path))
    for words in SAID[kind]:
        assert words.format(path) in told
    total = sum(value.numel() for value in load_file(path).values())
    assert f"{total:,} in {len(load_file(path)):,} tensors: " in told
    assert "metadata:       format = controlnet-suite" in told


def test_info_looks_into_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "diffusers"
    assert main(["convert", str(folder / "full.safetensors"), str(out)]) == 0
    assert "  unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().out
    assert main(["info", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.count("\nis:             ") == 4 and "a UNet in the diffusers layout" in told
    back = tmp_path / "back.safetensors"
    assert main(["convert", str(out), str(back)]) == 0
    assert main(["convert", str(out / "controlnet"), str(tmp_path / "control.safetensors")]) == 0
    got = load_file(back) | load_file(tmp_path / "control.safetensors")
    expected = load_file(folder / "full.safetensors")
    same = [key for key in expected if key in got and torch.equal(got[key], expected[key])]
    assert {key for key in expected if key.count(".") > 1} == set(same)
    assert main(["convert", str(folder), str(tmp_path / "x.safetensors")]) == 1


def test_info_counts_number_formats_and_names_what_else_lies_in_a_pickle(tmp_path: Path) -> None:
    state = ema_state(NETS) | base_state(NETS) | {"half": torch.zeros(3, dtype=torch.float16)}
    path = tmp_path / "training.ckpt"
    torch.save({**state, "epoch": 3}, path)
    told = "\n".join(describe(path))
    assert " float32, " in told and " 3 float16" in told and "averaged copy:  " in told
    assert "beside them:    epoch" in told


def test_listing_and_fetching_load_no_networks() -> None:
    code = "import sys, core.weights.__main__; print([m for m in ('torch', 'open_clip') if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
