"""The request inside the picture: written into a PNG's text chunks, and read back from them.

Two chunks are written. ``parameters`` is the text that many programs of this kind read and show.
``controlnet-suite`` is JSON that reads back into the same Request, hints included.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from core.images import open_image
from core.infotext import format_parameters, parse_parameters
from core.request import Request
from core.stored_request import (
    REMEDY,
    Setting,
    StoredControl,
    StoredRequest,
    read_document,
    write_document,
)

CHUNK = "controlnet-suite"
MAX_TEXT_CHARS = 2**20


def save_png(
    image: NDArray[np.uint8],
    target: str | os.PathLike[str] | BinaryIO,
    request: Request,
    *,
    seed: int,
    model: str,
    modules: Sequence[str] = (),
    settings: Mapping[str, Setting] | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Save a picture (H, W, 3) uint8 RGB without loss, with the request in it; see ``png_info``."""
    info = png_info(request, seed=seed, model=model, modules=modules, settings=settings, extra=extra)
    Image.fromarray(image).save(target, format="PNG", pnginfo=info)


def png_info(
    request: Request,
    *,
    seed: int,
    model: str,
    modules: Sequence[str] = (),
    settings: Mapping[str, Setting] | None = None,
    extra: Mapping[str, str] | None = None,
) -> PngInfo:
    """Return the text chunks for one picture of a request.

    ``seed`` is this picture's own; ``model`` the base model's name; ``modules`` name the detector of each
    control; ``settings`` are the page's own values, to come back with ``read_request``; ``extra`` is the
    Result's.
    """
    info = PngInfo()
    text = format_parameters(request, seed=seed, model=model, modules=modules, extra=extra)
    info.add_text("parameters", text.encode("utf-8", "replace").decode().replace("\0", ""))
    # ASCII, so that it becomes an uncompressed chunk, which readers do not limit to 1 MB.
    document = write_document(request, seed=seed, model=model, settings=settings, extra=extra)
    info.add_text(CHUNK, document)
    return info


def read_request(source: Image.Image | str | os.PathLike[str] | BinaryIO) -> StoredRequest:
    """Read what a picture, given as a Pillow image or a file, tells of its request.

    Beside our own PNG files it understands the 'parameters' text of other programs: in a PNG's text chunk, or
    in the user comment of a JPEG's or WebP's camera note.

    Raises:
        ValueError: it tells nothing, or nonsense; says what to do.
    """
    image = source if isinstance(source, Image.Image) else open_image(source)
    document = image.info.get(CHUNK)
    if isinstance(document, str):
        return read_document(document)
    text = image.info.get("parameters") or _user_comment(image)
    if isinstance(text, str) and text.strip():
        return read_parameters(text)
    raise ValueError(f"The picture carries no settings: {REMEDY}")


def _user_comment(image: Image.Image) -> str:
    """Return the user comment in the camera note; empty where there is none or it is damaged."""
    try:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except Exception:  # Pillow raises nearly anything on a damaged note, which is as good as none
        return ""
    if not isinstance(comment, bytes):
        return ""
    code, rest = comment[:8], comment[8 : 4 * MAX_TEXT_CHARS]
    if code == b"UNICODE\0":  # UTF-16 whose byte order is not told: most characters are below 256
        big = rest[0::2].count(0) >= rest[1::2].count(0)
        return rest.decode("utf-16-be" if big else "utf-16-le", "replace")
    return rest.decode("utf-8", "replace") if code == b"ASCII\0\0\0" else ""


def read_parameters(text: str) -> StoredRequest:
    """Read the 'parameters' text of this or another program, as far as its words are known.

    Raises:
        ValueError: it is too long, or holds no settings at all; says what to do.
    """
    if len(text) > MAX_TEXT_CHARS:
        raise ValueError(f"The settings text has {len(text):,} characters: {REMEDY}")
    found = parse_parameters(text)
    controls = tuple(StoredControl(c.control, c.strength, c.start, c.end) for c in found.controls)
    return StoredRequest(
        **found.values, controls=controls, size=found.size, model=found.model, notes=tuple(found.notes)
    )
