"""Give a trained network more residual blocks without changing what it computes.

A new block stands behind the trained ones of its level and adds nothing at first: its last layers are zero
(the identity start of Net2Net, arXiv 1511.05641).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.config import UNetConfig

Places = dict[int, int]  # from the block's number in the small network to that in the large one
ENDS = ("out_layers.3", "proj_out")  # what has to be zero for a block to add nothing
BLOCK = re.compile(r"^(input_blocks|zero_convs|output_blocks)\.(\d+)\.(.+)$")


def input_places(small: UNetConfig, large: UNetConfig) -> Places:
    """Return where the encoder's blocks go: the trained ones of each level come first."""
    places, old, new = {0: 0}, 1, 1
    for few, many in zip(small.res_blocks, large.res_blocks, strict=True):
        places.update({old + i: new + i for i in range(few)})
        places[old + few] = new + many  # the downsampler; the coarsest level has none
        old, new = old + few + 1, new + many + 1
    del places[old - 1]
    return places


def output_places(small: UNetConfig, large: UNetConfig) -> Places:
    """Return where the decoder's blocks go: new ones come before the last of their level."""
    places, old, new = {}, 0, 0
    for few, many in zip(reversed(small.res_blocks), reversed(large.res_blocks), strict=True):
        places.update({old + i: new + i for i in range(few)})
        places[old + few] = new + many
        old, new = old + few + 1, new + many + 1
    return places


def zero_places(small: UNetConfig, large: UNetConfig) -> Places:
    """Return where the zero convolutions go: a level's last one stays that, since its block is the same yet.

    The decoder takes what it took before from the last block of a level, whose output is that of the trained
    ones as long as the new ones add nothing.
    """
    places = input_places(small, large)
    old, new = 1, 1
    for few, many in zip(small.res_blocks, large.res_blocks, strict=True):
        places[old + few - 1] = new + many - 1
        old, new = old + few + 1, new + many + 1
    return places


def grown(net: nn.Module, small: UNetConfig, large: UNetConfig, trained: Mapping[str, Tensor]) -> None:
    """Let ``net``, of the config ``large``, compute what ``trained``, of the config ``small``, does.

    ``net`` is a UNet or a ControlNet; layers of new blocks keep their random start, but for the last ones.

    Raises:
        ValueError: the configs differ in something else, or a level gets smaller.
    """
    check(small, large)
    places = {
        "input_blocks": input_places(small, large),
        "output_blocks": output_places(small, large),
        "zero_convs": zero_places(small, large),
    }
    state = net.state_dict()
    taken: set[str] = set()
    for key, value in trained.items():
        found = BLOCK.match(key)
        name = key
        if found:
            part, number, rest = found.groups()
            name = f"{part}.{places[part][int(number)]}.{rest}"
        state[name] = value.to(state[name].dtype).clone()
        taken.add(name)
    for key in sorted(state.keys() - taken):
        part, number, rest = BLOCK.match(key).groups()  # type: ignore[union-attr]
        if part == "zero_convs" or any(f".{end}." in f".{rest}" for end in ENDS):
            state[key] = torch.zeros_like(state[key])
        elif rest.startswith("0.skip_connection."):
            state[key] = _first_half(state[key])
        elif rest.startswith("1."):  # a transformer: it reads as the one before it does
            before = max(place for place in places[part].values() if place < int(number))
            state[key] = state[f"{part}.{before}.{rest}"].clone()
    net.load_state_dict(state)


def _first_half(tensor: Tensor) -> Tensor:
    """Return a convolution's weights or bias that let through what comes from below, and no skip."""
    made = torch.zeros_like(tensor)
    if made.ndim > 1:
        made[:, : len(made), 0, 0] = torch.eye(len(made))
    return made


def check(small: UNetConfig, large: UNetConfig) -> None:
    """Compare the configs.

    Raises:
        ValueError: they differ in something else than residual blocks, or a level gets smaller.
    """
    sizes = [name for name in vars(small) if "res_blocks" not in name]
    other = [name for name in sizes if getattr(large, name) != getattr(small, name)]
    if other:
        raise ValueError(f"a network grows by residual blocks alone, but {other[0]} differs: train it anew.")
    if any(many < few for few, many in zip(small.res_blocks, large.res_blocks, strict=True)):
        raise ValueError(f"{large.res_blocks} residual blocks are not more than {small.res_blocks}.")
