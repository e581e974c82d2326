"""A request as JSON, its hints included, and what such a text reads back into.

Whatever is read is a stranger's: it is measured and checked before use.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.images import open_image, to_rgb
from core.infotext import notes_on
from core.request import (
    MAX_SAMPLES,
    MAX_SEED,
    MAX_SIDE,
    SIZE_MULTIPLE,
    SPEED_OPTIONS,
    ControlUnit,
    Request,
    check_number,
)

Setting = str | int | float | bool | None
VERSION = 1
MAX_CHARS = 32 * 2**20
MAX_HINT_BYTES = 6 * 2**20  # of the hint's PNG; a larger hint is only named by its digest
MAX_HINTS_BYTES = 22 * 2**20  # of all together: as text they take a third more, and must be read again
REMEDY = "give a PNG that was saved here, or one that carries a 'parameters' text."
_SCALARS = (
    *("prompt", "negative_prompt", "num_samples", "steps", "sampler"),
    *("cfg_scale", "eta", "seed", "guess_mode", "denoise"),
    *SPEED_OPTIONS,
)
_LATER = {"denoise": 1.0, **SPEED_OPTIONS}  # of pictures that were made before there was such a field
_TOO_LARGE = "The picture that it started from was too large to be kept: bring it again."


@dataclass(frozen=True, slots=True, eq=False)
class StoredControl:
    """A control as a picture tells it. ``hint`` is None where only its ``sha256`` was kept."""

    control: str
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    hint: NDArray[np.uint8] | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class StoredRequest:
    """What a picture tells of the request that made it; None where it says nothing.

    ``seed`` is the request's, ``picture_seed`` the one of this picture of the batch. ``settings`` are the
    page's own values by name, such as a detector's thresholds. ``notes`` say what could not be taken over.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    num_samples: int | None = None
    steps: int | None = None
    sampler: str | None = None
    cfg_scale: float | None = None
    eta: float | None = None
    seed: int | None = None
    guess_mode: bool | None = None
    denoise: float | None = None
    control_interval: int | None = None
    cache_interval: int | None = None
    token_merging_ratio: float | None = None
    init: NDArray[np.uint8] | None = None
    mask: NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
    controls: tuple[StoredControl, ...] = ()
    model: str | None = None
    picture_seed: int | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_request(self) -> Request:
        """Return the Request; what the picture does not say takes its default.

        Raises:
            ValueError: a control's hint is not in the picture, or a value is out of range.
        """
        units = []
        for stored in self.controls:
            if stored.hint is None:
                raise ValueError(
                    f"The picture does not hold the {stored.control} hint: make it again from the photo."
                )
            units.append(ControlUnit(stored.control, stored.hint, stored.strength, stored.start, stored.end))
        fields: tuple[str, ...] = (*_SCALARS, "init", "mask")
        if self.init is None:  # of other programs' pictures, or too large a one to be kept
            fields = tuple(name for name in fields if name not in ("denoise", "mask"))
        given = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        return Request(**{"prompt": "", **given}, controls=tuple(units), size=self.size)


def write_document(
    request: Request,
    *,
    seed: int,
    model: str,
    settings: Mapping[str, Setting] | None = None,
    extra: Mapping[str, str] | None = None,
) -> str:
    """Return the JSON, in ASCII, for one picture of a request; the arguments are those of ``png_info``.

    Raises:
        ValueError: a setting is neither text nor finite number; says which kind it is.
    """
    document = {
        "version": VERSION,
        "model": model,
        "picture_seed": int(seed),
        "request": _request_document(request),
        "settings": {name: _plain(value) for name, value in (settings or {}).items()},
        "extra": dict(extra or {}),
    }
    return json.dumps(document, ensure_ascii=True)


def read_document(document: str) -> StoredRequest:
    """Read what ``write_document`` returned.

    Raises:
        ValueError: it is too long, damaged, of a later version, or a value is out of range; says what to do.
    """
    if len(document) > MAX_CHARS:
        raise ValueError(f"The picture's settings have {len(document):,} characters: {REMEDY}")
    try:
        whole = json.loads(document, parse_constant=_refuse_constant)
        if isinstance(whole.get("version"), int) and whole["version"] > VERSION:
            raise ValueError(f"they have version {whole['version']}, and this program knows {VERSION}")
        return _checked(_stored(whole))
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"The picture's settings are damaged ({error!r}): {REMEDY}") from error
    except ValueError as error:  # includes JSON's own errors
        raise ValueError(f"The picture's settings cannot be used ({error}): {REMEDY}") from error


