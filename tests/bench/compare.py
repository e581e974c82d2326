"""Ours beside its peers, on the same random weights and in one run: speed, memory, the same latents."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.config import load_config
from core.runtime.device import resolve_device
from tests.bench.memory import resident
from tests.bench.openvino_peer import convert_for_openvino, is_installed
from tests.bench.peers import Drawn, Files, Job, Peer, peers
from tests.bench.random_model import CONTROL, write_random_model
from tests.bench.step import Case, count_flops, matrix_peak
from tests.bench.where import profile_job

SAME = {True: 1e-4, False: 2e-2}  # relative distance of the latents: both in float32, or not
PICTURE_STEPS = 20  # of the pictures a minute
PACKAGES = ("torch", "diffusers", "transformers", "openvino")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alone:
    """What a peer takes in a process of its own: to load, then to draw once; memory in 10^9 bytes."""

    load_seconds: float
    first_seconds: float
    peak_gb: float


@dataclass(frozen=True, slots=True)
class Row:
    """A peer in one case.

    ``distance`` is from our latents; ``ratio``, of our step to its, is None where they differ.
    """

    peer: str
    dtype: str
    pixels: int
    batch: int
    step_seconds: float
    pictures_a_minute: float
    peak_share: float
    distance: float
    ratio: float | None
    alone: Alone | None


def distance(a: Tensor, b: Tensor) -> float:
    """Return the distance of ``a`` from ``b``, relative to ``b``; infinite where one is not finite."""
    found = float((a - b).norm() / b.norm())
    return found if found == found else float("inf")


def rows(
    drawn: dict[str, list[Drawn]],
    made: Mapping[str, Peer],
    job: Job,
    flops: int,
    peak: Callable[[torch.dtype], float],
    alone: dict[str, Alone],
) -> list[Row]:
    """Return a row for each peer, "ours" first; ``drawn`` has its rounds, ``flops`` are those of a step."""
    found: list[Row] = []
    ours = drawn["ours"]
    our_step = _step(ours)
    for name, rounds in drawn.items():
        step, peer = _step(rounds), made[name]
        rest = max(0.0, min(r.seconds for r in rounds) - step * job.steps)
        far = distance(ours[-1].latents, rounds[-1].latents)
        both_exact = peer.dtype == made["ours"].dtype == torch.float32
        found.append(
            Row(
                peer=peer.name,
                dtype=str(peer.dtype).removeprefix("torch."),
                pixels=job.pixels,
                batch=job.batch,
                step_seconds=step,
                pictures_a_minute=60 * job.batch / (PICTURE_STEPS * step + rest),
                peak_share=flops / step / peak(peer.dtype),
                distance=far,
                ratio=our_step / step if far <= SAME[both_exact] else None,
                alone=alone.get(name),
            )
        )
    return found


def _step(rounds: Sequence[Drawn]) -> float:
    return min(second for drawn in rounds for second in drawn.steps)


def markdown(found: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| | px | batch | load | first picture | step | pictures a minute | peak memory | of the matrix peak "
        "| latents from ours | ours / its step |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        a = row.alone
        own = [f"{a.load_seconds:.1f} s", f"{a.first_seconds:.1f} s"] if a else ["", ""]
        ratio = "differ: no ratio" if row.ratio is None else f"{row.ratio:.2f}"
        cells = [
            row.peer,
            str(row.pixels),
            str(row.batch),
            *own,
            f"{row.step_seconds:.3g} s",
            f"{row.pictures_a_minute:.3g}",
            f"{a.peak_gb:.2f} GB" if a else "",
            f"{row.peak_share:.0%}",
            f"{row.distance:.1e}",
            ratio,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(device: torch.device) -> dict[str, str]:
    """Say what the figures are of."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = next((line for line in lines if line.startswith("model name")), "")
        cpu = named.partition(":")[2].strip() or cpu
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none used"
    packages = {name: found for name in PACKAGES if (found := _version(name))}
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {"cpu": f"{cpu}, {cores}", "gpu": gpu, "python": platform.python_version(), **packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def random_files(model: str, *, with_diffusers: bool, with_openvino: bool = False) -> Iterator[Files]:
    """Have the same random weights written in the original's layout and, from that, in those of peers.

    OpenVINO's is made of diffusers'.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ours = in_own_process(write_random_model, model, place)
        if with_diffusers:
            in_own_process(_convert, place)
        files = Files(model, ours, place / "diffusers")
        if with_openvino:
            in_own_process(convert_for_openvino, files)
        yield files


def _convert(place: Path) -> None:
    from core.weights.diffusers_folders import to_diffusers

    to_diffusers(place / "base.safetensors", place / "diffusers")
    to_diffusers(place / f"{CONTROL}.safetensors", place / "diffusers" / CONTROL)


def in_own_process(work: Callable[..., T], *arguments: Any) -> T:
    """Do ``work`` in a fresh process, which gives all its memory back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


@dataclass(frozen=True, slots=True)
class Setting:
    """What one process compares: ``dtype`` is ours, "auto" or a name; ``rounds`` is how often each draws."""

    files: Files
    device: str
    dtype: str
    threads: int | None
    names: tuple[str, ...]
    rounds: int

    def make(self) -> dict[str, Peer]:
        """Return the peers, nothing loaded."""
        if self.threads:
            torch.set_num_threads(self.threads)
        ways = peers(self.files, torch.device(self.device), self.dtype)
        return {name: ways[name]() for name in self.names}


def measure_alone(setting: Setting, name: str, job: Job) -> Alone:
    """Load one peer and draw once. To be called in a process of its own."""
    peer = setting.make()[name]
    device = torch.device(setting.device)
    began = time.perf_counter()
    peer.load()
    loaded = time.perf_counter()
    drawn = peer.draw(job)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
    else:
        peak = resident("VmHWM")
    return Alone(loaded - began, drawn.seconds, peak)


def interleave(
    setting: Setting, jobs: Sequence[Job], alone: dict[tuple[str, Job], Alone], model: str
) -> list[Row]:
    """Let the peers draw in turn, every job, and compare. To be called in a process of its own."""
    made = setting.make()
    for peer in made.values():
        peer.load()
    known: dict[torch.dtype, float] = {}

    def peak(dtype: torch.dtype) -> float:
        if dtype not in known:
            known[dtype] = matrix_peak(dtype, time.perf_counter, device=setting.device)
        return known[dtype]

    found = []
    for job in jobs:
        drawn: dict[str, list[Drawn]] = {name: [] for name in made}
        for _ in range(setting.rounds):
            for name, peer in made.items():
                drawn[name].append(peer.draw(job))
        case = Case(load_config(model), torch.float32, job.pixels)
        flops = count_flops(case) * job.batch  # a picture is a batch of two
        own = {name: value for (name, at), value in alone.items() if at == job}
        found += rows(drawn, made, job, flops, peak, own)
    return found


def wanted(args: argparse.Namespace, kind: str) -> list[str]:
    """Return the names of all peers that there are for a ``kind`` of device; say why others are missing."""
    on_gpu = kind == "cuda"
    names = ["ours", *["eager"] * on_gpu, *["low_vram"] * args.low_vram, *["ours_compiled"] * args.compile]
    if args.model != "sd15":
        print("diffusers has no such model: only ours is measured.")
    elif find_spec("diffusers") and find_spec("transformers"):
        names += ["default", *["half"] * on_gpu, "best", *["compiled"] * args.compile]
        names += ["openvino"] * (kind == "cpu" and is_installed())
    else:
        print("diffusers and transformers are not installed: only ours is measured.")
    return names


def run(args: argparse.Namespace) -> None:
    """Compare, and print and write the table."""
    device = resolve_device(args.device)
    names = wanted(args, device.type)
    jobs = [Job(pixels, batch, args.steps) for pixels in args.pixels for batch in args.batch]
    found: list[Row] = []
    kinds = {"with_diffusers": "best" in names, "with_openvino": "openvino" in names}
    with random_files(args.model, **kinds) as files:
        for dtype in args.dtype:
            setting = Setting(files, str(device), dtype, args.threads, tuple(names), args.rounds)
            if args.profile:
                print(in_own_process(profile_job, setting, jobs[0]))
                continue
            alone: dict[tuple[str, Job], Alone] = {}
            if not args.no_alone:
                pairs = [(name, job) for job in jobs for name in names]
                alone = {pair: in_own_process(measure_alone, setting, *pair) for pair in pairs}
            found += in_own_process(interleave, setting, jobs, alone, args.model)
    if args.profile:
        return
    facts = machine(device)
    text = "\n\n".join(["; ".join(f"{k}: {v}" for k, v in facts.items()), markdown(found)])
    print(text)
    if args.output is not None:
        args.output.with_suffix(".md").write_text(text + "\n")
        told = {"machine": facts, "steps": args.steps, "rows": [asdict(row) for row in found]}
        args.output.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
