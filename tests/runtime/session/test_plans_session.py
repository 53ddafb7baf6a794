"""Whole sessions on plans, on the stand-ins for TensorRT and CUDA: results, transfers, refusals."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_bundle
import fake_cuda
import numpy as np
import pytest
from fake_tensorrt import fake_tensorrt

import refsam_trt
from refsam_engines.plans import PlanRequest, build_plans
from refsam_trt.backends.tensorrt.backend import TrtContext
from refsam_trt.doctor import probe
from refsam_trt.errors import (
    BackendError,
    ExpressionError,
    PlanDamagedError,
    UsageError,
    VideoError,
)

SIZE = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("session") / "b", split="optimised")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    fake_cuda.install(monkeypatch)
    module = fake_tensorrt("11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(probe, "ask", lambda *question: fake_cuda.GPU)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


@pytest.fixture
def plans(trt: Any, bundle: Path, tmp_path: Path) -> Path:
    request = PlanRequest(bundle, tmp_path / "plans", "tensorrt", "fp32", max_expressions=3)
    return build_plans(request, lambda line: None).folder


@pytest.fixture
def engine(plans: Path, bundle: Path) -> Iterator[refsam_trt.Engine]:
    with refsam_trt.load(bundle, plans=plans) as opened:
        yield opened


def frames(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 256, (24, 40, 3), np.uint8) for _ in range(count)]


def logits(engine: refsam_trt.Engine) -> list[np.ndarray]:
    """Five frames; a second expression joins, the first one goes."""
    results = []
    with engine.open_video() as video:
        first = video.add_expression("a dog")
        for index, frame in enumerate(frames(6)):
            if index == 2:
                video.add_expression("the red ball on the left")
            if index == 4:
                video.remove_expression(first)
            results += [result.low_res_logits for result in video.step(frame)]
    return results


def test_sessions_have_streams_of_their_own_whichever_thread_drives_them(
    engine: refsam_trt.Engine, monkeypatch: pytest.MonkeyPatch
):
    """Two sessions in turn, then the first one in another thread, on late streams."""
    used: list[int] = []
    run = TrtContext.run

    def noted(self, inputs, outputs):
        used.append(self._graph.backend.device.stream_handle)
        run(self, inputs, outputs)

    expected = [results[0].low_res_logits for results in in_one_thread(engine)]
    monkeypatch.setattr(TrtContext, "run", noted)
    first, second = engine.open_video(), engine.open_video()
    for video in (first, second):
        video.add_expression("a dog")
    used.clear()
    logits_by_step = []
    for frame in frames(2):
        logits_by_step.append(first.step(frame)[0].low_res_logits)
        second.step(frame)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(lambda: [first.step(frame) for frame in frames(4)[2:]]).result()
    logits_by_step += [results[0].low_res_logits for results in later]
    one, two = used[:2], used[2:4]  # of its encoder, and of its track
    assert len({*one, *two}) == 4
    assert used == [*one, *two] * 2 + one * 2
    for a, b in zip(logits_by_step, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    first.close()
    second.close()


def in_one_thread(engine: refsam_trt.Engine) -> list[refsam_trt.FrameResults]:
    with engine.open_video() as video:
        video.add_expression("a dog")
        return [video.step(frame) for frame in frames(4)]


def test_gpus_refuse_cpu_threads(plans: Path, bundle: Path):
    with pytest.raises(UsageError, match="num_threads=2: backend tensorrt computes on a GPU"):
        refsam_trt.load(bundle, plans=plans, num_threads=2)
    with pytest.raises(UsageError, match="num_threads=2: backend ort-cuda computes on a GPU"):
        refsam_trt.load(bundle, backend="ort-cuda", num_threads=2)


def test_a_session_on_plans_gives_what_the_graphs_give(engine: refsam_trt.Engine, bundle: Path):
    assert engine.backend == "tensorrt"
    with refsam_trt.load(bundle, num_threads=1) as other:
        expected = logits(other)
    results = logits(engine)
    assert len(results) == len(expected) == 8
    for a, b in zip(results, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_frame_costs_one_upload_and_two_downloads(engine: refsam_trt.Engine):
    with engine.open_video() as video:
        video.add_expression("a dog")
        for index, frame in enumerate(frames(5)):
            before = engine.transfers
            video.step(frame)
            cost = engine.transfers - before
            if index >= 2:  # before, the text and whether there are tokens go up too
                assert (cost.num_uploads, cost.num_downloads, cost.num_copies) == (1, 2, 0)


def test_frames_on_the_gpu_are_not_copied(engine: refsam_trt.Engine, bundle: Path):
    generator = np.random.default_rng(5)
    images = [generator.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(4)]
    with engine.open_video(original_hw=(24, 40)) as video:
        video.add_expression("a dog")
        for index, image in enumerate(images):
            before = engine.transfers
            (result,) = video.step(fake_cuda.GpuArray(image))
            cost = engine.transfers - before
            if index >= 2:
                assert (cost.num_uploads, cost.num_copies) == (0, 0)
            assert result.mask.shape == (24, 40)
            expected = fake_bundle.run_graph(bundle, "image_encoder", {"image": image})
            assert np.isfinite(result.low_res_logits).all()
            assert expected


def test_what_cannot_be_taken_from_the_gpu_is_refused(engine: refsam_trt.Engine, bundle: Path):
    image = fake_cuda.GpuArray(np.zeros((1, 3, SIZE, SIZE), np.float32))
    with engine.open_video() as video, pytest.raises(VideoError) as refused:
        video.step(image)
    assert str(refused.value) == (
        "frame: an array on a GPU is the network's input and does not tell how large the video is; "
        "open the session with open_video(original_hw=(height, width))"
    )
    wrong = fake_cuda.GpuArray(np.zeros((1, 3, SIZE, SIZE + 1), np.float32))
    with engine.open_video(original_hw=(24, 40)) as video, pytest.raises(VideoError) as refused:
        video.step(wrong)
    assert str(refused.value) == (
        "frame: float32 [1, 3, 32, 33] on a GPU, expected float32 [1, 3, 32, 32], preprocessed as "
        "the manifest says; copy uint8 frames to the host"
    )
    with (
        refsam_trt.load(bundle) as other,
        other.open_video(original_hw=(24, 40)) as video,
        pytest.raises(BackendError, match="an array on a GPU, but the backend runs on the CPU; co"),
    ):
        video.step(image)


def test_more_expressions_than_the_plans_take_are_decoded_in_turns(
    engine: refsam_trt.Engine, bundle: Path
):
    """The plans take three at once."""
    results = []
    with refsam_trt.load(bundle, num_threads=1) as other:
        for opened in (engine, other):
            with opened.open_video() as video:
                for text in ("a dog", "a cat", "a red ball", "the man", "a car"):
                    video.add_expression(text)
                results.append([r.low_res_logits for frame in frames(4) for r in video.step(frame)])
    assert len(results[0]) == 20
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_longer_expressions_than_the_plans_take_are_refused(trt: Any, bundle: Path, tmp_path: Path):
    request = PlanRequest(bundle, tmp_path / "short", "tensorrt", "fp32", max_words=10)
    short = build_plans(request, lambda line: None).folder
    with refsam_trt.load(bundle, plans=short) as opened, opened.open_video() as video:
        video.add_expression("a dog")
        with pytest.raises(ExpressionError, match="10"):
            video.add_expression("a dog that sits on the left of the house")


def test_other_plans_than_asked_for_are_refused(
    plans: Path, bundle: Path, tmp_path: Path, trt: Any
):
    with pytest.raises(UsageError) as refused:
        refsam_trt.load(bundle, plans=plans, backend="tensorrt-rtx")
    assert str(refused.value) == (
        f"{plans}: plans for backend tensorrt, asked for was tensorrt-rtx; ask for tensorrt, or "
        "leave the plans out"
    )
    with pytest.raises(UsageError) as refused:
        refsam_trt.load(bundle, plans=plans, variant="other")
    assert str(refused.value) == (
        f"{plans}: plans of variant 'fp32-plain-optimised', asked for was 'other'; leave the "
        "variant out, or build its plans with refsam-build"
    )
    other = fake_bundle.make_bundle(tmp_path / "other", split="optimised", preset="another")
    trt.calls.clear()
    with pytest.raises(PlanDamagedError, match="built from bundle"):
        refsam_trt.load(other, plans=plans)
    assert trt.calls == []
