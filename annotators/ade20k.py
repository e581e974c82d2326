"""ADE20K's 150 classes: their names, the colours that stand for them in maps, and back from colours."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# fmt: off
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence",
    "desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column",
    "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator",
    "grandstand", "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway",
    "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning",
    "streetlight", "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land",
    "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain",
    "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket",
    "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood",
    "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)
# fmt: on

# RRGGBB, in the order of CLASSES; road and skyscraper share one. Source: the palette of mmsegmentation.
_COLOURS = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
    ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
    08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
    eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
    0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
    0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
    00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
    8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
    ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
    00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
PALETTE: NDArray[np.uint8] = np.frombuffer(bytes.fromhex(_COLOURS), np.uint8).reshape(-1, 3)  # (150, 3) RGB

SURE = 36  # squared distance: up to it a colour is a class's own, a little off, as JPEG leaves it
EDGE = 11  # pixels: as wide as this the mixed colours of a soft edge are not
SOFT_EDGES = 0.25  # share of the pixels: where more are mixed they are no edges
CHUNK = 2**16  # colours compared at a time, to spare memory


def to_colours(classes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Turn classes (h, w), 0 to 149, into their colours (h, w, 3) uint8 RGB."""
    return PALETTE[classes]


def to_classes(map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn a map (h, w, 3) uint8 RGB into classes (h, w) uint8, 0 to 149.

    A colour that is no class's is taken for the nearest one's; on a soft edge, where the mixed colours may be
    like those of a class that is not there, for that of the nearest pixel beside the edge. Of road and
    skyscraper, which look alike, road is meant.
    """
    classes, distances = nearest(map)
    for sure in (0, SURE):  # in a map that was saved without losses, a colour that is a little off is mixed
        unsure = (distances > sure).astype(np.uint8)
        if 0 < unsure.mean() <= SOFT_EDGES:
            return _settle_edges(classes, unsure)
    return classes


def nearest(map: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return each pixel's class of the nearest colour, (h, w) uint8, and the squared distance, (h, w) int32.

    ``map`` is (h, w, 3) uint8 RGB.
    """
    codes = _codes(map)
    seen = np.zeros(2**24, np.bool_)
    seen[codes] = True
    colours = np.flatnonzero(seen).astype(np.uint32)
    classes, distances = np.empty(len(colours), np.uint8), np.empty(len(colours), np.int32)
    palette = PALETTE.astype(np.float32)
    squares = (palette**2).sum(axis=1)
    for start in range(0, len(colours), CHUNK):
        some = slice(start, start + CHUNK)
        code = colours[some]
        rgb = np.stack([code >> 16, code >> 8 & 255, code & 255], axis=1).astype(np.float32)
        # |colour - class|^2 without the colour's own square; whole numbers, which float32 holds exactly
        compared = squares - 2 * (rgb @ palette.T)
        best = compared.argmin(axis=1)
        classes[some] = best
        distances[some] = compared[np.arange(len(best)), best] + (rgb**2).sum(axis=1)
    places = np.empty(2**24, np.uint32)
    places[colours] = np.arange(len(colours), dtype=np.uint32)
    found = places[codes]
    return classes[found], distances[found]


def share_in_palette(map: NDArray[np.uint8]) -> float:
    """Return the share of a map's pixels, (h, w, 3) uint8 RGB, whose colours are exactly classes' colours."""
    known = np.zeros(2**24, np.bool_)
    known[_codes(PALETTE[None])] = True
    return float(known[_codes(map)].mean())


def _codes(map: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return (h, w, 3) as numbers RRGGBB (h, w)."""
    red, green, blue = (map[:, :, i].astype(np.uint32) for i in range(3))
    return np.asarray(red << 16 | green << 8 | blue, np.uint32)


def _settle_edges(classes: NDArray[np.uint8], unsure: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return classes (h, w) in which thin areas of ``unsure``, 0 or 1, are as the pixels beside them."""
    areas = cv2.morphologyEx(unsure, cv2.MORPH_OPEN, np.ones((EDGE, EDGE), np.uint8))
    edges = unsure - areas
    _, nearest_known = cv2.distanceTransformWithLabels(edges, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    known = edges == 0
    class_of = np.zeros(int(nearest_known.max()) + 1, np.uint8)
    class_of[nearest_known[known]] = classes[known]
    return class_of[nearest_known]
