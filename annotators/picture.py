"""No detector: the control is given the picture itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotator
from annotators.maps import PICTURE


class Picture(Annotator):
    """The picture as it is, for the controls of ControlNet 1.1 that look at pictures."""

    title = "None: the picture itself"
    kind = PICTURE
    takes_maps = False

    def detect(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (h, w, 3) uint8 RGB as it is."""
        return image
