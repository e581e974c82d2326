"""Content shuffle: the picture's colours and stuffs, with its shapes stirred away."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotator, Slider
from annotators.maps import PICTURE

SPACING = 256  # pixels between the points at which the stirring is drawn


class Shuffle(Annotator):
    """The picture, read at places that wander smoothly all over it. Source: shuffle of ControlNet 1.1."""

    title = "Content shuffle"
    kind = PICTURE
    params = (Slider("shuffle_seed", "Shuffle Seed", 0, 9999, 0, 1, "Another number stirs otherwise."),)

    def detect(self, image: NDArray[np.uint8], shuffle_seed: int = 0) -> NDArray[np.uint8]:
        """Stir (h, w, 3) uint8 RGB; the same seed stirs the same way."""
        height, width = image.shape[:2]
        rng = np.random.default_rng(shuffle_seed)
        columns, rows = (_waves(height, width, rng) for _ in range(2))
        return cv2.remap(image, columns * (width - 1), rows * (height - 1), cv2.INTER_LINEAR).astype(np.uint8)


def _waves(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return (height, width) float32 smooth noise that goes from exactly 0 to exactly 1."""
    grid = rng.random((height // SPACING + 2, width // SPACING + 2))
    # Enlarged with a border of a spacing all around, which is cut off: the edge repeats itself there.
    wide = cv2.resize(grid, (width + 2 * SPACING, height + 2 * SPACING), interpolation=cv2.INTER_CUBIC)
    noise = wide[SPACING : SPACING + height, SPACING : SPACING + width]
    low, high = noise.min(), noise.max()
    return ((noise - low) / max(high - low, 1e-9)).astype(np.float32)
