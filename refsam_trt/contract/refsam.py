"""RefSAM's contract: the tensors of its three graphs (refsam-model 12.1 and 12.4)."""

from __future__ import annotations

from typing import Final, Literal, get_args

from refsam_trt.contract.manifest import Manifest, Variant
from refsam_trt.contract.precision import BASES, QUANTISED, split_precision
from refsam_trt.contract.specs import (
    EXPORT_AGAIN,
    DType,
    GraphSpec,
    Scope,
    TensorSpec,
    check_tensors,
)
from refsam_trt.errors import BundleError

FAMILY = "refsam"
IMAGE_ENCODER = "image_encoder"
TEXT_ENCODER = "text_encoder"
DECODER_STEP = "decoder_step"
GRAPHS = (IMAGE_ENCODER, TEXT_ENCODER, DECODER_STEP)

STATE = ("track_token", "next_track_token", "has_track")
"""Input, output and sign of presence of the one tensor that is kept from frame to frame."""

EMBED_DIM = 256
ATTENTION_DIM = 128
NUM_HDA_LEVELS: Final = 4
TEXT_VALUES_DIM = EMBED_DIM + 3 * ATTENTION_DIM

MAX_WORDS = 64
MAX_EXPRESSIONS = 64
MAX_FRAMES = 8

Split = Literal["optimised", "baseline"]
HdaLevels = Literal[4, 1, 0]

_SPLITS: dict[str, Split] = {split: split for split in get_args(Split)}


def contract(
    image_size: int,
    grid_size: int,
    split: Split,
    float_dtype: DType = "float32",
    hda_levels: HdaLevels = NUM_HDA_LEVELS,
) -> dict[str, GraphSpec]:
    """Return the tensors of each graph.

    Args:
        image_size: side of the square network input in pixels.
        grid_size: side h = w of the feature grid.
        split: `baseline` computes the decoder as written; `optimised` moves whatever depends on the
            frame or the expression alone out of the step (12.4).
        float_dtype: dtype of every floating-point tensor between graphs.
        hda_levels: maps with Dense Attention. 4: all. 1: the final one, so there is no
            `hda_features` and `text_values` has one level. 0: none (an ablation), so there is no
            `text_values` either.
    """
    c, h = EMBED_DIM, grid_size

    def tensor(name: str, scope: Scope, *dims: int | str, dtype: DType = float_dtype) -> TensorSpec:
        return TensorSpec(name, dtype, dims, scope)

    image = tensor("image", "frame", "M", 3, image_size, image_size, dtype="float32")
    frame = [tensor("image_embedding", "frame", "M", c, h, h)]
    if hda_levels > 1:
        frame.append(tensor("hda_features", "frame", "M", hda_levels - 1, c, h, h))
    text = [
        tensor("words", "expression", "B", "N", c),
        tensor("sentence", "expression", "B", c),
    ]
    if split == "optimised":
        frame += [
            tensor("image_base", "frame", "M", c, h, h),
            *(
                tensor(name, "frame", "M", h * h, ATTENTION_DIM)
                for name in ("image_k0", "image_v0", "image_q0")
            ),
        ]
    if split == "optimised" and hda_levels > 0:
        text.append(tensor("text_values", "expression", "B", hda_levels, "N+1", TEXT_VALUES_DIM))
    ids = [
        tensor(name, "expression", "B", "N", dtype="int64")
        for name in ("input_ids", "attention_mask")
    ]
    step = (
        *(TensorSpec(t.name, t.dtype, (1, *t.dims[1:]), t.scope) for t in frame),
        *text,
        tensor("word_mask", "expression", "B", "N", dtype="bool"),
        tensor("track_token", "video", "B", c),
        tensor("has_track", "video", "B", dtype="bool"),
    )
    results = (
        tensor("low_res_logits", "pair", "B", 1, 4 * h, 4 * h),
        tensor("iou", "pair", "B", 1),
        tensor("next_track_token", "video", "B", c),
    )
    return {
        IMAGE_ENCODER: GraphSpec((image,), tuple(frame)),
        TEXT_ENCODER: GraphSpec(tuple(ids), tuple(text)),
        DECODER_STEP: GraphSpec(step, results),
    }


