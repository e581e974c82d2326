"""What every detector shares: declared controls, checking, all resizing (once), memory of recent results."""

from __future__ import annotations

import hashlib
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from core.images import resize, resize_image, to_rgb

CACHE_BYTES = 48 * 2**20
FEW_COLOURS = 200  # below, a colourful map holds classes and not shades


@dataclass(frozen=True, slots=True)
class Slider:
    """A number that a detector takes. Where step and bounds are whole, only whole numbers are allowed."""

    name: str
    label: str
    minimum: float
    maximum: float
    default: float
    step: float = 1
    info: str = ""

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are allowed."""
        return all(float(n).is_integer() for n in (self.minimum, self.maximum, self.step))

    def check(self, value: Any) -> int | float:
        """Return the value as int or float.

        Raises:
            ValueError: names the control, the value and what is allowed.
        """
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if (
            not number
            or not math.isfinite(value)
            or not self.minimum <= value <= self.maximum
            or (self.whole and value != int(value))
        ):
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(
                f"{self.name} is {value!r}: give {kind} from {self.minimum:g} to {self.maximum:g}."
            )
        return int(value) if self.whole else float(value)


@dataclass(frozen=True, slots=True)
class Checkbox:
    """A yes or no that a detector takes."""

    name: str
    label: str
    default: bool = False
    info: str = ""

    def check(self, value: Any) -> bool:
        """Return the value as bool.

        Raises:
            ValueError: names the control and the value.
        """
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{self.name} is {value!r}: give true or false.")
        return bool(value)


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """What a detector made: ``hint`` for the ControlNet, ``preview`` for the eye, both (H, W, 3) uint8 RGB.

    Both arrays are read-only, since they are remembered.
    """

    hint: NDArray[np.uint8]
    preview: NDArray[np.uint8]


class ResultCache:
    """The annotations made last, up to a number of bytes. Safe for threads."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        """Start empty."""
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[Any, ...], Annotation] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> Annotation | None:
        """Return the annotation of this key and mark it as used, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: tuple[Any, ...], annotation: Annotation) -> None:
        """Remember an annotation and forget the ones longest unused beyond the limit."""
        with self._lock:
            self._entries[key] = annotation
            self._entries.move_to_end(key)
            while sum(a.hint.nbytes + a.preview.nbytes for a in self._entries.values()) > self.max_bytes:
                self._entries.popitem(last=False)


