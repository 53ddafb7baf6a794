"""Tiny videos and folders of images, made on the spot."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

HW = (32, 48)


def moving_frames(num: int, hw: tuple[int, int] = HW) -> list[np.ndarray]:
    """Return frames that differ, uint8 [H, W, 3]: a bright square on a gradient moves right."""
    y, x = np.mgrid[: hw[0], : hw[1]]
    frames = []
    for index in range(num):
        frame = np.stack([3 * x, 4 * y, 2 * (x + y)], axis=2).astype(np.uint8)
        frame[8:20, 2 * index : 2 * index + 12] = (230, 200, 20)
        frames.append(frame)
    return frames


def write_images(folder: Path, frames: list[np.ndarray], first: int = 0) -> Path:
    """Write 00000.png, 00001.png, ... into a new folder."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames, start=first):
        Image.fromarray(frame).save(folder / f"{index:05d}.png")
    return folder


def write_video(path: Path, frames: list[np.ndarray], fps: int = 10) -> Path:
    """Write an H.264 video; the suffix says in which container (.mp4, .ts)."""
    height, width, _ = frames[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", 2
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path
