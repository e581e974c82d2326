"""Depth by MiDaS: light is near, dark is far."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotator, Slider
from annotators.maps import DEPTH
from annotators.networks import NETWORKS, find_weights

WEIGHTS, DEMO_WEIGHTS = "midas", "demo_midas"
REMEMBERED = 4  # pictures whose depth is kept: the normal detector wants it too
RESOLUTION = Slider(
    "resolution", "Depth Resolution", 128, 1024, 384, 1, "Short side, in pixels, at which depth is sought."
)
SUITS = (256, 512)  # pixels, the short side: the network learned at 384 and is poor above 512


class Depth(Annotator):
    """Inverse depth, scaled to each picture. Source: MiDaS DPT-Hybrid, as in the ControlNet 1.0 demo.

    The network computes in float32: bfloat16 moves three quarters of the map's levels, some by ten of 255,
    float16 a quarter, and normals, which are made of differences, suffer more.
    """

    title = "MiDaS depth"
    resolution = RESOLUTION
    auto_range = SUITS
    weights = WEIGHTS
    demo_weights = DEMO_WEIGHTS
    kind = DEPTH

    def __init__(self) -> None:
        """Load nothing."""
        super().__init__()
        self._raw: OrderedDict[tuple[object, ...], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def detect(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Find the depth of (h, w, 3) uint8 RGB as (h, w) uint8: 255 is nearest, 0 farthest."""
        return (scaled(self.inverse_depth(image)) * np.float32(255)).clip(0, 255).astype(np.uint8)

    def inverse_depth(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Find inverse depth (h, w) float32, larger is nearer, of (h, w, 3) uint8 RGB.

        Raises:
            WeightsMissing: the weights are not on this computer; says how to get them.
        """
        weights = find_weights(WEIGHTS, self.demo_weights).name
        key = (weights, hashlib.blake2b(image.tobytes(), digest_size=16).digest(), image.shape)
        with self._lock:
            found = self._raw.get(key)
            if found is None:
                found = self._raw[key] = _infer(image, weights)
            self._raw.move_to_end(key)
            while len(self._raw) > REMEMBERED:
                self._raw.popitem(last=False)
        return found


def _infer(image: NDArray[np.uint8], weights: str) -> NDArray[np.float32]:
    """Run the network on (h, w, 3) uint8 RGB whose sides are multiples of 32."""
    import torch

    from annotators.nets.midas import build, unused

    net = NETWORKS.get(weights, build, ignored=unused, half=False)
    first = next(net.parameters())
    with torch.inference_mode():
        planes = torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1.0  # (1, 3, h, w)
        depth = net(planes.to(first.device, first.dtype))[0]
    return np.asarray(depth.float().cpu().numpy(), np.float32)


def scaled(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale inverse depth (h, w) to all of [0, 1]; flat depth, which the original divides by zero, is 0."""
    low, high = float(depth.min()), float(depth.max())
    if not high > low:
        return np.zeros_like(depth, np.float32)
    return np.asarray((depth - np.float32(low)) / np.float32(high - low), np.float32)
