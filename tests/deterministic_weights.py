"""Weights that anyone can rebuild from their names: outputs of large networks can be stored without them.

The values of a tensor named KEY (its key in the published checkpoint file) follow from a salt, KEY and its
shape: w = standard normal float32 numbers of numpy's PCG64, seeded with the CRC-32 of "salt:KEY".

    two or more dimensions       w * float32(gain / sqrt(product of shape[1:]))
    KEY ends with running_mean   0.05 * w
    KEY ends with running_var    1 + 0.1 * |w|
    KEY ends with weight         1 + 0.1 * w
    any other vector             0.05 * w
    scalars, integers, position_ids, num_batches_tracked: left as they are
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

GAIN = 0.7
LEFT_ALONE = ("position_ids", "num_batches_tracked")


def weight_values(key: str, shape: Sequence[int], salt: str, gain: float = GAIN) -> np.ndarray:
    """Return the float32 values of the tensor named ``key``."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{salt}:{key}".encode())))
    w = rng.standard_normal(tuple(shape), dtype=np.float32)
    if key.endswith("running_mean"):
        w *= np.float32(0.05)
    elif key.endswith("running_var"):
        w = np.float32(1) + np.float32(0.1) * np.abs(w)
    elif w.ndim >= 2:
        w *= np.float32(gain / math.sqrt(math.prod(shape[1:])))
    elif key.endswith("weight"):
        w = np.float32(1) + np.float32(0.1) * w
    else:
        w *= np.float32(0.05)
    return w


def fill_tensors(
    tensors: Iterable[tuple[str, Tensor]], salt: str, gain_of: Callable[[str], float] = lambda key: GAIN
) -> None:
    """Set each tensor, given with its published key, in place; cast to the tensor's own dtype."""

    def fill(pair: tuple[str, Tensor]) -> None:
        key, tensor = pair
        if tensor.is_floating_point() and tensor.ndim and not key.endswith(LEFT_ALONE):
            tensor.detach().copy_(torch.from_numpy(weight_values(key, tensor.shape, salt, gain_of(key))))

    with ThreadPoolExecutor(max_workers=2) as pool:  # numpy draws outside of Python's lock
        list(pool.map(fill, tensors))


def fill_module(module: nn.Module, prefix: str, salt: str) -> nn.Module:
    """Set every weight of ``module``, whose published keys are ``prefix`` + its own; return it."""
    fill_tensors(((prefix + name, tensor) for name, tensor in module.state_dict().items()), salt)
    return module
