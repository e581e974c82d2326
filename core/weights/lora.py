"""LoRA files: which weights they change, and by how much.

A layer W becomes W + weight * alpha / rank * up @ down. Understood are the names of kohya's trainer, those of
diffusers and PEFT, and convolutions (LoCon), with or without a middle part.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.additions import Lora
from core.config import ModelConfig
from core.errors import CheckpointMismatch
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.weights.checkpoint import listed
from core.weights.convert import hf_text_keys
from core.weights.diffusers_names import unet_key
from core.weights.formats import TensorFile, TensorInfo, open_tensors
from core.weights.recognise import recognise

PARTS = re.compile(
    r"(?P<layer>.+?)(\.lora_(?P<kohya>down|up|mid)\.weight|\.lora_(?P<peft>[AB])\.weight|\.(?P<alpha>alpha)"
    r"|(?P<tail>\.lora|_lora|\.lora_linear_layer)\.(?P<old>down|up)\.weight)"
)
PEFT_PARTS = {"A": "down", "B": "up"}
ADAPTER = "lora_adapter_metadata"  # where diffusers writes what PEFT needs to know
OTHER_KINDS = {
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "dora_scale": "a DoRA",
    "oft_": "an OFT",
    "glora": "a GLoRA",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A layer's weight: the network and the tensor, and which of its rows; ``shape`` is theirs."""

    network: str  # "unet" or "text"
    name: str
    shape: tuple[int, ...]
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a LoRA adds at one place. ``keys`` are those of its parts: down, up, and perhaps mid and alpha."""

    place: Place
    file: TensorFile
    keys: Mapping[str, str]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """The width between the two maps."""
        return self.file.tensors[self.keys["down"]].shape[0]

    def fits(self) -> bool:
        """Tell whether the parts make a change of the place's shape."""
        shapes = {part: self.file.tensors[key].shape for part, key in self.keys.items() if part != "alpha"}
        out, *rest = self.place.shape
        if not all(len(shape) >= 2 for shape in shapes.values()):
            return False
        middle = shapes.get("mid")
        if middle is None:
            ranks = shapes["up"][1] == self.rank and math.prod(shapes["up"][2:]) == 1
            return ranks and shapes["up"][0] == out and math.prod(shapes["down"][1:]) == math.prod(rest)
        whole = (shapes["up"][0], math.prod(shapes["down"][1:]), *middle[2:])
        return whole == self.place.shape and middle[:2] == (shapes["up"][1], self.rank)

    def delta(self) -> Tensor:
        """Return what is added at weight 1: float32, of the place's shape."""
        read = {part: self.file.read(key).float() for part, key in self.keys.items()}
        alpha = float(read["alpha"]) if "alpha" in read else self.alpha
        scale = 1.0 if alpha is None else alpha / self.rank
        up, down = read["up"].flatten(1), read["down"].flatten(1)
        if "mid" in read:
            total = torch.einsum("o p, p r h w, r i -> o i h w", up, read["mid"], down)
        else:
            total = up @ down
        return scale * total.reshape(self.place.shape)


def open_lora(config: ModelConfig, path: Path) -> list[Change]:
    """Return what a file changes in a model, read from its header alone.

    Raises:
        CheckpointMismatch: it is no LoRA for this model; says what it seems to be and what was expected.
    """
    file = open_tensors(path)
    layers: dict[str, dict[str, str]] = defaultdict(dict)
    unknown = []
    for key in file.tensors:
        found = _split(key)
        if found is None:
            unknown.append(key)
        else:
            layers[found[0]][found[1]] = key
    places = dict(_places(config))
    changes, misfits = [], []
    for layer, keys in layers.items():
        place = places.get(layer)
        if place is None or not {"down", "up"} <= keys.keys():
            unknown += keys.values()
            continue
        change = Change(place, file, keys, _alpha(file, place.network))
        changes.append(change)
        if not change.fits():
            misfits.append(_misfit(change, file.tensors))
    if unknown or misfits or not changes:
        raise CheckpointMismatch("\n".join(_explained(config, file, places, unknown, misfits)))
    return changes


