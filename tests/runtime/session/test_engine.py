"""Loading a bundle, what an engine tells of itself, whole videos, and closing."""

import logging
from pathlib import Path
from typing import Any

import fake_bundle
import numpy as np
import pytest
from half_bundle import make_half_precision
from PIL import Image
from runtime_twin import (
    Twin,
    assert_close,
    assert_same_embedding,
    assert_same_results,
    random_frames,
)
from safetensors.numpy import load_file

import refsam_trt
from refsam_trt import BackendError, BundleError, Engine, ExpressionError, UsageError, VideoError
from refsam_trt.backends import select
from refsam_trt.backends.select import open_backend
from refsam_trt.contract.manifest import Weights
from refsam_trt.contract.refsam import DECODER_STEP, TEXT_ENCODER, Split
from refsam_trt.families.refsam.family import RefsamFamily
from refsam_trt.text.cache import TextCache, write_text_cache


def family(engine: Engine) -> RefsamFamily:
    assert isinstance(engine.family, RefsamFamily)
    return engine.family


def add_variant(folder: Path, name: str, precision: str, attention: str = "plain") -> None:
    """Add a variant to a bundle of plain fp32 ones: the same graphs, or halved ones."""
    manifest = fake_bundle.read_manifest(folder)
    other = fake_bundle.make_bundle(folder.with_name(f"{folder.name}-{name}"))
    if precision == "fp16":
        make_half_precision(other)
    (variant,) = fake_bundle.read_manifest(other)["variants"].values()
    for graph, entry in variant["graphs"].items():
        target = f"graphs/{name}/{graph}.onnx"
        (folder / target).parent.mkdir(exist_ok=True)
        (folder / target).write_bytes((other / entry["file"]).read_bytes())
        entry["file"] = target
    manifest["variants"][name] = variant | {"attention": attention}
    fake_bundle.rewrite_manifest(folder, manifest)
    fake_bundle.refresh_files(folder)


def test_an_engine_tells_what_it_runs(folder: Path, engine: Engine, split: Split) -> None:
    assert engine.backend == "ort-cpu"
    assert engine.variant == f"fp32-plain-{split}"
    assert engine.bundle_id == (folder / "manifest.sha256").read_text().strip()
    assert engine.manifest.preset == "fake"
    assert engine.is_random_init


def test_random_weights_are_announced_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with refsam_trt.load(folder) as engine, engine.open_video() as video:
        video.add_expression("dog")
        video.step(random_frames(1)[0])
    expected = f"{folder}: weights are random (seed 0): masks mean nothing"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [expected]

    trained = fake_bundle.make_bundle(tmp_path / "b", weights=Weights(sources=()))
    caplog.clear()
    with refsam_trt.load(trained) as engine:
        assert not engine.is_random_init
    assert not caplog.records


def test_the_path_may_be_a_string_and_the_id_is_checked(folder: Path) -> None:
    with refsam_trt.load(str(folder)) as engine:
        bundle_id = engine.bundle_id
    with refsam_trt.load(folder, expect_id=bundle_id) as engine:
        assert engine.bundle_id == bundle_id
    with pytest.raises(BundleError, match="expected was 0000"):
        refsam_trt.load(folder, expect_id="0" * 64)


def test_deferred_hashes_are_checked_before_a_file_is_used(tmp_path: Path) -> None:
    folder = fake_bundle.make_bundle(tmp_path / "bundle", external_data=True)
    spoiled = []
    for file in (f"{TEXT_ENCODER}.onnx.data", "tokenizer.json", f"{DECODER_STEP}.onnx"):
        path = next(folder.rglob(file))
        raw = path.read_bytes()
        # Within text, any byte but the last may differ; in the graph's name it harms nothing.
        place = raw.index(b"decoder_step") if b"decoder_step" in raw else len(raw) // 2
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        spoiled.append((path, raw))
    for path, raw in reversed(spoiled):
        with pytest.raises(BundleError, match=f"{path.name}: SHA-256 .* the manifest says"):
            with_one_frame(folder)
        path.write_bytes(raw)
    with_one_frame(folder)


def with_one_frame(folder: Path) -> None:
    with refsam_trt.load(folder, verify="deferred") as engine, engine.open_video() as video:
        video.add_expression("dog")
        video.step(random_frames(1)[0])


def test_the_only_fp32_variant_is_the_default(tmp_path: Path) -> None:
    folder = fake_bundle.make_bundle(tmp_path / "bundle")
    add_variant(folder, "a-fp16", "fp16")
    with refsam_trt.load(folder) as engine:
        assert engine.variant == "fp32-plain-baseline"
    with refsam_trt.load(folder, variant="a-fp16") as engine:
        assert engine.variant == "a-fp16"
    with pytest.raises(UsageError, match="no variant 'int8'; it has: a-fp16, fp32-plain-baseline"):
        refsam_trt.load(folder, variant="int8")
    add_variant(folder, "b-fp32", "fp32")
    several = "several variants, name one of them: b-fp32, fp32-plain-baseline$"
    with pytest.raises(UsageError, match=several):
        refsam_trt.load(folder)


