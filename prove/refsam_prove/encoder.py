"""The image encoder on this CPU: our forms on each backend against SAM's encoder as it is.

Every form runs in turn with a plain export of segment-anything's encoder on ONNX Runtime and with a
matrix product of PyTorch, whose speed is what the machine can do at most. A form has a process of
its own, as each session keeps gigabytes at 1024x1024. Weights are random.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from refsam_bench.speed.gate import time_in_turn
from refsam_bench.speed.measure import environment
from refsam_bench.speed.timing import Ratio, Summary
from refsam_export.onnx.export import quiet
from refsam_export.onnx.flops import count_flops
from refsam_export.refsam.model.config import EMBED_DIM, ModelConfig
from refsam_export.refsam.model.sam import ImageEncoderViT
from refsam_export.refsam.programs import specs_of
from refsam_prove import Step
from refsam_prove.exports import say
from refsam_prove.quantised.trial import calibrated, write_encoder
from refsam_trt.backends.select import open_backend
from refsam_trt.command.in_process import in_process
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import BackendError
from refsam_trt.onnx_file.reader import summarise_onnx

NUM_THREADS = 2
MATMUL_SIZE = 3072
"""Rows and columns of the matrices whose product is timed: 58 GFLOP."""


@dataclass(frozen=True)
class Form:
    """One graph on one backend; `arithmetic` as for `open_backend`, `peak` what it multiplies in.

    `peak` None: of 8-bit products no peak is measured.
    """

    graph: str
    backend: str
    arithmetic: str | None = None
    peak: str | None = "fp32"


PLAIN = Form("plain", "ort-cpu")
FORMS = {
    "ort-cpu fp32 bias": Form("fp32-bias", "ort-cpu"),
    "ort-cpu fp32 augmented": Form("fp32-augmented", "ort-cpu"),
    "openvino-cpu fp32 bias": Form("fp32-bias", "openvino-cpu"),
    "openvino-cpu fp32 augmented": Form("fp32-augmented", "openvino-cpu"),
    "openvino-cpu bf16 bias": Form("fp32-bias", "openvino-cpu", "bf16", "bf16"),
    "ort-cpu int8 bias": Form("int8-bias", "ort-cpu", peak=None),
    "openvino-cpu int8 bias": Form("int8-bias", "openvino-cpu", peak=None),
}
"""The first one's outputs are what the others are compared with."""
MIN_SPEEDUPS = {
    "ort-cpu fp32": 1.35,
    "openvino-cpu fp32": 1.6,
    "openvino-cpu bf16": 3.1,
    "int8": 4.0,
}
"""Group of forms, which their names contain -> how many times as fast as the plain export the
fastest of them must be; what does not run here is not asked for."""
MIN_SHARES = {"openvino-cpu fp32": 0.9, "openvino-cpu bf16": 0.8}
"""Likewise, of the peak."""


class Written(msgspec.Struct, frozen=True):
    """Tensors of our graphs and of the plain one, and the arithmetic of the bias form."""

    spec: GraphSpec
    plain_spec: GraphSpec
    flops: int


def compare_encoders(
    preset: str, num_rounds: int, num_threads: int = NUM_THREADS, matmul_size: int = MATMUL_SIZE
) -> dict[str, Any]:
    """Time every form that this CPU runs.

    Args:
        preset: of the model.
        num_rounds: that count, after one that does not.
        num_threads: inside a graph run, and of PyTorch's product.
        matmul_size: of the product.

    Returns:
        Per form its time, the ratio to the plain export of the same rounds, the share of the peak
        and the relative error; `skipped` has the reason of every form that does not run here.
    """
    forms: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        written = in_process(write_graphs, preset, Path(scratch))
        for name, form in FORMS.items():
            try:
                forms[name] = in_process(
                    time_form, form, Path(scratch), written, num_rounds, num_threads, matmul_size
                )
                say(f"{name}: {_told(forms[name])}")
            except BackendError as error:
                skipped[name] = str(error).replace(f"{scratch}/", "")
                say(f"{name}: skipped: {skipped[name]}")
    return {
        "preset": preset,
        "random_weights": True,
        "scope": "image encoder, one frame, image to embeddings in host memory",
        "flops": written.flops,
        "num_rounds": num_rounds,
        "forms": forms,
        "skipped": skipped,
        "environment": environment(num_threads),
    }


def write_graphs(preset: str, folder: Path) -> Written:
    """Write all graphs and an image to a folder."""
    model, image, ranges = calibrated(preset)
    np.save(folder / "image.npy", image.numpy())
    for attention in ("bias", "augmented"):
        write_encoder(model, None, attention, folder / f"fp32-{attention}.onnx")
    write_encoder(model, ranges, "bias", folder / "int8-bias.onnx")
    spec = specs_of(model, "optimised")[IMAGE_ENCODER]
    path = folder / "fp32-bias.onnx"
    flops = sum(count_flops(path, summarise_onnx(path), spec).values())
    return Written(spec, _write_plain(model.config, image, folder / "plain.onnx"), flops)


