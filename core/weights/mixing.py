"""LoRAs put on a base model's networks and taken off again, in place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.additions import Lora, loras_text
from core.config import ModelConfig
from core.models.packed import Packed
from core.weights.checkpoint import BaseNetworks
from core.weights.formats import open_tensors
from core.weights.lora import changes_by_tensor
from core.weights.published import open_base

log = logging.getLogger(__name__)


class LoraMixer:
    """Keeps no copy of the weights that LoRAs change: it reads them anew from the base model's file.

    So any set of LoRAs gives the same bits whatever was on before, and the empty one those of the file.
    """

    def __init__(self, config: ModelConfig, base: Path, networks: BaseNetworks) -> None:
        """Take networks that were loaded from the file ``base``."""
        self._config, self._base, self._networks = config, base, networks
        self._changed: set[tuple[str, str]] = set()
        self.loras: tuple[Lora, ...] = ()

    def set(self, loras: Sequence[Lora]) -> None:
        """Have exactly these LoRAs on the networks.

        Raises:
            CheckpointMismatch: a file is no LoRA for this model; nothing was changed.
        """
        changes = changes_by_tensor(self._config, [lora for lora in loras if lora.weight])
        touched = self._changed | changes.keys()
        if touched:
            base = open_base(self._config, open_tensors(self._base), whole=False)
            parts = {"unet": base.unet, "text": base.text}
            self._changed = touched  # before the first is: the next call mends what an error leaves
            for network, name in sorted(touched):
                value = parts[network].read(name)
                if (network, name) in changes:
                    value = value.to(torch.float32, copy=True)
                    for change in changes[network, name]:
                        change(value)
                put(getattr(self._networks, network), name, value)
        self._changed = set(changes)
        self.loras = tuple(loras)
        log.info("LoRAs: %s.", loras_text(loras) or "none")


def put(network: nn.Module, name: str, value: Tensor) -> None:
    """Give the tensor ``name`` of a network another value, in its own number format and place."""
    owner, _, attribute = name.rpartition(".")
    layer = network.get_submodule(owner)
    if isinstance(layer, Packed) and attribute == "weight":
        with torch.inference_mode(layer.packed.is_inference()):
            layer.pack(value.to(layer.packed.dtype))
        return
    weight: Tensor = getattr(layer, attribute)
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        weight.copy_(value)
