"""Soft edges by HED: outlines bright, detail within them fainter."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Annotator, ResultCache, Slider
from annotators.networks import NETWORKS


class Hed(Annotator):
    """Light edges on dark. Source: Xie and Tu 2015, as in the ControlNet 1.0 demo."""

    title = "HED soft edges"
    resolution = Slider(
        "resolution", "HED Resolution", 128, 1024, 512, 1, "Short side, in pixels, at which edges are sought."
    )
    weights = "hed"

    def __init__(self) -> None:
        """Load nothing."""
        super().__init__()
        self._edges = ResultCache()  # not yet resized: fake scribbles take them too

    def detect(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Find the soft edges of (h, w, 3) uint8 RGB as (h, w) uint8."""
        key = (hashlib.blake2b(image.tobytes(), digest_size=16).digest(), image.shape)
        found = self._edges.get(key)
        if found is None:
            edges = soft_edges(image)
            found = Annotation(edges, edges)
            self._edges.put(key, found)
        return found.hint


def soft_edges(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Find the soft edges of (h, w, 3) uint8 RGB of any size as (h, w) uint8.

    In float32: bfloat16 would be several grey levels off.

    Raises:
        WeightsMissing: HED's weights are not on this computer; says how to get them.
    """
    import torch

    from annotators.nets.hed import SMALLEST, build

    net = NETWORKS.get("hed", build, half=False)
    height, width = image.shape[:2]
    below, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else image
    with torch.inference_mode():
        planes = torch.tensor(padded).permute(2, 0, 1)[None].to(net.norm)
        sides = [side[0, 0].float().cpu().numpy() for side in net(planes)]
    size = padded.shape[1], padded.shape[0]  # OpenCV puts the width first
    total = np.zeros(padded.shape[:2], np.float32)
    for side in sides:
        total += cv2.resize(side, size, interpolation=cv2.INTER_LINEAR)
    logits = (total[:height, :width] / np.float32(len(sides))).astype(np.float64)
    return (1.0 / (1.0 + np.exp(-logits)) * 255.0).clip(0, 255).astype(np.uint8)
