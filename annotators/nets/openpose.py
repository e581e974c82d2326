"""The networks of OpenPose: one for bodies, one for a hand. Source: Cao et al. 2017, Simon et al. 2017."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from core.errors import CheckpointMismatch

STRIDE = 8  # pixels of the input to one of the output, from three poolings
BODY_PARTS, BODY_FIELDS, HAND_PARTS = 19, 38, 22  # channels; of the parts the last is the background
MAX_CHANNELS, MAX_STAGES = 4096, 16


@dataclass(frozen=True, slots=True)
class OpenPoseConfig:
    """How wide a network is, in channels; the defaults are the published files'.

    ``front`` are the four blocks of VGG-19, ``features`` is what they hand on, ``first`` and ``refine`` are
    the hidden channels of the first stage and of the following ones; ``stages`` counts both.
    """

    front: tuple[int, int, int, int] = (64, 128, 256, 512)
    features: int = 128
    first: int = 512
    refine: int = 128
    stages: int = 6

    def to_json(self) -> str:
        """Write what ``from_metadata`` reads from the key "config"."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> OpenPoseConfig:
        """Read the key "config" of a file's metadata; published files have none.

        Raises:
            CheckpointMismatch: it is no such configuration.
        """
        try:
            given = json.loads(metadata.get("config", "{}"))
            if not isinstance(given, dict) or set(given) - {field.name for field in fields(cls)}:
                raise ValueError("unknown names")
            front = tuple(given.pop("front", cls().front))
            if len(front) != 4:
                raise ValueError("front needs four numbers")
            config = cls(front=front, **given)
            config._check()
        except (ValueError, TypeError) as error:
            raise CheckpointMismatch(
                f'The file\'s metadata "config" describes no OpenPose network ({error}): get the file anew.'
            ) from error
        return config

    def _check(self) -> None:
        for number in (*self.front, self.features, self.first, self.refine):
            if type(number) is not int or not 1 <= number <= MAX_CHANNELS:
                raise ValueError(f"{number!r} channels: 1 to {MAX_CHANNELS} are allowed")
        if type(self.stages) is not int or not 1 <= self.stages <= MAX_STAGES:
            raise ValueError(f"{self.stages!r} stages: 1 to {MAX_STAGES} are allowed")


Layer = tuple[str, int, int]  # name, output channels, kernel size; a kernel of 0 is a pooling by 2


def _chain(channels: int, layers: Iterable[Layer], *, linear_end: bool = False) -> nn.Sequential:
    """Make convolutions, each with a ReLU but for the last one where ``linear_end``."""
    made: OrderedDict[str, nn.Module] = OrderedDict()
    for name, out, kernel in layers:
        if kernel == 0:
            made[name] = nn.MaxPool2d(2)
            continue
        made[name] = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        made[f"relu_{name}"] = nn.ReLU(inplace=True)
        channels = out
    if linear_end:
        made.popitem()
    return nn.Sequential(made)


def _front(config: OpenPoseConfig, fourth: Iterable[Layer]) -> nn.Sequential:
    """Make the first layers of VGG-19, (B, 3, h, w) to h/8, and ``fourth`` behind them."""
    layers: list[Layer] = []
    for block, count in enumerate((2, 2, 4), start=1):
        layers += [(f"conv{block}_{i}", config.front[block - 1], 3) for i in range(1, count + 1)]
        layers.append((f"pool{block}_stage1", 0, 0))
    return _chain(3, [*layers, *fourth])


def _refining(config: OpenPoseConfig, stage: int, suffix: str, out: int) -> list[Layer]:
    """List the seven layers of a stage after the first."""
    layers = [(f"Mconv{i}_stage{stage}{suffix}", config.refine, 7) for i in range(1, 6)]
    layers.append((f"Mconv6_stage{stage}{suffix}", config.refine, 1))
    return [*layers, (f"Mconv7_stage{stage}{suffix}", out, 1)]


