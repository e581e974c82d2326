"""Pictures in and out, against the original's functions and against what people really upload."""

from __future__ import annotations

import io
import json
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from core.images import (
    MAX_OUTPUT_SIDE,
    fit_size,
    hint_to_tensor,
    open_image,
    resize,
    resize_image,
    to_rgb,
    to_uint8,
    upright_size,
)

GOLDEN = Path(__file__).parent / "golden" / "images"
TENSORS = load_file(GOLDEN / "resize.safetensors")
SIZES = json.loads((GOLDEN / "sizes.json").read_text())
RESIZED = [name for name in TENSORS if name.startswith("resize.") and name.count(".") == 2]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, **options)  # type: ignore[arg-type]
    buffer.seek(0)
    return buffer


# The original's functions


@pytest.mark.parametrize(("height", "width", "resolution", "out_height", "out_width"), SIZES)
def test_sizes_are_the_originals(
    height: int, width: int, resolution: int, out_height: int, out_width: int
) -> None:
    assert fit_size(height, width, resolution) == (out_height, out_width)


@pytest.mark.parametrize("name", RESIZED)
def test_resizing_is_the_originals(name: str) -> None:
    _, index, resolution = name.split(".")
    ours = resize_image(TENSORS[f"resize.{index}"], int(resolution))
    # Equal on the OpenCV that made the file; other versions may round a level differently.
    assert ours.shape == TENSORS[name].shape
    assert np.abs(ours.astype(int) - TENSORS[name]).max() <= (0 if cv2.__version__.startswith("5.0") else 1)


@pytest.mark.parametrize("index", range(4))
def test_channels_are_made_three_as_in_the_original(index: int) -> None:
    assert np.array_equal(to_rgb(TENSORS[f"hwc3.{index}"]), TENSORS[f"hwc3.{index}.out"])


# Sizes


@given(st.integers(1, 16_384), st.integers(1, 16_384), st.integers(64, 1024))
@settings(deadline=None)
def test_sizes_are_multiples_of_64_within_bounds(height: int, width: int, resolution: int) -> None:
    size = fit_size(height, width, resolution)
    assert all(side % 64 == 0 and 64 <= side <= MAX_OUTPUT_SIDE for side in size)
    scale = resolution / min(height, width)
    uncapped = tuple(int(np.round(np.float64(side) * scale / 64.0)) * 64 for side in (height, width))
    if max(uncapped) <= MAX_OUTPUT_SIDE and min(uncapped) > 0:
        assert size == uncapped
    else:
        assert (size[0] >= size[1]) == (height >= width) or abs(size[0] - size[1]) <= 64


def test_half_way_sizes_round_to_even() -> None:
    assert fit_size(96, 160, 96) == (128, 128)  # 1.5 and 2.5 times 64 both become 2 times 64


def test_a_long_strip_is_capped_and_keeps_its_shape_as_far_as_64_goes() -> None:
    assert fit_size(1000, 10_000, 768) == (192, 2048)
    assert fit_size(100, 16_000, 512) == (64, 2048)
    assert fit_size(512, 4096, 512) == (256, 2048)
    assert fit_size(1000, 10_000, 768, max_side=8192) == (768, 7680)


@pytest.mark.parametrize("resolution", [0, -64, float("nan")])
def test_a_senseless_resolution_is_refused(resolution: int) -> None:
    with pytest.raises(ValueError, match="resolution is .*give at least 1"):
        fit_size(100, 100, resolution)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (20, 3000)])
def test_tiny_and_narrow_pictures_resize(shape: tuple[int, int]) -> None:
    out = resize_image(noise(*shape), 512)
    assert out.shape[:2] == fit_size(*shape, 512)
    assert resize_image(np.full((*shape, 3), 77, np.uint8), 512).mean() == 77


def test_resizing_to_a_size_agrees_with_resizing_to_a_resolution() -> None:
    for picture in (noise(200, 133), noise(700, 900), noise(512, 512)):
        for resolution in (256, 512):
            size = fit_size(picture.shape[0], picture.shape[1], resolution)
            assert np.array_equal(resize(picture, size), resize_image(picture, resolution))


# What people bring

PHOTO = noise(12, 20)
GREY = noise(12, 20, 1)[:, :, 0]


def test_a_path_a_file_an_image_and_an_array_are_the_same_picture(tmp_path: Path) -> None:
    image = Image.fromarray(PHOTO)
    image.save(tmp_path / "photo.png")
    path = tmp_path / "photo.png"
    for given_as in (path, str(path), io.BytesIO(path.read_bytes()), image, PHOTO):
        assert np.array_equal(to_rgb(given_as), PHOTO)


@pytest.mark.parametrize("array", [GREY, GREY[:, :, None], Image.fromarray(GREY)], ids=["2d", "3d", "pillow"])
def test_grey_becomes_three_equal_channels(array: NDArray[np.uint8]) -> None:
    assert np.array_equal(to_rgb(array), np.stack([GREY] * 3, axis=2))


def test_transparency_is_blended_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    assert to_rgb(rgba)[0, :, 0].tolist() == [255, 126, 0]  # 255 * (1 - 128 / 255) = 127, less by rounding
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert np.array_equal(to_rgb(encoded(grey_alpha, format="PNG")), to_rgb(rgba))


def test_blending_a_tall_picture_joins_its_strips() -> None:
    rgba = noise(700, 3, 4)
    alpha = rgba[:, :, 3:].astype(np.float32) / 255.0
    expected = (rgba[:, :, :3] * alpha + 255.0 * (1.0 - alpha)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(to_rgb(rgba), expected)


def test_a_palette_with_a_transparent_colour_is_blended_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    out = to_rgb(encoded(image, format="PNG", transparency=1))
    assert out[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_a_16_bit_png_keeps_its_high_byte() -> None:
    deep = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    expected = [0, 0, 1, 128, 255]
    assert to_rgb(encoded(Image.fromarray(deep), format="PNG"))[0, :, 0].tolist() == expected
    assert to_rgb(deep)[0, :, 0].tolist() == expected
    colour = np.repeat(deep[:, :, None], 3, axis=2)
    file = io.BytesIO(cv2.imencode(".png", colour)[1].tobytes())
    assert to_rgb(file)[0, :, 0].tolist() == expected


def test_deep_pillow_images_of_every_mode_are_read() -> None:
    values = np.array([[0, 256, 65_535]])
    expected = [0, 1, 255]
    assert to_rgb(Image.fromarray(values.astype(np.int32)))[0, :, 0].tolist() == expected
    big_endian = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert to_rgb(big_endian)[0, :, 0].tolist() == expected
    assert to_rgb(Image.fromarray(np.array([[0.0, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(ValueError, match="more than 16 bits a channel: save it"):
        to_rgb(Image.fromarray(np.array([[70_000]], np.int32)))


def test_booleans_and_unit_floats_are_pictures() -> None:
    assert to_rgb(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]
    assert to_rgb(np.array([[0.0, 0.5, 1.0]], np.float32))[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    red, green, blue = to_rgb(encoded(image, format="JPEG", quality=100))[4, 4].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_of_an_animation_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        file = encoded(first, format=kind, save_all=True, append_images=[second], **options)
        assert to_rgb(file)[0, 0].tolist() == [255, 0, 0], kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(noise(8, 16)).resize((64, 32), Image.Resampling.NEAREST)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(stored, format="PNG", exif=exif)
    assert np.array_equal(to_rgb(file), np.asarray(upright))
    assert upright_size(open_image(file)) == (32, 64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_camera_note_does_not_cost_the_picture() -> None:
    strange = Image.Exif()
    strange[0x0112] = 99
    for note in (b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\xff", strange):
        file = encoded(Image.fromarray(PHOTO), format="PNG", exif=note)
        assert np.array_equal(to_rgb(file), PHOTO)
        assert upright_size(open_image(file)) == PHOTO.shape[:2]


# What is refused


def png_of_size(width: int, height: int) -> io.BytesIO:
    """Return a tiny PNG file that says it is huge."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 10), (9_000, 9_000), (12_000, 12_000), (60_000, 9_000)]
)
def test_a_too_large_picture_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="shrink it to at most 16,384 px a side and 64 million pixels"):
        to_rgb(png_of_size(width, height))


def test_a_too_wide_array_is_refused() -> None:
    with pytest.raises(ValueError, match="20,000x2 px: shrink it"):
        to_rgb(np.zeros((2, 20_000, 3), np.uint8))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that it then reads
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_damaged_file_is_a_picture_or_refused_with_a_remedy(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(Image.fromarray(noise(16, 16)), format=kind).getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert to_rgb(io.BytesIO(bytes(whole))).dtype == np.uint8
    except ValueError as error:
        assert re.search(": (give|save it again|shrink|scale)", str(error))


def test_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no picture: upload one"):
        to_rgb(None)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    whole = encoded(Image.fromarray(noise(64, 64)), format=kind).getvalue()
    for share in (0.3, 0.9):
        with pytest.raises(ValueError, match="(save it again|give a PNG)"):
            to_rgb(io.BytesIO(whole[: int(len(whole) * share)]))


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\x89PNG\r\n"])
def test_what_is_no_picture_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "holiday.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="holiday.png is not a picture that can be read: give a PNG"):
        to_rgb(path)


def test_a_missing_file_a_folder_and_a_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone.png does not exist: give the path"):
        to_rgb(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        to_rgb(tmp_path)
    with pytest.raises(ValueError, match="int is no picture"):
        to_rgb(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.full((4, 4), np.nan),
        np.full((4, 4), 2.0),
        np.array([["a"]]),
    ],
    ids=["empty", "two channels", "1d", "4d", "int64", "nan", "above one", "text"],
)
def test_arrays_that_are_no_pictures_are_refused(array: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=": (give|scale)"):
        to_rgb(array)


# Tensors


def test_a_hint_becomes_a_tensor_in_unit_range() -> None:
    hint = noise(4, 6)
    hint.setflags(write=False)
    tensor = hint_to_tensor(hint)
    assert tensor.shape == (1, 3, 4, 6) and tensor.dtype == torch.float32
    assert torch.equal((tensor * 255).round().to(torch.uint8)[0].permute(1, 2, 0), torch.tensor(hint))


def test_pictures_are_scaled_clipped_and_truncated() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    images = values.expand(2, 3, 1, 6).contiguous()
    out = to_uint8(images)
    assert len(out) == 2 and out[0].shape == (1, 6, 3) and out[0].dtype == np.uint8
    assert out[1][0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_a_hint_survives_the_way_through_a_tensor() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    # Truncation may cost a level, as in the original, but no more.
    back = to_uint8(hint_to_tensor(every) * 2 - 1)[0]
    assert np.abs(back.astype(int) - every).max() <= 1
