"""The three graphs in PyTorch with a precision policy's rounding, chained like the runtime does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from refsam_export.precision.policy import PrecisionPolicy
from refsam_export.precision.typed_program import rounded_module, trace
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.model.refsam import RefSam
from refsam_trt.contract import refsam
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER, Split
from refsam_trt.contract.specs import GraphSpec

LIMITS = {"M": refsam.MAX_FRAMES, "B": refsam.MAX_EXPRESSIONS, "N": refsam.MAX_WORDS}

Programs = Mapping[str, fx.GraphModule]
Tensors = dict[str, Tensor]


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


class GraphChain:
    """Programs of the three graphs, run on named tensors.

    Args:
        programs: of each graph; `run` calls them.
        specs: their contract.
    """

    def __init__(self, programs: Mapping[str, Any], specs: Mapping[str, GraphSpec]) -> None:
        self._programs, self.specs = programs, specs

    def run(self, graph: str, tensors: Mapping[str, Tensor]) -> Tensors:
        """Run one graph on its inputs, among others, by name; returns its outputs by name."""
        spec = self.specs[graph]
        with torch.no_grad():
            values = self._programs[graph](*(tensors[tensor.name] for tensor in spec.inputs))
        return {t.name: value for t, value in zip(spec.outputs, values, strict=True)}

    def encode_image(self, image: Tensor) -> Tensors:
        """Encode a frame [1, 3, S, S]."""
        return self.run(IMAGE_ENCODER, {"image": image})

    def encode_text(self, ids: Sequence[int]) -> Tensors:
        """Encode one expression, unpadded."""
        input_ids = torch.tensor([list(ids)])
        mask = torch.ones_like(input_ids)
        embedding = self.run(TEXT_ENCODER, {"input_ids": input_ids, "attention_mask": mask})
        return {**embedding, "word_mask": mask > 0}

    def step(self, frame: Tensors, text: Tensors, token: Tensor | None) -> Tensors:
        """Decode a frame for one expression; `token` [1, 256] is None without a track."""
        state = {
            "track_token": torch.zeros_like(text["sentence"]) if token is None else token,
            "has_track": torch.tensor([token is not None]),
        }
        return self.run(DECODER_STEP, {**frame, **text, **state})


def rounded_chain(
    programs: Programs, specs: Mapping[str, GraphSpec], policy: PrecisionPolicy
) -> GraphChain:
    """Return the chain of the graphs with the policy's rounding where it applies."""
    return GraphChain(
        {
            name: rounded_module(program, policy) if name in policy.graphs else program
            for name, program in programs.items()
        },
        specs,
    )
