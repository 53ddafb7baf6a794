"""Plans of the stand-in bundle, built once by the real TensorRT-RTX."""

from pathlib import Path

import fake_bundle
import pytest

from refsam_engines.plans import PlanRequest, build_plans
from refsam_trt.bundle.plans import Plans


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    return fake_bundle.make_bundle(folder, split="optimised", external_data=True)


@pytest.fixture(scope="session")
def plans(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plans:
    output = tmp_path_factory.mktemp("plans") / "plans"
    request = PlanRequest(bundle_folder, output, "tensorrt-rtx", "fp32", max_expressions=8)
    return build_plans(request, lambda line: None)
