"""Networks compiled by torch.compile: an option, as the first picture of every size then takes minutes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.models.blocks import KeyValue
from core.models.controlnet import ControlNet
from core.models.unet import UNet, count_transformers

log = logging.getLogger(__name__)

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable, which has its way where somebody set it
SIZES = 16  # sizes and batches that are compiled; what is more runs as it would without


def compile_cache() -> Path:
    """Return the folder of compiled code, which later starts read: in the user's cache, not in /tmp.

    Libraries set torch's variable to its own default, a folder in /tmp, merely by being imported.
    """
    default = Path(tempfile.gettempdir()) / "torchinductor_"
    if os.environ.get(CACHE, str(default)).startswith(str(default)):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        os.environ[CACHE] = str(Path(base) / "controlnet-suite" / "compiled")
    return Path(os.environ[CACHE])


def can_compile(device: torch.device) -> bool:
    """Try to compile a sum for ``device``; where that fails say in one line what is missing."""
    folder = compile_cache()
    try:
        torch.compile(_probe, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # of any library on the way: whatever it is, there is no compiler
        needed = (
            "triton, which comes with torch for CUDA on Linux" if device.type == "cuda" else "a C++ compiler"
        )
        log.warning(
            "Nothing is compiled and all runs as without --compile, which needs %s: %s",
            needed,
            _first_line(error),
        )
        return False
    log.info("The first picture of every size is compiled, which takes minutes; kept in %s.", folder)
    return True


def _probe(x: Tensor) -> Tensor:
    return x + 1.0


def compile_network(network: UNet | ControlNet) -> None:
    """Have a UNet or ControlNet compiled when it is first called, anew for every size.

    Sizes are fixed in the code: kernels that fit any size are slower. Encoder and decoder are compiled apart,
    so that ControlNets may compute beside the UNet's encoder.
    """
    inputs = (*network.input_blocks, network.middle_block)
    encode = Compiled(_with_pairs(network.encode))

    # Compiled code is given pairs, not an iterator, which it would have to leave in the right state.
    def take_and_encode(
        x: Tensor,
        emb: Tensor,
        kvs: Iterator[KeyValue],
        hint: Tensor | None = None,
        merged: float = 0.0,
        blocks: int | None = None,
    ) -> list[Tensor]:
        pairs = tuple(islice(kvs, count_transformers(inputs[:blocks])))
        made: list[Tensor] = encode(x, emb, pairs, hint, merged, blocks)
        return made

    vars(network)["encode"] = take_and_encode
    if isinstance(network, UNet):
        decode = Compiled(_with_pairs(network.decode_whole))
        vars(network)["decode_whole"] = lambda encoded, emb, kvs, *more: decode(
            encoded, emb, tuple(kvs), *more
        )


def _with_pairs(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, emb, pairs, *more: method(x, emb, iter(pairs), *more)


class Compiled:
    """A function that is compiled at the first call of every size; where that fails, called as it is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Compile nothing yet."""
        self._plain = function
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False)

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        if self._compiled is not None:
            from torch._dynamo.config import patch
            from torch._dynamo.exc import TorchDynamoException

            try:
                with patch(recompile_limit=SIZES):
                    return self._compiled(*args)
            except TorchDynamoException as error:
                log.warning("Compiling failed, so this runs as without --compile: %s", _first_line(error))
                self._compiled = None
        return self._plain(*args)


def _first_line(error: Exception) -> str:
    """Return what an error says first, or what it is."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
