"""A second reader, written from docs/format/bundle.md alone: it gets what the runtime gets.

Uses nothing of the runtime but the fake bundle's files; each step names its section.
"""

import json
import math
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from tokenizers import Tokenizer

import refsam_trt

Arrays = dict[str, np.ndarray]


class PlainReader:
    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / self.manifest["tokenizer"]["file"]))
        self.expressions: list[Arrays] = []
        self.tokens: list[np.ndarray | None] = []

    def add_expression(self, text: str) -> None:
        """Section 5.1."""
        ids = np.array([self.tokenizer.encode(" ".join(text.lower().split())).ids])
        self.expressions.append(self.run("text_encoder", input_ids=ids, attention_mask=ids * 0 + 1))
        self.tokens.append(None)

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Sections 5.2 to 5.5: uint8 RGB [H, W, 3] -> logits [B, H, W]."""
        image, sizes = self.image(frame)
        features = self.run("image_encoder", image=image)
        outputs = self.run("decoder_step", **features, **self.rows())
        self.tokens = list(outputs["next_track_token"])
        size = image.shape[-1]
        rows, columns = (
            chain(outputs["low_res_logits"].shape[-1], size, [s[axis] for s in sizes])
            for axis in (0, 1)
        )
        return rows @ outputs["low_res_logits"][:, 0] @ columns.T

    def image(self, frame: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Section 5.2: the network input; frame, first and second size."""
        settings = self.manifest["preprocess"]
        original = frame.shape[:2]
        first, short = original, settings["downscale_short_side"]
        if short:
            first = tuple(short if n == min(first) else short * n // min(first) for n in first)
        k = settings["image_size"] / max(first)
        second = tuple(math.floor(n * k + 0.5) for n in first)
        for size in (first, second):
            frame = resize(resize(frame, size[1], axis=1), size[0], axis=0)
        image = np.zeros((1, 3, settings["image_size"], settings["image_size"]), np.float32)
        mean, std = (np.array(settings[key], np.float32) for key in ("mean", "std"))
        scaled = (frame.astype(np.float32) - mean) / std
        image[0, :, : second[0], : second[1]] = scaled.transpose(2, 0, 1)
        return image, [second, first, original]

    def rows(self) -> Arrays:
        """Sections 5.3 and 5.4: inputs with a row per expression."""
        lengths = [text["words"].shape[1] for text in self.expressions]
        longest = max(lengths)
        padded: Arrays = {}
        for name in self.expressions[0]:
            axis = {"words": 1, "text_values": 2}.get(name)
            arrays = [text[name] for text in self.expressions]
            missing = [longest - length for length in lengths]
            padded[name] = np.concatenate([*map(pad, arrays, [axis] * len(arrays), missing)])
        padded["word_mask"] = np.array([[i < n for i in range(longest)] for n in lengths])
        padded["has_track"] = np.array([token is not None for token in self.tokens])
        padded["track_token"] = np.array(
            [np.full(256, np.nan, np.float32) if t is None else t for t in self.tokens]
        )
        return padded

    def run(self, graph: str, **feeds: np.ndarray) -> Arrays:
        return fake_bundle.run_graph(self.folder, graph, feeds)


def pad(array: np.ndarray, axis: int | None, num: int) -> np.ndarray:
    if axis is None:
        return array
    return np.pad(array, [(0, num if i == axis else 0) for i in range(array.ndim)])


def resize(image: np.ndarray, m: int, axis: int) -> np.ndarray:
    """Section 5.2, step 2: one axis, one output after the other."""
    image = np.moveaxis(image, axis, 0)
    n = len(image)
    if n == m:
        return np.moveaxis(image, 0, axis)
    r = n / m
    s = max(r, 1)
    out = np.empty((m, *image.shape[1:]), np.uint8)
    for i in range(m):
        c = (i + 0.5) * r
        xs = range(max(int(c - s + 0.5), 0), min(int(c + s + 0.5), n))
        w = [max(1 - abs(x - c + 0.5) / s, 0) for x in xs]
        k = [int(weight / sum(w) * 2**22 + 0.5) for weight in w]
        total = sum(weight * image[x].astype(np.int64) for weight, x in zip(k, xs, strict=True))
        out[i] = np.clip((total + 2**21) >> 22, 0, 255)
    return np.moveaxis(out, 0, axis)


def chain(low: int, size: int, sizes: list[int]) -> np.ndarray:
    """Section 5.5, steps 1 to 4 along one axis: a matrix [original, low]."""
    second, first, original = sizes
    matrix = bilinear(low, size)[:second]
    matrix = bilinear(second, first) @ matrix
    return bilinear(first, original) @ matrix


def bilinear(n: int, m: int) -> np.ndarray:
    matrix = np.zeros((m, n))
    for i in range(m):
        p = max((i + 0.5) * n / m - 0.5, 0)
        a = min(math.floor(p), n - 1)
        matrix[i, a] += 1 - (p - a)
        matrix[i, min(a + 1, n - 1)] += p - a
    return matrix


@pytest.mark.parametrize("split", ["baseline", "optimised"])
@pytest.mark.parametrize("short_side", [None, 20])
def test_reader_from_the_page_agrees_with_the_runtime(
    tmp_path: Path, split: str, short_side: int | None
):
    folder = fake_bundle.make_bundle(tmp_path / "b", split=split, downscale_short_side=short_side)
    reader = PlainReader(folder)
    frames = np.random.default_rng(0).integers(0, 256, (3, 30, 53, 3), np.uint8)
    joining = [["A dog  on the LEFT"], [], ["é"]]
    with refsam_trt.load(folder, backend="ort-cpu") as engine, engine.open_video() as video:
        for frame, texts in zip(frames, joining, strict=True):
            for text in texts:
                reader.add_expression(text)
                video.add_expression(text)
            expected = reader.step(frame)
            found = np.stack([result.logits for result in video.step(frame)])
            # float32 products in another order, on logits of size 10
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert found.shape[1:] == frame.shape[:2]
