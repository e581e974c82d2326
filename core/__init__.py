"""The shared core: a ControlNet-conditioned latent diffusion model that turns a Request into pictures.

The names below are imported when first asked for, so that importing one part of the core stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.loading import load_pipeline
    from core.pipeline import ControlNetPipeline
    from core.request import ControlUnit, Progress, Request, Result
    from core.runtime.batcher import Batcher

_HOMES = {
    "Batcher": "core.runtime.batcher",
    "ControlNetPipeline": "core.pipeline",
    "ControlUnit": "core.request",
    "Progress": "core.request",
    "Request": "core.request",
    "Result": "core.request",
    "load_pipeline": "core.loading",
}

__all__ = ["Batcher", "ControlNetPipeline", "ControlUnit", "Progress", "Request", "Result", "load_pipeline"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
