"""The work of `refsam-run`: source -> session -> files, one folder that is whole or absent.

A signal or a lost stream ends the work between two frames and keeps the finished ones; any other
error leaves nothing behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import refsam_trt
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress
from refsam_trt.contract.vocabulary import unseen_words
from refsam_trt.errors import (
    ExpressionError,
    RefsamError,
    VideoError,
)
from refsam_trt.files.atomic import atomic_folder
from refsam_trt.files.target import refuse_folder
from refsam_trt.media.sources import public_name
from refsam_trt.run.interruption import Interruption
from refsam_trt.run.jobs import Job, RunRequest, open_jobs
from refsam_trt.run.meta_expressions import NUM_ANNOTATORS
from refsam_trt.run.shared_tracks import SharedTracks, Stepper
from refsam_trt.run.stages import SelectedFrames, finished_frames
from refsam_trt.session.engine import Engine
from refsam_trt.session.load import load
from refsam_trt.session.session import Session
from refsam_trt.text.tokenizer import Tokenizer

RECORD_FILE = "run.json"
"""What was run: part of every output, and the sign that a folder may be overwritten."""


@dataclass(frozen=True)
class RunReport:
    """What was done.

    Attributes:
        output: the folder.
        num_frames: frames finished, over all videos.
        num_frames_expected: as the source says, which may be wrong; None if it does not.
        num_dropped: frames of a live source that were left out to keep up with it.
        fps: frames per second, reading and writing included.
        files: paths below `output`, sorted.
        bundle_id, variant, precision, backend, is_random_init: of the engine.
        unseen_words: expression -> its words that were never seen in training, if there are any.
        interruption: why work ended early, or None: KeyboardInterrupt, Terminated, or
            StreamLostError.
    """

    output: Path
    num_frames: int
    num_frames_expected: int | None
    num_dropped: int
    fps: float
    files: tuple[str, ...]
    bundle_id: str
    variant: str
    precision: str
    backend: str
    is_random_init: bool
    unseen_words: dict[str, tuple[str, ...]]
    interruption: BaseException | None


def run(request: RunRequest) -> RunReport:
    """Run a bundle on a source and write what was asked for. For the main thread.

    Raises:
        OutputError: the output exists, or cannot be written.
        BundleError, BackendError, MissingExtraError, UsageError: as `load`.
        VideoError, DatasetError: the source cannot be used, or is damaged half-way.
        ExpressionError: as `Session.add_expression`, for any video, before the first frame.
        KeyboardInterrupt, Terminated: interrupted before the first frame was finished.
    """
    refuse_folder(request.output, overwrite=request.is_overwrite, marker=RECORD_FILE)
    with ExitStack() as stack:
        jobs = open_jobs(request, stack)
        bundle = open_bundle(bundle_folder(request.bundle), verify="deferred")
        _check_expressions(request, jobs, bundle)
        engine = load(
            bundle,
            backend=request.backend,
            text=request.text_mode,
            text_cache=request.text_cache,
            variant=request.variant,
            precision=request.precision,
            plans=request.plans,
            num_threads=request.num_threads,
        )
        stack.enter_context(engine)
        _check_embeddings(request, jobs, engine)
        return _run_jobs(request, jobs, engine)


def _check_expressions(request: RunRequest, jobs: list[Job], bundle: Bundle) -> None:
    """Refuse an unusable expression before graphs are loaded, and hours before its video comes."""
    manifest = bundle.manifest
    tokenizer = Tokenizer(
        bundle.verify_file(manifest.tokenizer.file),
        lowercase=manifest.tokenizer.lowercase,
        max_words=manifest.limits.max_words,
    )
    _try_expressions(request, jobs, lambda text: tokenizer.encode(tokenizer.clean(text)))


def _check_embeddings(request: RunRequest, jobs: list[Job], engine: Engine) -> None:
    """Refuse an expression that no cache knows where none can be computed, before any video."""
    if not engine.family.can_embed:
        with engine.open_video() as video:
            _try_expressions(
                request, jobs, lambda text: video.remove_expression(video.add_expression(text))
            )


def _try_expressions(
    request: RunRequest, jobs: list[Job], attempt: Callable[[str], object]
) -> None:
    """Attempt something with every expression; of a data set the error names the video too."""
    for job in jobs:
        for text in job.expressions:
            try:
                attempt(text)
            except ExpressionError as error:
                if request.dataset is None:
                    raise
                raise ExpressionError(f"{job.name}: {error}") from error


def _run_jobs(request: RunRequest, jobs: list[Job], engine: Engine) -> RunReport:
    selection = request.selection
    counts = [selection.count(job.num_frames) for job in jobs]
    expected = None if None in counts else sum(count or 0 for count in counts)
    videos: dict[str, dict[str, Any]] = {}
    with Interruption() as stop, _output_folder(request) as folder:
        began_s = time.monotonic()
        # Raised past the progress bar, so that it does not say that all is done.
        with suppress(_StoppedEarly), Progress("frames", expected) as progress:
            for job in jobs:
                videos[job.name] = _run_job(request, job, engine, folder, stop, progress)
                if stop.reason is not None:
                    raise _StoppedEarly
        seconds = time.monotonic() - began_s
        num_frames = sum(video["num_frames"] for video in videos.values())
        if not num_frames and stop.reason is not None:
            raise stop.reason
        _write_record(request, engine, folder, videos, is_complete=stop.reason is None)
        files = tuple(
            sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        )
    return RunReport(
        output=request.output,
        num_frames=num_frames,
        num_frames_expected=expected,
        num_dropped=sum(video["num_dropped"] for video in videos.values()),
        fps=num_frames / seconds,
        files=files,
        bundle_id=engine.bundle_id,
        variant=engine.variant,
        precision=engine.precision,
        backend=engine.backend,
        is_random_init=engine.is_random_init,
        unseen_words=_unseen_words(videos, engine),
        interruption=stop.reason,
    )


def _unseen_words(videos: dict[str, dict[str, Any]], engine: Engine) -> dict[str, tuple[str, ...]]:
    texts = {text for video in videos.values() for text in video["expressions"]}
    unseen = {text: unseen_words(engine.manifest.vocabulary, text) for text in sorted(texts)}
    return {text: words for text, words in unseen.items() if words}


class _StoppedEarly(Exception):
    """The reason is in the `Interruption`."""


def _run_job(
    request: RunRequest,
    job: Job,
    engine: Engine,
    folder: Path,
    stop: Interruption,
    progress: Progress,
) -> dict[str, Any]:
    """Run one video and return what the record says of it."""
    num_done = 0
    with job.open() as source, ExitStack() as stack:
        session = _open_session(request, engine, source.original_hw, stack)
        for text in job.expressions:
            session.add_expression(text)
        with job.outputs(folder, source, engine.is_random_init) as write:
            frames = SelectedFrames(
                source, request.selection, stop, is_dropping=request.is_dropping
            )
            for done in finished_frames(session, frames, job.draw, is_late=engine.family.is_late):
                write(done)
                num_done += 1
                progress.update()
            if not num_done:
                raise _StoppedEarly if stop.reason else _nothing_selected(request, job)
        height, width = source.original_hw
    return {
        "expressions": job.expressions,
        "num_frames": num_done,
        "num_dropped": frames.num_dropped,
        "size": [height, width],
    }


def _open_session(
    request: RunRequest, engine: Engine, original_hw: tuple[int, int], stack: ExitStack
) -> Stepper:
    def opened() -> Session:
        video = engine.open_video(original_hw=original_hw, threshold=request.mask_threshold)
        return stack.enter_context(video)

    if request.track_state_scope == "expression":
        return opened()
    return SharedTracks([opened() for _ in range(NUM_ANNOTATORS)])


def _nothing_selected(request: RunRequest, job: Job) -> VideoError:
    return VideoError(
        f"{job.name}: the video ends before frame {request.selection.start}, so nothing was done; "
        "choose a smaller --start"
    )


@contextmanager
def _output_folder(request: RunRequest) -> Iterator[Path]:
    """Yield the folder to fill; errors name the place it will have, not the hidden one it has."""
    folder = request.output
    try:
        with atomic_folder(request.output, request.is_overwrite) as folder:
            yield folder
    except RefsamError as error:
        raise error.moved(folder, request.output) from error.__cause__


def _write_record(
    request: RunRequest,
    engine: Engine,
    folder: Path,
    videos: dict[str, dict[str, Any]],
    *,
    is_complete: bool,
) -> None:
    """Write what was run, without anything that differs between two runs of the same."""
    selection = request.selection
    record = {
        "tool": f"refsam-run {refsam_trt.__version__}",
        "bundle_id": engine.bundle_id,
        "variant": engine.variant,
        "precision": engine.precision,
        "backend": engine.backend,
        "random_init": engine.is_random_init,
        "source": public_name(request.source),
        "dataset": request.dataset,
        "threshold": request.mask_threshold,
        "track_state_scope": request.track_state_scope,
        "frames": {"start": selection.start, "end": selection.end, "stride": selection.stride},
        "is_complete": is_complete,
        "unseen_words": _unseen_words(videos, engine),
        "videos": videos,
    }
    text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    (folder / RECORD_FILE).write_text(text, encoding="utf-8", newline="\n")
