"""Many expressions, many threads, many changes: same results, no more memory."""

import gc
import threading
import tracemalloc
from itertools import chain
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
from runtime_twin import assert_close, random_frames

import refsam_trt
from refsam_trt.contract.manifest import Limits
from refsam_trt.contract.refsam import Split
from refsam_trt.session.engine import Engine

TEXTS = ["dog", "the small red frisbee in the air", "a b", "x" * 63]


def test_chunks_equal_one_batch(split: Split, tmp_path: Path) -> None:
    texts = [f"thing number {i} {'!' * (i % 7)}" for i in range(70)]
    results = []
    for max_expressions in (128, 64, 3):
        limits = Limits(max_frames=8, max_expressions=max_expressions, max_words=64)
        path = tmp_path / str(max_expressions)
        fake_bundle.make_bundle(path, split=split, limits=limits)
        with (
            refsam_trt.load(path, backend="fake", num_threads=1) as engine,
            engine.open_video() as video,
        ):
            for text in texts:
                video.add_expression(text)
            results.append([video.step(frame) for frame in random_frames(3)])
            before = engine.transfers
            video.step(random_frames(1)[0])
            counts = engine.transfers - before
            assert (counts.num_uploads, counts.num_downloads, counts.num_copies) == (1, 2, 0)
    whole, *all_chunked = results
    for chunked in all_chunked:
        for a, b in zip(chain(*whole), chain(*chunked), strict=True):
            assert a.text == b.text
            assert_close(b.low_res_logits, a.low_res_logits)


def test_threads_get_the_same_masks_as_one_after_another(engine: Engine) -> None:
    frames = random_frames(5)

    def work(seed: int) -> list[np.ndarray]:
        with engine.open_video() as video:
            results = []
            for index, frame in enumerate(frames[seed % 2 :]):
                video.add_expression(f"thing {seed} at {index}")
                results += [result.mask for result in video.step(frame)]
            return results

    expected = [work(seed) for seed in range(8)]
    results: dict[int, list[np.ndarray]] = {}
    together = threading.Barrier(8)

    def in_thread(seed: int) -> None:
        together.wait()
        results[seed] = work(seed)

    threads = [threading.Thread(target=in_thread, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(8):
        for a, b in zip(results[seed], expected[seed], strict=True):
            np.testing.assert_array_equal(a, b)


def test_memory_stays_flat_while_expressions_come_and_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refsam_trt.text.encoder.MEMORY_CACHE_SIZE", 16)
    frame = random_frames(1)[0]
    with (
        refsam_trt.load(folder, text="resident", num_threads=1) as engine,
        engine.open_video() as video,
    ):
        video.add_expression("stays")
        in_runtime = tracemalloc.Filter(True, str(Path(refsam_trt.__file__).parent / "*"))

        def cycles(numbers: range) -> int:
            for number in numbers:
                added = video.add_expression(f"thing {number:04}")
                video.step(frame)
                video.remove_expression(added)
            gc.collect()
            # What the test runner or another thread allocates meanwhile is not ours to bound.
            ours = tracemalloc.take_snapshot().filter_traces([in_runtime])
            return sum(trace.size for trace in ours.traces)

        tracemalloc.start()
        try:
            before, after = cycles(range(100)), cycles(range(100, 1000))
        finally:
            tracemalloc.stop()
    assert before > 0
    # One embedding of the optimised split is larger than this.
    assert after - before < 50_000