def _split(key: str) -> tuple[str, str] | None:
    """Split a key into the layer's name and the part's; None where it is of no known form."""
    found = PARTS.fullmatch(key)
    if found is None:
        return None
    layer = found["layer"]
    if found["tail"] == "_lora":  # diffusers before 0.25: attn1.processor.to_out_lora.down.weight
        layer = re.sub(r"\.to_out$", ".to_out.0", layer.replace(".processor.", "."))
    part = found["kohya"] or PEFT_PARTS.get(found["peft"] or "") or found["old"] or "alpha"
    return layer, part


def _places(config: ModelConfig) -> Iterator[tuple[str, Place]]:
    """Go over all layers by the names that trainers give them."""
    with torch.device("meta"):
        unet, text = UNet(config.unet).state_dict(), TextEncoder(config.text).state_dict()
    for name, tensor in unet.items():
        if name.endswith(".weight") and tensor.ndim > 1:
            layer = unet_key(name, config.unet).removesuffix(".weight")
            place = Place("unet", name, tuple(tensor.shape))
            yield f"lora_unet_{layer.replace('.', '_')}", place
            yield f"unet.{layer}", place
    for name, tensor in text.items():
        if not name.startswith("transformer.resblocks.") or tensor.ndim < 2:
            continue
        theirs = hf_text_keys(name)
        rows = tensor.shape[0] // len(theirs)
        for n, key in enumerate(theirs):
            layer = f"text_model.{key.removesuffix('.weight')}"
            place = Place("text", name, (rows, *tensor.shape[1:]), n * rows)
            yield f"lora_te_{layer.replace('.', '_')}", place
            yield f"text_encoder.{layer}", place


def _alpha(file: TensorFile, network: str) -> float | None:
    """Return the alpha that a file's metadata gives for all layers, which diffusers writes; or None."""
    try:
        adapter: dict[str, Any] = json.loads(file.metadata.get(ADAPTER, "{}"))
    except ValueError:
        return None
    prefix = "unet." if network == "unet" else "text_encoder."
    if adapter.get(f"{prefix}alpha_pattern") or adapter.get(f"{prefix}use_rslora"):
        raise CheckpointMismatch(
            f"{file.path}: its layers have alphas of their own (alpha_pattern or use_rslora), which is not "
            "understood. Save it in kohya's layout."
        )
    value = adapter.get(f"{prefix}lora_alpha")
    return None if value is None else float(value)


def _misfit(change: Change, tensors: Mapping[str, TensorInfo]) -> str:
    parts = ", ".join(f"{part} {tensors[key].shape}" for part, key in change.keys.items() if part != "alpha")
    return f"{change.keys['down']} ({parts}) for a layer {change.place.shape}"


def _explained(
    config: ModelConfig, file: TensorFile, layers: Iterable[str], unknown: list[str], misfits: list[str]
) -> list[str]:
    sample = next(layer for layer in layers if layer.endswith("attn1_to_q"))
    return [
        f"{file.path} seems to be {_title(file)}; needed is a LoRA for {config.title} ({config.name}), whose "
        f"text is {config.unet.context_dim} wide.",
        *listed("Unknown", unknown),
        *listed("Other shapes", misfits),
        f"Expected are layers such as {sample} with .lora_down.weight, .lora_up.weight and .alpha. Give a "
        "LoRA that was trained on this kind of model, or another --model.",
    ]


def _title(file: TensorFile) -> str:
    for mark, title in OTHER_KINDS.items():
        if any(mark in key for key in file.tensors):
            return f"{title}, which is not understood"
    return recognise(file).title


def changes_by_tensor(
    config: ModelConfig, loras: list[Lora]
) -> dict[tuple[str, str], list[Callable[[Tensor], None]]]:
    """Return for every changed tensor (network, name) what to do to its float32 value, in place.

    Raises:
        CheckpointMismatch: as ``open_lora``; nothing was read or changed then.
    """
    found: dict[tuple[str, str], list[Callable[[Tensor], None]]] = defaultdict(list)
    for lora in loras:
        for change in open_lora(config, lora.path):
            place = change.place
            found[place.network, place.name].append(partial(_add, change=change, weight=lora.weight))
    return found


def _add(value: Tensor, change: Change, weight: float) -> None:
    place = change.place
    value[place.first_row : place.first_row + place.shape[0]] += weight * change.delta()
