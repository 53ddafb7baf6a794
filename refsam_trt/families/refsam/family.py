"""What RefSAM does between frames: image once, one step for all expressions, tokens kept.

Baseline and optimised bundles differ only in the tensors that the manifest lists, and this module
follows the manifest: frame-scope tensors come from the image encoder, expression-scope tensors from
the text embedding, video-scope tensors from the track state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refsam_trt.backends.base import Buffer, Event, numpy_dtype
from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import GraphEntry
from refsam_trt.contract.specs import TensorSpec
from refsam_trt.errors import StateError
from refsam_trt.families.base import FamilyParts, Row
from refsam_trt.families.refsam.tracks import TrackState
from refsam_trt.result.raw_frame import RawFrame
from refsam_trt.text.cache import TextCache, TextEmbedding
from refsam_trt.text.disk import TextDiskCache, TextKey
from refsam_trt.text.encoder import TextEncoder
from refsam_trt.text.tokenizer import Tokenizer

_LOGITS, _IOU, _WORD_MASK = "low_res_logits", "iou", "word_mask"


def open_family(parts: FamilyParts) -> RefsamFamily:
    """Load the graphs of a bundle."""
    return RefsamFamily(parts)


class RefsamFamily:
    """RefSAM's graphs on one backend. May be shared by threads."""

    is_late = False

    def __init__(self, parts: FamilyParts) -> None:
        self.backend = parts.backend
        self.max_expressions = parts.limits.max_expressions
        (self.state,) = parts.bundle.manifest.state
        graphs = parts.load_graphs(refsam.IMAGE_ENCODER, refsam.DECODER_STEP)
        self.image_encoder, self.decoder_step = graphs
        scoped = [t for t in self.decoder_step.spec.inputs if t.scope == "expression"]
        self.text_inputs = tuple(t for t in scoped if t.name != _WORD_MASK)
        self.text_encoder = _text_encoder(parts, self.text_inputs)
        self.can_embed = (
            refsam.TEXT_ENCODER in parts.variant.graphs and parts.text_mode != "cache-only"
        )

    def embed(self, text: str) -> tuple[str, TextEmbedding]:
        """Return the cleaned-up expression and its embedding."""
        return self.text_encoder.encode(text)

    def open_encoder(self) -> RefsamEncoder:
        """Return an image encoder with a stream of its own."""
        return RefsamEncoder(self)

    def open_track(self) -> RefsamTrack:
        """Return the memory of a new video, with a stream of its own."""
        return RefsamTrack(self)

    def close(self) -> None:
        """Give up the text graph and the cached embeddings; the rest goes with its last user."""
        self.text_encoder.close()


@dataclass(frozen=True)
class RefsamFeatures:
    """The image encoder's outputs for one frame, complete at `ready`."""

    tensors: dict[str, Buffer]
    ready: Event
    _free: list[dict[str, Buffer]]

    def release(self) -> None:
        """Let the encoder write another frame over this one."""
        self._free.append(self.tensors)


class RefsamEncoder:
    """The image encoder (see `Encoder`); a frame costs one upload.

    It has as many sets of outputs as frames were in use at once.
    """

    def __init__(self, family: RefsamFamily) -> None:
        self._family = family
        self._graph = family.image_encoder
        self._stream = family.backend.new_stream()
        self._free: list[dict[str, Buffer]] = []
        with self._stream:
            self._context = self._graph.context()
            self._image = self._allocate(self._graph.spec.inputs)
            self._free.append(self._allocate(self._graph.spec.outputs))

    def encode(self, image: np.ndarray | Buffer) -> RefsamFeatures:
        """Encode one frame, float32 [1, 3, S, S]."""
        self._family.text_encoder.release()  # frames follow, so the text graph only takes room
        with self._stream:
            inputs = self._on_device(image)
            tensors = self._free.pop() if self._free else self._allocate(self._graph.spec.outputs)
            try:
                self._context.run(inputs, tensors)
                return RefsamFeatures(tensors, self._stream.record(), self._free)
            except BaseException:
                self._free.append(tensors)
                raise

    def _on_device(self, image: np.ndarray | Buffer) -> dict[str, Buffer]:
        """Upload an image of the host; one that lies on the device is read from where it is."""
        if not isinstance(image, np.ndarray):
            return dict.fromkeys(self._image, image)
        for buffer in self._image.values():
            self._family.backend.upload(image, buffer)
        return self._image

    def _allocate(self, tensors: Sequence[TensorSpec]) -> dict[str, Buffer]:
        empty = self._family.backend.empty
        return {t.name: empty(t.shape({"M": 1}), t.dtype) for t in tensors}


