"""The manifest of a folder of plans: what was built, from which bundle, by what and for what.

Only the schema and its canonical bytes: `bundle.plans` reads folders, and
`backends.tensorrt.machine_check` compares them with a machine.
"""

from __future__ import annotations

from typing import Literal

from refsam_trt.contract.manifest import FileEntry, Limits, Record
from refsam_trt.contract.specs import GraphSpec

PLAN_SCHEMA_VERSION = 2
GOLDEN_FILE = "golden.safetensors"

PlanBackend = Literal["tensorrt", "tensorrt-rtx"]


class Profile(Record, frozen=True):
    """Smallest, tuned-for and largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Builder(Record, frozen=True):
    """What built the plans, which is what has to run them.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`; never the other's plans.
        version: full version of the library; plans are bound to it.
        cuda_major: CUDA that the library was built for; None if its package does not tell.
        platform: operating system and architecture, such as `linux-x86_64`.
        compute_capabilities: of the GPUs that can run the plans, such as `8.9`; `>12.0` stands for
            all later ones; None if the plan does not tell.
        gpu_name: GPU that the plans were tuned on; None where they were built without one.
        driver_version: CUDA version of the driver there; None without a GPU.
        has_tf32: whether fp32 products may be rounded to TF32.
        workspace_mib: limit on scratch memory that was asked for; None for the library's own.
    """

    backend: PlanBackend
    version: str
    cuda_major: int | None
    platform: str
    compute_capabilities: tuple[str, ...] | None
    gpu_name: str | None
    driver_version: str | None
    has_tf32: bool
    workspace_mib: int | None


class GraphReport(Record, frozen=True):
    """What is known about a built graph; None is what nothing told, never a guess.

    Attributes:
        num_layers: layers of the network as parsed.
        layers: per layer type and output type, how many layers; `{"MATRIX_MULTIPLY": {"HALF": 8}}`.
        num_attention: softmax layers, so attention blocks.
        num_fused_attention: attention kernels that the plan holds in place of such blocks.
        num_engine_layers: layers of the plan; needs a GPU.
        activation_bytes: scratch memory of one execution context at the largest shapes, without
            inputs and outputs.
        weights_bytes: weights on the GPU.
        warnings: what the builder warned of.
        precision_warnings: those of them that speak of lost precision.
    """

    num_layers: int
    layers: dict[str, dict[str, int]]
    num_attention: int
    num_fused_attention: int | None
    num_engine_layers: int | None
    activation_bytes: int | None
    weights_bytes: int | None
    warnings: tuple[str, ...]
    precision_warnings: tuple[str, ...]


class PlanEntry(Record, frozen=True):
    """One plan: its file, the graph it was built from, its tensors and the shapes it accepts.

    `graph_id` is `Bundle.content_id` of the ONNX file: a hash of it and its external data.
    `precision` is the graph's own: the text encoder of fp16 plans is fp32, int8 ones name a base.
    """

    file: str
    graph_id: str
    precision: str
    spec: GraphSpec
    profiles: dict[str, Profile]
    report: GraphReport


class PlanManifest(Record, frozen=True):
    """The whole manifest; `limits` are the largest sizes of the plans, not those of the bundle."""

    schema_version: int
    bundle_id: str
    variant: str
    precision: str
    builder: Builder
    limits: Limits
    tools: dict[str, str]
    graphs: dict[str, PlanEntry]
    golden_source: str
    files: dict[str, FileEntry]

    @property
    def build_command(self) -> str:
        """The command that builds these plans again, for the machine and library at hand."""
        options = f"--backend {self.builder.backend} --precision {self.precision}"
        return f"refsam-build BUNDLE {options} --output PLANS"
