"""Pictures in and out: whatever a person brings to (H, W, 3) uint8 RGB, sizes, resizing, tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

MAX_INPUT_SIDE = 16_384
MAX_INPUT_PIXELS = 64_000_000
MAX_OUTPUT_SIDE = 2048
SIZE_MULTIPLE = 64
# Only raster formats that Pillow decodes by itself: its EPS reader would start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_ORIENTATION_TAG = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image | NDArray[Any] | str | os.PathLike[str] | BinaryIO | None) -> NDArray[np.uint8]:
    """Turn a picture into (H, W, 3) uint8 RGB.

    Takes a Pillow image, a path, a binary file or an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of
    uint8, bool, uint16 (the high byte counts) or floats in [0, 1]. Transparency is blended on white and
    truncated. Of an animation the first frame counts; a camera's orientation mark is applied.

    Raises:
        ValueError: nothing given, unreadable, or too large; says what to do.
    """
    if image is None:
        raise ValueError("There is no picture: upload one or pick an example.")
    if isinstance(image, np.ndarray):
        return _hwc3(_to_8_bit(image))
    if isinstance(image, Image.Image):
        return _decode(image)
    return _decode(open_image(image))


def open_image(source: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Open a picture file without decoding it yet.

    Raises:
        ValueError: the file is missing, is no picture or is too large; says what to do.
    """
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        raise ValueError(f"{type(source).__name__} is no picture: give a file, a Pillow image or an array.")
    name = Path(source).name if isinstance(source, (str, os.PathLike)) else "The file"
    try:
        image = Image.open(source, formats=FORMATS)
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist: give the path of a picture.") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large("more than 178 million pixels")) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged or hostile files
        raise ValueError(
            f"{name} is not a picture that can be read: give a PNG, JPEG, WebP, GIF, BMP or TIFF file."
        ) from error
    _check_size(image.width, image.height)
    return image


def _too_large(what: str) -> str:
    return (
        f"The picture has {what}: shrink it to at most {MAX_INPUT_SIDE:,} px a side "
        f"and {MAX_INPUT_PIXELS // 1_000_000} million pixels."
    )


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"The picture is empty ({width}x{height} px): give one with at least one pixel.")
    if max(width, height) > MAX_INPUT_SIDE or width * height > MAX_INPUT_PIXELS:
        raise ValueError(_too_large(f"{width:,}x{height:,} px"))


def _decode(image: Image.Image) -> NDArray[np.uint8]:
    _check_size(image.width, image.height)  # before decoding: a small file can hold a huge picture
    try:
        image.load()
        image = _upright(image)
        deep = image.mode.startswith("I") or image.mode == "F"
        if not deep:
            transparent = "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}
            image = image.convert("RGBA" if transparent else "RGB")
        values = np.asarray(image)
    except Exception as error:  # see open_image
        raise ValueError(
            f"The picture is damaged or incomplete ({error}): save it again, or give another."
        ) from error

    return _hwc3(_to_8_bit(_at_most_16_bit(values) if deep else values))


def _orientation(image: Image.Image) -> int:
    """Return the camera's orientation mark, 1 to 8; 1, upright, where it is missing or damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged camera note must not cost the picture
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TRANSPOSES else 1


def _upright(image: Image.Image) -> Image.Image:
    method = _TRANSPOSES.get(_orientation(image))
    return image if method is None else image.transpose(method)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (height, width) that ``to_rgb`` will give, without decoding the picture."""
    lies = _orientation(image) >= 5  # 5 to 8 swap the sides
    return (image.width, image.height) if lies else (image.height, image.width)


def _at_most_16_bit(values: NDArray[Any]) -> NDArray[Any]:
    """Return 32-bit integers, as which some 16-bit files are read, as uint16; others as they are."""
    if values.dtype.itemsize == 2 or np.issubdtype(values.dtype, np.floating):
        return values.astype(values.dtype.newbyteorder("="))
    if values.min() < 0 or values.max() > 65_535:
        raise ValueError("The picture has more than 16 bits a channel: save it with 8 or 16 bits.")
    return values.astype(np.uint16)


