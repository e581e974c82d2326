"""Human pose: skeletons of the people in a picture, with their hands if wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators import skeleton
from annotators.base import Annotator, Checkbox, Detected, Slider
from annotators.maps import SKELETON
from annotators.networks import NETWORKS, find_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

BOX = 368  # pixels: the height that the networks know best
BODY_SCALE = 0.5
HAND_SCALES = (0.5, 1.0, 1.5, 2.0)
PADDING = 128
MAX_HANDS = 32  # the largest: noise can look like a hundred people, and a hand costs seconds
MAX_NET_SIDE = 1472  # pixels, 8 times the usual height: a strip of a picture must not fill the memory
BODY_WEIGHTS, HAND_WEIGHTS = "openpose_body", "openpose_hand"
DEMO_WEIGHTS = "demo_openpose_body"
FAINT = 1e-6  # a part's score may be 0 beside its blurred peak, but a score of 0 means that it was not found


class Pose(Annotator):
    """Skeletons in colours on black. Source: OpenPose, as in the ControlNet 1.0 demo.

    The networks compute in float32: bfloat16 moves a third of the key points, most by one pixel.
    """

    title = "OpenPose skeletons"
    params = (
        Checkbox("detect_hands", "Detect hands", False, "Slow without a GPU: about ten seconds a hand."),
    )
    resolution = Slider("resolution", "OpenPose Resolution", 128, 1024, 512, 1)
    auto_range = (256, 768)
    interpolation = cv2.INTER_NEAREST
    weights = BODY_WEIGHTS
    demo_weights = DEMO_WEIGHTS
    kind = SKELETON

    def detect(self, image: NDArray[np.uint8], *, detect_hands: bool) -> Detected:
        """Find the people in (h, w, 3) uint8 RGB: their skeletons (h, w, 3), and OpenPose's JSON.

        Raises:
            WeightsMissing: the weights, or with ``detect_hands`` the hands', are not on this computer.
        """
        if detect_hands:
            find_weights(HAND_WEIGHTS)  # says at once if they are missing
        size = image.shape[0], image.shape[1]
        image = np.ascontiguousarray(image[:, :, ::-1])  # the networks know BGR
        people = find_people(image, self.demo_weights)
        if detect_hands:
            people = find_hands(people, image)
        return Detected(skeleton.draw(people, size), skeleton.to_json(people, size))


def find_people(image: NDArray[np.uint8], demo_weights: str | None = None) -> list[skeleton.Person]:
    """Find the bodies of the people in (H, W, 3) uint8 BGR, without hands.

    Raises:
        WeightsMissing: neither the published weights nor the stand-in ``demo_weights`` are on this computer.
    """
    from annotators.nets.keypoints import find_bodies
    from annotators.nets.openpose import build_body, published_key

    weights = find_weights(BODY_WEIGHTS, demo_weights)
    net = NETWORKS.get(weights.name, build_body, key_of=published_key, half=False)
    (pafs, heat), inner = run(net, image, BODY_SCALE)
    bodies = find_bodies(pafs, heat, inner, (image.shape[0], image.shape[1]))
    bodies.peaks[:, 2] = bodies.peaks[:, 2].clip(FAINT)
    peaks = np.concatenate([bodies.peaks, np.zeros((1, 3))])  # index -1, a part not found, takes the last
    return [skeleton.Person(peaks[parts]) for parts in bodies.people]


def find_hands(people: list[skeleton.Person], image: NDArray[np.uint8]) -> list[skeleton.Person]:
    """Return the people with those hands whose arms are seen in (H, W, 3) uint8 BGR, at most ``MAX_HANDS``.

    Raises:
        WeightsMissing: there are hands to look for, and the weights are not on this computer.
    """
    from annotators.nets.keypoints import hand_box

    size = image.shape[0], image.shape[1]
    boxes = {
        (i, side): box
        for i, person in enumerate(people)
        for side in ("left", "right")
        if (box := hand_box(person.body, side, size)) is not None
    }
    largest = sorted(boxes, key=lambda key: -boxes[key][2])[:MAX_HANDS]
    hands = {key: _find_hand(image, boxes[key]) for key in boxes if key in largest}
    return [
        skeleton.Person(person.body, hands.get((i, "left")), hands.get((i, "right")))
        for i, person in enumerate(people)
    ]


def _find_hand(image: NDArray[np.uint8], box: tuple[int, int, int]) -> NDArray[np.float64]:
    """Find the joints (21, 3) of the hand in the square ``box`` of the picture; see ``hand_box``."""
    from annotators.nets.keypoints import find_hand
    from annotators.nets.openpose import build_hand, published_key

    net = NETWORKS.get(HAND_WEIGHTS, build_hand, key_of=published_key, half=False)
    left, top, width = box
    crop = np.ascontiguousarray(image[top : top + width, left : left + width])
    outputs = [(maps, inner) for (maps,), inner in (run(net, crop, scale) for scale in HAND_SCALES)]
    hand = find_hand(outputs, (width, width))
    hand[hand[:, 2] > 0] += (left, top, 0)
    return hand


def run(
    net: nn.Module, image: NDArray[np.uint8], scale: float
) -> tuple[list[NDArray[np.float32]], tuple[int, int]]:
    """Compute a network's maps, each (c, h/8, w/8), and the (height, width) of its input without padding.

    ``image`` is (H, W, 3) uint8 BGR; it is scaled to ``scale`` times 368 pixels of height.
    """
    import torch

    inputs, inner = prepare(image, scale)
    weight = next(net.parameters())
    with torch.inference_mode():
        made = net(inputs.to(weight.device, weight.dtype))
    outputs = made if isinstance(made, tuple) else (made,)
    return [np.ascontiguousarray(maps[0].float().cpu().numpy()) for maps in outputs], inner


def prepare(image: NDArray[np.uint8], scale: float) -> tuple[torch.Tensor, tuple[int, int]]:
    """Scale and pad (H, W, 3) uint8 BGR to a network's input, (1, 3, h, w) in [-0.5, 0.5); see ``run``."""
    import torch

    from annotators.nets.openpose import STRIDE

    factor = min(scale * BOX / image.shape[0], MAX_NET_SIDE / max(image.shape[:2]))
    if min(round(side * factor) for side in image.shape[:2]) >= 1:
        scaled = cv2.resize(image, (0, 0), fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    else:
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    inner = scaled.shape[0], scaled.shape[1]
    bottom, right = (-side % STRIDE for side in inner)
    padded = cv2.copyMakeBorder(scaled, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(PADDING,) * 3)
    planes = torch.from_numpy(padded).permute(2, 0, 1)[None].float()  # (1, 3, h, w)
    return planes / 256 - 0.5, inner
