"""Pose: a narrow OpenPose that learns the key points of the toy world's people."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from annotators.nets.keypoints import FIELDS
from annotators.nets.openpose import BODY_FIELDS, BODY_PARTS, STRIDE, BodyNet, OpenPoseConfig, published_key
from annotators.nets.quick import fold_norms
from annotators.pose import BODY_SCALE, BOX
from annotators.skeleton import LIMBS
from core.training.detectors.task import Image, Task, Truth, seed_with_people
from core.training.hints import photographed
from core.training.toyworld.scene import Scene

CONFIG = OpenPoseConfig(front=(16, 32, 48, 64), features=48, first=64, refine=24, stages=2)
HEIGHT = round(BODY_SCALE * BOX)  # pixels: of what the app's detector gives its network
SIGMA = 0.9  # of a part's spot, in pixels of the maps
WIDTH = 1.0  # half of a limb's, in pixels of the maps

Floats = NDArray[np.float32]


class PoseTask(Task):
    """Learns the spots of the parts and the fields along the limbs."""

    file = "detector_pose.safetensors"
    sides = ((0.0, 256),)
    needs_truth = False

    def build(self) -> nn.Module:
        """Make a narrow OpenPose; while it learns, a normalisation follows every hidden convolution."""
        net = BodyNet(CONFIG)
        for name, chain in list(net.named_children()):
            assert isinstance(chain, nn.Sequential)
            net.add_module(name, _normalised(chain))
        return net

    def config(self) -> str:
        """Return the network's configuration."""
        return CONFIG.to_json()

    def seed(self, index: int) -> int:
        """Return the seed of a scene with people, mostly."""
        return seed_with_people(index)

    def sample(self, scene: Scene, rng: random.Random) -> tuple[Image, Truth]:
        """Return a picture in BGR at the height that the app uses, its fields and its parts' maps."""
        factor = HEIGHT / len(scene.image)
        seen = cv2.resize(photographed(scene.image, rng), (0, 0), fx=factor, fy=factor,
                          interpolation=cv2.INTER_CUBIC)  # fmt: skip
        people = [points * (factor / STRIDE, factor / STRIDE, 1) for points in scene.people]
        return np.asarray(seen[:, :, ::-1], np.uint8), (limb_fields(people), part_maps(people))

    def loss(self, net: nn.Module, seen: Tensor, truth: tuple[Tensor, ...]) -> Tensor:
        """Return the squared errors of both kinds of maps, summed over channels and stages."""
        assert isinstance(net, BodyNet)
        pafs, heat = truth
        features = net.model0(seen / 256 - 0.5)
        given, total = features, seen.new_zeros(())
        for stage in range(1, CONFIG.stages + 1):
            made = [net.get_submodule(f"model{stage}_{branch}")(given) for branch in (1, 2)]
            for found, wanted in zip(made, (pafs, heat), strict=True):
                total = total + functional.mse_loss(found.float(), wanted) * wanted.shape[1]
            given = torch.cat([*made, features], dim=1)
        return total

    def exported(self, net: nn.Module) -> Mapping[str, Tensor]:
        """Return the tensors, the normalisations merged into the convolutions before them."""
        plain = copy.deepcopy(net).eval()
        fold_norms(plain)
        return {published_key(key): value for key, value in plain.state_dict().items()}

    def begin(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Give ``net`` an exported network's convolutions, into which their normalisations were merged.

        Each normalisation takes from the first batch what lets it pass on what comes in.

        Raises:
            ValueError: the file's tensors are not those of such a network.
        """
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        theirs = {f"{name}.{key}" for name, m in net.named_modules() if m in norms for key in m.state_dict()}
        own = net.state_dict()
        names = {published_key(key): key for key in own if key not in theirs}
        if {key: own[name].shape for key, name in names.items()} != {k: v.shape for k, v in tensors.items()}:
            raise ValueError(f"training cannot go on from this {self.file}: begin without --start.")
        net.load_state_dict(own | {names[key]: value.float() for key, value in tensors.items()})
        for norm in norms:
            _pass_on(norm)


def _pass_on(norm: nn.BatchNorm2d) -> None:
    """Let ``norm`` begin with the mean and the spread of the first batch that it sees."""

    def measure(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        hook.remove()
        with torch.no_grad():
            values = given[0].float()
            norm.weight.copy_(values.std((0, 2, 3), correction=0))
            norm.bias.copy_(values.mean((0, 2, 3)))

    hook = norm.register_forward_pre_hook(measure)


def _normalised(chain: nn.Sequential) -> nn.Sequential:
    """Put a normalisation between every convolution and its ReLU, but for the maps' own last one."""
    made: OrderedDict[str, nn.Module] = OrderedDict()
    layers = list(chain.named_children())
    for (name, layer), (_, following) in zip(layers, [*layers[1:], ("", nn.Identity())], strict=True):
        made[name] = layer
        maps = isinstance(layer, nn.Conv2d) and layer.out_channels in (BODY_FIELDS, BODY_PARTS)
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.ReLU) and not maps:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            made[f"norm_{name}"] = nn.BatchNorm2d(layer.out_channels)
    return nn.Sequential(made)


def _cells() -> tuple[Floats, Floats]:
    """Return x and y of the middles of the maps' pixels, in pixels of the maps."""
    y, x = np.mgrid[: HEIGHT // STRIDE, : HEIGHT // STRIDE].astype(np.float32) + 0.5
    return x, y


def part_maps(people: Sequence[NDArray[np.floating]]) -> Floats:
    """Draw a spot for every key point that is seen: (19, h, w), the last the background.

    ``people`` are key points (18, 3), x and y in pixels of the maps and whether they are seen.
    """
    x, y = _cells()
    maps = np.zeros((BODY_PARTS, *x.shape), np.float32)
    for points in people:
        for part, (px, py, there) in zip(maps, points, strict=False):
            if there:
                spot = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * SIGMA**2))
                np.maximum(part, spot, out=part)
    maps[-1] = 1 - maps[:-1].max(axis=0)
    return maps


def limb_fields(people: Sequence[NDArray[np.floating]]) -> Floats:
    """Draw the direction of every limb along it, (38, h, w): x and y of each; see ``part_maps``."""
    x, y = _cells()
    fields, count = np.zeros((BODY_FIELDS, *x.shape), np.float32), np.zeros((BODY_FIELDS, *x.shape), np.uint8)
    for points in people:
        for (a, b), field in zip(LIMBS, FIELDS, strict=True):
            if not (points[a, 2] and points[b, 2]):
                continue
            way = points[b, :2] - points[a, :2]
            length = max(float(np.hypot(*way)), 1e-3)
            ux, uy = way / length
            along = (x - points[a, 0]) * ux + (y - points[a, 1]) * uy
            beside = np.abs((x - points[a, 0]) * uy - (y - points[a, 1]) * ux)
            on = (beside <= WIDTH) & (along >= -WIDTH / 2) & (along <= length + WIDTH / 2)
            fields[field][on] += ux
            fields[field + 1][on] += uy
            count[field : field + 2, on] += 1
    return np.asarray(fields / np.maximum(count, 1), np.float32)