def _plain(value: Any) -> Setting:
    """Return NumPy's numbers as Python's, which JSON knows."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"A setting is {value}: give a finite number.")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"A setting is a {type(value).__name__}: give a text, a number, true, false or None.")


def _request_document(request: Request) -> dict[str, Any]:
    names = [name for name in _SCALARS if name not in SPEED_OPTIONS or name in request.speed_options]
    document: dict[str, Any] = {name: _plain(getattr(request, name)) for name in names}
    document["size"] = None if request.size is None else [int(side) for side in request.size]
    pictures = [*(unit.hint for unit in request.controls), request.init, request.mask]
    limit = MAX_HINTS_BYTES // max(1, sum(picture is not None for picture in pictures))
    document["controls"] = [
        {
            "control": unit.control,
            "strength": float(unit.strength),
            "start": float(unit.start),
            "end": float(unit.end),
            **_hint_document(unit.hint, limit),
        }
        for unit in request.controls
    ]
    if request.init is not None:
        # A control often has the same picture as its hint, which then is stored once.
        same = any(np.array_equal(unit.hint, request.init) for unit in request.controls)
        document["init"] = _hint_document(request.init, limit, pack=not same)
    if request.mask is not None:
        document["mask"] = _hint_document(request.mask, limit)
    return document


def _hint_document(hint: NDArray[np.uint8], limit: int, pack: bool = True) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(hint).save(buffer, format="PNG", optimize=True)
    pack = pack and buffer.tell() <= min(limit, MAX_HINT_BYTES)
    packed = base64.b64encode(buffer.getvalue()).decode("ascii") if pack else None
    return {"sha256": _digest(hint), "size": list(hint.shape[:2]), "png": packed}


def _digest(hint: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(hint).tobytes()).hexdigest()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _stored(whole: dict[str, Any]) -> StoredRequest:
    request, settings = _LATER | whole["request"], whole.get("settings", {})
    size = request["size"]
    controls = tuple(_stored_control(unit) for unit in request["controls"])
    init = _stored_init(request.get("init"), controls)
    lost = (_TOO_LARGE,) if init is None and request.get("init") is not None else ()
    return StoredRequest(
        **{name: request[name] for name in _SCALARS},
        init=init,
        mask=_stored_mask(request.get("mask")),
        size=None if size is None else (size[0], size[1]),
        controls=controls,
        model=str(whole["model"]),
        picture_seed=whole["picture_seed"],
        settings={str(name): _plain(value) for name, value in settings.items()},
        notes=(*notes_on(whole.get("extra", {})), *lost),
    )


def _stored_init(init: dict[str, Any] | None, controls: Sequence[StoredControl]) -> NDArray[np.uint8] | None:
    if init is None or init["png"] is not None:
        return None if init is None else _read_hint(init["png"], init["size"], init["sha256"])
    return next((c.hint for c in controls if c.sha256 == init["sha256"]), None)


def _stored_mask(mask: dict[str, Any] | None) -> NDArray[np.uint8] | None:
    if mask is None or mask["png"] is None:
        return None
    return _read_hint(mask["png"], mask["size"], mask["sha256"], grey=True)


def _stored_control(unit: dict[str, Any]) -> StoredControl:
    hint = None if unit["png"] is None else _read_hint(unit["png"], unit["size"], unit["sha256"])
    strength, start, end = unit["strength"], unit["start"], unit["end"]
    return StoredControl(unit["control"], strength, start, end, hint, str(unit["sha256"]))


def _read_hint(packed: str, size: Sequence[int], digest: str, grey: bool = False) -> NDArray[np.uint8]:
    try:
        data = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError("a hint is damaged") from error
    image = open_image(io.BytesIO(data))
    height, width = size
    if (image.height, image.width) != (height, width) or max(height, width) > MAX_SIDE:
        raise ValueError(f"a hint is {image.width}x{image.height} px")
    hint = np.ascontiguousarray(to_rgb(image)[:, :, 0]) if grey else to_rgb(image)
    if _digest(hint) != digest:
        raise ValueError("a hint is not the one that made the picture")
    return hint


def _checked(stored: StoredRequest) -> StoredRequest:
    """Return ``stored`` after letting Request and ControlUnit check every value, with blanks for hints."""
    if stored.picture_seed is None:
        raise ValueError("picture_seed is missing")
    check_number("picture_seed", stored.picture_seed, 0, MAX_SEED + MAX_SAMPLES, integer=True)
    blank = np.zeros((SIZE_MULTIPLE, SIZE_MULTIPLE, 3), np.uint8)
    for unit in stored.controls:
        hint = blank if unit.hint is None else unit.hint
        ControlUnit(unit.control, hint, unit.strength, unit.start, unit.end)
    values = {name: getattr(stored, name) for name in _SCALARS if name != "denoise"}
    Request(**values, size=stored.size or blank.shape[:2])
    mask = None if stored.init is None else stored.mask
    Request("", init=blank if stored.init is None else stored.init, mask=mask, denoise=stored.denoise or 0.0)
    return stored
