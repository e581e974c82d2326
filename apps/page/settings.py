"""The settings beside a picture and a prompt: declared once, for the page, the endpoint and stored pictures.

Labels, ranges, defaults and order are those of the ControlNet 1.0 demos; the preprocessor, the sampler
and the start and end of control are new.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import annotators
from annotators.base import Annotator, Checkbox, Slider
from apps.spec import MASK, App
from core.request import MAX_INTERVAL, MAX_MERGING, MAX_PROMPT_CHARS, MAX_SAMPLES, MAX_SEED, SPEED_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

ADDED_PROMPT = "best quality, extremely detailed"
NEGATIVE_PROMPT = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality"
)
SAMPLER_LABELS = {"ddim": "DDIM", "euler_a": "Euler a", "dpmpp_2m": "DPM++ 2M Karras", "unipc": "UniPC"}
DETECT, READY_MAP, INVERTED_MAP = "detect", "none", "invert"


@dataclass(frozen=True, slots=True)
class Number(Slider):
    """A number that is typed rather than slid."""

    def check(self, value: Any) -> int | float:
        """Return the value as int or float.

        Raises:
            ValueError: names the control, the value and what is allowed, with every digit.
        """
        try:
            return Slider.check(self, value)
        except ValueError:
            kind = "a whole number" if self.whole else "a number"
            limits = f"from {self.minimum:.10g} to {self.maximum:.10g}"
            raise ValueError(f"{self.name} is {value!r:.80}: give {kind} {limits}.") from None


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text."""

    name: str
    label: str
    default: str = ""
    info: str = ""
    lines: int = 1

    def check(self, value: Any) -> str:
        """Return the text.

        Raises:
            ValueError: no text, or too long a one.
        """
        if not isinstance(value, str):
            raise ValueError(f"{self.name} is {value!r:.80}: give a text.")
        if len(value) > MAX_PROMPT_CHARS:
            raise ValueError(f"{self.name} has {len(value):,} characters: give at most {MAX_PROMPT_CHARS:,}.")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several words; ``choices`` maps each to its label."""

    name: str
    label: str
    choices: tuple[tuple[str, str], ...]
    default: str
    info: str = ""

    def check(self, value: Any) -> str:
        """Return the word.

        Raises:
            ValueError: another word; lists those there are.
        """
        words = [word for word, _ in self.choices]
        if value not in words:
            raise ValueError(f"{self.name} is {value!r:.80}: give one of {', '.join(words)}.")
        return str(value)


Setting: TypeAlias = Slider | Checkbox | Number | Text | Choice

PROMPT = Text("prompt", "Prompt")
AUTO = Checkbox("auto_resolution", "Auto", False, "Suits the output's size and the detector.")


def declare_app(app: App, resolution: int, cfg_scale: float = 9.0) -> tuple[Setting, ...]:
    """Return the settings of an app: those of its detector and, after the size, its own."""
    declared = declare(annotators.load(app.annotator), resolution, cfg_scale)
    at = [setting.name for setting in declared].index("strength")
    return (*declared[:at], *_start(app), *declared[at:])


def _start(app: App) -> tuple[Setting, ...]:
    own: list[Setting] = []
    if app.denoise is not None:
        told = "How much is drawn anew: 1 is all of it."
        own.append(Slider("denoise", "Denoising Strength", 0.05, 1.0, app.denoise, 0.01, told))
    if app.editor == MASK:
        told = "Pixels over which what is drawn fades into the picture."
        own.append(Slider("mask_blur", "Mask Blur", 0.0, 64.0, 5.0, 0.1, told))
    return tuple(own)


def declare(annotator: Annotator, resolution: int, cfg_scale: float = 9.0) -> tuple[Setting, ...]:
    """Return the settings under "Advanced options", in the page's order.

    ``resolution``, the short side in pixels that the model was trained at, and ``cfg_scale`` are defaults.
    """
    return (
        *_pictures(resolution),
        *WEIGHT,
        _GUESS_MODE,
        *_map(annotator, resolution),
        *_sampling(cfg_scale),
        *SPEED,
    )


def declare_run(resolution: int, cfg_scale: float = 9.0) -> tuple[Setting, ...]:
    """Return what a run has once, however many controls it has."""
    return (*_pictures(resolution), _GUESS_MODE, *_sampling(cfg_scale), *SPEED)


def declare_unit(annotator: Annotator, resolution: int) -> tuple[Setting, ...]:
    """Return what each control has for itself: with ``declare_run`` all that ``declare`` returns."""
    return (*_map(annotator, resolution), *WEIGHT)


GUESS_MODE = "guess_mode"
ADVISED_FOR_GUESSING = {"steps": 50, "cfg_scale": 4.0}  # the original advises 50 steps and a scale of 3 to 5
_GUESS_MODE = Checkbox(
    GUESS_MODE,
    "Guess Mode",
    False,
    "The map alone decides, no prompt is needed: deep layers are controlled in full, shallow ones little, "
    "and guidance pushes towards the map. Best with 50 steps and a guidance scale of 3 to 5.",
)
WEIGHT = (
    Slider("strength", "Control Strength", 0.0, 2.0, 1.0, 0.01),
    Slider("start", "Control start", 0.0, 1.0, 0.0, 0.01),
    Slider("end", "Control end", 0.0, 1.0, 1.0, 0.01),
)
# Off by default; figures are in docs/performance.md.
SPEED = (
    Slider(
        "control_interval",
        "Control Interval",
        1,
        MAX_INTERVAL,
        SPEED_OPTIONS["control_interval"],
        info="The ControlNet computes every so many steps: 2 saves an eighth of the time. 1 is exact.",
    ),
    Slider(
        "cache_interval",
        "Cache Interval (DeepCache)",
        1,
        MAX_INTERVAL,
        SPEED_OPTIONS["cache_interval"],
        info="Deep layers compute every so many steps: 2 halves the time, details change. 1 is exact.",
    ),
    Slider(
        "token_merging_ratio",
        "Token Merging Ratio",
        0.0,
        MAX_MERGING,
        SPEED_OPTIONS["token_merging_ratio"],
        0.05,
        "From 512 px on: 0.5 saves a seventh of the time, details change. 0 is exact.",
    ),
)


def _pictures(resolution: int) -> tuple[Setting, ...]:
    return (
        Slider("num_samples", "Images", 1, MAX_SAMPLES, 1),
        Slider("resolution", "Image Resolution", 256, 768, min(max(resolution, 256), 768), 64),
    )


def _map(annotator: Annotator, resolution: int) -> tuple[Setting, ...]:
    if annotator.resolution is None:
        return (_preprocessor(annotator), *annotator.params)
    own = annotator.resolution
    # Not finer than what a small model draws: thin lines would come out dashed, and it takes longer.
    start = min(own.default, max(own.minimum, resolution))
    detect = replace(own, name="detect_resolution", default=start)
    return (_preprocessor(annotator), detect, AUTO, *annotator.params)


def _sampling(cfg_scale: float) -> tuple[Setting, ...]:
    return (
        Slider("steps", "Steps", 1, 100, 20),
        Choice("sampler", "Sampler", tuple(SAMPLER_LABELS.items()), "ddim"),
        Slider("cfg_scale", "Guidance Scale", 0.1, 30.0, cfg_scale, 0.1),
        Number("seed", "Seed", -1, MAX_SEED, -1, 1, "-1 takes a new one."),
        Number("eta", "eta (DDIM)", 0.0, 1.0, 0.0, 0.01),
        Text("added_prompt", "Added Prompt", ADDED_PROMPT),
        Text("negative_prompt", "Negative Prompt", NEGATIVE_PROMPT, lines=2),
    )


def _preprocessor(annotator: Annotator) -> Choice:
    choices: tuple[tuple[str, str], ...] = (
        (DETECT, annotator.title or type(annotator).__name__),
        (READY_MAP, "None: my image is already a map"),
        (INVERTED_MAP, annotator.kind.mended),
    )
    if not annotator.takes_maps:
        choices = choices[:1]
    return Choice("preprocessor", "Preprocessor", choices, DETECT)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a person set, checked; ``detector`` holds the detector's own values.

    ``detect_resolution`` is None for a detector that works at the output's size.
    """

    prompt: str
    num_samples: int
    resolution: int
    strength: float
    start: float
    end: float
    guess_mode: bool
    preprocessor: str
    detector: tuple[tuple[str, int | float | bool], ...]
    detect_resolution: int | None
    steps: int
    sampler: str
    cfg_scale: float
    seed: int
    eta: float
    added_prompt: str
    negative_prompt: str
    auto_resolution: bool = False
    denoise: float = 1.0
    mask_blur: float | None = None
    control_interval: int = 1
    cache_interval: int = 1
    token_merging_ratio: float = 0.0

    @property
    def full_prompt(self) -> str:
        """The prompt and the added prompt."""
        return ", ".join(part for part in (self.prompt.strip(), self.added_prompt.strip()) if part)


def parse(values: Mapping[str, Any], declared: Sequence[Setting]) -> Settings:
    """Check the values that a browser or a client sent, by name; -1 as the seed becomes a random one.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """
    checked: dict[str, Any] = {s.name: s.check(values.get(s.name)) for s in (PROMPT, *declared)}
    if checked["start"] > checked["end"]:
        raise ValueError(
            f"start is {checked['start']:g}, after end {checked['end']:g}: give start at most end."
        )
    if checked["seed"] < 0:
        checked["seed"] = secrets.randbelow(MAX_SEED - MAX_SAMPLES)
    names = {f for f in Settings.__dataclass_fields__ if f in checked}
    own = tuple((name, value) for name, value in checked.items() if name not in names)
    known: dict[str, Any] = {"detect_resolution": None, **{name: checked[name] for name in names}}
    return Settings(**known, detector=own)
