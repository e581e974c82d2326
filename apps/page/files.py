"""The files that visitors get: lossless PNGs that carry their settings, and short-lived previews."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.page.settings import Settings
from apps.spec import App
from core.metadata import save_png
from core.request import Request, Result

Stored = str | int | float | bool | None


def stored_settings(app: App, settings: Settings) -> Mapping[str, Stored]:
    """Return what a Request does not hold but the page needs to come back as it was."""
    return {
        "app": app.name,
        "prompt": settings.prompt,
        "added_prompt": settings.added_prompt,
        "resolution": settings.resolution,
        "preprocessor": settings.preprocessor,
        **_resolution(settings),
        **dict(settings.detector),
    }


def _resolution(settings: Settings) -> Mapping[str, Stored]:
    if settings.detect_resolution is None:
        return {}
    return {"detect_resolution": settings.detect_resolution, "auto_resolution": settings.auto_resolution}


class PictureFolder:
    """One run's own folder inside the one that Gradio serves files from; nobody can guess its name."""

    def __init__(self, parent: Path) -> None:
        """Choose the folder; it is made when the first file comes."""
        self.path = parent / f"run-{secrets.token_hex(16)}"
        self.detector_weights: str | None = None  # what made the map, to be told in the pictures
        self._previews: list[Path] = []

    def save_map(
        self, preview: NDArray[np.uint8], app: App, settings: Settings, request: Request, model: str
    ) -> Path:
        """Save the map as shown, (H, W, 3) uint8 RGB, with the settings."""
        path = self._new(f"{app.name}-map-{settings.seed}.png")
        self._save(preview, path, app, settings, request, settings.seed, model)
        return path

    def save_result(self, result: Result, app: App, settings: Settings) -> tuple[Path, ...]:
        """Save every picture with the request and its own seed."""
        paths = []
        for image, seed in zip(result.images, result.seeds, strict=True):
            path = self._new(f"{app.name}-{seed}.png")
            self._save(image, path, app, settings, result.request, seed, result.model, result.extra)
            paths.append(path)
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
        app: App,
        settings: Settings,
        request: Request,
        seed: int,
        model: str,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        modules = (app.annotator if settings.preprocessor == "detect" else "none",)
        stored = {**stored_settings(app, settings), "detector_weights": self.detector_weights}
        save_png(
            image, path, request, seed=seed, model=model, modules=modules, settings=stored, extra=extra
        )
