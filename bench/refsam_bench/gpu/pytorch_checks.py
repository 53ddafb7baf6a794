"""Whether PyTorch on the GPU computes what it computes on the CPU, and its J&F (job `pytorch`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refsam_bench.gpu.checks import score
from refsam_bench.gpu.pytorch import (
    COMPILED,
    EAGER,
    compiled_graphs,
    eager_graphs,
    torch_device,
)
from refsam_bench.gpu.request import Job
from refsam_bench.gpu.steps import StepRunner
from refsam_bench.trackers.reference import EngineTracker
from refsam_export.parity.compare import mask_iou, read_reference
from refsam_export.parity.figures import BOUNDS, relative_error
from refsam_export.parity.inputs import EXPRESSIONS
from refsam_export.refsam.programs import ReferenceGraphs
from refsam_export.refsam.reference import ReferenceModel
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import ParityError

MAKERS: dict[str, tuple[str, Callable[..., ReferenceGraphs]]] = {
    EAGER: ("fp32", eager_graphs),
    COMPILED: ("fp16", compiled_graphs),
}
"""Name -> precision, and what makes it."""


def check_pytorch(job: Job, steps: StepRunner) -> None:
    """Compare both forms with the reference; score the first."""
    for name, (precision, _) in MAKERS.items():
        model = steps.keep(f"load {name}", lambda name=name: (torch_model(job, name), {}))  # type: ignore[misc]
        if model is None:
            steps.skip(f"parity {name}", "it cannot be loaded")
            continue
        steps.run(f"parity {name}", lambda n=name, m=model, p=precision: _parity(job, n, m, p))  # type: ignore[misc]
        if name == EAGER and job.request.num_videos:
            steps.run("accuracy", lambda m=model: score(EngineTracker(m), job.request))  # type: ignore[misc]


def torch_model(job: Job, name: str) -> ReferenceModel:
    """Make one of the two forms, with weights of its own."""
    bundle = open_bundle(job.subject.bundle, verify="deferred")
    loaded = load_source(bundle, job.request.source)
    return ReferenceModel.of(loaded, MAKERS[name][1](loaded, torch_device()), together=True)


def _parity(job: Job, name: str, model: ReferenceModel, precision: str) -> dict[str, Any]:
    """Follow the expressions that begin with the parity clip and compare every frame."""
    bundle = open_bundle(job.subject.bundle, verify="deferred")
    # The chain is the same in every split.
    split = min(variant.split for variant in bundle.manifest.variants.values())
    tensors, _ = read_reference(job.subject.reference(split))
    errors, ious = [], []
    with model.open_video() as video:
        for text in EXPRESSIONS[:-1]:  # the last one joins late
            video.add_expression(text)
        for index, frame in enumerate(tensors["frames"]):
            for row, result in enumerate(video.step(frame)):
                expected = tensors[f"chain.{row}.{index}.low_res_logits"][0]
                errors.append(relative_error(result.low_res_logits, expected))
                ious.append(mask_iou(result.low_res_logits > 0, expected > 0))
    bounds = BOUNDS[precision]
    figures = {"max_chain_error": max(errors), "min_mask_iou": min(ious)}
    if figures["min_mask_iou"] < bounds.min_mask_iou:
        raise ParityError(
            f"{name}: mask IoU {min(ious):.6f}, at least {bounds.min_mask_iou} expected; "
            f"worst relative error over the chain {max(errors):.1e}"
        )
    return figures
