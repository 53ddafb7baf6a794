"""RefSAM's contract: the tensors of its three graphs (refsam-model 12.1 and 12.4)."""

from __future__ import annotations

from typing import Final, Literal

from refsam_trt.contract.specs import DType, GraphSpec, Scope, TensorSpec

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
