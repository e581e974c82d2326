"""The files that visitors get: lossless PNGs that carry their settings, and short-lived previews."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.page.plan import Plan
from core.metadata import save_png
from core.request import Request, Result


class PictureFolder:
    """One run's own folder inside the one that Gradio serves files from; nobody can guess its name."""

    def __init__(self, parent: Path) -> None:
        """Choose the folder; it is made when the first file comes."""
        self.path = parent / f"run-{secrets.token_hex(16)}"
        self._previews: list[Path] = []

    def save_maps(
        self, previews: Sequence[NDArray[np.uint8]], plan: Plan, request: Request, model: str
    ) -> tuple[Path, ...]:
        """Save the maps as shown, (H, W, 3) uint8 RGB, with the settings."""
        paths = []
        for number, preview in enumerate(previews, 1):
            which = f"-{number}" if len(previews) > 1 else ""
            paths.append(self._new(f"{plan.page}-map{which}-{request.seed}.png"))
            self._save(preview, paths[-1], plan, request, request.seed, model)
        return tuple(paths)

    def save_result(self, result: Result, plan: Plan) -> tuple[Path, ...]:
        """Save every picture with the request and its own seed."""
        paths = []
        for image, seed in zip(result.images, result.seeds, strict=True):
            paths.append(self._new(f"{plan.page}-{seed}.png"))
            self._save(image, paths[-1], plan, result.request, seed, result.model, result.extra)
        return tuple(paths)

    def save_plain(self, image: NDArray[np.uint8], name: str) -> Path:
        """Save a picture, (H, W, 3) uint8 RGB, with nothing in it but itself."""
        path = self._new(name)
        Image.fromarray(image).save(path)
        return path

    def save_preview(self, preview: Image.Image) -> Path:
        """Save a preview under a new name, so that no browser shows an old one; all but the last two go."""
        path = self._new(f"preview-{secrets.token_hex(4)}.jpg")
        preview.save(path, quality=85)
        self._previews.append(path)
        while len(self._previews) > 2:
            self._previews.pop(0).unlink(missing_ok=True)
        return path

    def drop_previews(self) -> None:
        """Delete the previews that are left."""
        while self._previews:
            self._previews.pop().unlink(missing_ok=True)

    def _new(self, name: str) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path / name

    def _save(
        self,
        image: NDArray[np.uint8],
        path: Path,
        plan: Plan,
        request: Request,
        seed: int,
        model: str,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        modules = [source.module for source in plan.sources]
        save_png(
            image, path, request, seed=seed, model=model, modules=modules, settings=plan.stored, extra=extra
        )
