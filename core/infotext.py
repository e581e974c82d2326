"""The 'parameters' text that programs of this kind write into their pictures.

Its form: the prompt, a line beginning ``Negative prompt:``, and a last line of ``Name: value`` pairs with
commas between them, where a value that itself holds commas, colons or quotes stands in JSON quotes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.request import (
    MAX_INTERVAL,
    MAX_MERGING,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_DENOISE,
    SIZE_MULTIPLE,
    Request,
)

_NEGATIVE = "Negative prompt:"
_SAMPLER_LABELS = {
    "ddim": ("DDIM", None),
    "euler_a": ("Euler a", None),
    "dpmpp_2m": ("DPM++ 2M", "Karras"),
    "unipc": ("UniPC", None),
}
_SAMPLERS_BY_LABEL = {
    "ddim": "ddim",
    "euler a": "euler_a",
    "k_euler_a": "euler_a",
    "k_euler_ancestral": "euler_a",
    "dpm++ 2m": "dpmpp_2m",
    "dpm++ 2m karras": "dpmpp_2m",
    "unipc": "unipc",
}
_CONTROLS_BY_WORD = {
    "canny": "canny",
    "depth": "depth",
    "hed": "hed",
    "softedge": "hed",
    "mlsd": "mlsd",
    "normal": "normal",
    "normalbae": "normal",
    "openpose": "openpose",
    "scribble": "scribble",
    "seg": "seg",
}
_SPEED_LABELS = {
    "control_interval": "Control interval",
    "cache_interval": "DeepCache interval",
    "token_merging_ratio": "Token merging ratio",
}
_EXTRA_LABELS = {
    "clip_skip": "Clip skip",
    "vae": "VAE",
    "loras": "LoRAs",
    "transfer_from": "ControlNet moved from",
}
_EXTRAS_BY_LABEL = {label: name for name, label in _EXTRA_LABELS.items()}
_EXTRA_OPTIONS = {"vae": "--vae", "loras": "--lora", "transfer_from": "--transfer-control"}
_NAME = re.compile(r"[\s,]*([^:,\"]+?)\s*:\s*")
_UNIT_PAIR = re.compile(r"\s*([^:,]+?)\s*:\s*(\([^)]*\)|[^,]*)")
_GUESS = "ControlNet is more important"


@dataclass(slots=True)
class FoundControl:
    """A control named in the text."""

    control: str
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(slots=True)
class Found:
    """What the text says. ``values`` are fields of Request; ``notes`` tell what could not be taken over."""

    values: dict[str, Any] = field(default_factory=dict)
    controls: list[FoundControl] = field(default_factory=list)
    size: tuple[int, int] | None = None
    model: str | None = None
    notes: list[str] = field(default_factory=list)


def format_parameters(
    request: Request,
    *,
    seed: int,
    model: str,
    modules: Sequence[str] = (),
    extra: Mapping[str, str] | None = None,
) -> str:
    """Return the text for one picture.

    ``seed`` is its own, ``modules`` name the detector of each control, ``extra`` is the Result's.
    """
    height, width = request.height_width
    sampler, schedule = _SAMPLER_LABELS.get(request.sampler, (request.sampler, None))
    pairs: list[tuple[str, str]] = [("Steps", str(int(request.steps))), ("Sampler", sampler)]
    if schedule:
        pairs.append(("Schedule type", schedule))
    pairs += [
        ("CFG scale", _number(request.cfg_scale)),
        ("Seed", str(int(seed))),
        ("Size", f"{width}x{height}"),
        ("Model", model),
    ]
    if request.eta:
        pairs.append(("Eta", _number(request.eta)))
    if request.init is not None:
        pairs.append(("Denoising strength", _number(request.denoise)))
    pairs += [(_SPEED_LABELS[name], _number(value)) for name, value in request.speed_options.items()]
    pairs += [(label, extra[name]) for name, label in _EXTRA_LABELS.items() if extra and name in extra]
    for index, unit in enumerate(request.controls):
        module = modules[index] if index < len(modules) else unit.control
        told = (
            f"Module: {module}, Model: {unit.control}, Weight: {_number(unit.strength)}, "
            f"Guidance Start: {_number(unit.start)}, Guidance End: {_number(unit.end)}, "
            f"Control Mode: {_GUESS if request.guess_mode else 'Balanced'}"
        )
        pairs.append((f"ControlNet {index}", told))
    pairs.append(("Version", "controlnet-suite"))
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"{_NEGATIVE} {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs))
    return "\n".join(lines)


def notes_on(extra: Mapping[str, object]) -> tuple[str, ...]:
    """Say what a picture's ``extra`` asks for that the page cannot set."""
    clip_skip = str(extra.get("clip_skip", "1"))
    notes = []
    if clip_skip != "1":
        notes.append(f"It was made with clip skip {clip_skip[:10]}: start with --clip-skip for the same.")
    for name, option in _EXTRA_OPTIONS.items():
        told = str(extra.get(name) or "")
        if told:
            label = _EXTRA_LABELS[name]
            notes.append(f"It was made with {label} {told[:80]}: start with {option} for the same.")
    return tuple(notes)


def _number(value: float) -> str:
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


def parse_parameters(text: str) -> Found:
    """Read the text of this or another program, as far as its words are known.

    Raises:
        ValueError: there is no line of settings; says what to do.
    """
    lines = text.strip().replace("\r\n", "\n").split("\n")
    at = _settings_line(lines)
    if at is None:
        raise ValueError("The text holds no settings: give one with a line like 'Steps: 20, Sampler: DDIM'.")
    found = Found()
    _take_prompts(lines[:at], found)
    pairs = _pairs(" ".join(lines[at:]))
    for name, value in pairs.items():
        _take_pair(name, value, found)
    _take_sampler(pairs, found)
    _take_controls(pairs, found)
    return found


