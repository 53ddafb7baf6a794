"""Write synthetic videos as files, in the layout of Ref-DAVIS17."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from refsam_bench.synthetic.compose import Slice
from refsam_bench.synthetic.video import NUM_FRAMES, SIZE_HW, SyntheticVideo, generate
from refsam_trt.errors import UsageError
from refsam_trt.files.atomic import atomic_folder
from refsam_trt.files.target import make_folder
from refsam_trt.result.overlay import palette_image

# Ref-DAVIS17 has four annotators; readers rely on index = 4 * (object id - 1) + annotator.
_TEXTS_PER_OBJECT: Final = 4
_JPEG_QUALITY: Final = 95


def write_ref_davis(
    folder: Path,
    *,
    seed: int,
    slice: Slice,
    num_videos: int,
    num_frames: int = NUM_FRAMES,
    size_hw: tuple[int, int] = SIZE_HW,
    advance: Callable[[], None] | None = None,
) -> tuple[str, ...]:
    """Write videos of one slice as a data set of their own and return their names.

    Masks hold the objects that expressions name, numbered 1 to N in the order of their ids in the
    scene; all others are background. Frames are JPEG files (quality 95, full chroma), so they
    differ slightly from what `generate` returns. The folder appears complete or not at all.

    Args:
        folder: Where; it must not exist.
        seed: Of the videos; `split_of` says what for.
        slice: Of the expressions.
        num_videos: How many, with indices from 0.
        num_frames: Length of every video.
        size_hw: Height and width of every video in pixels.
        advance: Called after each video; None means nothing.

    Raises:
        UsageError: An argument is out of its range.
        OutputError: The folder exists, or cannot be written.
    """
    if num_videos < 1:
        raise UsageError(f"num_videos {num_videos}: give 1 or more")
    make_folder(folder.parent)
    tables: dict[str, dict[str, Any]] = {"objects": {}, "expressions": {}}
    with atomic_folder(folder) as partial:
        for index in range(num_videos):
            video = generate(
                seed,
                index,
                slice=slice,
                num_frames=num_frames,
                size_hw=size_hw,
                texts_per_object=_TEXTS_PER_OBJECT,
            )
            _write_video(partial, video, tables)
            if advance is not None:
                advance()
        _write_tables(partial, tables)
    return tuple(tables["expressions"])


def _write_video(root: Path, video: SyntheticVideo, tables: dict[str, dict[str, Any]]) -> None:
    """Write frames and masks, and add the video to the tables of objects and expressions."""
    name = f"{video.slice}-{video.seed}-{video.index:06d}"
    named = sorted({expression.object_id for expression in video.expressions})
    written_ids = {object_id: str(rank) for rank, object_id in enumerate(named, start=1)}
    new_label = np.zeros(256, np.uint8)
    new_label[named] = np.arange(1, len(named) + 1)
    images, annotations = (root / "valid" / kind / name for kind in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    frame_names = [f"{number:05d}" for number in video.frame_indices]
    for frame_name, frame, label_map in zip(
        frame_names, video.frames, video.label_map, strict=True
    ):
        image = Image.fromarray(frame)
        image.save(images / f"{frame_name}.jpg", quality=_JPEG_QUALITY, subsampling=0)
        palette_image(new_label[label_map]).save(annotations / f"{frame_name}.png")
    tables["objects"][name] = {
        "objects": {
            written_ids[object_id]: {"category": video.scene.objects[object_id - 1].shape}
            for object_id in named
        }
    }
    by_object = sorted(video.expressions, key=lambda expression: expression.object_id)
    tables["expressions"][name] = {
        "expressions": {
            str(number): {"exp": expression.text, "obj_id": written_ids[expression.object_id]}
            for number, expression in enumerate(by_object)
        },
        "frames": frame_names,
    }


def _write_tables(root: Path, tables: dict[str, dict[str, Any]]) -> None:
    files = {
        "valid/meta.json": _as_json(tables["objects"]),
        "meta_expressions/valid/meta_expressions.json": _as_json(tables["expressions"]),
        "ImageSets/2017/val.txt": "".join(f"{name}\n" for name in tables["expressions"]),
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def _as_json(videos: dict[str, Any]) -> str:
    return json.dumps({"videos": videos}, indent=1) + "\n"
