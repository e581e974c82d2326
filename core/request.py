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
MAX_STEPS = 1000
MAX_SIDE = 4096
MAX_PROMPT_CHARS = 10_000
SIZE_MULTIPLE = 64


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
        hint = self.hint
        if not isinstance(hint, np.ndarray) or hint.dtype != np.uint8 or hint.ndim != 3 or hint.shape[2] != 3:
            got = f"{hint.dtype} {hint.shape}" if isinstance(hint, np.ndarray) else type(hint).__name__
            raise ValueError(f"hint is {got}: give an (H, W, 3) uint8 RGB array.")
        for side in hint.shape[:2]:
            if side % SIZE_MULTIPLE or not SIZE_MULTIPLE <= side <= MAX_SIDE:
                raise ValueError(
                    f"hint is {hint.shape[1]}x{hint.shape[0]} px: give sides that are multiples of "
                    f"{SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {MAX_SIDE}."
                )
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
    ``size`` is (height, width) in pixels; None takes it from the controls.

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
        _check_flag("guess_mode", self.guess_mode)
        object.__setattr__(self, "guess_mode", bool(self.guess_mode))
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {reprlib.repr(self.sampler)}: give one of {', '.join(SAMPLERS)}.")
        if not isinstance(self.controls, tuple) or not all(isinstance(u, ControlUnit) for u in self.controls):
            raise ValueError("controls must be a tuple of ControlUnit.")
        self._check_size()

    def _check_size(self) -> None:
        sizes: Sequence[tuple[int, int]] = [u.size for u in self.controls]
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
            raise ValueError("size is None and there is no control: give size=(height, width).")
        if len(set(sizes)) > 1:
            listed = ", ".join(f"{w}x{h}" for h, w in sizes)
            raise ValueError(
                f"sizes differ ({listed}): give every hint, and size, the same height and width."
            )

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures to make."""
        return self.size if self.size is not None else self.controls[0].size


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """One finished step: ``step`` of ``total``, from 1.

    ``preview`` is (h, w, 3) uint8 RGB, a rough small picture of the first image, or None where none is new.
    ``seconds_per_step`` is the mean so far, without the time that the consumer took.
    """

    step: int
    total: int
    preview: NDArray[np.uint8] | None = None
    seconds_per_step: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The finished pictures: each (H, W, 3) uint8 RGB; image i was made from ``seeds[i]``."""

    images: tuple[NDArray[np.uint8], ...]
    request: Request
    seeds: tuple[int, ...]
    model: str
    seconds: float
    extra: dict[str, str] = field(default_factory=dict)