class BodyNet(nn.Module):
    """Finds body parts, and fields that lead from one part to the next.

    Names are those of the published file behind the first dot: "model0.conv1_1.weight" is "conv1_1.weight".
    """

    def __init__(self, config: OpenPoseConfig | None = None) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.config = config = config or OpenPoseConfig()
        wide, features = config.front[3], config.features
        self.model0 = _front(
            config,
            [
                ("conv4_1", wide, 3),
                ("conv4_2", wide, 3),
                ("conv4_3_CPM", 2 * features, 3),
                ("conv4_4_CPM", features, 3),
            ],
        )
        for branch, out in ((1, BODY_FIELDS), (2, BODY_PARTS)):
            first = [(f"conv5_{i}_CPM_L{branch}", features, 3) for i in range(1, 4)]
            first += [(f"conv5_4_CPM_L{branch}", config.first, 1), (f"conv5_5_CPM_L{branch}", out, 1)]
            self.add_module(f"model1_{branch}", _chain(features, first, linear_end=True))
            for stage in range(2, config.stages + 1):
                channels = BODY_FIELDS + BODY_PARTS + features
                layers = _refining(config, stage, f"_L{branch}", out)
                # The published weights were trained with a ReLU on the very last heat maps.
                linear = not (branch == 2 and stage == config.stages)
                self.add_module(f"model{stage}_{branch}", _chain(channels, layers, linear_end=linear))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fields (B, 38, h/8, w/8) and the heat maps (B, 19, h/8, w/8).

        ``x`` is (B, 3, h, w), BGR in [-0.5, 0.5], its sides multiples of 8. The fields hold x and y of each
        limb in turn, the heat maps the 18 parts and the background.
        """
        features = self.model0(x)
        seen = features
        for stage in range(1, self.config.stages + 1):
            pafs = self.get_submodule(f"model{stage}_1")(seen)
            heat = self.get_submodule(f"model{stage}_2")(seen)
            seen = torch.cat([pafs, heat, features], dim=1)  # (B, 38 + 19 + features, h/8, w/8)
        return pafs, heat


class HandNet(nn.Module):
    """Finds the joints of the one hand in the picture. Names are as in ``BodyNet``."""

    def __init__(self, config: OpenPoseConfig | None = None) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.config = config = config or OpenPoseConfig()
        wide, features = config.front[3], config.features
        fourth = [(f"conv4_{i}", wide, 3) for i in range(1, 5)]
        fourth += [("conv5_1", wide, 3), ("conv5_2", wide, 3), ("conv5_3_CPM", features, 3)]
        self.model1_0 = _front(config, fourth)
        first = [("conv6_1_CPM", config.first, 1), ("conv6_2_CPM", HAND_PARTS, 1)]
        self.model1_1 = _chain(features, first, linear_end=True)
        for stage in range(2, config.stages + 1):
            channels = HAND_PARTS + features
            layers = _refining(config, stage, "", HAND_PARTS)
            self.add_module(f"model{stage}", _chain(channels, layers, linear_end=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return the heat maps (B, 22, h/8, w/8) of the 21 joints and the background.

        ``x`` is (B, 3, h, w), BGR in [-0.5, 0.5], its sides multiples of 8.
        """
        features = self.model1_0(x)
        heat = self.model1_1(features)
        for stage in range(2, self.config.stages + 1):
            heat = self.get_submodule(f"model{stage}")(torch.cat([heat, features], dim=1))
        return heat


def build_body(metadata: Mapping[str, str]) -> BodyNet:
    """Make the body's network for a file of this metadata."""
    return BodyNet(OpenPoseConfig.from_metadata(metadata))


def build_hand(metadata: Mapping[str, str]) -> HandNet:
    """Make the hand's network for a file of this metadata."""
    return HandNet(OpenPoseConfig.from_metadata(metadata))


def published_key(key: str) -> str:
    """Return the published file's name of one of a network's tensors."""
    return key.partition(".")[2]
