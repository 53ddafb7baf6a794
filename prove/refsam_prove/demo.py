"""`make demo`: the two commands, on a clip made here, and an animation of what came out.

The weights are those of the model that ships, exported afresh. The animation, `demo.webp`, is the
README's `docs/images/demo.webp`.

As a program: `python -m refsam_prove.demo FOLDER`; an earlier FOLDER is replaced.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
from PIL import Image

from refsam_bench.synthetic import generate
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.files.atomic import atomic_path
from refsam_trt.media.frames import open_frames
from refsam_trt.result.writers import OverlayVideoWriter

PRESET = "nano"
SEED, INDEX = 900_000, 3
NUM_FRAMES, FRAME_HW, FPS = 48, (480, 480), 12
PRECISIONS = "fp32,fp16"
NUM_EXPRESSIONS = 2
ANIMATION_PX, ANIMATION_STRIDE = 400, 2
"""Side, and every so many-th frame: 0.3 MB, where a GIF of the same has 3 MB."""


def main(target: Path) -> None:
    """Make the clip, export `nano`, run it, and say where everything is."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    clip, bundle, output = target / "clip.mp4", target / PRESET, target / "output"
    texts = write_clip(clip)
    _command(
        *("refsam-export", "--backbone", PRESET, *weights()),
        *("--precision", PRECISIONS, "--output", str(bundle)),
    )
    _command("refsam-run", str(bundle), str(clip), *texts, "--output", str(output))
    animation = target / "demo.webp"
    write_animation(output / "overlay.mp4", animation)
    click.echo(f"\nbundle:        {bundle}\noverlay video: {output / 'overlay.mp4'}")
    click.echo(f"animation:     {animation}")


def weights() -> tuple[str, ...]:
    """Return the options of `refsam-export` that say which weights to take."""
    shipped = bundle_folder(PRESET)
    source = open_bundle(shipped, verify="deferred").manifest.source
    assert source is not None
    return ("--checkpoint", str(shipped / source), "--weight-storage", "fp16")


def write_clip(path: Path) -> list[str]:
    """Write a synthetic clip of a seed for evaluation; return expressions, each of one object."""
    video = generate(SEED, INDEX, slice="attribute", num_frames=NUM_FRAMES, size_hw=FRAME_HW)
    with OverlayVideoWriter(path, FPS, FRAME_HW) as writer:
        for frame in video.frames:
            writer.write(frame)
    return [expression.text for expression in video.expressions[:NUM_EXPRESSIONS]]


def write_animation(overlay: Path, path: Path) -> None:
    """Write the overlay video as an animated WebP, smaller and with fewer frames."""
    side = (ANIMATION_PX, ANIMATION_PX)
    with open_frames(overlay) as frames:
        shown = [frame for index, frame in enumerate(frames) if index % ANIMATION_STRIDE == 0]
    first, *rest = [
        Image.fromarray(frame).resize(side, Image.Resampling.LANCZOS) for frame in shown
    ]
    duration_ms = 1000 * ANIMATION_STRIDE // FPS
    with atomic_path(path) as temporary:
        first.save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=rest,
            duration=duration_ms,
            loop=0,
            quality=75,
        )


def _command(*words: str) -> None:
    click.echo(f"\n$ {shlex.join(words)}")
    script = Path(sysconfig.get_path("scripts")) / words[0]
    if subprocess.run([str(script), *words[1:]], check=False).returncode != 0:
        raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
