"""The three graphs in PyTorch, and what can run them: the model itself, modules, programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from refsam_export.precision.policy import PrecisionPolicy
from refsam_export.precision.typed_program import rounded_module, trace
from refsam_export.refsam.graphs import DecoderStepGraph, ImageEncoderGraph, build_graphs
from refsam_export.refsam.model.refsam import RefSam
from refsam_trt.contract import refsam
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER, Split
from refsam_trt.contract.specs import GraphSpec

LIMITS = {"M": refsam.MAX_FRAMES, "B": refsam.MAX_EXPRESSIONS, "N": refsam.MAX_WORDS}

Programs = Mapping[str, fx.GraphModule]
Tensors = dict[str, Tensor]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ReferenceGraphs:
    """Something in PyTorch that computes the three graphs.

    Attributes:
        programs: what is called for each graph, with the tensors of its specification in order.
        specs: the tensors that each program takes and returns.
        device: where the programs are.
        has_captures: they run as CUDA graphs, which write over the outputs of the frame before.
    """

    programs: Mapping[str, Callable[..., Sequence[Tensor]]]
    specs: Mapping[str, GraphSpec]
    device: torch.device = _CPU
    has_captures: bool = False

    @torch.no_grad()
    def run(self, graph: str, tensors: Mapping[str, Tensor]) -> Tensors:
        """Run one graph on its inputs, among others, by name; returns its outputs by name."""
        spec = self.specs[graph]
        outputs = self.programs[graph](*(tensors[tensor.name] for tensor in spec.inputs))
        return {t.name: value for t, value in zip(spec.outputs, outputs, strict=True)}


def release(module: nn.Module) -> None:
    """Give the memory of a module's tensors back; nothing can be computed with it any more.

    Letting go of it is not enough: `torch.export` (2.13) keeps what it has traced, with all its
    tensors, until the process ends. Memory that belongs to a mapped file is only let go of; the
    system takes it when it needs it.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(0)
        else:
            tensor.data = tensor.new_empty(0)


def specs_of(model: RefSam, split: Split) -> dict[str, GraphSpec]:
    """Return the contract of a model's graphs."""
    config = model.config
    return refsam.contract(config.image_size, config.grid_size, split, hda_levels=config.hda_levels)


def trace_graphs(
    model: RefSam, split: Split, attention: str, rewrites: tuple[str, ...] = ()
) -> dict[str, fx.GraphModule]:
    """Return the fp32 program of each graph (`build_graphs`); weights are shared with the model."""
    specs = specs_of(model, split)
    return {
        name: trace(module, specs[name], LIMITS)
        for name, module in build_graphs(model, split, attention, rewrites).items()
    }


def model_graphs(model: RefSam) -> ReferenceGraphs:
    """Return the model itself, in SAM's own form; hooks on its layers are called."""
    programs: dict[str, Any] = {
        IMAGE_ENCODER: ImageEncoderGraph(model, "baseline", "reference", ()),
        TEXT_ENCODER: model.encode_text,
        DECODER_STEP: DecoderStepGraph(model, "baseline"),
    }
    return ReferenceGraphs(programs, specs_of(model, "baseline"))


def split_graphs(model: RefSam, split: Split, attention: str = "reference") -> ReferenceGraphs:
    """Return the reference with the outputs that a split asks of its encoders.

    They are modules in SAM's own attention, or in another form of it. The step is not split and
    takes only what the model itself takes, so that it also proves what a split moved out of it.
    """
    baseline = {DECODER_STEP: DecoderStepGraph(model, "baseline").eval()}
    modules = build_graphs(model, split, attention) | baseline
    specs = specs_of(model, split)
    specs[DECODER_STEP] = specs_of(model, "baseline")[DECODER_STEP]
    return ReferenceGraphs(modules, specs)


def rounded_graphs(
    programs: Programs, specs: Mapping[str, GraphSpec], policy: PrecisionPolicy
) -> ReferenceGraphs:
    """Return the programs with the policy's rounding in the graphs that it applies to."""
    rounded = {
        name: rounded_module(program, policy) if name in policy.graphs else program
        for name, program in programs.items()
    }
    return ReferenceGraphs(rounded, specs)
