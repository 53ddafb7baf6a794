"""Manifests that do not fit the files or the family: each refused with its own text.

The hashes fit here, as in a bundle made by a faulty or hostile writer.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_bundle
import pytest

from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import BundleError

VARIANT = "fp32-plain-baseline"
GRAPHS = f"graphs/{VARIANT}"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b", external_data=True)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "bundle")


def refusal(folder: Path) -> str:
    texts = []
    for verify in ("full", "deferred"):
        with pytest.raises(BundleError) as caught:
            open_bundle(folder, verify=verify).verify()  # type: ignore[arg-type]
        texts.append(str(caught.value).replace(str(folder), "BUNDLE"))
    assert texts[0] == texts[1]
    return texts[0]


def graph(manifest: dict[str, Any], name: str = "image_encoder") -> Any:
    return manifest["variants"][VARIANT]["graphs"][name]


def entry_of(manifest: dict[str, Any], name: str) -> Any:
    return manifest["files"][name]


def renamed(manifest: dict[str, Any], new: str) -> None:
    manifest["files"][new] = manifest["files"].pop("tokenizer.json")


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def trained_on(manifest: dict[str, Any], vocabulary: list[str] | None, **more: Any) -> None:
    manifest["weights"]["training"] = {"runs": [], "vocabulary": vocabulary, **more}


MANIFESTS: dict[str, tuple[Change, str]] = {
    "newer schema": (
        lambda m: m.update(schema_version=4),
        "BUNDLE/manifest.json: schema version 4, 3 expected: made by a newer refsam_trt; update "
        "refsam_trt",
    ),
    "older schema": (
        lambda m: m.update(schema_version=0),
        "schema version 0, 3 expected: made by an older refsam_trt; export the bundle anew",
    ),
    "newer schema with unknown keys": (
        lambda m: m.update(schema_version=7, quantum=True),
        "schema version 7, 3 expected: made by a newer refsam_trt",
    ),
    "no schema": (
        lambda m: m.pop("schema_version"),
        "not a manifest of schema 3: Object missing required field `schema_version`",
    ),
    "unknown key": (
        lambda m: m.update(colour="red"),
        "BUNDLE/manifest.json: not a manifest of schema 3: Object contains unknown field "
        "`colour`; export the bundle anew",
    ),
    "unknown nested key": (
        lambda m: graph(m).update(colour="red"),
        "Object contains unknown field `colour` - at `$.variants[...].graphs[...]`",
    ),
    "missing key": (
        lambda m: m["limits"].pop("max_words"),
        "Object missing required field `max_words` - at `$.limits`",
    ),
    "wrong type": (
        lambda m: m["limits"].update(max_words="64"),
        "Expected `int`, got `str` - at `$.limits.max_words`",
    ),
    "deep": (
        lambda m: m.update(parity={"a": nested(40)}),
        "BUNDLE/manifest.json: values nested more than 32 deep; export the bundle anew",
    ),
    "absolute path": (
        lambda m: renamed(m, "/etc/passwd"),
        "BUNDLE/manifest.json: lists '/etc/passwd', a path that is absolute; this bundle was not "
        "written by refsam-export: do not use it",
    ),
    "drive": (lambda m: renamed(m, "C:tokenizer"), "lists 'C:tokenizer', a path that is absolute"),
    "parent path": (
        lambda m: renamed(m, "graphs/../../x"),
        "lists 'graphs/../../x', a path that leaves its folder",
    ),
    "backslash": (lambda m: renamed(m, "a\\b"), "lists 'a\\\\b', a path that has a backslash"),
    "NUL": (lambda m: renamed(m, "a\0b"), "lists 'a\\x00b', a path that has parts"),
    "own file": (
        lambda m: m["files"].update({"manifest.json": m["files"]["tokenizer.json"]}),
        "lists 'manifest.json', a path that is the manifest's own",
    ),
    "odd hash": (
        lambda m: entry_of(m, "tokenizer.json").update(sha256="AB"),
        "'tokenizer.json' has the SHA-256 'AB', 64 lower-case hexadecimal digits expected",
    ),
    "tokenizer elsewhere": (
        lambda m: m["tokenizer"].update(file="../tokenizer.json"),
        "tokenizer.file is '../tokenizer.json', which is not among files",
    ),
    "source elsewhere": (
        lambda m: m.update(source="source.safetensors"),
        "source is 'source.safetensors', which is not among files",
    ),
    "text cache elsewhere": (
        lambda m: m.update(text_cache="/tmp/cache"),
        "text_cache is '/tmp/cache', which is not among files",
    ),
    "graph elsewhere": (
        lambda m: graph(m).update(file="/tmp/x.onnx"),
        f"variants.{VARIANT}.graphs.image_encoder.file is '/tmp/x.onnx', which is not among files",
    ),
    "unknown family": (
        lambda m: m.update(family="other"),
        "BUNDLE/manifest.json: model family 'other', this version knows refsam; update refsam_trt",
    ),
    "no variant": (lambda m: m.update(variants={}), "the manifest has no variant, so no graphs"),
    "unknown graph": (
        lambda m: m["variants"][VARIANT]["graphs"].update(extra=graph(m)),
        f"variant '{VARIANT}': graph extra; refsam has image_encoder, text_encoder, decoder_step",
    ),
    "missing step": (
        lambda m: m["variants"][VARIANT]["graphs"].pop("decoder_step"),
        f"variant '{VARIANT}': no graph has the state tensor has_track, track_token",
    ),
    "missing image encoder": (
        lambda m: m["variants"][VARIANT]["graphs"].pop("image_encoder"),
        f"variant '{VARIANT}': no graph image_encoder; refsam needs it",
    ),
    "unknown split": (
        lambda m: m["variants"][VARIANT].update(split="half"),
        f"variant '{VARIANT}': split 'half', expected optimised or baseline",
    ),
    "other split": (
        lambda m: m["variants"][VARIANT].update(split="optimised"),
        f"variant '{VARIANT}', graph 'decoder_step': input words float32 ['B', 'N', 256] (scope "
        "expression), expected image_base float32 [1, 256, 2, 2] (scope frame)",
    ),
    "missing tensor": (
        lambda m: graph(m)["spec"]["outputs"].pop(),
        f"variant '{VARIANT}', graph 'image_encoder': outputs: 1 tensors, expected 2 "
        "(image_embedding, hda_features)",
    ),
    "no outputs": (
        lambda m: graph(m)["spec"].update(outputs=[]),
        "its first output should be image_embedding [M, 256, h, w]",
    ),
    "other scope": (
        lambda m: graph(m)["spec"]["inputs"][0].update(scope="static"),
        "input image float32 ['M', 3, 32, 32] (scope static), expected image float32",
    ),
    "other image size": (
        lambda m: m["preprocess"].update(image_size=64),
        "input image float32 ['M', 3, 32, 32] (scope frame), expected image float32 ['M', 3, 64,",
    ),
    "no image": (
        lambda m: m["preprocess"].update(image_size=0),
        "image_size: found 0, expected a whole number of pixels from 16 to 8192",
    ),
    "endless short side": (
        lambda m: m["preprocess"].update(downscale_short_side=10**9),
        "downscale_short_side: found 1000000000, expected a whole number of pixels from",
    ),
    "no words": (
        lambda m: m["limits"].update(max_words=-1),
        "limits.max_words is -1, 1 to 4096 expected",
    ),
    "zero std": (
        lambda m: m["preprocess"].update(std=[1.0, 0.0, 1.0]),
        "std: found (1.0, 0.0, 1.0), expected three finite numbers (R, G, B) above 0.0",
    ),
    "unknown weight storage": (
        lambda m: m["variants"][VARIANT].update(weight_storage="int4"),
        f"variant '{VARIANT}': weight_storage 'int4', null or 'fp16' expected",
    ),
    "empty vocabulary": (
        lambda m: trained_on(m, []),
        "BUNDLE/manifest.json: weights.training.vocabulary has no word; export the bundle anew",
    ),
    "phrase in the vocabulary": (
        lambda m: trained_on(m, ["a", "plus sign"]),
        "weights.training.vocabulary has 'plus sign', which is not one word in lower case",
    ),
    "capital in the vocabulary": (
        lambda m: trained_on(m, ["Red"]),
        "weights.training.vocabulary has 'Red', which is not one word in lower case",
    ),
    "unsorted vocabulary": (
        lambda m: trained_on(m, ["the", "red"]),
        "weights.training.vocabulary has 'red' behind 'the'; sorted words expected, each once",
    ),
    "word twice in the vocabulary": (
        lambda m: trained_on(m, ["red", "red"]),
        "weights.training.vocabulary has 'red' behind 'red'; sorted words expected, each once",
    ),
    "unknown key of the training": (
        lambda m: trained_on(m, None, accuracy=1.0),
        "Object contains unknown field `accuracy` - at `$.weights.training`",
    ),
    "unknown state": (
        lambda m: m["state"][0].update(output="memory"),
        f"variant '{VARIANT}': no graph has the state tensor memory",
    ),
    "state of another scope": (
        lambda m: m["state"][0].update(is_present="word_mask"),
        "state: track_token, next_track_token, word_mask; refsam keeps track_token, "
        "next_track_token, has_track (input, output, sign of presence) and nothing else",
    ),
    "state twice": (
        lambda m: m["state"].append(m["state"][0]),
        "state: track_token, next_track_token, has_track; track_token, next_track_token, has_track",
    ),
    "no state": (lambda m: m["state"].clear(), "state: none; refsam keeps track_token, "),
    "other node counts": (
        lambda m: graph(m)["node_types"].update(Conv=7),
        f"BUNDLE/{GRAPHS}/image_encoder.onnx: 1 nodes of type Conv, the manifest says 7",
    ),
    "other opset": (
        lambda m: m["variants"][VARIANT].update(opset=19),
        f"BUNDLE/{GRAPHS}/decoder_step.onnx: operator set 20, the manifest says 19",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_refuses_a_manifest_that_does_not_fit(folder: Path, case: str):
    change, problem = MANIFESTS[case]
    manifest = fake_bundle.read_manifest(folder)
    change(manifest)
    fake_bundle.rewrite_manifest(folder, manifest)
    assert problem in refusal(folder)
