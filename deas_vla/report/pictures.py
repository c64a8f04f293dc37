"""The cameras of a frame as one picture."""

import numpy as np

from deas_vla.errors import require


def side_by_side(images: list[np.ndarray], height: int) -> np.ndarray:
    """(height, w, 3) uint8: images (h, w, 3) uint8 of one moment, scaled to one height, from left to right."""
    pillow = require("PIL.Image", "report")
    scaled = [
        np.asarray(pillow.fromarray(image).resize((max(1, round(image.shape[1] * height / len(image))), height)))
        for image in images
    ]
    return np.concatenate(scaled, axis=1)
