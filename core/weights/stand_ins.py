"""What stands in for the classes that trainers left in published pickles, and the wrappers around tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Inert:
    """Stands in for what trainers left in published pickles beside the weights; runs nothing of theirs."""

    def __init__(self, *args: object) -> None:
        """Take and forget any arguments."""

    def __setstate__(self, state: object) -> None:
        """Forget any state."""


class Parameters(dict[str, object]):
    """Stands in for torch's ParameterDict, in which older textual-inversion files keep their one tensor."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take the tensors out of a module's state."""
        self.update(state.get("_parameters", {}))


WRAPPERS = ("state_dict", "string_to_param")  # the second is a textual-inversion file's
# Named in v1-5-pruned.ckpt and its like, under "callbacks"; weights_only would refuse the whole file for it.
LEFTOVERS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


def unwrap(loaded: object) -> dict[str, object]:
    """Return what a loaded pickle holds by name, out of any wrappers."""
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    return {str(key): value for key, value in loaded.items()} if isinstance(loaded, Mapping) else {}
