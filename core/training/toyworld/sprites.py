"""The sprites: Microsoft's Fluent Emoji 3D pictures (MIT), fetched once through npm and kept small in RAM."""

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .objects import ObjectSpec, all_objects
from .palette import repaint
from .truth import inflate

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
TARBALL = "lobehub-fluent-emoji-3d-1.1.0.tgz"
TARBALL_SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
REPAINTS_KEPT = 600  # about 0.3 MB each


class SpritesMissing(RuntimeError):
    """The sprites are not there and could not be fetched; the message says what to do."""


def default_cache_dir() -> Path:
    """Return CONTROLNET_SPRITES, or a folder in the user's cache."""
    named = os.environ.get("CONTROLNET_SPRITES")
    return Path(named) if named else Path.home() / ".cache" / "controlnet-suite" / "sprites"


def fetch_sprites(cache_dir: Path) -> Path:
    """Get the package's tarball with `npm pack`, unless it is there, and check it.

    Returns:
        The path of the tarball, whose SHA-256 is TARBALL_SHA256.

    Raises:
        SpritesMissing: npm is missing or failed, or the file is not the expected one.
    """
    tarball = cache_dir / TARBALL
    by_hand = f"run `npm pack {PACKAGE}` where npm works and put {TARBALL} into {cache_dir}"
    if not tarball.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SpritesMissing(f"npm is needed to fetch {PACKAGE}: install Node.js, or {by_hand}.")
        cache_dir.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", PACKAGE, "--pack-destination", str(cache_dir)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cache_dir, check=False)
        if done.returncode or not tarball.exists():
            raise SpritesMissing(f"npm pack failed: {done.stderr.strip()[-500:]}\nTry again, or {by_hand}.")
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if digest != TARBALL_SHA256:
        raise SpritesMissing(
            f"{tarball} has SHA-256 {digest}, not {TARBALL_SHA256}: delete it and try again."
        )
    return tarball


@dataclass(frozen=True, slots=True)
class Sprite:
    """One picture, cropped to what is visible.

    `levels` are premultiplied RGBA uint8, each half the size of the one before; `foot` is the left and the
    right end of what touches the ground, as shares of the width.
    """

    levels: tuple[np.ndarray, ...]
    foot: tuple[float, float]

    @property
    def aspect(self) -> float:
        """Width over height."""
        height, width = self.levels[0].shape[:2]
        return float(width / height)

    def at(self, width: int, height: int) -> np.ndarray:
        """Return the sprite at a size in pixels, (height, width, 4) uint8 premultiplied RGBA."""
        level = next((m for m in reversed(self.levels) if m.shape[0] >= height and m.shape[1] >= width), None)
        source = self.levels[0] if level is None else level
        method = cv2.INTER_CUBIC if level is None else cv2.INTER_AREA
        scaled = cv2.resize(source, (width, height), interpolation=method)
        if level is None:  # cubic may overshoot; premultiplied colour must not exceed alpha
            np.minimum(scaled[..., :3], scaled[..., 3:], out=scaled[..., :3])
        return np.asarray(scaled, np.uint8)

    def relief(self, width: int, height: int) -> np.ndarray:
        """Return how far a round thing of this outline stands out, (height, width) float32 in pixels."""
        return inflate(self.at(width, height)[..., 3])


def make_sprite(rgba: np.ndarray) -> Sprite:
    """Crop straight-alpha RGBA (h, w, 4) uint8 to its visible part and build the sprite."""
    alpha = rgba[..., 3]
    rows, columns = np.flatnonzero(alpha.max(axis=1) > 8), np.flatnonzero(alpha.max(axis=0) > 8)
    cut = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    cut[..., :3] *= cut[..., 3:] / 255
    return from_premultiplied(np.rint(cut).astype(np.uint8))


def from_premultiplied(rgba: np.ndarray) -> Sprite:
    """Build the smaller levels and measure the foot of a cropped premultiplied RGBA (h, w, 4) uint8."""
    levels = [rgba]
    while min(levels[-1].shape[:2]) >= 48 and len(levels) < 3:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    height, width = rgba.shape[:2]
    low = rgba[int(height * 0.93) :, :, 3].max(axis=0) > 128
    touching = np.flatnonzero(low)
    foot = (touching[0] / width, (touching[-1] + 1) / width) if touching.size else (0.3, 0.7)
    return Sprite(tuple(levels), (float(foot[0]), float(foot[1])))


class SpriteLibrary:
    """Specs and sprites by name, with repainted sprites made when first asked for.

    Give each worker process its own; two threads may share one only for reading untouched sprites.
    """

    def __init__(self, specs: Sequence[ObjectSpec], sprites: Mapping[str, Sprite]) -> None:
        """Take specs and their sprites by name."""
        self.specs = tuple(specs)
        self.by_name = {spec.name: spec for spec in self.specs}
        self._sprites = dict(sprites)
        self._repainted: OrderedDict[tuple[str, str], Sprite] = OrderedDict()
        self.fitting: dict[str, tuple[ObjectSpec, ...]] = {}
        for place in sorted({p for spec in self.specs for p in spec.places}):
            self.fitting[place] = tuple(spec for spec in self.specs if place in spec.places)

    @classmethod
    def load(
        cls, cache_dir: Path | None = None, objects: Sequence[ObjectSpec] | None = None
    ) -> "SpriteLibrary":
        """Read the sprites of `objects` (default: all rows) from the cache, fetching what is missing.

        Raises:
            SpritesMissing: the package cannot be had, or lacks a code point.
        """
        cache_dir = default_cache_dir() if cache_dir is None else cache_dir
        specs = all_objects() if objects is None else tuple(objects)
        codes = sorted({spec.code for spec in specs})
        key = hashlib.sha256(" ".join(codes).encode()).hexdigest()[:12]
        packed = cache_dir / f"sprites-{key}.npz"
        if not packed.exists():
            _pack(fetch_sprites(cache_dir), codes, packed)
        with np.load(packed) as arrays:
            by_code = {code: from_premultiplied(arrays[code]) for code in codes}
        return cls(specs, {spec.name: by_code[spec.code] for spec in specs})

    def sprite(self, name: str, color: str | None = None) -> Sprite:
        """Return a sprite, repainted in `color` if one is given."""
        if color is None:
            return self._sprites[name]
        key = (name, color)
        if key not in self._repainted:
            whole = self._sprites[name].levels[0]
            self._repainted[key] = from_premultiplied(repaint(whole, self.by_name[name].color, color))
            if len(self._repainted) > REPAINTS_KEPT:
                self._repainted.popitem(last=False)
        self._repainted.move_to_end(key)
        return self._repainted[key]


def _pack(tarball: Path, codes: Sequence[str], packed: Path) -> None:
    """Crop the wanted pictures of the package and write them to one .npz, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    with tarfile.open(tarball) as archive:
        for code in codes:
            try:
                member = archive.extractfile(f"package/assets/{code}.webp")
            except KeyError:
                member = None
            if member is None:
                raise SpritesMissing(f"{PACKAGE} has no picture {code}: correct its row in objects.csv.")
            rgba = np.asarray(Image.open(BytesIO(member.read())).convert("RGBA"))
            arrays[code] = make_sprite(rgba).levels[0]
    partial = packed.with_name(f"{packed.stem}.{os.getpid()}.part")
    with partial.open("wb") as out:
        np.savez(out, allow_pickle=False, **arrays)
    partial.replace(packed)
