"""What frames in flight gain: one stage after the other against all at once, in turn.

A pipeline can be no faster than its slowest stage, nor than CPU seconds divided by cores; `ratio`
is its time over the larger of the two. Sleeping stages show what the pipeline itself costs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import refsam_trt
from refsam_bench.synthetic import generate
from refsam_prove import Step
from refsam_trt.image.preprocess import Preprocessor
from refsam_trt.media.frames import FrameSource, open_frames
from refsam_trt.media.sources import Selection
from refsam_trt.result.writers import OverlayVideoWriter
from refsam_trt.run.interruption import Interruption
from refsam_trt.run.outputs import (
    DEFAULT_OUTPUTS,
    FinishedFrame,
    OutputTarget,
    draw_for,
    open_outputs,
)
from refsam_trt.run.stages import SelectedFrames, finished_frames
from refsam_trt.session.engine import Engine
from refsam_trt.session.pipeline import overlapped
from refsam_trt.session.session import Session

SLEEPS_MS = (6, 8, 12, 8, 6)
"""Of the items and the stages; the caller sleeps as long as the items."""
NUM_ITEMS = 300
MAX_STUB_RATIO = 1.05

SEED, INDEX = 900_000, 3
NUM_FRAMES, FRAME_HW, FPS = 96, (480, 854), 12
NUM_EXPRESSIONS, NUM_ROUNDS = 2, 5
MAX_RATIO = 1.1


def pipeline_nano() -> dict[str, Any]:
    """Time sleeping stages, and `nano` on a made clip, both ways in turn."""
    record: dict[str, Any] = {"stub": _stub(), "num_cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch, refsam_trt.load("nano") as engine:
        clip = Path(scratch) / "clip.mp4"
        texts = _write_clip(clip)
        rounds = [_round(engine, clip, texts, Path(scratch) / str(i)) for i in range(NUM_ROUNDS)]
    record["settings"] = {
        "frame_hw": FRAME_HW,
        "num_frames": NUM_FRAMES,
        "num_expressions": NUM_EXPRESSIONS,
        "num_rounds": NUM_ROUNDS,
        "outputs": DEFAULT_OUTPUTS,
    }
    record["nano"] = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    checks = (
        ("sleeping stages", record["stub"]["ratio"], MAX_STUB_RATIO),
        ("nano", record["nano"]["ratio"], MAX_RATIO),
    )
    record["failures"] = [
        f"{name}: {ratio:.3f} times the bound, at most {most} asked for"
        for name, ratio, most in checks
        if ratio > most
    ]
    return record


def _stub() -> dict[str, float]:
    first, *others = (ms / 1e3 for ms in SLEEPS_MS)

    def slept(item: int, seconds: float) -> int:
        time.sleep(seconds)
        return item

    items = (slept(item, first) for item in range(NUM_ITEMS))
    stages = [lambda item, seconds=seconds: slept(item, seconds) for seconds in others]
    began_s = time.perf_counter()
    for item in overlapped(items, *stages):
        slept(item, first)
    wall_s = time.perf_counter() - began_s
    return {"wall_s": wall_s, "ratio": wall_s / (NUM_ITEMS * max(first, *others))}


def _round(engine: Engine, clip: Path, texts: list[str], scratch: Path) -> dict[str, float]:
    scratch.mkdir()
    stage_ms, plain_fps = _one_by_one(engine, clip, texts, scratch / "plain")
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with _opened(engine, clip, texts, scratch / "overlapped") as (source, session, write):
        frames = SelectedFrames(source, Selection(), Interruption(), is_dropping=False)
        for done in finished_frames(session, frames, draw_for(DEFAULT_OUTPUTS), is_late=False):
            write(done)
    wall_ms = 1e3 * (time.perf_counter() - began_s) / NUM_FRAMES
    cpu_ms = 1e3 * (time.process_time() - began_cpu_s) / NUM_FRAMES
    bound_ms = max(*stage_ms.values(), cpu_ms / (os.cpu_count() or 1))
    return {
        **{f"{stage}_ms": ms for stage, ms in stage_ms.items()},
        "plain_fps": plain_fps,
        "fps": 1e3 / wall_ms,
        "speedup": 1e3 / wall_ms / plain_fps,
        "cpu_ms": cpu_ms,
        "bound_ms": bound_ms,
        "ratio": wall_ms / bound_ms,
    }


def _one_by_one(
    engine: Engine, clip: Path, texts: list[str], output: Path
) -> tuple[dict[str, float], float]:
    """Return mean milliseconds per stage, and frames per second."""
    stages = ("read", "preprocess", "encode", "step", "draw", "write")
    seconds = dict.fromkeys(stages, 0.0)
    began_s = time.perf_counter()
    with _opened(engine, clip, texts, output) as (source, session, write):
        preprocessor = Preprocessor(source.original_hw, engine.manifest.preprocess)
        frames, draw = iter(source), draw_for(DEFAULT_OUTPUTS)
        for index in range(NUM_FRAMES):
            marks = [time.perf_counter()]
            frame = next(frames)
            marks.append(time.perf_counter())
            preprocessor(frame)  # once more than needed, and taken off again below
            marks.append(time.perf_counter())
            encoded = session.encode(frame)
            marks.append(time.perf_counter())
            (results,) = session.decode(encoded)
            encoded.release()
            marks.append(time.perf_counter())
            draw(results)
            marks.append(time.perf_counter())
            write(FinishedFrame(source.frame_name(index), index, frame, results))
            marks.append(time.perf_counter())
            for stage, spent in zip(stages, np.diff(marks), strict=True):
                seconds[stage] += float(spent)
    wall_s = time.perf_counter() - began_s - seconds["preprocess"]
    seconds["encode"] -= seconds["preprocess"]
    return {stage: 1e3 * spent / NUM_FRAMES for stage, spent in seconds.items()}, (
        NUM_FRAMES / wall_s
    )


@contextmanager
def _opened(
    engine: Engine, clip: Path, texts: list[str], output: Path
) -> Iterator[tuple[FrameSource, Session, Any]]:
    output.mkdir()
    with open_frames(clip) as source, engine.open_video() as session:
        for text in texts:
            session.add_expression(text)
        target = OutputTarget(output, source, tuple(texts), 1, is_random=False)
        with open_outputs(target, DEFAULT_OUTPUTS) as write:
            yield source, session, write


def _write_clip(path: Path) -> list[str]:
    video = generate(SEED, INDEX, slice="attribute", num_frames=NUM_FRAMES, size_hw=FRAME_HW)
    with OverlayVideoWriter(path, FPS, FRAME_HW) as writer:
        for frame in video.frames:
            writer.write(frame)
    return [expression.text for expression in video.expressions[:NUM_EXPRESSIONS]]


STEPS: dict[str, Step] = {"pipeline-nano": pipeline_nano}
