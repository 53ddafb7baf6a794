"""Tiny ONNX graphs with RefSAM's tensors that really run: cheap stand-ins for the exported ones.

Both splits compute the same, up to rounding. What matters to a runtime holds: logits depend on
frame, text and track token; padding and an absent track token change nothing; a mask covers some
of the pixels, never none or all.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from refsam_trt.contract import refsam
from refsam_trt.contract.specs import GraphSpec, TensorSpec

OPSET = 20
IR_VERSION = 10
CHANNELS = refsam.EMBED_DIM

_IMAGE_BASELINE = """
    patches = AveragePool<kernel_shape = [{patch}, {patch}], strides = [{patch}, {patch}]>(image)
    projected = Conv(patches, patch_weight)
    image_embedding = Add(projected, position)
    levels = Unsqueeze(image_embedding, one)
    hda_features = Mul(levels, level_gains)
"""
_IMAGE_OPTIMISED = """
    level_sum = ReduceSum<keepdims = 0>(hda_features, one)
    image_base = Add(image_embedding, level_sum)
    flat = Reshape(image_base, flat_shape)
    rows = Transpose<perm = [0, 2, 1]>(flat)
    image_k0, image_v0 = Split<axis = 2, num_outputs = 2>(rows)
    image_q0 = Mul(image_k0, half)
"""
_TEXT_BASELINE = """
    ids = Cast<to = 1>(input_ids)
    ids_column = Unsqueeze(ids, minus_one)
    waves = Mul(ids_column, frequencies)
    features = Sin(waves)
    is_token = Cast<to = 9>(attention_mask)
    is_token_column = Unsqueeze(is_token, minus_one)
    words = Where(is_token_column, features, zero)
    word_sum = ReduceSum<keepdims = 0>(words, one)
    mask_float = Cast<to = 1>(attention_mask)
    num_words = ReduceSum<keepdims = 1>(mask_float, one)
    sentence = Div(word_sum, num_words)
"""
_TEXT_OPTIMISED = """
    first_row = Unsqueeze(sentence, one)
    rows = Concat<axis = 1>(first_row, words)
    head, tail = Split<axis = 2, num_outputs = 2>(rows)
    wide = Concat<axis = 2>(rows, head, head, head)
    wide_levels = Unsqueeze(wide, one)
    text_values = Mul(wide_levels, four_gains)
"""
_STEP_STATE = """
    word_column = Unsqueeze(word_mask, minus_one)
    mask_float = Cast<to = 1>(word_mask)
    num_words = ReduceSum<keepdims = 1>(mask_float, one)
    clean_words = Where(word_column, words, zero)
    word_sum = ReduceSum<keepdims = 0>(clean_words, one)
    word_mean = Div(word_sum, num_words)
    text = Add(sentence, word_mean)
    track_column = Unsqueeze(has_track, minus_one)
    track = Where(track_column, track_token, zero)
    level_sum = ReduceSum<keepdims = 0>(hda_features, one)
    summed = Add(image_embedding, level_sum)
    pooled = ReduceMean<keepdims = 0>(summed, last_two)
    text_and_track = Add(text, track)
    halved = Mul(text_and_track, half)
    mixed = Add(halved, pooled)
    next_track_token = Tanh(mixed)
"""
_STEP_BASELINE = """
    feature_columns = Reshape(summed, flat_shape)
    query = Add(text, track)
"""
_STEP_OPTIMISED = """
    value_rows = Slice(text_values, slice_starts, slice_ends, slice_axes)
    values = Squeeze(value_rows, one)
    first = Slice(values, row_zero, row_one, one)
    rest = Slice(values, row_one, row_end, one)
    clean_rest = Where(word_column, rest, zero)
    rest_sum = ReduceSum<keepdims = 0>(clean_rest, one)
    rest_mean = Div(rest_sum, num_words)
    first_flat = Squeeze(first, one)
    value_text = Add(first_flat, rest_mean)
    query = Add(value_text, track)
    twice_q0 = Add(image_q0, image_q0)
    k0 = Add(image_k0, twice_q0)
    k0_half = Mul(k0, half)
    kv = Concat<axis = 2>(k0_half, image_v0)
    kv_columns = Transpose<perm = [0, 2, 1]>(kv)
    base_columns = Reshape(image_base, flat_shape)
    column_sum = Add(kv_columns, base_columns)
    feature_columns = Mul(column_sum, half)
"""
_STEP_MASK = """
    query_row = Unsqueeze(query, one)
    scores = MatMul(query_row, feature_columns)
    mean_score = ReduceMean<keepdims = 1>(scores, minus_one)
    centred = Sub(scores, mean_score)
    score_map = Reshape(centred, map_shape)
    low_res_logits = ConvTranspose<strides = [4, 4]>(score_map, upscale_weight)
    iou = Reshape(mean_score, iou_shape)
"""


def make_graphs(
    image_size: int, grid_size: int, split: refsam.Split
) -> dict[str, tuple[onnx.ModelProto, GraphSpec]]:
    """Return, per graph name, a checked fp32 model and its contract."""
    specs = refsam.contract(image_size, grid_size, split)
    baseline = split == "baseline"
    bodies = {
        refsam.IMAGE_ENCODER: _IMAGE_BASELINE + ("" if baseline else _IMAGE_OPTIMISED),
        refsam.TEXT_ENCODER: _TEXT_BASELINE + ("" if baseline else _TEXT_OPTIMISED),
        refsam.DECODER_STEP: _STEP_STATE
        + (_STEP_BASELINE if baseline else _STEP_OPTIMISED)
        + _STEP_MASK,
    }
    constants = _constants(grid_size)
    patch = image_size // grid_size
    return {
        name: (_model(name, body.format(patch=patch), specs[name], constants), specs[name])
        for name, body in bodies.items()
    }


def _model(
    name: str, body: str, spec: GraphSpec, constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    graph = parser.parse_graph(f"{name} () => () {{ {body} }}")
    graph.input.extend(_value_info(tensor) for tensor in spec.inputs)
    graph.output.extend(_value_info(tensor) for tensor in spec.outputs)
    used = {value for node in graph.node for value in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(value, key) for key, value in constants.items() if key in used
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    return model


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    elem_type = TensorProto.DataType.Value(
        {"float32": "FLOAT", "float16": "FLOAT16"}.get(tensor.dtype, tensor.dtype.upper())
    )
    return helper.make_tensor_value_info(tensor.name, elem_type, tensor.dims)


def _constants(grid_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    return {
        "patch_weight": normal(CHANNELS, 3, 1, 1) / 8,
        "position": normal(1, CHANNELS, grid_size, grid_size) / 8,
        "level_gains": np.array([0.1, 0.2, 0.3], np.float32).reshape(1, 3, 1, 1, 1),
        "frequencies": normal(1, 1, CHANNELS),
        "four_gains": np.array([1, 0.5, 0.25, 0.125], np.float32).reshape(1, 4, 1, 1),
        "upscale_weight": np.abs(normal(1, 1, 4, 4)) + 0.1,
        "zero": np.zeros((), np.float32),
        "half": np.full((), 0.5, np.float32),
        "one": ints(1),
        "minus_one": ints(-1),
        "last_two": ints(2, 3),
        "flat_shape": ints(0, CHANNELS, -1),
        "map_shape": ints(-1, 1, grid_size, grid_size),
        "iou_shape": ints(-1, 1),
        "slice_starts": ints(0, 0),
        "slice_ends": ints(1, CHANNELS),
        "slice_axes": ints(1, 3),
        "row_zero": ints(0),
        "row_one": ints(1),
        "row_end": ints(2**31 - 1),
    }
