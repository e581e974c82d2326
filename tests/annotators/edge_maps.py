"""What the tests of HED, fake scribbles and M-LSD share: stored maps, a picture and weights made by rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tests.deterministic_weights import fill_tensors

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "edges"
# Published keys that contain the word have the first gain, others the second, so that outputs vary enough.
GAINS = {"hed": ("projection", 0.03, 1.414), "mlsd": ("block23.conv3.weight", 20.0, 1.2)}


def read(name: str) -> NDArray[np.uint8]:
    """Return a stored map as it is, channels in the file's order as OpenCV gives them."""
    found = cv2.imread(str(GOLDEN / name), cv2.IMREAD_UNCHANGED)
    assert found is not None, name
    return np.asarray(found, dtype=np.uint8)


def stored(name: str) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a stored file."""
    with np.load(GOLDEN / name) as file:
        return dict(file)


def checkered() -> NDArray[np.uint8]:
    """Return 4 x 6 squares of random colours, 16 pixels a side: (64, 96, 3) uint8 RGB."""
    squares = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.kron(squares, np.ones((16, 16, 1), np.uint8))


def published_state(name: str, net: nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict for the network: values by rule, under the published keys."""
    word, special, usual = GAINS[name]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    fill_tensors(state.items(), "public", lambda key: special if word in key else usual)
    return state


def loaded(name: str, build: Any) -> nn.Module:
    """Return the network with weights by rule, as the detectors load it."""
    net: nn.Module = build({})
    net.load_state_dict(published_state(name, net))
    return net.eval().requires_grad_(False)
