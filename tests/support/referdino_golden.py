"""The golden figures of ReferDINO, where the shared data is: weights, cases, tolerances."""

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import shared_data
import torch
from torch import Tensor

FOLDER = "referdino"


@functools.cache
def record() -> dict[str, Any]:
    text = shared_data.path(FOLDER, "referdino_golden.json").read_text(encoding="utf-8")
    return json.loads(text)


@functools.cache
def figures() -> dict[str, np.ndarray]:
    with np.load(shared_data.path(FOLDER, "referdino_golden.npz")) as arrays:
        return dict(arrays)


def official_weights() -> dict[str, Tensor]:
    """Return the weights of the official layout in float64, LoRA apart, tied keys once."""
    exponents = record()["weight_exponents"]
    return {
        key: torch.from_numpy(figures()[f"weights/{key}"] / 2.0**exponent)
        for key, exponent in exponents.items()
    }


def folded_weights() -> dict[str, Tensor]:
    """Return the weights as the model wants them; the fold is written out once more here."""
    weights = official_weights()
    scale = record()["lora"]["scale"]
    for key in [key for key in weights if key.endswith(".lora_A")]:
        name = key.removesuffix("lora_A")
        a, b = weights.pop(key), weights.pop(f"{name}lora_B")
        weights[f"{name}weight"] = weights[f"{name}weight"] + scale * (b @ a)
    return weights


@dataclass(frozen=True)
class Case:
    """One recorded clip."""

    name: str
    expression: str
    frames: np.ndarray
    original_hw: tuple[int, int]

    def __getitem__(self, key: str) -> np.ndarray:
        return figures()[f"{self.name}/{key}"]

    @property
    def names(self) -> set[str]:
        prefix = f"{self.name}/"
        return {key.removeprefix(prefix) for key in figures() if key.startswith(prefix)}


def case(name: str) -> Case:
    values = record()["cases"][name]
    frames = figures()[f"frames/{values['frames']}"]
    return Case(name, values["expression"], frames, tuple(values["original_hw"]))


CASES = ("a0", "a1", "b0")
