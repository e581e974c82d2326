"""The comparison says nothing of peers that do not draw the same, and its tables agree."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.bench import compare
from tests.bench.__main__ import parser
from tests.bench.compare import Alone, Row, distance, markdown, rows
from tests.bench.peers import Drawn, Files, Job, Ours, peers
from tests.bench.where import kind_of, table

CPU = torch.device("cpu")
JOB = Job(pixels=64, batch=2, steps=3)
LATENTS = torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8)


@dataclass
class Named:
    """A peer that was measured before."""

    name: str
    dtype: torch.dtype = torch.float32

    def load(self) -> None:
        """Do nothing."""

    def draw(self, job: Job) -> Drawn:
        """Fail: nothing is drawn here."""
        raise AssertionError(job)


def drawn(latents: Tensor, *steps: float, rest: float = 1.0) -> Drawn:
    """Return what a draw of ``JOB`` gave; its first step took as long as the fastest."""
    return Drawn(latents, steps, sum(steps) + min(steps) + rest)


def compared(other: Tensor, dtype: torch.dtype = torch.float32) -> list[Row]:
    """Compare ours, 2 s a step at best, with a peer that needs 3 s and ends at ``other``."""
    made = {"ours": Named("ours", dtype), "best": Named("peer")}
    rounds = {
        "ours": [drawn(LATENTS, 2.5, 2.0), drawn(LATENTS, 9.0, 2.2)],
        "best": [drawn(other, 3.0, 3.1), drawn(other, 4.0, 3.2)],
    }
    alone = {"ours": Alone(1.0, 5.0, 2.5)}
    return rows(rounds, made, JOB, 10**12, lambda dtype: 10**12, alone)


@pytest.mark.parametrize(
    ("off", "dtype", "same"),
    [
        (5e-5, torch.float32, True),
        (2e-4, torch.float32, False),
        (1e-2, torch.bfloat16, True),
        (3e-2, torch.bfloat16, False),
        (float("nan"), torch.bfloat16, False),
    ],
)
def test_there_is_a_ratio_only_where_the_latents_are_the_same(
    off: float, dtype: torch.dtype, same: bool
) -> None:
    ours, peer = compared(LATENTS * (1 + off), dtype)

    assert ours.ratio == 1.0
    assert peer.ratio == (pytest.approx(2.0 / 3.0) if same else None)
    assert ("differ: no ratio" in markdown([ours, peer])) is not same


def test_the_fastest_step_of_all_rounds_counts() -> None:
    ours, peer = compared(LATENTS)

    assert (ours.step_seconds, peer.step_seconds) == (2.0, 3.0)
    assert ours.peak_share == pytest.approx(0.5) and peer.peak_share == pytest.approx(1 / 3)


def test_pictures_a_minute_count_what_a_picture_takes_beside_its_steps() -> None:
    made = {"ours": Named("ours")}
    (row,) = rows({"ours": [drawn(LATENTS, 2.0, 2.0, rest=4.0)]}, made, JOB, 1, lambda dtype: 1.0, {})

    assert row.pictures_a_minute == pytest.approx(60 * 2 / (20 * 2.0 + 4.0))


def test_a_peer_that_broke_down_is_infinitely_far() -> None:
    assert distance(LATENTS, LATENTS) == 0.0
    assert distance(LATENTS, LATENTS * float("nan")) == float("inf")


def test_no_command_compares() -> None:
    assert parser().parse_args(["compare"]).run is compare.run


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("mkldnn::_convolution_pointwise", "convolutions"),
        ("mkldnn::_linear_pointwise", "linear maps and products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_group_norm", "normalisations"),
        ("aten::silu", "activations"),
        ("aten::copy_", "copies"),
        ("aten::add", "sums and factors"),
        ("aten::empty", "other"),
    ],
)
def test_operations_are_told_apart(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_ours_is_compared_with_diffusers_default_and_its_best() -> None:
    files = Files("sd15", Path("ours.yaml"), Path("folder"))
    made = {name: make() for name, make in peers(files, CPU, "bfloat16").items()}

    assert [peer.name for peer in made.values()] == [
        "ours, bfloat16",
        "ours, bfloat16, without graphs",
        "ours, bfloat16, low VRAM",
        "ours, bfloat16, compiled",
        "diffusers, float32",
        "diffusers, bfloat16",
        "diffusers, bfloat16, channels_last",
        "diffusers, bfloat16, channels_last, compiled",
        "diffusers, OpenVINO, bfloat16",
    ]
    assert [peer.dtype == torch.float32 for peer in made.values()] == [False] * 4 + [True] + [False] * 4


@pytest.mark.parametrize(
    ("words", "kind", "installed", "names"),
    [
        ("", "cpu", "diffusers transformers openvino", "ours default best openvino"),
        ("", "cpu", "diffusers transformers", "ours default best"),
        ("", "cpu", "openvino", "ours"),
        ("--model demo", "cpu", "diffusers transformers openvino", "ours"),
        ("", "cuda", "diffusers transformers openvino", "ours eager default half best"),
        ("--compile", "cpu", "diffusers transformers", "ours ours_compiled default best compiled"),
    ],
)
def test_whatever_is_installed_is_compared(
    monkeypatch: pytest.MonkeyPatch, words: str, kind: str, installed: str, names: str
) -> None:
    monkeypatch.setattr(compare, "find_spec", lambda name: name in installed.split() or None)
    monkeypatch.setattr(compare, "is_installed", lambda: "openvino" in installed)
    args = parser().parse_args(["compare", *words.split()])
    assert compare.wanted(args, kind) == names.split()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Random weights of the demo model's sizes."""
    folder = tmp_path_factory.mktemp("random")
    return Files("demo", compare.write_random_model("demo", folder), folder)


def test_ours_gives_the_latents_it_decodes_and_every_step_but_the_first(demo: Files) -> None:
    peer = Ours(demo, CPU, "float32")
    peer.load()
    first, again = peer.draw(JOB), peer.draw(JOB)

    assert first.latents.shape == (2, 8, 8, 8)
    assert len(first.steps) == JOB.steps - 1 and first.seconds > sum(first.steps)
    assert torch.equal(first.latents, again.latents)
    alone = peer.draw(Job(JOB.pixels, 1, JOB.steps)).latents
    assert distance(alone, first.latents[:1]) < 1e-4


def test_a_whole_run_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(work: object, *arguments: object) -> object:
        assert callable(work)
        return work(*arguments)

    monkeypatch.setattr(compare, "in_own_process", here)
    monkeypatch.setattr(compare, "matrix_peak", lambda dtype, clock, device: 1e12)
    words = "compare --model demo --pixels 64 --batch 1 --dtype float32 --steps 2 --rounds 1 --device cpu"
    args: argparse.Namespace = parser().parse_args([*words.split(), "--output", str(tmp_path / "table")])
    args.run(args)

    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    text = (tmp_path / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert f"{row['step_seconds']:.3g} s" in text and f"{row['alone']['peak_gb']:.2f} GB" in text
    assert row["ratio"] == 1.0 and row["dtype"] == "float32"


def test_a_profile_tells_where_the_time_went(
    demo: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from collections import Counter

    told = table(Counter({"convolutions": 3.0, "other": 1.0}), "a step")
    assert "| convolutions | 3.000 | 75.0% |" in told.splitlines()

    from tests.bench.where import profile_job

    setting = compare.Setting(demo, "cpu", "float32", None, ("ours",), 1)
    lines = profile_job(setting, Job(64, 1, 2)).splitlines()
    assert lines[0].startswith("| ours, float32, 64 px") and any("| convolutions |" in line for line in lines)
