"""Colour jitter of refsam-model 9.4, on float frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

_CHANCE = 0.7
_HUE = 0.1
_FACTORS = (0.5, 1.5)
# Weights of red, green and blue in a grey value (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def jitter(image: F32, rng: np.random.Generator) -> F32:
    """Change brightness, contrast, saturation, hue and contrast of a frame, in this order.

    Each change happens with probability 0.7; what is drawn does not depend on which do.

    Args:
        image: float32 [H, W, 3], RGB, 0 to 1.
        rng: of this frame.
    """
    happens = rng.random(5) < _CHANCE
    factors = rng.uniform(*_FACTORS, 4).astype(np.float32)
    shift = np.float32(rng.uniform(-_HUE, _HUE))
    if happens[0]:
        image = _clipped(image * factors[0])
    if happens[1]:
        image = contrast(image, factors[1])
    if happens[2]:
        grey = (image @ _LUMA)[..., None]
        image = _clipped(grey + (image - grey) * factors[2])
    if happens[3]:
        image = shift_hue(image, shift)
    return contrast(image, factors[3]) if happens[4] else image


def contrast(image: F32, factor: np.float32) -> F32:
    """Return the frame with its distance from its mean grey multiplied."""
    grey = (image @ _LUMA).mean()
    return _clipped(grey + (image - grey) * factor)


def shift_hue(image: F32, shift: np.float32) -> F32:
    """Return the frame with hues turned by `shift` (1 is once around); greys stay.

    Args:
        image: float32 [H, W, 3], RGB, 0 to 1.
        shift: -0.5 to 0.5.
    """
    highest, lowest = image.max(-1), image.min(-1)
    spread = highest - lowest
    scale = 1.0 / np.maximum(spread, np.float32(1e-8))
    red, green, blue = (image[..., channel] for channel in range(3))
    hue = np.where(
        highest == red,
        (green - blue) * scale,
        np.where(highest == green, 2.0 + (blue - red) * scale, 4.0 + (red - green) * scale),
    )
    turned = hue + 6.0 * shift
    # Channel c of a colour of hue h (0 to 6): highest - spread * ramp(h + offset of c).
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = np.mod(offset + turned, 6.0)
        channels.append(highest - spread * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))
    return np.stack(channels, axis=-1).astype(np.float32)


def _clipped(image: F32) -> F32:
    return np.clip(image, 0.0, 1.0).astype(np.float32)
