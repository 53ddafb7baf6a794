"""PyTorch's two forms for the GPU, on the CPU and on a device without memory."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from reference_models import loaded

from refsam_bench.gpu import pytorch
from refsam_bench.gpu.pytorch import TorchSession, compiled_graphs, eager_graphs, torch_device
from refsam_export.onnx.export import example_inputs
from refsam_export.parity.inputs import moving_frames
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import LIMITS

HW = (48, 64)
TEXTS = ["red disc", "the large star at the top"]
CPU, META = torch.device("cpu"), torch.device("meta")


def own() -> LoadedModel:
    """A model that may be moved."""
    return copy.deepcopy(loaded("tiny"))


@pytest.mark.parametrize("make", [eager_graphs, compiled_graphs])
def test_no_tensor_stays_behind_on_the_host(make: Any):
    """`meta` is a device too: an operator that meets tensors of two devices fails."""
    graphs = make(own(), META) if make is eager_graphs else make(own(), META, "eager")
    num_named = 0
    for name, spec in graphs.chain.specs.items():
        inputs, _ = example_inputs(spec, LIMITS)
        program = graphs.chain._programs[name]
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
    chain = compiled_graphs(own(), CPU, "eager").chain
    for name, program in chain._programs.items():
        graph = getattr(program, "_orig_mod", program).graph
        names = [str(node.target) for node in graph.nodes]
        num_fused = sum("scaled_dot_product_attention" in target for target in names)
        assert num_fused == (8 if name == "image_encoder" else 0)
        weights = {p.dtype for p in getattr(program, "_orig_mod", program).parameters()}
        assert (torch.float16 in weights) is (name != "text_encoder")


def test_both_forms_follow_alike_and_remember():
    frames = moving_frames(3, 0, HW)
    wide, half = (
        TorchSession(graphs, TEXTS, HW)
        for graphs in (eager_graphs(own(), CPU), compiled_graphs(own(), CPU, "eager"))
    )
    for frame in frames:
        expected, found = wide.logits(frame), half.logits(frame)
        assert expected.shape == (2, 32, 32)
        assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max()
    fresh = TorchSession(eager_graphs(own(), CPU), TEXTS, HW)
    assert np.abs(fresh.logits(frames[-1]) - expected).max() > 1e-3  # the track token counts
    masks = wide.step(frames[0])
    assert [(mask.shape, mask.dtype) for mask in masks] == [(HW, np.dtype(bool))] * 2


def test_captured_graphs_are_told_where_a_frame_begins(monkeypatch: pytest.MonkeyPatch):
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    graphs = eager_graphs(own(), CPU)
    TorchSession(graphs, TEXTS, HW).logits(moving_frames(1, 0, HW)[0])
    assert marks == []
    captured = pytorch.TorchGraphs("x", graphs.chain, graphs.loaded, CPU, has_captures=True)
    TorchSession(captured, TEXTS, HW).logits(moving_frames(1, 0, HW)[0])
    assert marks == [1]


def test_products_are_not_rounded_on_the_gpu():
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        assert torch_device() == torch.device("cuda", 0)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept
