"""Pictures as people really upload them, good and bad."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def scene(width: int = 320, height: int = 256, mode: str = "RGB") -> Image.Image:
    """Return a picture with clear edges and a faint one."""
    image = Image.new("RGB", (width, height), (120, 180, 230))
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 5, height // 4, width // 2, height * 3 // 4), fill=(200, 40, 30))
    draw.ellipse((width // 2, height // 3, width * 9 // 10, height * 9 // 10), fill=(250, 220, 60))
    draw.rectangle((width // 20, height // 20, width // 6, height // 6), fill=(126, 184, 232))
    return image.convert(mode)


def write_unusual(folder: Path) -> dict[str, Path]:
    """Write pictures that must work."""
    saved = {
        "rgba": scene(mode="RGBA"),
        "grey": scene(mode="L"),
        "palette": scene(mode="P"),
        "one_pixel": Image.new("RGB", (1, 1)),
    }
    paths = {}
    for name, image in saved.items():
        paths[name] = folder / f"{name}.png"
        image.save(paths[name])
    paths["sixteen_bit"] = folder / "sixteen_bit.png"
    Image.fromarray(np.asarray(scene(mode="L")).astype(np.uint16) * 257).save(paths["sixteen_bit"])
    paths["cmyk"] = folder / "cmyk.jpg"
    scene(mode="CMYK").save(paths["cmyk"])
    paths["animated"] = folder / "animated.gif"
    scene().save(paths["animated"], save_all=True, append_images=[Image.new("RGB", (320, 256))], duration=50)
    return paths


def write_bad(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write files that must be refused, each with a word of the reason."""
    whole = io.BytesIO()
    scene(600, 600).save(whole, "PNG")
    bad = {
        "truncated.png": (whole.getvalue()[: len(whole.getvalue()) // 2], "damaged"),
        "words.png": (b"these are only words", "not a picture"),
        "empty.png": (b"", "not a picture"),
    }
    paths = {}
    for name, (data, reason) in bad.items():
        (folder / name).write_bytes(data)
        paths[name] = (folder / name, reason)
    wide = folder / "wide.png"
    Image.new("L", (20_000, 40)).save(wide)
    paths["wide.png"] = (wide, "20,000")
    return paths
