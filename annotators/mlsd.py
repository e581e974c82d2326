"""Straight lines by M-LSD: the frame of a room or a building."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotator, Slider
from annotators.networks import NETWORKS


class Mlsd(Annotator):
    """White lines, one pixel wide, on black. Source: Gu et al. 2022, as in the ControlNet 1.0 demo."""

    title = "M-LSD straight lines"
    params = (
        Slider(
            "value_threshold",
            "Hough value threshold (MLSD)",
            0.01,
            2.0,
            0.1,
            0.01,
            "How sure a line must be, from 0 to 1; above 1 there are none.",
        ),
        Slider(
            "distance_threshold",
            "Hough distance threshold (MLSD)",
            0.01,
            20.0,
            0.1,
            0.01,
            "How long a line must be, in pixels of the map that the network makes, which is half as large.",
        ),
    )
    resolution = Slider(
        "resolution",
        "Hough Resolution",
        128,
        1024,
        512,
        1,
        "Short side, in pixels, at which lines are found.",
    )
    interpolation = cv2.INTER_NEAREST
    weights = "mlsd"

    def detect(
        self, image: NDArray[np.uint8], *, value_threshold: float, distance_threshold: float
    ) -> NDArray[np.uint8]:
        """Draw the straight lines of (h, w, 3) uint8 RGB as (h, w) uint8, 0 or 255."""
        return draw(lines(image, value_threshold, distance_threshold), image.shape[:2])

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show thicker, black lines on white."""
        return 255 - np.asarray(cv2.dilate(hint, np.ones((3, 3), np.uint8)), dtype=np.uint8)


def lines(image: NDArray[np.uint8], value_threshold: float, distance_threshold: float) -> NDArray[np.float32]:
    """Find at most 200 lines in (h, w, 3) uint8 RGB of any size: (n, 4) x0, y0, x1, y1 in its pixels.

    Raises:
        WeightsMissing: M-LSD's weights are not on this computer; says how to get them.
    """
    import torch

    from annotators.nets.mlsd import STRIDE, build, find_lines

    net = NETWORKS.get("mlsd", build, half=False)
    height, width = image.shape[:2]
    fitted = [-(-side // STRIDE) * STRIDE for side in (height, width)]
    if fitted != [height, width]:
        image = np.asarray(cv2.resize(image, fitted[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
    with torch.inference_mode():
        planes = torch.ones(1, 4, *fitted)  # the fourth channel stays 1, and is scaled with the colours
        planes[0, :3] = torch.tensor(image).permute(2, 0, 1)
        maps = net((planes / 127.5 - 1.0).to(net.block23.conv3.weight))
        found = find_lines(maps[0], value_threshold, distance_threshold).float().cpu().numpy()
    return np.asarray(found * np.array([width / fitted[1], height / fitted[0]] * 2, np.float32), np.float32)


def draw(found: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Draw lines (n, 4), truncated to whole pixels, one pixel wide: ``size`` = (h, w) uint8, 0 or 255."""
    canvas = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in found.astype(int).tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), 255, 1)
    return canvas
