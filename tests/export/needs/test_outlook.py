"""What is said at the door and between the stages."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

import refsam_export.needs.outlook as outlook
from refsam_export.files.work_folder import Unkept
from refsam_export.needs.estimate import GIB, Needs
from refsam_export.needs.outlook import FrameLines, TimedStages, say_needs
from refsam_trt.errors import OutputError

NEEDS = Needs(11 * GIB, 12 * GIB, 7 * GIB, 1200.0, 600.0)


@pytest.fixture
def said() -> list[str]:
    return []


def door(
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    disk_gib: float,
    memory_gib: float,
    kept_gib: int = 0,
) -> None:
    monkeypatch.setattr(outlook, "free_disk_bytes", lambda _: disk_gib * GIB)
    monkeypatch.setattr(outlook, "available_memory_bytes", lambda: memory_gib * GIB)
    say_needs(NEEDS, Path("place"), 2, said.append, kept_bytes=kept_gib * GIB)


def test_what_it_takes_is_said_first(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    door(monkeypatch, said, disk_gib=20, memory_gib=16)
    assert said == [
        "this takes about 11.0 GiB of memory, 12.0 GiB of disk and, with 2 idle cores, 20 min"
    ]


def test_too_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    door(monkeypatch, said, disk_gib=20, memory_gib=8)
    assert said[1:] == [
        "warning: 8.0 GiB of memory are left for this process, so that the system may end it; "
        "close other programs or take a larger machine (what is finished by then is kept for "
        "--resume)"
    ]


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    door(monkeypatch, said, disk_gib=9, memory_gib=16)
    assert len(said) == 2
    assert said[1].startswith("warning: the disk has 9.0 GiB left in place, so that the export may")


def test_a_disk_that_cannot_hold_the_bundle_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    with pytest.raises(OutputError, match=r"at least 7\.0 GiB and the disk has 6\.0 GiB left;"):
        door(monkeypatch, said, disk_gib=6, memory_gib=16)
    assert said == []


def test_what_an_unfinished_export_wrote_needs_no_room_again(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    door(monkeypatch, said, disk_gib=6, memory_gib=16, kept_gib=6)
    assert len(said) == 1


def test_nothing_is_said_of_a_small_export(said: list[str], tmp_path: Path) -> None:
    say_needs(Needs(GIB, 2.0, 1.0, 30.0, 10.0), tmp_path, 2, said.append, memory_bytes=1)
    assert said == []


class Clock:
    """Every stage takes 100 seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += 100.0


def run(needs: Needs, said: list[str], names: list[str]) -> None:
    clock = Clock()
    stages = TimedStages(Unkept(), needs, 3, said.append, clock)
    for name in names:
        stages.run(name, type(None), [], clock.work)


def test_the_time_left_follows_the_speed_of_this_machine(said: list[str]) -> None:
    """Graphs should take 50 s each and take twice that: so will the 500 s that are left."""
    needs = replace(NEEDS, seconds=600.0, parity_seconds=450.0)
    run(needs, said, ["model", "graph a in fp32", "graph b in fp32"])
    assert said == [
        "done: graph a in fp32; about 37 min left",
        "done: graph b in fp32; about 25 min left",
    ]


def test_a_short_export_says_nothing_between(said: list[str]) -> None:
    run(replace(NEEDS, seconds=10.0), said, ["graph a in fp32"])
    assert said == []


def test_lines_come_seldom_and_go_to_another_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: FrameLines = pickle.loads(pickle.dumps(FrameLines("comparison", 9)))
    now = iter([0.0, 10.0, 16.0, 20.0])
    monkeypatch.setattr(outlook.time, "monotonic", lambda: next(now) + 1)
    for piece in range(4):
        lines(piece)
    assert capsys.readouterr().err == "refsam-export: comparison: 3 of 9\n"
