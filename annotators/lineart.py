"""Line art: a photo as a drawing in clean lines."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotator, Checkbox, Slider
from annotators.networks import NETWORKS


class Lineart(Annotator):
    """White lines on black. Source: Chan et al. 2022 (arXiv 2203.12691), as in ControlNet 1.1."""

    title = "Line art"
    resolution = Slider(
        "resolution", "Line Art Resolution", 128, 1024, 512, 1, "Short side, in pixels, at which it is drawn."
    )
    params = (Checkbox("coarse", "Coarse", False, "Fewer and bolder lines; has weights of its own."),)
    weights = "lineart"

    def detect(self, image: NDArray[np.uint8], coarse: bool = False) -> NDArray[np.uint8]:
        """Draw (h, w, 3) uint8 RGB as (h, w) uint8: light lines on dark."""
        return 255 - draw_lines(image, "lineart_coarse" if coarse else "lineart")

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show black lines on white."""
        return 255 - hint


def draw_lines(image: NDArray[np.uint8], weights: str) -> NDArray[np.uint8]:
    """Draw (h, w, 3) uint8 RGB of any size as (h, w) uint8: dark lines on light.

    Raises:
        WeightsMissing: the weights are not on this computer; says how to get them.
    """
    import torch

    from annotators.nets.lineart import SIDE_MULTIPLE, SMALLEST, build

    net = NETWORKS.get(weights, build, half=False)
    height, width = image.shape[:2]
    below, right = (
        max(SMALLEST, -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE) - side for side in (height, width)
    )
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else image
    with torch.inference_mode():
        planes = torch.tensor(padded).permute(2, 0, 1)[None].to(next(net.parameters())) / 255.0
        lines = net(planes)[0, 0, :height, :width].float().cpu().numpy()
    return (lines * 255.0).clip(0, 255).astype(np.uint8)
