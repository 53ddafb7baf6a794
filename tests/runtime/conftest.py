"""The stand-in bundle in both splits, an engine on it, a session on that."""

from collections.abc import Iterator
from pathlib import Path

import fake_bundle
import pytest

import refsam_trt
from refsam_trt.contract.refsam import Split


@pytest.fixture(scope="session", params=["baseline", "optimised"])
def split(request: pytest.FixtureRequest) -> Split:
    found: Split = request.param
    return found


@pytest.fixture(scope="session")
def folder(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundles") / split, split=split)


@pytest.fixture
def engine(folder: Path) -> Iterator[refsam_trt.Engine]:
    with refsam_trt.load(folder, num_threads=1) as opened:
        yield opened


@pytest.fixture
def video(engine: refsam_trt.Engine) -> Iterator[refsam_trt.Session]:
    with engine.open_video() as opened:
        yield opened
