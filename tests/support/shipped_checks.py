"""What must hold of a bundle that ships, asked of the real one and of one made by the tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors import safe_open

from refsam_bench.synthetic import vocabulary
from refsam_export.onnx.weight_storage import check_exact_fp16
from refsam_export.refsam.checkpoint import canonical_tensors, load_model
from refsam_prove.ship import MAX_BYTES, RECORD_FILE
from refsam_train.recipe import read_recipe
from refsam_trt.bundle.open import open_bundle

# As if nothing but the runtime were installed.
RUN_WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "transformers", "refsam_export"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import logging
import numpy as np
import refsam_trt
from refsam_trt.bundle import shipped
from pathlib import Path
shipped.MODELS, shipped.SHIPPED = Path(sys.argv[1]).parent, (Path(sys.argv[1]).name,)
logging.basicConfig(format="%(message)s")
with refsam_trt.load(Path(sys.argv[1]).name, num_threads=1) as engine, engine.open_video() as video:
    for text in ("the red circle", "the red zebra"):
        video.add_expression(text)
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    results = [video.step(frame) for _ in range(2)][-1]
    print(engine.bundle_id, [result.mask.shape for result in results])
"""


def check_record(bundle: Path, record: Path, max_bytes: int = MAX_BYTES) -> None:
    """Id, size and recipes are those of the record, and the logs are there."""
    found = json.loads((record / RECORD_FILE).read_text())
    opened = open_bundle(bundle)
    size_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert found["bundle_id"] == opened.bundle_id
    assert found["size_bytes"] == size_bytes <= max_bytes
    training = opened.manifest.weights.training
    assert training is not None
    recipes = [read_recipe(record / run["recipe"]) for run in found["runs"]]
    assert [recipe.name for recipe in recipes] == [run.recipe for run in training.runs]
    digests = [recipe.digest() for recipe in recipes]
    assert digests == [run["recipe_sha256"] for run in found["runs"]]
    assert digests == [run.recipe_sha256 for run in training.runs]
    assert [run["num_steps"] for run in found["runs"]] == [r.num_steps for r in training.runs]
    for run in found["runs"]:
        assert (record / run["log"]).is_file()
    assert len(found["commands"]) == 2 * len(recipes)
    words = {word for recipe in recipes for word in vocabulary(tuple(recipe.data.slices))}
    assert words
    assert words <= set(opened.manifest.vocabulary or ())


def check_weights(bundle: Path) -> None:
    """Nothing is random, everything was proven, and fp16 holds every value."""
    manifest = open_bundle(bundle).manifest
    assert manifest.weights.random_init_seed is None
    (variant,) = manifest.variants.values()
    assert (variant.precision, variant.weight_storage) == ("fp32", "fp16")
    assert [figures["passed"] for figures in manifest.parity.values()] == [True]
    assert manifest.source is not None
    (source,) = manifest.weights.sources
    assert manifest.files[manifest.source].sha256 == source.sha256
    with safe_open(bundle / manifest.source, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    model = load_model(manifest.preset, checkpoint=bundle / manifest.source).model
    tensors = canonical_tensors(model)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    check_exact_fp16(tensors)
    for graph in variant.graphs.values():
        check_graph(bundle / graph.file)


def check_graph(path: Path) -> None:
    """No large weight that fp16 can hold is stored in fp32."""
    halves = 0
    for tensor in onnx.load(path).graph.initializer:
        value = numpy_helper.to_array(tensor)
        halves += value.dtype == np.float16
        if value.dtype == np.float32 and value.size >= 1024:
            with np.errstate(over="ignore"):
                assert (value.astype(np.float16) != value).any(), tensor.name
    assert halves > 10


def check_runs_without_torch(bundle: Path, place: Path) -> None:
    """`load` by name in a process that has only the runtime; a word never seen is told."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_TORCH, str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == [
        open_bundle(bundle).bundle_id,
        "[(48, 64), (48, 64)]\n",
    ]
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("expression 'the red zebra': never seen in training: 'zebra'; ")
