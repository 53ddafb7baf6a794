"""Engines that keep text embeddings from run to run: off, in the user's cache folder, in any."""

from pathlib import Path

import fake_bundle
import pytest
from runtime_twin import assert_same_results, random_frames

import refsam_trt
from refsam_trt import BundleError, Engine, ExpressionError, UsageError
from refsam_trt.backends.ort import OrtCpuBackend, OrtGraph
from refsam_trt.contract.refsam import TEXT_ENCODER
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.families.refsam.family import RefsamFamily
from refsam_trt.text.encoder import TextStatistics


def family(engine: Engine) -> RefsamFamily:
    assert isinstance(engine.family, RefsamFamily)
    return engine.family


def paths_loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of graph files that are given to the backend from now on."""
    names = []
    load = OrtCpuBackend.load

    def spied(self: OrtCpuBackend, path: Path, spec: GraphSpec) -> OrtGraph:
        names.append(path.name)
        return load(self, path, spec)

    monkeypatch.setattr(OrtCpuBackend, "load", spied)
    return names


def test_a_disk_cache_spares_the_next_run_the_text_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = paths_loaded(monkeypatch)
    frame = random_frames(1)[0]
    results, statistics = [], []
    for text in ("lazy", "lazy", "cache-only"):
        with (
            refsam_trt.load(folder, text=text, text_cache=tmp_path) as engine,
            engine.open_video() as video,
        ):
            video.add_expression("A dog")
            results.append(video.step(frame))
            statistics.append(family(engine).text_encoder.statistics)
    assert names.count(f"{TEXT_ENCODER}.onnx") == 1
    once_computed, later_found = TextStatistics(num_misses=1), TextStatistics(num_disk_hits=1)
    assert statistics == [once_computed, later_found, later_found]
    for later in results[1:]:
        assert_same_results(later, results[0])


def test_cache_only_never_opens_the_text_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_bundle.make_bundle(tmp_path / "bundle", external_data=True)
    with refsam_trt.load(folder, text_cache=tmp_path / "cache") as engine:
        family(engine).text_encoder.encode("a dog")
    names = paths_loaded(monkeypatch)
    weights = next(folder.rglob(f"{TEXT_ENCODER}.onnx.data"))
    weights.write_bytes(bytes(weights.stat().st_size))
    options = {"text_cache": tmp_path / "cache", "verify": "deferred"}
    with (
        refsam_trt.load(folder, text="cache-only", **options) as engine,
        engine.open_video() as video,
    ):
        video.add_expression("a dog")
        video.step(random_frames(1)[0])
        with pytest.raises(ExpressionError, match=r"'a cat' is not among .* nor in .*cache, "):
            video.add_expression("a cat")
    assert sorted(names) == ["decoder_step.onnx", "image_encoder.onnx"]
    with (
        refsam_trt.load(folder, **options) as engine,
        pytest.raises(BundleError, match=r"text_encoder.onnx.data: SHA-256"),
    ):
        family(engine).text_encoder.encode("a cat")


def test_nothing_is_kept_unless_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for text_cache, num_files in (("off", 0), ("user", 1)):
        with refsam_trt.load(folder, text_cache=text_cache) as engine:
            family(engine).text_encoder.encode("a dog")
        assert len(list(tmp_path.rglob("text-*"))) == num_files
    with refsam_trt.load(folder) as engine:
        family(engine).text_encoder.encode("a cat")
    assert len(list(tmp_path.rglob("text-*"))) == 1
    with pytest.raises(UsageError, match="text_cache='on': expected"):
        refsam_trt.load(folder, text_cache="on")  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_written_changes_nothing_but_the_log(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    results = []
    for options in ({}, {"text_cache": tmp_path / "file" / "cache"}):
        with refsam_trt.load(folder, **options) as engine, engine.open_video() as video:
            for text in ("a dog", "a cat", "a cow"):
                video.add_expression(text)
            results.append(video.step(random_frames(1)[0]))
    assert_same_results(results[1], results[0])
    said = [record.getMessage() for record in caplog.records]
    assert sum("text embeddings are not kept here" in text for text in said) == 1


def test_another_tokenizer_or_text_graph_has_a_cache_of_its_own(tmp_path: Path) -> None:
    folders = [fake_bundle.make_bundle(tmp_path / name, external_data=True) for name in "abcd"]
    _, _, other_tokenizer, other_weights = folders
    with (other_tokenizer / "tokenizer.json").open("a") as file:
        file.write(" ")
    weights = next(other_weights.rglob(f"{TEXT_ENCODER}.onnx.data"))
    raw = weights.read_bytes()
    weights.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    num_files = []
    for folder in folders:
        fake_bundle.refresh_files(folder)
        with refsam_trt.load(folder, text_cache=tmp_path / "cache") as engine:
            family(engine).text_encoder.encode("a dog")
        num_files.append(len(list((tmp_path / "cache").iterdir())))
    assert num_files == [1, 1, 2, 3]
