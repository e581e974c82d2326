"""Average the weights of several exported models: what chance did to each of them cancels out.

Source: averaged weights, Izmailov et al. 2018 (arXiv 1803.05407); model soups, Wortsman et al. 2022
(arXiv 2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.training.hints import CONTROLS
from core.training.together import BASE
from core.weights.formats import OVER, TensorFile, open_layers, open_tensors
from core.weights.writing import write_state


def average(folders: Sequence[Path], output: Path, weights: Sequence[float] | None = None) -> list[str]:
    """Write the mean of what lies in ``folders``: base and ControlNets; return their names.

    The models must come from one another, or from one start: those of other starts have no useful mean.
    ``weights`` are how much each of them counts (default alike). The first folder tells which files.

    Raises:
        ValueError: fewer than two folders, not one positive weight for each, ``output`` is among them, the
            first has no model, or files differ in what they hold.
        FileNotFoundError: a file is missing in one of them.
    """
    if len(folders) < 2:
        raise ValueError(f"there are {len(folders)} folders to average: name two at least.")
    weights = [1.0] * len(folders) if weights is None else weights
    if len(weights) != len(folders) or min(weights) <= 0:
        raise ValueError(f"--weights are {list(weights)}: give a positive number for each folder.")
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"{output} is one of the folders: let --ckpts be another, so that nothing is lost.")
    names = [name for name in (BASE, *CONTROLS) if (folders[0] / f"{name}.safetensors").exists()]
    if not names:
        raise ValueError(f"{folders[0]} holds neither {BASE}.safetensors nor a control's file.")
    files = [f"{name}.safetensors" for name in names]
    for path in (folder / file for folder in folders for file in files):
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there, but {folders[0] / path.name} is.")
    for file in files:  # all of them before anything is written
        _check_alike([open_layers(folder / file) for folder in folders])
    below = [open_tensors(folders[0] / file).metadata.get(OVER) for file in files]
    for file, over in sorted(zip(files, below, strict=True), key=lambda pair: pair[1] is not None):
        layers = [open_layers(folder / file) for folder in folders]
        tensors = _mean(layers, [weight / sum(weights) for weight in weights])
        if over is not None:  # as it was written: what lies beneath is not written again
            trunk = load_file(output / over)
            tensors = {key: value for key, value in tensors.items() if not torch.equal(value, trunk[key])}
        write_state(output / file, tensors, open_tensors(folders[-1] / file).metadata)
    return names


def _check_alike(files: Sequence[TensorFile]) -> None:
    first = {key: info.shape for key, info in files[0].tensors.items()}
    for file in files[1:]:
        if {key: info.shape for key, info in file.tensors.items()} != first:
            raise ValueError(
                f"{file.path} and {files[0].path} hold other tensors: give models of one config."
            )


def _mean(files: Sequence[TensorFile], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of every tensor, in its own format; shares sum to 1."""
    first = files[0]
    mean = {}
    for key, info in first.tensors.items():
        if info.dtype.is_floating_point:
            # In float64, so that what is alike in all of them stays what it is.
            total = sum(file.read(key).double() * share for file, share in zip(files, shares, strict=True))
            assert isinstance(total, Tensor)
            mean[key] = total.to(info.dtype).contiguous()
        else:
            mean[key] = first.read(key).clone()
    return mean
