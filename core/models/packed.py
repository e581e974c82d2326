"""Layers whose weight is kept in another form than the published one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Packed(nn.Module):
    """A layer whose weight is packed; its state dict holds the plain weight under the published key.

    One made of a layer on the meta device waits for its weight, whose shape is ``shape``.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Take the weights of ``layer``."""
        super().__init__()
        self.bias, self.shape = layer.bias, layer.weight.shape
        if not layer.weight.is_meta:
            self.pack(layer.weight.detach())

    def pack(self, weight: Tensor) -> None:
        """Take a plain weight of the layer's shape."""
        raise NotImplementedError

    def plain(self) -> Tensor:
        """Return the plain weight."""
        return self.packed.to_dense()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.plain()
        super()._save_to_state_dict(destination, prefix, keep_vars)