def _settings_line(lines: list[str]) -> int | None:
    """Return the index of the last line that reads as settings: it begins with Steps, or has three pairs."""
    for index in reversed(range(len(lines))):
        if lines[index].lstrip().startswith("Steps:"):
            return index
    return len(lines) - 1 if len(_pairs(lines[-1])) >= 3 and "Seed" in _pairs(lines[-1]) else None


def _pairs(line: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    at = 0
    while match := _NAME.match(line, at):
        name, at = match.group(1), match.end()
        value, end = _quoted_value(line, at)
        if end is None:
            end = line.find(",", at)
            end = len(line) if end < 0 else end
            value = line[at:end].strip()
        pairs.setdefault(name, value)
        at = end
    return pairs


def _quoted_value(line: str, at: int) -> tuple[str, int | None]:
    if line.startswith('"', at):
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(line, at)
        except ValueError:
            return "", None  # a stray quotation mark: the value then ends at the comma
        return str(value), end
    return "", None


def _take_prompts(lines: list[str], found: Found) -> None:
    negative_at = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    found.values["prompt"] = "\n".join(lines[:negative_at]).strip()
    negative = "\n".join(lines[negative_at:])
    found.values["negative_prompt"] = negative.removeprefix(_NEGATIVE).strip()


def _take_pair(name: str, value: str, found: Found) -> None:
    if name == "Model":
        found.model = value
    elif name == "Size":
        match = re.fullmatch(r"(\d{1,6})\s*[xX]\s*(\d{1,6})", value)
        size = (int(match.group(2)), int(match.group(1))) if match else (0, 0)
        if all(side % SIZE_MULTIPLE == 0 and SIZE_MULTIPLE <= side <= MAX_SIDE for side in size):
            found.size = size
        else:
            found.notes.append(f"The size {value[:40]} was left out: sides must be multiples of 64.")
    elif name in _EXTRAS_BY_LABEL:
        found.notes += notes_on({_EXTRAS_BY_LABEL[name]: value})
    elif name in _NUMBERS:
        field_name, low, high, whole = _NUMBERS[name]
        number = _bounded(value, low, high, whole)
        if number is None:
            found.notes.append(f"{name} {value[:40]} was left out: it must lie in {low:g} to {high:g}.")
        else:
            found.values[field_name] = number


_NUMBERS: dict[str, tuple[str, float, float, bool]] = {
    "Steps": ("steps", 1, MAX_STEPS, True),
    "CFG scale": ("cfg_scale", 0.1, 30, False),
    "Seed": ("seed", 0, MAX_SEED, True),
    "Eta": ("eta", 0, 1, False),
    "Denoising strength": ("denoise", MIN_DENOISE, 1, False),
    "Eta DDIM": ("eta", 0, 1, False),
    _SPEED_LABELS["control_interval"]: ("control_interval", 1, MAX_INTERVAL, True),
    _SPEED_LABELS["cache_interval"]: ("cache_interval", 1, MAX_INTERVAL, True),
    _SPEED_LABELS["token_merging_ratio"]: ("token_merging_ratio", 0, MAX_MERGING, False),
}


def _bounded(value: str, low: float, high: float, whole: bool = False) -> float | int | None:
    try:
        number = float(value)
    except ValueError:
        return None
    if not math.isfinite(number) or not low <= number <= high or (whole and not number.is_integer()):
        return None
    return int(number) if whole else number


def _take_sampler(pairs: dict[str, str], found: Found) -> None:
    label = pairs.get("Sampler")
    if label is None:
        return
    sampler = _SAMPLERS_BY_LABEL.get(label.lower())
    if sampler is None:
        found.notes.append(f"The sampler {label[:40]} is not known here: choose another.")
    else:
        found.values["sampler"] = sampler


def _take_controls(pairs: dict[str, str], found: Found) -> None:
    units = [_UNIT_PAIR.findall(v) for n, v in pairs.items() if re.fullmatch(r"ControlNet( \d+)?", n)]
    if not units and "ControlNet Model" in pairs:  # an older form: one unit, spread over the line
        prefix = "ControlNet "
        units = [[(n.removeprefix(prefix), v) for n, v in pairs.items() if n.startswith(prefix)]]
    for unit in units:
        _take_control({name.strip().lower(): value.strip() for name, value in unit}, found)


def _take_control(unit: dict[str, str], found: Found) -> None:
    model, module = unit.get("model", ""), unit.get("module", unit.get("preprocessor", ""))
    control = _control_name(model) or _control_name(module)
    if control is None:
        found.notes.append(f"The control {(model or module)[:60]} is not known here: choose another.")
        return
    told = FoundControl(control)
    span = re.fullmatch(r"\(\s*([\d.]+)\s*,\s*([\d.]+)\s*\)", unit.get("starting/ending", ""))
    strength = _bounded(unit.get("weight", "1"), 0, 2)
    start = _bounded(span.group(1) if span else unit.get("guidance start", "0"), 0, 1)
    end = _bounded(span.group(2) if span else unit.get("guidance end", "1"), 0, 1)
    if strength is None or start is None or end is None or start > end:
        found.notes.append(f"The {control} control's weight, start or end was left out: it is out of range.")
    else:
        told.strength, told.start, told.end = strength, start, end
    if unit.get("control mode") == _GUESS:
        found.values["guess_mode"] = True
    found.controls.append(told)


def _control_name(name: str) -> str | None:
    """Return our name of a control from a model's name, such as ``control_v11p_sd15_canny [d14c016b]``."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((_CONTROLS_BY_WORD[word] for word in words if word in _CONTROLS_BY_WORD), None)