def _write_plain(config: ModelConfig, image: torch.Tensor, path: Path) -> GraphSpec:
    """Export SAM's encoder as segment-anything has it, with PyTorch's exporter of its days."""
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        out_chans=EMBED_DIM,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size,
        global_attn_indexes=config.global_blocks,
    ).eval()
    output = TensorSpec("embedding", "float32", (1, EMBED_DIM, *2 * (config.grid_size,)), "frame")
    source = TensorSpec("image", "float32", tuple(image.shape), "frame")
    with quiet(), torch.no_grad():
        torch.onnx.export(
            encoder,
            (image,),
            str(path),
            input_names=[source.name],
            output_names=[output.name],
            opset_version=17,
            dynamo=False,
        )
    return GraphSpec((source,), (output,))


def time_form(
    form: Form, folder: Path, written: Written, num_rounds: int, num_threads: int, matmul_size: int
) -> dict[str, Any]:
    """Time one form in turn with the plain export and the product (see `compare_encoders`).

    Raises:
        BackendError: this CPU, or this installation, does not run it.
    """
    torch.set_num_threads(num_threads)
    run, outputs = _opened(form, folder, written.spec, num_threads)
    plain, _ = _opened(PLAIN, folder, written.plain_spec, num_threads)
    runs: dict[str, Callable[[], object]] = {"form": run, "plain": plain}
    if form.peak is not None:
        runs["product"] = _product(form.peak, matmul_size)
    seconds = time_in_turn(runs, num_rounds)
    figures: dict[str, Any] = {
        "time": asdict(Summary.of(seconds["form"])),
        "plain_time": asdict(Summary.of(seconds["plain"])),
        "speedup": asdict(Ratio.of(seconds["plain"], seconds["form"])),
        "relative_error": _error(outputs(), folder / "expected.npz"),
    }
    if form.peak is not None:
        peak = 2 * matmul_size**3 / np.asarray(seconds["product"])
        figures["peak_gflops"] = float(np.median(peak) / 1e9)
        shares = written.flops / np.asarray(seconds["form"]) / peak
        figures["share_of_peak"] = float(np.median(shares))
    return figures


def _opened(
    form: Form, folder: Path, spec: GraphSpec, num_threads: int
) -> tuple[Callable[[], None], Callable[[], dict[str, np.ndarray[Any, Any]]]]:
    """Return what runs a form once, and what returns its last outputs."""
    backend = open_backend(form.backend, num_threads, arithmetic=form.arithmetic)
    context = backend.load(folder / f"{form.graph}.onnx", spec).context()
    inputs = {"image": backend.upload(np.load(folder / "image.npy"))}
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in spec.outputs}

    def download() -> dict[str, np.ndarray[Any, Any]]:
        return {name: backend.download(buffer) for name, buffer in outputs.items()}

    return lambda: context.run(inputs, outputs), download


def _product(precision: str, size: int) -> Callable[[], object]:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = torch.randn(2, size, size).to(dtype)
    return lambda: left @ right


def _error(outputs: dict[str, np.ndarray[Any, Any]], expected: Path) -> float:
    """Return the largest relative error (2-norms); the first form's outputs become the expected."""
    if not expected.exists():
        np.savez(expected, **outputs)  # type: ignore[arg-type]
    with np.load(expected) as golden:
        norm = np.linalg.norm
        return max(float(norm(a - golden[n]) / norm(golden[n])) for n, a in outputs.items())


def _told(figures: dict[str, Any]) -> str:
    share = figures.get("share_of_peak")
    return (
        f"{figures['time']['p50_ms'] / 1e3:.2f} s, {figures['speedup']['p50']:.2f} times as fast "
        f"as the plain export, relative error {figures['relative_error']:.1g}"
        + ("" if share is None else f", {share:.0%} of the peak")
    )


def encoder_speed(preset: str, num_rounds: int) -> dict[str, Any]:
    """Time every form; `failures`: what is not as fast as it has to be."""
    figures = compare_encoders(preset, num_rounds)
    return {**figures, "failures": failures(figures)}


def failures(figures: dict[str, Any]) -> list[str]:
    """Return what is out of bounds, of the fastest form of each group that ran."""
    lines = []
    for group, least in MIN_SPEEDUPS.items():
        rows = {name: row for name, row in figures["forms"].items() if group in name}
        if not rows:
            continue
        name = max(rows, key=lambda each: rows[each]["speedup"]["p50"])
        ratio, share = rows[name]["speedup"]["p50"], rows[name].get("share_of_peak")
        if ratio < least:
            lines.append(f"{name}: {ratio:.2f} times as fast as the plain export, at least {least}")
        if share is not None and share < MIN_SHARES.get(group, 0):
            lines.append(f"{name}: {share:.0%} of the peak, at least {MIN_SHARES[group]:.0%}")
    return lines


STEPS: dict[str, Step] = {"encoder-vitb": partial(encoder_speed, "vitb", 4)}
