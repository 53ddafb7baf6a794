"""Slow, obvious forms of the DAVIS measures, and label clips written as folders of PNG files."""

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from mask_files import write_label_map


def pixels(mask):
    return {(int(y), int(x)) for y, x in np.argwhere(mask)}


def slow_j(predicted, true):
    predicted, true = pixels(predicted), pixels(true)
    return len(predicted & true) / len(predicted | true) if predicted | true else 1.0


def slow_boundary(mask):
    """Ask every pixel whether the neighbours that it has to the right and below are like it."""
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            for ny, nx in ((y, x + 1), (y + 1, x), (y + 1, x + 1)):
                if ny < height and nx < width and mask[ny, nx] != mask[y, x]:
                    found.add((y, x))
    return found


def slow_f(predicted, true):
    """Compare every boundary pixel with every boundary pixel of the other mask."""
    radius = math.ceil(0.008 * math.hypot(*true.shape))
    predicted, true = slow_boundary(predicted), slow_boundary(true)

    def share(found, others):
        near = [p for p in found if any(math.dist(p, o) <= radius for o in others)]
        return len(near) / len(found)

    if not predicted or not true:
        return float(predicted == true)
    precision, recall = share(predicted, true), share(true, predicted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def slow_statistics(values):
    """Mean, recall and decay with the 8-bit bin edges spelled out."""
    edges = [round(1 + (len(values) - 1) * k / 4 + 1e-10) - 1 for k in range(5)]
    wrapped = [edge % 256 for edge in edges]
    first, last = (values[wrapped[k] : (wrapped[k + 1] + 1) % 256] for k in (0, 3))
    decay = sum(first) / len(first) - sum(last) / len(last) if first and last else math.nan
    return sum(values) / len(values), sum(v > 0.5 for v in values) / len(values), decay


def slow_clip_frames(predicted, true, protocol):
    """Return (J frames, F frames) of each object of a clip [T, H, W], in the official order."""
    num_objects = max(int(v) for v in np.unique(true[0]) if v != 255)
    num_predictions = max(int(predicted.max()), num_objects)
    if protocol == "davis-semi":
        predicted, true = predicted[1:-1], true[1:-1]
    ignored = (true == 255) & (protocol == "davis-unsup")

    def frames(measure, row, column):
        pairs = zip(predicted, true, ignored, strict=True)
        return [measure((p == row) & ~i, (t == column) & ~i) for p, t, i in pairs]

    table = {
        (row, column): (frames(slow_j, row, column), frames(slow_f, row, column))
        for row in range(1, num_predictions + 1)
        for column in range(1, num_objects + 1)
    }
    if protocol == "davis-semi":
        return [table[k, k] for k in range(1, num_objects + 1)]

    def worth(rows):
        return sum(np.mean(table[row, column + 1]) for column, row in enumerate(rows))

    best = max(permutations(range(1, num_predictions + 1), num_objects), key=worth)
    return [table[row, column] for row, column in sorted(zip(best, range(1, 99), strict=False))]


def write_clip(folder: Path, label_maps: Sequence[np.ndarray]) -> None:
    """Write label maps as 00000.png, 00001.png, ..."""
    for index, label_map in enumerate(label_maps):
        write_label_map(folder / f"{index:05d}.png", np.asarray(label_map, dtype=np.uint8))
