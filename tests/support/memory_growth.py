"""How much resident memory, that of ONNX Runtime included, grows while expressions come and go.

To be called in a fresh process: in another one, growth hides in memory that was freed before.
"""

import gc
import threading
from pathlib import Path

from runtime_twin import random_frames

import refsam_trt
import refsam_trt.text.encoder

NUM_FRAMES = 1000
NUM_THREADS = 8


def one_session(folder: Path, text: str, memory_cache_size: int) -> float:
    """Return the MiB by which 800 frames, each with an expression of its own, grew after 200."""
    refsam_trt.text.encoder.MEMORY_CACHE_SIZE = memory_cache_size
    with refsam_trt.load(folder, text=text, num_threads=1) as engine, engine.open_video() as video:
        video.add_expression("stays")
        come_and_go(video, range(200))
        before = resident_mib()
        come_and_go(video, range(200, NUM_FRAMES))
        return resident_mib() - before


def eight_threads(folder: Path, memory_cache_size: int) -> float:
    """Return the MiB by which the second half of the frames grew, eight sessions in each half."""
    refsam_trt.text.encoder.MEMORY_CACHE_SIZE = memory_cache_size
    half = NUM_FRAMES // 2
    with refsam_trt.load(folder, text="resident", num_threads=1) as engine:
        in_threads(engine, range(half))
        before = resident_mib()
        in_threads(engine, range(half, NUM_FRAMES))
        return resident_mib() - before


def resident_mib() -> float:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024


def come_and_go(video: refsam_trt.Session, numbers: range) -> None:
    frame = random_frames(1)[0]
    for number in numbers:
        added = video.add_expression(f"thing {number:05}")
        for result in video.step(frame):
            assert result.mask.shape == frame.shape[:2]
        video.remove_expression(added)


def in_threads(engine: refsam_trt.Engine, numbers: range) -> None:
    failures: list[BaseException] = []

    def work(share: range) -> None:
        try:
            with engine.open_video() as video:
                come_and_go(video, share)
        except BaseException as error:
            failures.append(error)

    shares = [numbers[i::NUM_THREADS] for i in range(NUM_THREADS)]
    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
