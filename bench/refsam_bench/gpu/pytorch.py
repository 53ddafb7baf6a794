"""PyTorch on the GPU: the reference as it is in fp32, and the fastest it can be made in fp16.

Both do the work in the runtime's order, the image once per frame and all expressions in one step,
so that what is compared is the execution, not the order (`refsam-bench speed` compares that).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from refsam_export.precision.policy import POLICIES
from refsam_export.precision.typed_program import moved_program, typed_module
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import ReferenceGraphs, specs_of, split_graphs, trace_graphs
from refsam_export.refsam.rewrites import DEFAULT_REWRITES
from refsam_trt.contract.refsam import Split

EAGER, COMPILED = "pytorch-fp32-eager", "pytorch-fp16-compiled"
COMPILE_MODE = "reduce-overhead"
"""With CUDA graphs, as the plans have them."""
_INDUCTOR = "inductor"


def torch_device() -> torch.device:
    """Return the first GPU, with products in full fp32: TF32 would be another precision."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", 0)


def eager_graphs(loaded: LoadedModel, device: torch.device) -> ReferenceGraphs:
    """Return the reference: SAM's own attention, fp32, operator by operator."""
    graphs = split_graphs(loaded.model.to(device), "baseline")
    modules: dict[str, Any] = dict(graphs.programs)
    moved = {name: module.to(device) for name, module in modules.items()}
    return dataclasses.replace(graphs, programs=moved, device=device)


def compiled_graphs(
    loaded: LoadedModel, device: torch.device, backend: str = _INDUCTOR
) -> ReferenceGraphs:
    """Return our graphs with our fp16 policy, flash attention, compiled by `torch.compile`.

    The text encoder is fp32 and not compiled: it runs once per expression.

    Args:
        loaded: fp32, on the CPU.
        device: where they are to run.
        backend: of `torch.compile`.
    """
    policy = POLICIES["fp16"]
    split: Split = "optimised"
    programs: dict[str, Any] = {}
    for name, program in trace_graphs(loaded.model, split, "sdpa", DEFAULT_REWRITES).items():
        is_half = name in policy.graphs
        typed = typed_module(program, policy) if is_half else program
        moved: fx.GraphModule = moved_program(typed, device)
        programs[name] = _compiled(moved, backend) if is_half else moved
    return ReferenceGraphs(
        programs, specs_of(loaded.model, split), device, has_captures=backend == _INDUCTOR
    )


def _compiled(program: fx.GraphModule, backend: str) -> Callable[..., Any]:
    mode = COMPILE_MODE if backend == _INDUCTOR else None
    compiled: Callable[..., Any] = torch.compile(program, backend=backend, mode=mode, dynamic=False)
    return compiled