class RefsamTrack:
    """One video (see `Track`): one step per frame for all expressions, and a token for each.

    A frame costs two downloads (logits and scores); a changed set of expressions, and the first
    frame of one, some small uploads more.
    """

    def __init__(self, family: RefsamFamily) -> None:
        self._family = family
        self._stream = family.backend.new_stream()
        self._rows: tuple[Row, ...] = ()
        self._text: dict[str, Buffer] | None = None
        self._results: dict[str, Buffer] = {}
        spec = family.decoder_step.spec
        token = next(t for t in spec.inputs if t.name == family.state.input)
        with self._stream:
            self._context = family.decoder_step.context()
            self._tokens = TrackState(family.backend, token)

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Decode these expressions from the next frame on; new ones have no token."""
        with self._stream:
            self._tokens.set_rows([row.id for row in rows])
        self._rows = tuple(rows)
        self._text = None

    def forget(self, ids: Collection[int]) -> None:
        """Drop the track tokens of some expressions."""
        self._tokens.forget(ids)

    def reset(self) -> None:
        """Drop every track token."""
        self._tokens.forget_all()

    def decode(self, features: RefsamFeatures, frame_index: int) -> tuple[RawFrame]:
        """Decode one frame for every expression; without any, nothing runs."""
        if not self._rows:
            return (RawFrame.empty(frame_index),)
        with self._stream:
            self._stream.wait(features.ready)
            self._run_step(features.tensors, self._text or self._prepare())
            downloads = [
                self._family.backend.begin_download(self._results[name]) for name in (_LOGITS, _IOU)
            ]
            logits, iou = (download.result()[:, 0] for download in downloads)
            self._tokens.advance()
        return (
            RawFrame(
                frame_index,
                tuple(row.id for row in self._rows),
                tuple(row.text for row in self._rows),
                logits.astype(np.float32, copy=False),
                iou.astype(np.float32, copy=False),
            ),
        )

    def finish(self) -> Iterator[RawFrame]:
        """Give nothing: `decode` owes no results."""
        return iter(())

    def save(self) -> dict[str, np.ndarray]:
        """Return the track tokens and which of them are present."""
        state = self._family.state
        has_track = np.array(self._tokens.has_track, np.bool_)
        with self._stream:
            return {state.input: self._tokens.download(), state.is_present: has_track}

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
        with self._stream:
            self._tokens.restore(tensors[state.input], tensors[state.is_present].tolist())

    def _prepare(self) -> dict[str, Buffer]:
        """Upload the text of all expressions, padded to the longest; make room for results."""
        family, num = self._family, len(self._rows)
        embeddings = [row.embedding for row in self._rows]
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

    def _run_step(self, features: Mapping[str, Buffer], text: Mapping[str, Buffer]) -> None:
        """Run the step on at most `max_expressions` rows at a time: views, nothing is copied."""
        state, spec = self._family.state, self._family.decoder_step.spec
        per_row = {
            **text,
            state.input: self._tokens.current,
            state.is_present: self._tokens.has_track_buffer(),
        }
        results = {**self._results, state.output: self._tokens.following}
        frame = {t.name: features[t.name] for t in spec.inputs if t.scope == "frame"}
        num = len(self._rows)
        for start in range(0, num, self._family.max_expressions):
            stop = min(start + self._family.max_expressions, num)
            rows = {name: buffer.rows(start, stop) for name, buffer in per_row.items()}
            self._context.run(
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
