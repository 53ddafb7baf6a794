"""The working folder: what is kept, what is used again, and what is refused."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from refsam_export.files.work_folder import WorkFolder, kept_bytes, open_work, work_path
from refsam_trt.errors import OutputError, ParityError, UsageError

KEY = {"--attention": "'bias'", "checkpoint 1 (a.pth)": "1234"}


class Value(msgspec.Struct):
    """What a stage gives."""

    number: int


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@contextlib.contextmanager
def opened(
    output: Path, lines: list[str], *, resume: bool = False, key: dict[str, str] = KEY
) -> Iterator[WorkFolder]:
    with open_work(output, key, resume=resume, final=ParityError, report=lines.append) as work:
        yield work


def stage(work: WorkFolder, name: str, number: int, done: list[str]) -> int:
    path = work.folder / f"{name}.bin"

    def make() -> Value:
        done.append(name)
        path.write_bytes(bytes(number))
        return Value(number)

    return work.run(name, Value, [path], make).number


def killed(output: Path, names: str, error: BaseException, **options: bool) -> list[str]:
    """Let an export end in an error after some stages; return what it reported."""
    lines: list[str] = []

    def fail() -> None:
        with opened(output, lines, **options) as work:
            for number, name in enumerate(names.split()):
                stage(work, name, number, [])
            raise error

    with pytest.raises(type(error)):
        fail()
    return lines


def test_a_whole_export_leaves_nothing(output: Path) -> None:
    with opened(output, lines := []) as work:
        stage(work, "a", 1, [])
        assert work.folder == work_path(output) == output.with_name(".bundle.export")
    assert (list(output.parent.iterdir()), lines) == ([], [])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("full"), SystemExit(1)])
def test_finished_stages_are_kept_and_used(error: BaseException, output: Path) -> None:
    (line,) = killed(output, "model a b", error)
    assert line == (
        f"3 finished stages are kept in {work_path(output)}; the same command with --resume goes "
        "on from them"
    )
    assert kept_bytes(output) > 3
    with opened(output, lines := [], resume=True) as work:
        done: list[str] = []
        numbers = [stage(work, name, 7, done) for name in ("model", "a", "b", "c")]
    assert (numbers, done) == ([0, 1, 2, 7], ["c"])
    assert lines == [f"going on after 3 finished stages of {work_path(output)}"]
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "error"), [("", KeyError()), ("model", KeyError()), ("model a", ParityError("no"))]
)
def test_what_is_not_worth_keeping_goes(names: str, error: Exception, output: Path) -> None:
    assert killed(output, names, error) == []
    assert list(output.parent.iterdir()) == []


def test_a_stage_that_was_killed_is_done_again(output: Path) -> None:
    killed(output, "model a", KeyboardInterrupt())
    (work_path(output) / "b.bin").write_bytes(b"half of it")
    with opened(output, [], resume=True) as work:
        assert stage(work, "b", 3, []) == 3
        assert (work.folder / "b.bin").read_bytes() == bytes(3)


def test_without_resume_it_begins_anew_and_says_so(output: Path) -> None:
    killed(output, "model a", KeyboardInterrupt())
    with opened(output, lines := []) as work:
        assert not (work.folder / "a.bin").exists()
        stage(work, "a", 5, done := [])
    assert done == ["a"]
    assert lines == [
        f"throwing away the unfinished export in {work_path(output)}, as --resume was not given"
    ]


def test_nothing_to_resume(output: Path) -> None:
    with opened(output, lines := [], resume=True) as work:
        stage(work, "a", 5, [])
    assert lines == []


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({**KEY, "--attention": "'plain'"}, "--attention was 'bias' and is 'plain'. Ask for the"),
        ({**KEY, "part 2": "9"}, "part 2 was not there and is 9"),
        ({"--attention": "'bias'"}, r"checkpoint 1 \(a.pth\) was 1234 and is not there"),
    ],
)
def test_another_request_is_refused(key: dict[str, str], message: str, output: Path) -> None:
    killed(output, "model a", KeyboardInterrupt())
    with pytest.raises(UsageError, match=message), opened(output, [], resume=True, key=key):
        pass
    with opened(output, [], resume=True) as work:  # nothing was lost by asking
        assert stage(work, "a", 9, []) == 1


@pytest.mark.parametrize("content", ["", "{}", '{"schema": 99, "key": {}, "stages": {}}'])
def test_a_damaged_state_is_refused(content: str, output: Path) -> None:
    killed(output, "model a", KeyboardInterrupt())
    (work_path(output) / "state.json").write_text(content)
    with (
        pytest.raises(UsageError, match="damaged or of another version of refsam-export; leave"),
        opened(output, [], resume=True),
    ):
        pass


@pytest.mark.parametrize("change", ["longer", "other", "gone"])
def test_a_changed_file_is_refused(change: str, output: Path) -> None:
    killed(output, "model a b", KeyboardInterrupt())
    path = work_path(output) / "b.bin"
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\0" * 3 if change == "longer" else b"\1\1")
    with (
        pytest.raises(UsageError, match=r"b.bin: is not what the stage 'b' .* leave --resume out"),
        opened(output, [], resume=True) as work,
    ):
        stage(work, "b", 2, [])


def test_two_exports_to_one_output(output: Path) -> None:
    with opened(output, []) as work:
        stage(work, "a", 1, [])
        with (
            pytest.raises(OutputError, match="another export to the same output"),
            opened(output, []),
        ):
            pass
        assert json.loads((work.folder / "state.json").read_text())["stages"].keys() == {"a"}
