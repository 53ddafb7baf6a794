"""Whether PyTorch on the GPU computes what it computes on the CPU, and its J&F (job `pytorch`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors.numpy import load_file

from refsam_bench.gpu.bundles import reference_folder
from refsam_bench.gpu.checks import score
from refsam_bench.gpu.pytorch import (
    COMPILED,
    EAGER,
    TorchGraphs,
    TorchSession,
    TorchTracker,
    compiled_graphs,
    eager_graphs,
    torch_device,
)
from refsam_bench.gpu.request import Job
from refsam_bench.gpu.steps import Steps
from refsam_export.parity.bounds import BOUNDS
from refsam_export.parity.compare import TENSORS, mask_iou, relative_error
from refsam_export.parity.inputs import EXPRESSIONS
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import ParityError

MAKERS: dict[str, tuple[str, Callable[..., TorchGraphs]]] = {
    EAGER: ("fp32", eager_graphs),
    COMPILED: ("fp16", compiled_graphs),
}
"""Name -> precision, and what makes it."""


def check_pytorch(job: Job, steps: Steps) -> None:
    """Compare both forms with the reference; score the first."""
    for name, (precision, _) in MAKERS.items():
        graphs = steps.keep(f"load {name}", lambda name=name: (made(job, name), {}))  # type: ignore[misc]
        if graphs is None:
            steps.skip(f"parity {name}", "it cannot be loaded")
            continue
        steps.run(f"parity {name}", lambda g=graphs, p=precision: _parity(job, g, p))  # type: ignore[misc]
        if name == EAGER and job.request.num_videos:
            steps.run("accuracy", lambda g=graphs: score(TorchTracker(g), job.request))  # type: ignore[misc]


def made(job: Job, name: str) -> TorchGraphs:
    """Make one of the two forms, with weights of its own."""
    bundle = open_bundle(job.subject.bundle, verify="deferred")
    return MAKERS[name][1](load_source(bundle, job.request.source), torch_device())


def _parity(job: Job, graphs: TorchGraphs, precision: str) -> dict[str, Any]:
    """Follow the expressions that begin with the parity clip and compare every frame."""
    tensors = load_file(_reference(job))
    frames, texts = tensors["frames"], EXPRESSIONS[:-1]  # the last one joins late
    session = TorchSession(graphs, texts, frames.shape[1:3])
    errors, ious = [], []
    for index, frame in enumerate(frames):
        found = session.logits(frame)
        for row in range(len(texts)):
            expected = tensors[f"chain.{row}.{index}.low_res_logits"][0]
            errors.append(relative_error(found[row], expected))
            ious.append(mask_iou(found[row] > 0, expected > 0))
    bounds = BOUNDS[precision]
    figures = {"max_chain_error": max(errors), "min_mask_iou": min(ious)}
    if figures["min_mask_iou"] < bounds.min_mask_iou:
        raise ParityError(
            f"{graphs.name}: mask IoU {min(ious):.6f}, at least {bounds.min_mask_iou} expected; "
            f"worst relative error over the chain {max(errors):.1e}"
        )
    return figures


def _reference(job: Job) -> Any:
    """Return the tensors of any split: the chain is the same."""
    bundle = open_bundle(job.subject.bundle, verify="deferred")
    split = min(variant.split for variant in bundle.manifest.variants.values())
    return reference_folder(job.subject, split) / TENSORS