def test_a_variant_is_chosen_by_precision_and_by_what_suits_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_bundle.make_bundle(tmp_path / "bundle")
    add_variant(folder, "half", "fp16")
    for form in ("bias", "augmented"):
        add_variant(folder, form, "fp32", form)

    def chosen(**options: Any) -> str:
        with refsam_trt.load(folder, **options) as engine:
            return engine.variant

    assert chosen(precision="fp16") == chosen(variant="half", precision="fp16") == "half"
    assert chosen() == chosen(precision="fp32") == "bias"
    monkeypatch.setitem(select.PREFERRED_ATTENTION, "ort-cpu", ("augmented",))
    assert chosen() == "augmented"
    assert chosen(backend="fake") == "bias"
    monkeypatch.delitem(select.PREFERRED_ATTENTION, "fake")
    assert chosen(backend="fake") == "augmented"
    with pytest.raises(UsageError, match="variant 'half' is fp16, not fp32; leave one of the two"):
        chosen(variant="half", precision="fp32")
    with pytest.raises(UsageError, match=r"no bf16 variant; it has: .*--precision bf16`"):
        chosen(precision="bf16")


@pytest.mark.parametrize("backend", ["ort-cpu", "fake", "auto"])
def test_bf16_is_refused_by_name_where_it_cannot_run(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_half_precision(fake_bundle.make_bundle(tmp_path / "bundle"))
    manifest = fake_bundle.read_manifest(folder)
    for variant in manifest["variants"].values():
        variant["precision"] = "bf16"
    fake_bundle.rewrite_manifest(folder, manifest)
    monkeypatch.setattr("refsam_trt.bundle.open.check_contract", lambda manifest: None)
    name = "ort-cpu" if backend == "auto" else backend
    expected = (
        f"backend {name} cannot run bf16 graphs: ONNX Runtime has no bf16 matrix product or "
        "addition for CPUs; choose an fp32 or fp16 variant of the bundle"
    )
    with pytest.raises(BackendError) as refused:
        refsam_trt.load(folder, backend=backend)
    assert expected in str(refused.value)


def test_half_precision_bundles_run(tmp_path: Path) -> None:
    results = {}
    for precision in ("fp32", "fp16"):
        folder = fake_bundle.make_bundle(tmp_path / precision, split="optimised")
        if precision == "fp16":
            make_half_precision(folder)
        with refsam_trt.load(folder, backend="fake") as engine, engine.open_video() as video:
            for text in ("dog", "a larger dog"):
                video.add_expression(text)
            results[precision] = [video.step(frame) for frame in random_frames(3)]
            video.save_state(tmp_path / f"{precision}.state")
            (expected,) = [video.step(frame) for frame in random_frames(1)]
            video.load_state(tmp_path / f"{precision}.state")
            assert_same_results(video.step(random_frames(1)[0]), expected)
    assert load_file(tmp_path / "fp16.state")["track_token"].dtype == np.float16
    for single, half in zip(*results.values(), strict=True):
        for a, b in zip(single, half, strict=True):
            assert b.low_res_logits.dtype == np.float32
            assert_close(b.low_res_logits, a.low_res_logits, 2e-2)
            assert not np.array_equal(b.low_res_logits, a.low_res_logits)


def test_wrong_options_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="this version has no backend 'abacus'"):
        refsam_trt.load(folder, backend="abacus")
    with pytest.raises(UsageError, match="num_threads=0: at least 1 is needed, or None"):
        refsam_trt.load(folder, num_threads=0)
    with pytest.raises(UsageError, match="text='eager' is not one of"):
        refsam_trt.load(folder, text="eager")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="verify='ful' is not one of full, deferred"):
        refsam_trt.load(folder, verify="ful")  # type: ignore[arg-type]
    with refsam_trt.load(folder, num_threads=1) as engine:
        for threshold in (float("nan"), float("inf")):
            with pytest.raises(UsageError, match=f"threshold={threshold}: expected a finite logit"):
                engine.open_video(threshold=threshold)
    with pytest.raises(BundleError, match="no such folder"):
        refsam_trt.load(tmp_path / "absent")


def test_a_manifest_with_other_state_is_refused(tmp_path: Path) -> None:
    folder = fake_bundle.make_bundle(tmp_path / "bundle", state=())
    with pytest.raises(BundleError, match="state: none; refsam keeps track_token"):
        refsam_trt.load(folder)