def _to_8_bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"The picture's shape is {image.shape}: give (H, W) or (H, W, 1, 3 or 4).")
    _check_size(image.shape[1], image.shape[0])
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise ValueError("The picture's floats leave [0, 1]: scale them, or give uint8.")
        return (image * 255.0 + 0.5).astype(np.uint8)
    raise ValueError(f"The picture's values are {image.dtype}: give uint8, uint16, bool or floats in [0, 1].")


def _hwc3(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give every picture three channels. Source: HWC3 of the ControlNet 1.0 demos."""
    if image.ndim == 2:
        image = image[:, :, None]
    channels = image.shape[2]
    if channels == 1:
        return np.repeat(image, 3, axis=2)
    if channels == 3:
        return np.ascontiguousarray(image)
    out = np.empty((*image.shape[:2], 3), np.uint8)
    for top in range(0, len(image), 256):  # in strips: as floats a large picture would take gigabytes
        strip = image[top : top + 256].astype(np.float32)
        alpha = strip[:, :, 3:] / 255.0
        out[top : top + 256] = (strip[:, :, :3] * alpha + 255.0 * (1.0 - alpha)).clip(0, 255).astype(np.uint8)
    return out


def fit_size(height: int, width: int, resolution: int, max_side: int = MAX_OUTPUT_SIDE) -> tuple[int, int]:
    """Return the output's (height, width) for a picture: multiples of 64, the short side near ``resolution``.

    Both sides are scaled by resolution / short side and rounded, half to even, to multiples of 64 (at least
    64). Where the long side would exceed ``max_side`` the whole is scaled down to it instead.

    Raises:
        ValueError: a side or the resolution is below 1.

    Source: resize_image of the ControlNet 1.0 demos, which has no upper bound.
    """
    for name, value in (("height", height), ("width", width), ("resolution", resolution)):
        if not value >= 1:
            raise ValueError(f"{name} is {value!r}: give at least 1.")
    scale = float(resolution) / min(float(height), float(width))
    fitted = _snap(height * scale), _snap(width * scale)
    if max(fitted) <= max_side:
        return fitted
    scale = max_side / max(height, width)
    return min(_snap(height * scale), max_side), min(_snap(width * scale), max_side)


def _snap(side: float) -> int:
    return max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE


def crop_to_proportions(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the largest middle part of (h, w, c) that has the proportions of ``size`` = (H, W)."""
    height, width = image.shape[:2]
    kept_height = max(1, min(height, round(width * size[0] / size[1])))
    kept_width = max(1, min(width, round(height * size[1] / size[0])))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    return image[top : top + kept_height, left : left + kept_width]


def resize_image(
    image: NDArray[np.uint8], resolution: int, max_side: int = MAX_OUTPUT_SIDE
) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to ``fit_size``: Lanczos where the picture grows, else area averaging."""
    height, width = image.shape[:2]
    size = fit_size(height, width, resolution, max_side)
    grows = resolution > min(height, width) and max_side > max(height, width)
    return resize(image, size, cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA)


def resize(
    image: NDArray[np.uint8], size: tuple[int, int], interpolation: int | None = None
) -> NDArray[np.uint8]:
    """Resize (h, w[, c]) uint8 to ``size`` = (H, W).

    ``interpolation`` is one of OpenCV's; None takes Lanczos where the short side grows, else area averaging.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if interpolation is None:
        grows = min(size) > min(image.shape[:2])
        interpolation = cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), dtype=np.uint8)


def hint_to_tensor(hint: NDArray[np.uint8]) -> torch.Tensor:
    """Turn a hint (H, W, 3) uint8 into a float32 tensor (1, 3, H, W) in [0, 1]."""
    import torch

    planes = torch.tensor(hint).permute(2, 0, 1)[None]  # (1, 3, H, W)
    return planes.float().div(255.0).contiguous()


def to_uint8(images: torch.Tensor) -> list[NDArray[np.uint8]]:
    """Turn pictures (B, 3, H, W) in [-1, 1] into B arrays (H, W, 3) uint8: scaled, clipped, truncated."""
    import torch

    levels = (images.detach().float() * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    return [np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in levels]
