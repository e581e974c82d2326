"""What every detector shares: declared controls, checking, all resizing (once), memory of recent results."""

from __future__ import annotations

import hashlib
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.maps import LINES, MapKind, resize_map
from annotators.networks import Weights, find_weights
from core.errors import WeightsMissing
from core.images import resize, resize_image, to_rgb

if TYPE_CHECKING:
    from collections.abc import Mapping

CACHE_BYTES = 48 * 2**20
# One detector at a time, whichever: two at once take twice the memory and are no faster. It may ask another.
DETECTING = threading.RLock()


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
class Detected:
    """What ``detect`` may return instead of a map alone: the map, and facts about it that JSON can hold."""

    map: NDArray[np.uint8]
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """What a detector made: ``hint`` for the ControlNet, ``preview`` for the eye, both (H, W, 3) uint8 RGB.

    Both arrays are read-only, since they are remembered. ``data`` holds what else was found, such as the key
    points of a pose, as JSON can; ``note`` is a doubt about a map that was brought, or empty. ``weights`` are
    those that found it, None where none were needed.
    """

    hint: NDArray[np.uint8]
    preview: NDArray[np.uint8]
    data: Mapping[str, Any] | None = None
    note: str = ""
    weights: Weights | None = None


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

    ``params`` are drawn by the page and passed to ``detect`` by name; so are ``more_params``, but they are
    drawn only where all detectors stand side by side. ``resolution`` is the slider of the
    short side at which the detector works; None means that it works at the output's size. ``auto_range`` is
    within which short sides it works well, for the resolution "auto". ``interpolation`` brings the found map
    to the output's size. ``weights`` is a name in ckpts/registry.yaml, ``demo_weights`` that of a bundled
    stand-in, for toy-world pictures only. ``kind`` tells what its maps look like; ``takes_maps`` is whether
    they may be brought ready made.
    """

    title: ClassVar[str] = ""
    params: ClassVar[tuple[Slider | Checkbox, ...]] = ()
    more_params: ClassVar[tuple[Slider | Checkbox, ...]] = ()
    resolution: ClassVar[Slider | None] = None
    auto_range: ClassVar[tuple[int, int] | None] = None
    interpolation: ClassVar[int] = cv2.INTER_LINEAR
    weights: ClassVar[str | None] = None
    demo_weights: ClassVar[str | None] = None
    kind: ClassVar[MapKind] = LINES
    takes_maps: ClassVar[bool] = True

    def __init__(self) -> None:
        """Load nothing: a detector loads its weights when it first detects."""
        self._cache = ResultCache()

    @abstractmethod
    def detect(self, image: NDArray[np.uint8], *_: Any, **params: Any) -> NDArray[np.uint8] | Detected:
        """Find the map of (h, w, 3) uint8 RGB: (h, w) or (h, w, 3) uint8, alone or with facts about it.

        A detector writes its declared ``params`` out by name; they arrive complete and checked.
        """

    def refine(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Finish the map (H, W, 3) at the output's size."""
        return hint

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show the hint (H, W, 3) as the eye likes it."""
        return hint

    def prepare(self, given: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
        """Make a brought map (h, w, 3) into what the ControlNet knows; also say what was changed, or ""."""
        return given, ""

    def ready(self, image: Any, *, size: tuple[int, int], mend: bool = False) -> Annotation:
        """Take a picture that already is a map as the hint, and show just that.

        ``image`` is anything that ``core.images.to_rgb`` takes; ``size`` is the output's (height, width) in
        pixels; ``mend`` applies the change of the map's kind first, such as swapping black and white.

        Raises:
            ValueError: an unreadable picture; says what to do.
        """
        given = to_rgb(image)
        doubt = "" if mend else self.kind.doubt(given)
        prepared, changed = self.prepare(self.kind.mend(given) if mend else given)
        hint = resize_map(prepared, size, self.kind.shades)
        return _annotation(hint, hint, note=" ".join(part for part in (changed, doubt) if part))

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
        output's short side within what suits the detector.

        Raises:
            ValueError: an unreadable picture, or a control with a wrong name or value; says what is allowed.
            WeightsMissing: the detector's weights are not on this computer; says how to get them.
        """
        picture = to_rgb(image)
        settings = self._check_params(params)
        short_side = self._check_resolution(resolution, size)
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        used = self.used_weights()
        key = (digest, picture.shape, tuple(size), short_side, tuple(sorted(settings.items())), used)
        with DETECTING:
            found = self._cache.get(key)
            if found is None:
                found = replace(self._annotate(picture, size, short_side, settings), weights=used)
                self._cache.put(key, found)
        return found

    def used_weights(self) -> Weights | None:
        """Return the weights at work, published ones or a stand-in; None if none are needed, or here."""
        if self.weights is None:
            return None
        try:
            return find_weights(self.weights, self.demo_weights)
        except WeightsMissing:
            return None

    def _annotate(
        self,
        picture: NDArray[np.uint8],
        size: tuple[int, int],
        short_side: int | None,
        settings: dict[str, Any],
    ) -> Annotation:
        seen = resize(picture, size) if short_side is None else resize_image(picture, short_side)
        found = self.detect(seen, **settings)
        if not isinstance(found, Detected):
            found = Detected(found, {})
        hint = self.refine(resize(to_rgb(found.map), size, self.interpolation))
        if np.may_share_memory(hint, picture):
            hint = hint.copy()  # the caller's own array must stay writable
        return _annotation(hint, self.preview(hint), found.data)

    def _check_params(self, params: dict[str, Any]) -> dict[str, Any]:
        declared = {param.name: param for param in (*self.params, *self.more_params)}
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
            low, high = self.auto_range or (self.resolution.minimum, self.resolution.maximum)
            return int(min(max(min(size), low), high))
        return int(self.resolution.check(resolution))


def _annotation(
    hint: NDArray[np.uint8],
    preview: NDArray[np.uint8],
    data: Mapping[str, Any] | None = None,
    note: str = "",
) -> Annotation:
    for array in (hint, preview):
        array.setflags(write=False)
    return Annotation(hint, preview, data or None, note)