def test_cached_expressions_need_no_text_encoder(tmp_path: Path, split: Split) -> None:
    whole = fake_bundle.make_bundle(tmp_path / "whole", split=split)
    with refsam_trt.load(whole) as engine:
        embedding = family(engine).text_encoder.encode("a dog")[1]
        with engine.open_video() as video:
            video.add_expression("a dog")
            expected = video.step(random_frames(1)[0])[0]

    folder = fake_bundle.make_bundle(tmp_path / "bare", split=split, text_encoder=False)
    write_text_cache(folder / "text_cache.safetensors", {"a dog": embedding})
    assert TextCache(folder / "text_cache.safetensors").expressions == ("a dog",)
    manifest = fake_bundle.read_manifest(folder) | {"text_cache": "text_cache.safetensors"}
    fake_bundle.rewrite_manifest(folder, manifest)
    fake_bundle.refresh_files(folder)
    for mode in ("cache-only", "lazy"):
        with refsam_trt.load(folder, text=mode) as engine, engine.open_video() as video:
            video.add_expression(" A dog")
            result = video.step(random_frames(1)[0])[0]
            np.testing.assert_array_equal(result.low_res_logits, expected.low_res_logits)
            assert_same_embedding(family(engine).text_encoder.encode("a dog")[1], embedding)
            with pytest.raises(
                ExpressionError,
                match="'a cat' is not among the 1 cached .* this bundle has no text encoder; "
                r".* export the bundle again with `refsam-export \.\.\. --expressions FILE`",
            ):
                video.add_expression("a cat")
    with pytest.raises(UsageError, match='text="resident" needs the text graph'):
        refsam_trt.load(folder, text="resident")


def test_lazy_text_is_released_at_the_next_step(folder: Path) -> None:
    with refsam_trt.load(folder, text="lazy") as engine, engine.open_video() as video:
        video.add_expression("dog")
        video.add_expression("cat")
        assert family(engine).text_encoder.is_loaded
        video.step(random_frames(1)[0])
        assert not family(engine).text_encoder.is_loaded
        assert family(engine).text_encoder.statistics.num_misses == 2


def test_track_yields_every_expression_of_every_frame(folder: Path, engine: Engine) -> None:
    frames = random_frames(3)
    texts = ["dog", "a cat"]
    results = list(engine.track(frames, texts))
    assert [(r.frame_index, r.text) for r in results] == [(i, t) for i in range(3) for t in texts]
    for result in results:
        twin = Twin(folder).track(frames, result.text)[result.frame_index]
        assert_close(result.low_res_logits, twin["low_res_logits"][0, 0])
    turned = list(engine.track(iter(frames[..., ::-1]), texts, color="bgr", threshold=0.5))
    for a, b in zip(turned, results, strict=True):
        np.testing.assert_array_equal(a.low_res_logits, b.low_res_logits)
        assert a.threshold == 0.5
        assert not (a.mask & ~b.mask).any()


def test_track_reads_folders_of_images(engine: Engine, tmp_path: Path) -> None:
    frames = random_frames(2)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    expected = list(engine.track(frames, ["dog"]))
    for source in (tmp_path, str(tmp_path)):
        for a, b in zip(engine.track(source, ["dog"]), expected, strict=True):
            np.testing.assert_array_equal(a.low_res_logits, b.low_res_logits)


def test_track_refuses_at_the_call(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expressions='dog': expected a sequence with at least"):
        engine.track(random_frames(1), "dog")
    with pytest.raises(UsageError, match=r"expressions=\[\]: expected a sequence"):
        engine.track(random_frames(1), [])
    with pytest.raises(UsageError, match=r"color='bgr': frames read from .* are always RGB"):
        engine.track(tmp_path, ["dog"], color="bgr")
    with pytest.raises(VideoError, match="no such file or folder"):
        next(engine.track(tmp_path / "absent.mp4", ["dog"]))


def test_an_abandoned_track_closes_its_session(folder: Path) -> None:
    with refsam_trt.load(folder) as engine:
        for result in engine.track(random_frames(3), ["dog"]):
            assert result.frame_index == 0
            break


def test_an_engine_with_open_sessions_is_not_closed(folder: Path) -> None:
    engine = refsam_trt.load(folder)
    first, second = engine.open_video(), engine.open_video()
    with pytest.raises(UsageError, match=r"2 session\(s\) of this engine are still open; close"):
        engine.close()
    first.add_expression("dog")
    assert len(first.step(random_frames(1)[0])) == 1
    first.close()
    with pytest.raises(UsageError, match=r"1 session\(s\) of this engine are still open"):
        engine.close()
    del second  # a session that nobody holds any more does not count
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed; load the bundle again"):
        engine.open_video()


def test_an_error_inside_the_block_is_not_hidden_by_open_sessions(folder: Path) -> None:
    videos = []

    def fail_with_an_open_session() -> None:
        with refsam_trt.load(folder) as engine:
            videos.append(engine.open_video())
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail_with_an_open_session()
    with pytest.raises(UsageError, match="the session is closed"):
        videos[0].step(random_frames(1)[0])


def test_a_failed_load_closes_the_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    backend = open_backend("ort-cpu")
    monkeypatch.setattr("refsam_trt.session.load.open_backend", lambda *_: backend)
    monkeypatch.setattr(type(backend), "close", lambda self: closed.append(self))
    with pytest.raises(UsageError, match="text='eager'"):
        refsam_trt.load(folder, text="eager")  # type: ignore[arg-type]
    assert closed == [backend]
