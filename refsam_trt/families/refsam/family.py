"""What RefSAM does between frames: image once, one step for all expressions, tokens kept.

Baseline and optimised bundles differ only in the tensors that the manifest lists, and this module
follows the manifest: frame-scope tensors come from the image encoder, expression-scope tensors from
the text embedding, video-scope tensors from the track state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from refsam_trt.backends.base import Buffer, numpy_dtype
from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import GraphEntry
from refsam_trt.contract.specs import TensorSpec
from refsam_trt.errors import StateError
from refsam_trt.families.base import FamilyParts, VideoAdapter
from refsam_trt.families.refsam.tracks import TrackState
from refsam_trt.result.raw_frame import RawFrame
from refsam_trt.text.cache import TextCache, TextEmbedding
from refsam_trt.text.disk import TextDiskCache, TextKey
from refsam_trt.text.encoder import TextEncoder
from refsam_trt.text.tokenizer import Tokenizer

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LOGITS, _IOU, _WORD_MASK = "low_res_logits", "iou", "word_mask"


class RefsamFamily:
    """RefSAM's graphs on one backend. May be shared by threads."""

    def __init__(self, parts: FamilyParts) -> None:
        self.backend = parts.backend
        self.max_expressions = parts.limits.max_expressions
        (self.state,) = parts.bundle.manifest.state
        graphs = parts.load_graphs(refsam.IMAGE_ENCODER, refsam.DECODER_STEP)
        self.image_encoder, self.decoder_step = graphs
        scoped = [t for t in self.decoder_step.spec.inputs if t.scope == "expression"]
        self.text_inputs = tuple(t for t in scoped if t.name != _WORD_MASK)
        self.text_encoder = _text_encoder(parts, self.text_inputs)

    def open_video(self) -> VideoAdapter:
        """Return a new, empty video with a stream of its own."""
        return RefsamVideo(self)

    def close(self) -> None:
        """Give up the text graph and the cached embeddings; the rest goes with its last user."""
        self.text_encoder.close()


@dataclass(frozen=True)
class _Expression:
    text: str
    embedding: TextEmbedding


