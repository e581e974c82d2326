"""Time the detectors: ours, the original's order of work, and ours in bfloat16 with its error."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import annotators
from annotators.base import Annotation
from annotators.networks import NETWORKS, find_weights
from core.errors import WeightsMissing
from core.images import resize, to_rgb
from core.runtime.device import cpu_has_bfloat16
from core.weights.plain import load_plain
from core.weights.registry import Registry, ckpts_folder
from tests.bench.originals import ORIGINALS
from tests.bench.step import CLOCKS, compare
from tests.deterministic_weights import fill_tensors

Build = Callable[[Mapping[str, str]], nn.Module]
CPU = torch.device("cpu")


class Supply:
    """Stands in for ``NETWORKS.get``: ours or the original's networks in one number format."""

    def __init__(self, dtype: torch.dtype, *, original: bool, random: set[str]) -> None:
        """Hold nothing yet; networks named in ``random`` get random weights."""
        self.dtype, self.original, self.random = dtype, original, random
        self.networks: dict[str, nn.Module] = {}

    def __call__(self, name: str, build: Build, *, half: bool = True, **how: Any) -> nn.Module:
        """Return the network; ``half`` does not count: bfloat16 is measured also where it is not used."""
        if name not in self.networks:
            wanted = ORIGINALS.get(name, build) if self.original else build
            self.networks[name] = (
                self._random(wanted)
                if name in self.random
                else load_plain(
                    wanted, Registry.load().locate(name), name=name, device=CPU, dtype=self.dtype, **how
                )
            )
        return self.networks[name]

    def _random(self, build: Build) -> nn.Module:
        with torch.device("meta"):
            net = build({})
        state = {
            key: torch.zeros(value.shape, dtype=self.dtype if value.is_floating_point() else value.dtype)
            for key, value in net.state_dict().items()
        }
        fill_tensors(state.items(), "bench")
        net.load_state_dict(state, assign=True)
        return net.eval().requires_grad_(False)


@contextmanager
def all_weights() -> Iterator[set[str]]:
    """Make every detector believe that its weights are here; yield the names of those that are not."""
    missing = set()
    with tempfile.TemporaryDirectory() as folder:
        if ckpts_folder().is_dir():
            for file in ckpts_folder().iterdir():
                (Path(folder) / file.name).symlink_to(file.resolve())
        for name in annotators.names():
            detector = annotators.load(name)
            try:
                if detector.weights is not None:
                    find_weights(detector.weights, detector.demo_weights)
            except WeightsMissing:
                missing.add(str(detector.weights))
        for name in missing:
            (Path(folder) / Registry.load()[name].path).touch()
        with patch.dict(os.environ, {"CONTROLNET_CKPTS": folder}):
            yield missing


def detection(
    name: str, picture: NDArray[np.uint8], supply: Supply, resolution: int | None
) -> Callable[[], Annotation]:
    """Return a call that detects in a picture that was not seen before; by default at the picture's size."""
    detector = type(annotators.load(name))()
    seen = picture.copy()
    seek_at = None if detector.resolution is None else resolution or min(picture.shape[:2])

    def detect() -> Annotation:
        seen[:8, :8] += np.uint8(1)  # results are remembered; a smaller copy differs too
        annotators.load.cache_clear()  # also those that one detector takes from another
        with patch.object(NETWORKS, "get", supply):
            return detector(seen, size=(seen.shape[0], seen.shape[1]), resolution=seek_at)

    return detect


def difference(a: Annotation, b: Annotation) -> str:
    """Say by how many grey levels two hints differ at most, and on how many pixels by more than one."""
    gap = np.abs(a.hint.astype(int) - b.hint).max(axis=2)
    return f"{gap.max()} levels, {(gap > 1).mean():.2%} by more than 1"


def run(args: argparse.Namespace) -> None:
    """Print a line for each detector."""
    if args.threads:
        torch.set_num_threads(args.threads)
    picture = resize(to_rgb(args.image), (args.pixels, args.pixels))
    detected = f"detected at {args.resolution} px, " if args.resolution else ""
    threads = f"{torch.get_num_threads()} threads"
    print(f"{args.image.name}, {args.pixels} px, {detected}{threads}; ms are least / median")
    print(f"{'detector':15} {'weights':9} {'ours':>13} {'original':>13} {'bfloat16':>13}  its difference")
    with all_weights() as missing:
        for name in args.only or annotators.names():
            detector = annotators.load(name)
            kinds = {"ours": Supply(torch.float32, original=False, random=missing)}
            if detector.weights is not None:
                kinds["original"] = Supply(torch.float32, original=True, random=missing)
                kinds["bfloat16"] = Supply(torch.bfloat16, original=False, random=missing)
            calls = {k: detection(name, picture, supply, args.resolution) for k, supply in kinds.items()}
            gap = difference(calls["ours"](), calls["bfloat16"]()) if "bfloat16" in calls else ""
            if not cpu_has_bfloat16():
                calls.pop("bfloat16", None)  # emulated, it takes ten times as long
            times = compare(calls, args.rounds, CLOCKS[args.clock])  # type: ignore[arg-type]  # any result
            cells = [_cell(times.get(kind)) for kind in ("ours", "original", "bfloat16")]
            weights = "-" if detector.weights is None else "random" if detector.weights in missing else "real"
            print(f"{name:15} {weights:9} {' '.join(cells)}  {gap}", flush=True)


def _cell(seconds: list[float] | None) -> str:
    if seconds is None:
        return f"{'-':>13}"
    return f"{min(seconds) * 1e3:.0f} / {statistics.median(seconds) * 1e3:.0f}".rjust(13)
