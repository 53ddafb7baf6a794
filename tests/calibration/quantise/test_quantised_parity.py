"""ONNX Runtime's integer kernels against quantisation spelled out in PyTorch."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from quantised import Quantised, largest_inputs, quantised_bundle, rounded
from reference_models import image_of, loaded, model, relative
from torch import Tensor

from refsam_calibration.quantise.quantised_graphs import write_quantised_encoder
from refsam_export.parity.compare import compare
from refsam_export.parity.figures import Parity
from refsam_export.parity.reference import write_reference
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.request import ExportRequest
from refsam_trt.contract.refsam import IMAGE_ENCODER

VARIANT = "int8-fp32-augmented-optimised"
MAX_ERROR = 1e-4
"""Largest relative error of the encoder on the best of some frames: integer sums are exact, the
rest is float32. On others a value lies between two codes and is rounded to the other one in an
early layer: which frames those are depends on the CPU, and tells nothing."""
NUM_FRAMES = 8
MIN_MEAN_IOU = 0.985
"""Over the chain, whose frames are not chosen."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return quantised_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [image_of(model("tiny"), index) for index in range(NUM_FRAMES)]


def least_error(embeddings: list[Tensor], twin: RefSam, images: list[Tensor]) -> float:
    """Return the relative error of embeddings against PyTorch on the frame where it is least."""
    return min(
        relative(embedding, twin.encode_image(image)[0])
        for embedding, image in zip(embeddings, images, strict=True)
    )


def encoded(path: Path, images: list[Tensor], *, optimise: bool) -> list[Tensor]:
    """Return what ONNX Runtime makes of the images."""
    options = onnxruntime.SessionOptions()
    # As `OrtCpuBackend` sets it: products saturate at 16 bits on CPUs without VNNI otherwise.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    runs = (session.run(None, {"image": image.numpy()}) for image in images)
    return [torch.from_numpy(embedding) for embedding, *_ in runs]


@pytest.fixture(scope="module")
def kernels(made: Quantised, images: list[Tensor]) -> list[Tensor]:
    """What the bundle's image encoder gives in ONNX Runtime's integer kernels."""
    entry = made.bundle.manifest.variants[VARIANT].graphs[IMAGE_ENCODER]
    return encoded(made.bundle.path(entry.file), images, optimise=True)


def test_integer_kernels_are_fake_quantisation(
    made: Quantised, kernels: list[Tensor], images: list[Tensor]
):
    assert least_error(kernels, rounded(model("tiny"), made.ranges), images) <= MAX_ERROR


def test_masks_are_those_of_fake_quantisation(made: Quantised, tmp_path: Path):
    """And farther from those of the float model: the comparison sees quantisation itself."""
    found = figures(made, made.ranges, tmp_path / "rounded")
    plain = figures(made, {}, tmp_path / "plain")
    assert plain.mean_mask_iou < MIN_MEAN_IOU <= found.mean_mask_iou


def figures(made: Quantised, ranges: dict[str, float], folder: Path) -> Parity:
    """Compare the int8 graphs with the model quantised by these ranges, over a chain of frames."""
    folder.mkdir()
    of = rounded(model("tiny"), ranges)
    write_reference(replace(loaded("tiny"), model=of), "optimised", 4, folder)
    return compare(made.bundle.folder, folder, VARIANT)


def left_out(ranges: dict[str, float], name: str) -> dict[str, float]:
    return {other: amax for other, amax in ranges.items() if other != name}


FIRST, LAST = "image_encoder.blocks.0.attn.qkv", "image_encoder.blocks.7.MLP_Adapter.D_fc2"
MUTATIONS = {
    "one range is wrong": lambda ranges: ranges | {FIRST: 1.1 * ranges[FIRST]},
    "nothing is quantised": lambda ranges: {},
    "the first layer is not quantised": lambda ranges: left_out(ranges, FIRST),
    "the last and smallest layer is not quantised": lambda ranges: left_out(ranges, LAST),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_comparison_sees_one_layer(
    made: Quantised, kernels: list[Tensor], images: list[Tensor], name: str
):
    twin = rounded(model("tiny"), MUTATIONS[name](made.ranges))
    assert least_error(kernels, twin, images) > 5 * MAX_ERROR


def test_fp8_graphs_are_fake_quantisation(images: list[Tensor], tmp_path: Path):
    """On an fp32 base and without optimisation, which is how ONNX Runtime computes fp8 at all.

    The first layer and the last block: with every layer in fp8, whose steps are coarse, some CPUs
    round a value of each of these frames to the other code in between.
    """
    of = model("tiny")
    of_all, path = largest_inputs(of), tmp_path / "x.onnx"
    ranges = {name: amax for name, amax in of_all.items() if name == FIRST or ".7." in name}
    assert len(ranges) == 9
    form = ExportRequest("tiny", tmp_path).form
    write_quantised_encoder(of, ranges, "fp8", "fp32", form, path, path.name)
    found = encoded(path, images, optimise=False)
    assert least_error(found, rounded(of, ranges, "fp8"), images) <= MAX_ERROR
    assert least_error(found, rounded(of, left_out(ranges, LAST), "fp8"), images) > 5 * MAX_ERROR
