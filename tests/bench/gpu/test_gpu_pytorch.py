"""PyTorch's two forms for the GPU, on the CPU and on a device without memory."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from reference_models import loaded_shallow

from refsam_bench.gpu.pytorch import compiled_graphs, eager_graphs, torch_device
from refsam_export.onnx.export import example_inputs
from refsam_export.parity.inputs import moving_frames
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import LIMITS
from refsam_export.refsam.reference import ReferenceModel, ReferenceSession

HW = (48, 64)
TEXTS = ["red disc", "the large star at the top"]
CPU, META = torch.device("cpu"), torch.device("meta")


def own() -> LoadedModel:
    """A model that may be moved."""
    return copy.deepcopy(loaded_shallow())


def model_of(make: Any, *arguments: Any, **changes: Any) -> ReferenceModel:
    model = own()
    graphs = dataclasses.replace(make(model, CPU, *arguments), **changes)
    return ReferenceModel.of(model, graphs, together=True)


def video_of(model: ReferenceModel) -> ReferenceSession:
    video = model.open_video()
    for text in TEXTS:
        video.add_expression(text)
    return video


def logits(video: ReferenceSession, frame: np.ndarray) -> np.ndarray:
    return np.stack([result.low_res_logits for result in video.step(frame)])


@pytest.mark.parametrize("make", [eager_graphs, compiled_graphs])
def test_no_tensor_stays_behind_on_the_host(make: Any):
    """`meta` is a device too: an operator that meets tensors of two devices fails."""
    graphs = make(own(), META) if make is eager_graphs else make(own(), META, "eager")
    num_named = 0
    for name, spec in graphs.specs.items():
        inputs, _ = example_inputs(spec, LIMITS)
        program = graphs.programs[name]
        program = getattr(program, "_orig_mod", program)
        tensors = [*program.parameters(), *program.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        outputs = program(*(tensor.to(META) for tensor in inputs))
        named = [
            argument for argument in arguments_of(program) if isinstance(argument, torch.device)
        ]
        assert set(named) <= {META}  # a scalar on the host would be taken, and no graph captured
        num_named += len(named)
        assert {output.device.type for output in outputs} == {"meta"}
    assert (num_named > 0) is (make is compiled_graphs)


def arguments_of(program: Any) -> list[Any]:
    """Return everything that the nodes of a traced program are given; nothing for a module."""
    graph = getattr(program, "graph", None)
    nodes = graph.nodes if graph else []
    return [argument for node in nodes for argument in (*node.args, *node.kwargs.values())]


def test_moving_leaves_the_model_where_it_is():
    model = own()
    compiled_graphs(model, META, "eager")
    assert {p.device.type for p in model.model.parameters()} == {"cpu"}


def test_the_half_form_computes_in_half_with_one_attention_operator_a_block():
    graphs, depth = compiled_graphs(own(), CPU, "eager"), own().model.config.depth
    for name, program in graphs.programs.items():
        graph = getattr(program, "_orig_mod", program).graph
        names = [str(node.target) for node in graph.nodes]
        num_fused = sum("scaled_dot_product_attention" in target for target in names)
        assert num_fused == (depth if name == "image_encoder" else 0)
        weights = {p.dtype for p in getattr(program, "_orig_mod", program).parameters()}
        assert (torch.float16 in weights) is (name != "text_encoder")


def test_both_forms_follow_alike_and_remember():
    frames = moving_frames(3, 0, HW)
    wide, half = video_of(model_of(eager_graphs)), video_of(model_of(compiled_graphs, "eager"))
    for frame in frames:
        expected, found = logits(wide, frame), logits(half, frame)
        assert expected.shape == (2, 32, 32)
        assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max()
    fresh = video_of(model_of(eager_graphs))
    assert np.abs(logits(fresh, frames[-1]) - expected).max() > 1e-3  # the track token counts


def test_captured_graphs_are_told_where_a_frame_begins(monkeypatch: pytest.MonkeyPatch):
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    (frame,) = moving_frames(1, 0, HW)
    video_of(model_of(eager_graphs)).step(frame)
    assert marks == []
    video_of(model_of(eager_graphs, has_captures=True)).step(frame)
    assert marks == [1]


def test_what_captured_graphs_write_over_is_not_what_is_remembered():
    """The step's outputs lie where the step before wrote them, as those of CUDA graphs do."""
    frames = moving_frames(3, 0, HW)
    model = model_of(eager_graphs)
    decode, outputs = model.graphs.programs["decoder_step"], []

    def in_place(*inputs: torch.Tensor) -> list[torch.Tensor]:
        values = decode(*inputs)
        if not outputs:
            outputs.extend(value.clone() for value in values)
        for output in outputs:
            output.zero_()  # before it is written: who reads it now reads nothing
        for output, value in zip(outputs, decode(*inputs), strict=True):
            output.copy_(value)
        return outputs

    programs = {**model.graphs.programs, "decoder_step": in_place}
    captured = dataclasses.replace(
        model, graphs=dataclasses.replace(model.graphs, programs=programs)
    )
    plain, video = video_of(model), video_of(captured)
    for frame in frames:
        np.testing.assert_array_equal(logits(video, frame), logits(plain, frame))


def test_products_are_not_rounded_on_the_gpu():
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        assert torch_device() == torch.device("cuda", 0)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept
