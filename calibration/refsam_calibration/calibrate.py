"""`refsam-calibrate` as a call: ranges, sensitivity, search, verification, quantised bundle.

Whatever was measured is kept in the work folder under a name that says what it depends on, so an
interrupted run, or one with another budget, does nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from refsam_calibration.clips import read_clips
from refsam_calibration.gate.half_range import audit_half
from refsam_calibration.gate.journal import Journal
from refsam_calibration.gate.judge import Judgement, LayerJudge, files_digest, open_set
from refsam_calibration.gate.search import (
    SHARE_ROUNDING,
    QuantisedSet,
    costliest,
    largest_set,
    rate,
)
from refsam_calibration.quantise.layers import Unit, choose_units
from refsam_calibration.quantise.quantised_bundle import (
    base_variants,
    form_of,
    write_quantised_bundle,
)
from refsam_calibration.ranges.measure import measure_ranges, num_passes
from refsam_calibration.ranges.ranges import (
    RangeOptions,
    Ranges,
    fold_ranges,
    ranges_key,
    read_ranges,
    sha256_of,
    write_ranges,
)
from refsam_calibration.ranges.videos import CalibrationVideo, digest_of, open_videos
from refsam_calibration.report import Calibrated, record_json
from refsam_calibration.request import STAGES, CalibrateRequest, Stage
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.source import load_source
from refsam_export.variants import GraphForm
from refsam_trt.bundle.open import open_bundle
from refsam_trt.command.progress import StepCounter
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.errors import AccuracyGateError, UsageError
from refsam_trt.files.target import make_folder


@dataclass(frozen=True)
class Display:
    """How progress is shown.

    Attributes:
        line: prints a line.
        steps: opens a counter with a label and a total, None where it is not known.
    """

    line: Callable[[str], None]
    steps: Callable[[str, int | None], AbstractContextManager[StepCounter]]


def calibrate(request: CalibrateRequest, display: Display) -> Calibrated:
    """Do what is asked for; the new bundle is written whole or not at all.

    Raises:
        AccuracyGateError: the budget cannot be met, or fp16 does not hold the smoothed model's
            values; nothing is written then.
        RefsamError: anything that cannot be used, by name.
    """
    request.check_output()
    clips = read_clips(request.clips)
    if request.seed is not None:
        clips = msgspec.structs.replace(clips, seed=request.seed)
    folder = request.clips.parent
    bundle = open_bundle(request.bundle)
    display.line("loading the PyTorch weights")
    loaded = load_source(bundle, request.source)
    units = choose_units(loaded.model.config, request.layers)
    from_file = _given_ranges(request, loaded, units)
    options = from_file.options if from_file else request.options(units)
    # What cannot be used is refused before anything long begins.
    bases = base_variants(bundle, options.scheme) if request.stop_after == "bundle" else {}
    _check_share(request, units)
    annotated = (clips.rank, clips.search, clips.verify)
    sets = [(open_set(each, folder), files_digest(each, folder)) for each in annotated]
    videos = open_videos(clips, folder)
    display.line(f"reading the frames of {len(videos)} clips")
    digest = digest_of(videos)
    ranges, path = from_file, request.ranges
    if ranges is None or path is None:
        work = request.work_folder
        ranges, path = _kept_ranges(work, loaded, options, videos, digest, display)
    else:
        _check_frames(request, ranges, digest[0])
    is_random = bundle.manifest.weights.random_init_seed is not None
    done = Calibrated(bundle.bundle_id, is_random, ranges, path)
    if _stops(request, "ranges"):
        return done
    if bases:  # before what takes longest
        form = form_of(bases["fp16"])
        done = replace(done, fp16_range=_fp16_range(request, done, loaded, form, videos, display))
    judges = [
        LayerJudge(loaded, ranges, *opened, request.work_folder, purpose, display.steps)
        for opened, purpose in zip(sets, ("rank", "search", "verify"), strict=True)
    ]
    if known := sum(judges[0].is_known(unit.layers) for unit in units):
        display.line(f"{known} of {len(units)} units were judged before")
    ranking = rate(units, judges[0])
    done = replace(done, ranking=tuple(ranking))
    if _stops(request, "sensitivity"):
        return done
    largest = largest_set(
        ranking, judges[1], request.search_points, request.min_share, display.line
    )
    done = replace(done, largest=largest)
    if _stops(request, "search"):
        return done
    done = replace(done, verified=_verify(request, judges[2], largest))
    assert request.output is not None
    amax = {name: ranges.amax[name] for name in largest.layers}
    record = {**record_json(done), "clips": msgspec.to_builtins(clips)}
    written = write_quantised_bundle(
        bundle, loaded.model, amax, options.scheme, record, request.output
    )
    return replace(done, output_id=written.bundle_id)


def _check_share(request: CalibrateRequest, units: Sequence[Unit]) -> None:
    """Refuse a share that all the layers asked for together do not have.

    Raises:
        UsageError: that.
    """
    share = sum(unit.share for unit in units)
    if request.min_share > share + SHARE_ROUNDING:
        raise UsageError(
            f"--min-share {request.min_share:g}: the layers that may be quantised have "
            f"{share:.1%} of the linear FLOPs together; ask for less, or name more with --layers"
        )


def _check_frames(request: CalibrateRequest, ranges: Ranges, data_sha256: str) -> None:
    if ranges.data_sha256 != data_sha256:
        raise UsageError(
            f"{request.ranges}: ranges of other frames than those that {request.clips} names under "
            "[[calibrate]]; name the same clips, so that the bundle tells the truth about them, or "
            "leave --ranges out to measure anew"
        )


def _stops(request: CalibrateRequest, stage: Stage) -> bool:
    return STAGES.index(request.stop_after) <= STAGES.index(stage)


def _given_ranges(
    request: CalibrateRequest, loaded: LoadedModel, units: Sequence[Unit]
) -> Ranges | None:
    """Return the ranges of a file that was named, with the model smoothed as they say."""
    if request.ranges is None:
        return None
    ranges = read_ranges(request.ranges, loaded.model)
    request.check_ranges(ranges.options, units)
    fold_ranges(loaded.model, ranges)
    return ranges


def _kept_ranges(
    work: Path,
    loaded: LoadedModel,
    options: RangeOptions,
    videos: Sequence[CalibrationVideo],
    digest: tuple[str, int],
    display: Display,
) -> tuple[Ranges, Path]:
    """Return ranges, measured now or before, and their file; the model is smoothed then."""
    key = ranges_key(sha256_of(loaded.model.image_encoder), digest[0], options)
    path = work / f"ranges-{key[:16]}.json"
    if path.exists():
        ranges = read_ranges(path, loaded.model)
        display.line(f"ranges were measured before: {path}")
        fold_ranges(loaded.model, ranges)
        return ranges, path
    with display.steps("ranges", digest[1] * num_passes(options)) as steps:
        ranges = measure_ranges(loaded, videos, options, digest=digest, progress=steps.update)
    make_folder(work)
    write_ranges(path, ranges)
    return ranges, path


def _fp16_range(
    request: CalibrateRequest,
    done: Calibrated,
    loaded: LoadedModel,
    form: GraphForm,
    videos: Sequence[CalibrationVideo],
    display: Display,
) -> dict[str, Any]:
    """Return what fp16 nodes hold, audited now or before."""
    about = {"ranges": done.ranges.key, "form": list(msgspec.to_builtins(form).values())}
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    journal = Journal(request.work_folder / f"fp16-{key[:16]}.jsonl", about)
    figures = journal.get(IMAGE_ENCODER)
    if figures is None:
        with display.steps("fp16 range", done.ranges.num_frames) as steps:
            figures = audit_half(loaded.model, form, videos, steps.update).to_json()
        journal.add(IMAGE_ENCODER, figures)
    return figures


def _verify(request: CalibrateRequest, judge: LayerJudge, largest: QuantisedSet) -> Judgement:
    verified = judge.judge(largest.layers, "verify: quantised")
    if verified.drop_points > request.max_drop_points:
        raise AccuracyGateError(
            f"verified: J&F {verified.reference_j_and_f:.4f} became {verified.j_and_f:.4f}, "
            f"{verified.drop_points:.2f} points lost, {request.max_drop_points:g} allowed; the "
            f"layers that cost most: {costliest(largest.chosen)}; leave some out with --layers, or "
            "give a larger --margin-points; no bundle was written"
        )
    return verified