class Annotator(ABC):
    """Turns a picture into a hint. A detector declares its controls and says only what is its own.

    ``params`` are drawn by the page and passed to ``detect`` by name. ``resolution`` is the slider of the
    short side at which the detector works; None means that it works at the output's size. ``interpolation``
    brings the found map to the output's size. ``weights`` is a name in ckpts/registry.yaml.
    """

    title: ClassVar[str] = ""
    params: ClassVar[tuple[Slider | Checkbox, ...]] = ()
    resolution: ClassVar[Slider | None] = None
    interpolation: ClassVar[int] = cv2.INTER_LINEAR
    weights: ClassVar[str | None] = None

    def __init__(self) -> None:
        """Load nothing: a detector loads its weights when it first detects."""
        self._cache = ResultCache()

    @abstractmethod
    def detect(self, image: NDArray[np.uint8], *_: Any, **params: Any) -> NDArray[np.uint8]:
        """Find the map of (h, w, 3) uint8 RGB: (h, w) or (h, w, 3) uint8.

        A detector writes its declared ``params`` out by name; they arrive complete and checked.
        """

    def refine(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Finish the map (H, W, 3) at the output's size."""
        return hint

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show the hint (H, W, 3) as the eye likes it."""
        return hint

    def __call__(
        self,
        image: Any,
        *,
        size: tuple[int, int],
        resolution: int | Literal["auto"] | None = None,
        **params: Any,
    ) -> Annotation:
        """Make the hint of a picture.

        ``image`` is anything that ``core.images.to_rgb`` takes; ``size`` is the output's (height, width) in
        pixels. ``resolution`` is the short side to detect at: None takes the declared default, "auto" the
        output's short side as far as the declared range goes.

        Raises:
            ValueError: an unreadable picture, or a control with a wrong name or value; says what is allowed.
        """
        picture = to_rgb(image)
        settings = self._check_params(params)
        short_side = self._check_resolution(resolution, size)
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        key = (digest, picture.shape, tuple(size), short_side, tuple(sorted(settings.items())))
        found = self._cache.get(key)
        if found is None:
            found = self._annotate(picture, size, short_side, settings)
            self._cache.put(key, found)
        return found

    def _annotate(
        self,
        picture: NDArray[np.uint8],
        size: tuple[int, int],
        short_side: int | None,
        settings: dict[str, Any],
    ) -> Annotation:
        seen = resize(picture, size) if short_side is None else resize_image(picture, short_side)
        hint = self.refine(resize(to_rgb(self.detect(seen, **settings)), size, self.interpolation))
        if np.may_share_memory(hint, picture):
            hint = hint.copy()  # the caller's own array must stay writable
        return _annotation(hint, self.preview(hint))

    def _check_params(self, params: dict[str, Any]) -> dict[str, Any]:
        declared = {param.name: param for param in self.params}
        unknown = sorted(set(params) - set(declared))
        if unknown:
            known = ", ".join(declared) or "none"
            raise ValueError(f"{type(self).__name__} has no control {unknown[0]!r}: it has {known}.")
        return {name: param.check(params.get(name, param.default)) for name, param in declared.items()}

    def _check_resolution(self, resolution: int | str | None, size: tuple[int, int]) -> int | None:
        if self.resolution is None:
            if resolution not in (None, "auto"):
                raise ValueError(
                    f"resolution is {resolution!r}, but {type(self).__name__} works at the output's size: "
                    "leave it out."
                )
            return None
        if resolution is None:
            return int(self.resolution.default)
        if resolution == "auto":
            return int(min(max(min(size), self.resolution.minimum), self.resolution.maximum))
        return int(self.resolution.check(resolution))


def _annotation(hint: NDArray[np.uint8], preview: NDArray[np.uint8]) -> Annotation:
    for array in (hint, preview):
        array.setflags(write=False)
    return Annotation(hint, preview)


def passthrough(image: Any, size: tuple[int, int], *, invert: bool = False) -> Annotation:
    """Take a picture that already is a map as the hint; ``invert`` swaps black and white first.

    ``image`` is anything that ``core.images.to_rgb`` takes; ``size`` is the output's (height, width). A map
    of two values, such as lines, keeps just those two; one of few colours, such as classes, keeps them.

    Raises:
        ValueError: an unreadable picture; says what to do.
    """
    given = to_rgb(image)
    hint = _resize_map(255 - given if invert else given, size)
    return _annotation(hint, hint)


def _resize_map(given: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if given.shape[:2] == tuple(size):
        return given.copy()
    smooth = cv2.INTER_AREA if min(size) < min(given.shape[:2]) else cv2.INTER_LINEAR
    if len(_colours(_thinned(given))) >= FEW_COLOURS:
        return resize(given, size, smooth)
    colours = _colours(given)
    grey = bool((colours == colours[:, :1]).all())
    if not grey and len(colours) < FEW_COLOURS:
        return resize(given, size, cv2.INTER_NEAREST)
    shares = resize(given, size, smooth)
    if grey and len(colours) == 2:
        low, high = colours[:, 0].min(), colours[:, 0].max()
        # A quarter of the way up, not half: a line one pixel wide survives being halved.
        return np.where(shares >= low + (float(high) - low) / 4, high, low)
    return shares


def _thinned(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return about a quarter of a million of the picture's pixels, or all of a smaller one."""
    step = max(1, math.ceil(math.sqrt(picture.shape[0] * picture.shape[1]) / 512))
    return picture[::step, ::step]


def _colours(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colours that occur in (h, w, 3), as (n, 3)."""
    seen = np.zeros(2**24, np.bool_)
    for row in range(0, len(picture), 256):  # in strips, to spare memory
        red, green, blue = (picture[row : row + 256, :, i].astype(np.uint32) for i in range(3))
        seen[red << 16 | green << 8 | blue] = True
    found = np.flatnonzero(seen)
    return np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)


def looks_inverted(image: Any) -> bool:
    """Tell whether a map of lines seems to be dark on light; the ControlNets know white lines on black.

    True where the picture has hardly any colour or middle grey, and more than half of it is light.
    """
    given = _thinned(to_rgb(image)).astype(np.int16)
    colourful = (given.max(axis=2) - given.min(axis=2)) > 48
    grey = given.mean(axis=2)
    middle = (grey > 64) & (grey < 191)
    return bool(colourful.mean() < 0.05 and middle.mean() < 0.25 and (grey >= 191).mean() > 0.5)
