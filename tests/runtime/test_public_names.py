"""What `import refsam_trt` gives, and what it costs."""

import subprocess
import sys

import msgspec
import pytest

import refsam_trt


def test_public_names_exist_and_are_documented() -> None:
    assert sorted(refsam_trt.__all__) == refsam_trt.__all__
    for name in refsam_trt.__all__:
        assert getattr(refsam_trt, name).__doc__
        assert name in dir(refsam_trt)
    with pytest.raises(AttributeError, match="module 'refsam_trt' has no attribute 'nothing'"):
        refsam_trt.nothing  # noqa: B018


def test_importing_costs_next_to_nothing() -> None:
    code = """
import json, sys, time
start = time.perf_counter()
import numpy, refsam_trt
seconds = time.perf_counter() - start
refsam_trt.load, refsam_trt.Session, refsam_trt.RefsamError
print(json.dumps({"seconds": seconds, "modules": list(sys.modules)}))
"""
    runs = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        runs.append(msgspec.json.decode(out.stdout))
    assert min(run["seconds"] for run in runs) < 0.5
    heavy = {"torch", "onnx", "onnxruntime", "transformers", "av"}
    assert not heavy & set(runs[0]["modules"])
