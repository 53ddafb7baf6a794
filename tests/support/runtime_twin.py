"""The slow, obvious runtime: one expression at a time, nothing padded, everything on the host."""

from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import Manifest
from refsam_trt.image.preprocess import Preprocessor
from refsam_trt.result.result import FrameResults
from refsam_trt.text.cache import TextEmbedding

Arrays = dict[str, np.ndarray]


def random_frames(num: int, hw: tuple[int, int] = (24, 40), seed: int = 0) -> np.ndarray:
    """Return uint8 [num, H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (num, *hw, 3), np.uint8)


class Twin:
    """Runs the graphs of a fake bundle's first variant by name, arrays in and arrays out."""

    def __init__(self, folder: Path) -> None:
        raw = (folder / "manifest.json").read_bytes()
        manifest = msgspec.json.decode(raw, type=Manifest)
        self._preprocess = manifest.preprocess
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        graphs = next(iter(manifest.variants.values())).graphs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / entry.file), options, providers=["CPUExecutionProvider"]
            )
            for name, entry in graphs.items()
        }

    def run(self, graph: str, feeds: Arrays) -> Arrays:
        """Run one graph."""
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    def preprocess(self, frame: np.ndarray) -> np.ndarray:
        """Return the network input of a frame."""
        return Preprocessor(frame.shape[:2], self._preprocess)(frame)

    def embed(self, text: str) -> Arrays:
        """Embed one cleaned-up expression, B = 1."""
        ids = np.array([self._tokenizer.encode(text).ids])
        ones = np.ones_like(ids)
        text_arrays = self.run(refsam.TEXT_ENCODER, {"input_ids": ids, "attention_mask": ones})
        return text_arrays | {"word_mask": ones.astype(bool)}

    def track(self, frames: np.ndarray, text: str, first: int = 0) -> list[Arrays]:
        """Return the step's outputs for every frame from `first` on."""
        embedding = self.embed(text)
        token, has_track = np.zeros((1, refsam.EMBED_DIM), np.float32), np.array([False])
        results = []
        for frame in frames[first:]:
            image = self.run(refsam.IMAGE_ENCODER, {"image": self.preprocess(frame)})
            state = {"track_token": token, "has_track": has_track}
            results.append(self.run(refsam.DECODER_STEP, image | embedding | state))
            token, has_track = results[-1]["next_track_token"], np.array([True])
        return results


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Largest absolute difference over the largest absolute expected value."""
    scale = float(np.abs(expected).max()) or 1.0
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) <= tolerance * scale


def assert_same_results(found: FrameResults, expected: FrameResults) -> None:
    """Bit for bit."""
    assert found.frame_index == expected.frame_index
    assert [result.text for result in found] == [result.text for result in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.low_res_logits, b.low_res_logits)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert a.predicted_iou == b.predicted_iou


def logits_by_id(results: FrameResults) -> dict[int, np.ndarray]:
    """Return low-resolution logits per expression id."""
    return {result.expression_id: result.low_res_logits for result in results}


def random_embedding(num_words: int, seed: int = 0, *, values: bool = True) -> TextEmbedding:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    text_values = normal(4, num_words + 1, 640) if values else None
    return TextEmbedding(normal(num_words, 256), normal(256), text_values)


def assert_same_embedding(found: TextEmbedding, expected: TextEmbedding) -> None:
    assert found.tensors().keys() == expected.tensors().keys()
    for name, array in expected.tensors().items():
        np.testing.assert_array_equal(found.tensors()[name], array)
