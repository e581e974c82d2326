"""The values that pass between the page, the pipeline and the picture: all immutable."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SEED = 2**31 - 1
MAX_SAMPLES = 12
MAX_BATCH = 32  # pictures of several requests
MAX_STEPS = 1000
MAX_SIDE = 4096
MAX_PROMPT_CHARS = 10_000
SIZE_MULTIPLE = 64
MIN_DENOISE = 0.01
MAX_INTERVAL = 10
MAX_MERGING = 0.75  # three of each 2x2 tokens
# What trades exactness for speed, by the name of its field, with the value that leaves it off.
SPEED_OPTIONS: dict[str, int | float] = {
    "control_interval": 1,
    "cache_interval": 1,
    "token_merging_ratio": 0.0,
}
# A share such as 0.3 of 10 steps may be a little less than 3.
SHARE_TOLERANCE = 1e-6


def check_number(name: str, value: float, low: float, high: float, *, integer: bool = False) -> None:
    """Raise ``ValueError`` naming field, value and what is allowed, unless ``low <= value <= high``."""
    kind = "a whole number" if integer else "a number"
    wrong_type = isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating))
    # NaN compares false, so that it counts as out of range.
    if wrong_type or not low <= value <= high or (integer and value != int(value)):
        bounds = f"from {low:.0f} to {high:.0f}" if integer else f"from {low:.10g} to {high:.10g}"
        raise ValueError(f"{name} is {reprlib.repr(value)}: give {kind} {bounds}.")


def _set_number(owner: object, name: str, low: float, high: float, *, integer: bool = False) -> None:
    """Check the field ``name`` of a frozen ``owner`` and store it as Python's own int or float.

    Forms and JSON give 20.0 for 20, numpy its own numbers: equal requests shall hold equal values.
    """
    value = getattr(owner, name)
    check_number(name, value, low, high, integer=integer)
    object.__setattr__(owner, name, int(value) if integer else float(value))


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is a {type(value).__name__}: give a text.")
    if len(value) > MAX_PROMPT_CHARS:
        raise ValueError(f"{name} has {len(value):,} characters: give at most {MAX_PROMPT_CHARS:,}.")


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {reprlib.repr(value)}: give true or false.")


def _check_picture(name: str, picture: NDArray[np.uint8]) -> None:
    is_array = isinstance(picture, np.ndarray)
    if not is_array or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        got = f"{picture.dtype} {picture.shape}" if is_array else type(picture).__name__
        raise ValueError(f"{name} is {got}: give an (H, W, 3) uint8 RGB array.")
    for side in picture.shape[:2]:
        if side % SIZE_MULTIPLE or not SIZE_MULTIPLE <= side <= MAX_SIDE:
            raise ValueError(
                f"{name} is {picture.shape[1]}x{picture.shape[0]} px: give sides that are multiples of "
                f"{SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {MAX_SIDE}."
            )


@dataclass(frozen=True, slots=True, eq=False)
class ControlUnit:
    """One control: a hint for one ControlNet, and how much and when it counts.

    ``hint`` is (H, W, 3) uint8 RGB, exactly what that ControlNet was trained on; H and W are multiples of 64.
    ``strength`` in [0, 2] scales the control residuals. ``start`` and ``end`` in [0, 1] are shares of
    the steps.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    control: str
    hint: NDArray[np.uint8]
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        """Check every field, and store numbers as Python's own."""
        if not isinstance(self.control, str) or not self.control:
            raise ValueError(
                f"control is {reprlib.repr(self.control)}: give a ControlNet's name, such as 'canny'."
            )
        _check_picture("hint", self.hint)
        _set_number(self, "strength", 0.0, 2.0)
        _set_number(self, "start", 0.0, 1.0)
        _set_number(self, "end", 0.0, 1.0)
        if self.start > self.end:
            raise ValueError(f"start is {self.start:g}, after end {self.end:g}: give start at most end.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.hint.shape[0], self.hint.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Everything that decides a picture. Two equal requests on one model give equal pictures.

    ``controls`` may be empty (plain text to image at ``size``) or hold any number of units of one size.
    ``size`` is (height, width) in pixels; None takes it from the controls or from ``init``.

    ``init`` (H, W, 3) uint8 RGB is a picture to start from. ``denoise`` in (0, 1] is how much of it is
    drawn anew: that share of the steps is walked, from the picture under as much noise; 1 starts from
    noise alone. ``mask`` (H, W) uint8 is 255 where ``init`` is painted over, 0 where it stays to the bit.

    The last three trade exactness for speed, and do nothing as they are. Every ``control_interval``-th step
    the ControlNets compute; between, their last residuals are taken again. Every ``cache_interval``-th step
    the whole UNet computes; between, its deep features are taken again. ``token_merging_ratio`` in [0, 0.75]
    is the share of the tokens that the finest self-attention merges away.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    prompt: str
    controls: tuple[ControlUnit, ...] = ()
    negative_prompt: str = ""
    num_samples: int = 1
    steps: int = 20
    sampler: str = "ddim"
    cfg_scale: float = 9.0
    eta: float = 0.0
    seed: int = 0
    guess_mode: bool = False
    size: tuple[int, int] | None = None
    init: NDArray[np.uint8] | None = None
    denoise: float = 1.0
    mask: NDArray[np.uint8] | None = None
    control_interval: int = 1
    cache_interval: int = 1
    token_merging_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Check every field, and store numbers as Python's own."""
        from core.sampling.samplers import SAMPLERS

        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        _set_number(self, "num_samples", 1, MAX_SAMPLES, integer=True)
        _set_number(self, "steps", 1, MAX_STEPS, integer=True)
        _set_number(self, "cfg_scale", 0.1, 30.0)
        _set_number(self, "eta", 0.0, 1.0)
        _set_number(self, "seed", 0, MAX_SEED, integer=True)
        _set_number(self, "control_interval", 1, MAX_INTERVAL, integer=True)
        _set_number(self, "cache_interval", 1, MAX_INTERVAL, integer=True)
        _set_number(self, "token_merging_ratio", 0.0, MAX_MERGING)
        _check_flag("guess_mode", self.guess_mode)
        object.__setattr__(self, "guess_mode", bool(self.guess_mode))
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {reprlib.repr(self.sampler)}: give one of {', '.join(SAMPLERS)}.")
        if not isinstance(self.controls, tuple) or not all(isinstance(u, ControlUnit) for u in self.controls):
            raise ValueError("controls must be a tuple of ControlUnit.")
        self._check_init()
        self._check_size()

    def _check_init(self) -> None:
        _set_number(self, "denoise", MIN_DENOISE, 1.0)
        if self.init is None:
            for name, given in (("denoise", self.denoise < 1.0), ("mask", self.mask is not None)):
                if given:
                    raise ValueError(f"{name} is given, but init is None: give the picture to start from.")
            return
        _check_picture("init", self.init)
        mask = self.mask
        if mask is None:
            return
        if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.shape != self.init.shape[:2]:
            got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"mask is {got}: give a uint8 array of init's height and width.")

    def _check_size(self) -> None:
        sizes: Sequence[tuple[int, int]] = [u.size for u in self.controls]
        if self.init is not None:
            sizes = [*sizes, (self.init.shape[0], self.init.shape[1])]
        if self.size is not None:
            if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
                raise ValueError(f"size is {reprlib.repr(self.size)}: give (height, width) in pixels.")
            for name, side in zip(("height", "width"), self.size, strict=True):
                check_number(name, side, SIZE_MULTIPLE, MAX_SIDE, integer=True)
                if side % SIZE_MULTIPLE:
                    raise ValueError(f"{name} is {side}: give a multiple of {SIZE_MULTIPLE}.")
            object.__setattr__(self, "size", tuple(int(side) for side in self.size))
            sizes = [*sizes, self.size]
        if not sizes:
            raise ValueError("size is None, with no control and no init: give size=(height, width).")
        if len(set(sizes)) > 1:
            listed = ", ".join(f"{w}x{h}" for h, w in sizes)
            raise ValueError(
                f"sizes differ ({listed}): give every hint, init and size the same height and width."
            )

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures to make."""
        if self.size is not None:
            return self.size
        if self.controls:
            return self.controls[0].size
        assert self.init is not None
        return self.init.shape[0], self.init.shape[1]

    @property
    def speed_options(self) -> dict[str, int | float]:
        """The options in use that trade exactness for speed, by name."""
        values = {name: getattr(self, name) for name in SPEED_OPTIONS}
        return {name: value for name, value in values.items() if value != SPEED_OPTIONS[name]}

    @property
    def walked_steps(self) -> int:
        """How many of the steps are walked: fewer than ``steps`` where the start is a picture."""
        return max(1, int(self.steps * self.denoise + SHARE_TOLERANCE))


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """One finished step: ``step`` of ``total``, from 1; 0 while ``ahead`` other requests come first.

    ``preview`` is (h, w, 3) uint8 RGB, a rough small picture of the first image, or None where none is new.
    ``seconds_per_step`` is the mean so far, without the time that the consumer took.
    """

    step: int
    total: int
    preview: NDArray[np.uint8] | None = None
    seconds_per_step: float = 0.0
    ahead: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The finished pictures: each (H, W, 3) uint8 RGB; image i was made from ``seeds[i]``."""

    images: tuple[NDArray[np.uint8], ...]
    request: Request
    seeds: tuple[int, ...]
    model: str
    seconds: float
    extra: dict[str, str] = field(default_factory=dict)
