"""Segmentation: what is where in a picture, as areas in the colours of ADE20K's 150 classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.ade20k import CLASSES as NAMES
from annotators.ade20k import SURE, nearest, share_in_palette, to_classes, to_colours
from annotators.base import Annotator, Checkbox, Detected, Slider
from annotators.maps import CLASSES, swap_red_and_blue
from annotators.networks import NETWORKS, find_weights

if TYPE_CHECKING:
    import torch

WEIGHTS, DEMO_WEIGHTS = "uniformer", "demo_uniformer"
SHORT_SIDE = 512  # pixels: of what the published network sees
LONGEST = 4  # times the short side: how long the other one may be
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's red, green and blue
CLASSES_AT_ONCE = 10  # whose logits are enlarged together: all would take 600 MB for a long picture
CLEARLY_MORE = 0.25  # of a map's pixels: then red and blue are the other way round


class Segmentation(Annotator):
    """Areas in the classes' colours. Source: UniFormer-S with UperNet, as in the ControlNet 1.0 demo."""

    title = "UniFormer segmentation (ADE20K)"
    params = (
        Checkbox(
            "original_channel_order",
            "Channel order of the original",
            True,
            "The original gives its network blue for red, and the ControlNet learned from such maps. Without "
            "it the network sees colours as it learned them.",
        ),
    )
    resolution = Slider("resolution", "Segmentation Resolution", 128, 1024, 512, 1)
    auto_range = (256, 1024)
    interpolation = cv2.INTER_NEAREST
    weights = WEIGHTS
    demo_weights = DEMO_WEIGHTS
    kind = CLASSES

    def detect(self, image: NDArray[np.uint8], *, original_channel_order: bool) -> Detected:
        """Find the classes in (h, w, 3) uint8 RGB: their colours (h, w, 3), and each one's share.

        Raises:
            WeightsMissing: the weights are not on this computer; says how to get them.
        """
        seen = image[:, :, ::-1] if original_channel_order else image
        classes = find_classes(seen, self.demo_weights)
        return Detected(to_colours(classes), {"classes": shares(classes)})

    def prepare(self, given: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
        """Give every pixel of a map (h, w, 3) a class's colour, and say how many had none."""
        known = share_in_palette(given)
        notes = []
        if known < 1:
            notes.append(
                f"{_percent(1 - known)} of the pixels had colours that are not in the palette; they took the "
                "nearest class's."
            )
        if _seems_swapped(given):
            notes.append(
                "In your map red and blue seem to be the other way round. If so, choose the swapped kind "
                "under Preprocessor."
            )
        return (to_colours(to_classes(given)) if known < 1 else given), " ".join(notes)


def find_classes(image: NDArray[np.uint8], demo_weights: str | None = None) -> NDArray[np.uint8]:
    """Find the classes in (h, w, 3) uint8 of any size: (h, w) uint8, 0 to 149.

    The channels are taken for red, green and blue.

    Raises:
        WeightsMissing: neither the published weights nor the stand-in ``demo_weights`` are on this computer.
    """
    import torch

    from annotators.nets.uniformer import build, without_use

    weights = find_weights(WEIGHTS, demo_weights)
    net = NETWORKS.get(weights.name, build, ignored=without_use, half=False)
    inputs = fit(image, net.config.side)
    weight = net.decode_head.conv_seg.weight
    with torch.inference_mode():
        logits = net(inputs.to(weight.device, weight.dtype))
        found = labels(logits, (inputs.shape[2], inputs.shape[3]), (image.shape[0], image.shape[1]))
    return np.asarray(found[0].to(torch.uint8).cpu().numpy())


def fit(image: NDArray[np.uint8], short_side: int = SHORT_SIDE) -> torch.Tensor:
    """Scale and normalise (h, w, 3) uint8 to the network's input, (1, 3, H, W) float32.

    The short side becomes ``short_side`` pixels, or as many as keep the long side at four times that, and at
    least 32.
    """
    import torch

    from annotators.nets.uniformer import SMALLEST

    sides = image.shape[:2]
    scale = min(short_side / min(sides), LONGEST * short_side / max(sides))
    height, width = (max(SMALLEST, int(side * scale + 0.5)) for side in sides)
    scaled = np.ascontiguousarray(image)
    if (height, width) != sides:
        scaled = np.asarray(cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    planes = torch.tensor(scaled).permute(2, 0, 1)[None].double()  # (1, 3, H, W)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return ((planes - mean) / std).float()


def labels(logits: torch.Tensor, *sizes: tuple[int, int]) -> torch.Tensor:
    """Return the likeliest class of each pixel, (B, H, W) int64, from logits (B, classes, h, w).

    The logits are enlarged, bilinearly, to each of ``sizes``, (height, width), after the other.

    Raises:
        ValueError: they are not numbers.
    """
    from torch.nn import functional

    if not bool((logits == logits).all()):
        raise ValueError("The network's logits are not numbers: get the weights anew.")
    # An enlarged value lies between the smallest and the largest of 3 x 3 logits. Most classes are nowhere
    # the likeliest, because another one's smallest is more than their largest; they need no enlarging.
    highest = functional.max_pool2d(logits, 3, 1, 1)
    lowest = -functional.max_pool2d(-logits, 3, 1, 1)
    possible = (highest >= lowest.amax(1, keepdim=True)).flatten(2).any(2).any(0).nonzero()[:, 0]
    if len(possible) == 0:
        raise ValueError("The logits are not numbers: get the weights anew.")
    best = found = None
    for some in possible.split(CLASSES_AT_ONCE):
        enlarged = logits[:, some].float()
        for size in sizes:
            if size != enlarged.shape[2:]:
                enlarged = functional.interpolate(enlarged, size, mode="bilinear", align_corners=False)
        value, which = enlarged.max(dim=1)
        which = some[which]
        found = which if found is None or best is None else which.where(value > best, found)
        best = value if best is None else best.maximum(value)
    assert found is not None
    return found


def shares(classes: NDArray[np.uint8]) -> dict[str, float]:
    """Return the names of the classes (h, w) that occur and their shares of the pixels, largest first."""
    counts = np.bincount(classes.ravel(), minlength=len(NAMES)) / classes.size
    order = np.argsort(-counts, kind="stable")
    return {NAMES[i]: round(float(counts[i]), 4) for i in order if counts[i]}


def _seems_swapped(given: NDArray[np.uint8]) -> bool:
    """Say whether clearly more of a map's pixels would have a class's colour with red and blue swapped."""
    step = max(1, max(given.shape) // 512)  # a part of the pixels tells as much
    few = given[::step, ::step]
    as_given, swapped = (float((nearest(m)[1] <= SURE).mean()) for m in (few, swap_red_and_blue(few)))
    return swapped > as_given + CLEARLY_MORE


def _percent(share: float) -> str:
    if share < 0.01:
        return "Less than 1 %"
    return "More than 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