def _on_stream(
    method: Callable[Concatenate[RefsamVideo, _P], _R],
) -> Callable[Concatenate[RefsamVideo, _P], _R]:
    """Let a method do its device work on the video's own stream."""

    @wraps(method)
    def streamed(video: RefsamVideo, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with video.stream:
            return method(video, *args, **kwargs)

    return streamed


class RefsamVideo:
    """One video (see `VideoAdapter`): the image encoder and the step run once per frame.

    A frame costs one upload (the image) and two downloads (logits and scores); a changed set of
    expressions, and the first frame of one, some small uploads more.
    """

    def __init__(self, family: RefsamFamily) -> None:
        self._family = family
        self.stream = family.backend.new_stream()
        self._expressions: dict[int, _Expression] = {}
        self._text: dict[str, Buffer] | None = None
        self._results: dict[str, Buffer] = {}
        self._allocate()

    @_on_stream
    def _allocate(self) -> None:
        family = self._family
        backend, encoder = family.backend, family.image_encoder
        self._encode_image = encoder.context()
        self._decode = family.decoder_step.context()
        image = encoder.spec.inputs[0]
        self._image = {image.name: backend.empty(image.shape({"M": 1}), image.dtype)}
        self._frame = {
            t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in encoder.spec.outputs
        }
        token = next(t for t in family.decoder_step.spec.inputs if t.name == family.state.input)
        self._tracks = TrackState(backend, token)

    @property
    def expressions(self) -> dict[int, str]:
        """Cleaned-up text per id, in the order they were added, which is that of the rows."""
        return {id_: expression.text for id_, expression in self._expressions.items()}

    @_on_stream
    def add_expression(self, expression_id: int, text: str) -> None:
        """Embed an expression and give it a row without a track token."""
        cleaned, embedding = self._family.text_encoder.encode(text)
        self._tracks.add(expression_id)
        self._expressions[expression_id] = _Expression(cleaned, embedding)
        self._text = None

    @_on_stream
    def remove_expression(self, expression_id: int) -> None:
        """Drop an expression and its track token."""
        self._tracks.remove(expression_id)
        del self._expressions[expression_id]
        self._text = None

    def reset(self) -> None:
        """Drop every track token."""
        self._tracks.forget_all()

    def reset_track(self, expression_id: int) -> None:
        """Drop the track token of one expression."""
        self._tracks.forget(expression_id)

    @_on_stream
    def step(self, image: np.ndarray | Buffer, frame_index: int) -> RawFrame:
        """Decode one frame for every expression; without any, no graph runs."""
        family = self._family
        family.text_encoder.release()  # frames follow, so the text graph only takes room
        if not self._expressions:
            return RawFrame(frame_index, (), (), np.empty((0, 0, 0), np.float32), np.empty(0))
        self._encode_image.run(self._on_device(image), self._frame)
        self._run_step(self._text or self._prepare())
        logits = family.backend.download(self._results[_LOGITS])[:, 0]
        iou = family.backend.download(self._results[_IOU])[:, 0]
        self._tracks.advance()
        return RawFrame(
            frame_index,
            tuple(self._expressions),
            tuple(self.expressions.values()),
            logits.astype(np.float32, copy=False),
            iou.astype(np.float32, copy=False),
        )

    def finish(self) -> list[RawFrame]:
        """Return nothing: `step` owes no results."""
        return []

    @_on_stream
    def save(self) -> dict[str, np.ndarray]:
        """Return the track tokens and which of them are present."""
        state = self._family.state
        has_track = np.array(self._tracks.has_track, np.bool_)
        return {state.input: self._tracks.download(), state.is_present: has_track}

    @_on_stream
    def restore(self, tensors: dict[str, np.ndarray]) -> None:
        """Take the track tokens over."""
        for name, current in self.save().items():
            tensor = tensors.get(name)
            if tensor is None or tensor.shape != current.shape or tensor.dtype != current.dtype:
                is_like = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                expected = f"{current.dtype} {list(current.shape)}"
                raise StateError(f"state tensor {name!r}: {is_like}, expected {expected}")
            if not np.isfinite(tensor).all():
                raise StateError(f"state tensor {name!r}: holds values that are not finite")
        state = self._family.state
        self._tracks.restore(tensors[state.input], tensors[state.is_present].tolist())

    def _on_device(self, image: np.ndarray | Buffer) -> dict[str, Buffer]:
        """Upload an image of the host; one that lies on the device is read from where it is."""
        if not isinstance(image, np.ndarray):
            return dict.fromkeys(self._image, image)
        for buffer in self._image.values():
            self._family.backend.upload(image, buffer)
        return self._image

    def _prepare(self) -> dict[str, Buffer]:
        """Upload the text of all expressions, padded to the longest; make room for results."""
        family, num = self._family, len(self._expressions)
        embeddings = [expression.embedding for expression in self._expressions.values()]
        arrays = {t.name: _padded(t, embeddings) for t in family.text_inputs}
        lengths = np.array([embedding.num_words for embedding in embeddings])
        arrays[_WORD_MASK] = np.arange(lengths.max()) < lengths[:, None]
        text = {name: family.backend.upload(array) for name, array in arrays.items()}
        results = {
            t.name: family.backend.empty(t.shape({"B": num}), t.dtype)
            for t in family.decoder_step.spec.outputs
            if t.name != family.state.output
        }
        # Both or none: whoever runs out of memory between them may try again.
        self._text, self._results = text, results
        return text

    def _run_step(self, text: Mapping[str, Buffer]) -> None:
        """Run the step on at most `max_expressions` rows at a time: views, nothing is copied."""
        state, spec = self._family.state, self._family.decoder_step.spec
        per_row = {
            **text,
            state.input: self._tracks.current,
            state.is_present: self._tracks.has_track_buffer(),
        }
        results = {**self._results, state.output: self._tracks.following}
        frame = {t.name: self._frame[t.name] for t in spec.inputs if t.scope == "frame"}
        num = len(self._expressions)
        for start in range(0, num, self._family.max_expressions):
            stop = min(start + self._family.max_expressions, num)
            rows = {name: buffer.rows(start, stop) for name, buffer in per_row.items()}
            self._decode.run(
                {**frame, **rows},
                {name: buffer.rows(start, stop) for name, buffer in results.items()},
            )


def _padded(tensor: TensorSpec, embeddings: list[TextEmbedding]) -> np.ndarray:
    """Stack one tensor of all embeddings in the step's dtype, zeros behind the shorter ones."""
    arrays = [embedding.tensors()[tensor.name] for embedding in embeddings]
    longest = max(embedding.num_words for embedding in embeddings)
    shape = tensor.shape({"B": len(arrays), "N": longest})
    stacked = np.zeros(shape, numpy_dtype(tensor.dtype, "numpy arrays"))
    for row, array in zip(stacked, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return stacked


def _text_encoder(parts: FamilyParts, tensors: tuple[TensorSpec, ...]) -> TextEncoder:
    manifest = parts.bundle.manifest
    tokenizer = Tokenizer(
        parts.bundle.verify_file(manifest.tokenizer.file),
        lowercase=manifest.tokenizer.lowercase,
        max_words=parts.limits.max_words,
    )
    graph = parts.variant.graphs.get(refsam.TEXT_ENCODER)
    return TextEncoder(
        tokenizer,
        parts.backend,
        tensors,
        load_graph=(lambda: parts.load_graph(refsam.TEXT_ENCODER)) if graph else None,
        cache=TextCache(parts.bundle.verify_file(manifest.text_cache))
        if manifest.text_cache
        else None,
        disk=_disk_cache(parts, graph, tensors) if graph else None,
        mode=parts.text_mode,
        vocabulary=manifest.vocabulary,
    )


def _disk_cache(
    parts: FamilyParts, graph: GraphEntry, tensors: tuple[TensorSpec, ...]
) -> TextDiskCache | None:
    if parts.text_cache is None:
        return None
    bundle = parts.bundle
    tokenizer = bundle.content_id(bundle.manifest.tokenizer.file)
    key = TextKey(tokenizer, bundle.content_id(graph.file), parts.backend.name)
    return TextDiskCache(parts.text_cache, key, tensors)