def check(manifest: Manifest) -> None:
    """Check that state, graphs, precisions and tensors of a manifest are those of this family.

    Raises:
        BundleError: what the manifest says, and what the family expects.
    """
    _check_state(manifest)
    for name, variant in manifest.variants.items():
        _check_graphs(name, variant, has_text_cache=manifest.text_cache is not None)
        _check_precision(name, variant)
        expected = _expected_graphs(name, variant, manifest.preprocess.image_size)
        for graph, entry in variant.graphs.items():
            where = f"variant {name!r}, graph {graph!r}"
            check_tensors(f"{where}: input", entry.spec.inputs, expected[graph].inputs)
            check_tensors(f"{where}: output", entry.spec.outputs, expected[graph].outputs)


def _check_state(manifest: Manifest) -> None:
    entries = [(entry.input, entry.output, entry.is_present) for entry in manifest.state]
    if entries != [STATE]:
        stated = "; ".join(", ".join(names) for names in entries) or "none"
        raise BundleError(
            f"state: {stated}; {FAMILY} keeps {', '.join(STATE)} (input, output, "
            f"sign of presence) and nothing else; {EXPORT_AGAIN}"
        )


def _check_graphs(name: str, variant: Variant, *, has_text_cache: bool) -> None:
    needed = set(GRAPHS) - ({TEXT_ENCODER} if has_text_cache else set())
    graphs = variant.graphs.keys()
    if unknown := graphs - set(GRAPHS):
        raise BundleError(
            f"variant {name!r}: graph {', '.join(sorted(unknown))}; {FAMILY} has "
            f"{', '.join(GRAPHS)}; {EXPORT_AGAIN}"
        )
    if missing := needed - graphs:
        raise BundleError(
            f"variant {name!r}: no graph {', '.join(sorted(missing))}; {FAMILY} needs it"
            f"{'' if has_text_cache else ' (the text encoder unless there is a text cache)'}; "
            f"{EXPORT_AGAIN}"
        )


def _check_precision(name: str, variant: Variant) -> None:
    """Only the text encoder may be of a higher precision than its variant.

    Of a quantised variant, the image encoder alone is quantised; the step has its base's precision.
    """
    stated = {g: variant.graphs[g].precision for g in (IMAGE_ENCODER, DECODER_STEP)}
    expected = dict.fromkeys(stated, variant.precision)
    if variant.precision in QUANTISED:
        base = split_precision(stated[IMAGE_ENCODER])[1]
        base = base if base in BASES else BASES[0]
        expected = {IMAGE_ENCODER: f"{variant.precision}-{base}", DECODER_STEP: base}
    for graph, precision in stated.items():
        if precision != expected[graph]:
            raise BundleError(
                f"variant {name!r}, graph {graph!r}: precision {precision!r}, expected "
                f"{expected[graph]!r}; {EXPORT_AGAIN}"
            )


def _expected_graphs(name: str, variant: Variant, image_size: int) -> dict[str, GraphSpec]:
    """Return the contract that the variant's split, grid, dtype and levels ask for."""
    outputs = variant.graphs[IMAGE_ENCODER].spec.outputs
    embedding = outputs[0] if outputs else None
    if embedding is None or len(embedding.dims) != 4 or not isinstance(embedding.dims[3], int):
        raise BundleError(
            f"variant {name!r}, graph {IMAGE_ENCODER!r}: its first output should be "
            f"image_embedding [M, {EMBED_DIM}, h, w]; {EXPORT_AGAIN}"
        )
    if variant.split not in _SPLITS:
        raise BundleError(
            f"variant {name!r}: split {variant.split!r}, expected {' or '.join(_SPLITS)}; "
            f"{EXPORT_AGAIN}"
        )
    split = _SPLITS[variant.split]
    return contract(image_size, embedding.dims[3], split, embedding.dtype, _hda_levels(variant))


def _hda_levels(variant: Variant) -> HdaLevels:
    """Return how many maps have Dense Attention, from the tensors that only such maps need.

    In the baseline split 1 and 0 ask for the same tensors.
    """
    names = {tensor.name for tensor in variant.graphs[DECODER_STEP].spec.inputs}
    if "hda_features" in names:
        return NUM_HDA_LEVELS
    return 1 if "text_values" in names else 0
