"""The folder that an export works in, and what of an unfinished one may be used again.

It lies beside the output, under a hidden name, until the output is whole. A stage that is finished
is written down in `state.json`, with the hash of each of its files, after the files are on the
disk. What is written down is used again only by an export that was asked for the very same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from refsam_trt.bundle.sealed import file_entry
from refsam_trt.contract.manifest import FileEntry
from refsam_trt.errors import OutputError, UsageError
from refsam_trt.files.atomic import atomic_path
from refsam_trt.files.target import output_errors

SCHEMA = 1
DESCRIPTION = "model"
"""Name of the stage that only says what is exported: alone it is not worth keeping."""

_STATE, _LOCK = "state.json", "lock"
_Value = TypeVar("_Value")

Key = dict[str, str]
"""Everything that what is exported depends on, by a name that a user understands."""


class Stages(Protocol):
    """Runs stages of an export, or has them done already."""

    def run(
        self, name: str, kind: type[_Value], files: Sequence[Path], make: Callable[[], _Value]
    ) -> _Value:
        """Return what a stage gives; `make` also writes `files`."""


class Unkept:
    """Stages of an export that keeps nothing."""

    def run(
        self, name: str, kind: type[_Value], files: Sequence[Path], make: Callable[[], _Value]
    ) -> _Value:
        """Run the stage."""
        return make()


class _Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    files: dict[str, FileEntry]
    value: Any


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    key: Key
    stages: dict[str, _Stage]


class WorkFolder:
    """An open working folder; `open_work` opens it."""

    def __init__(self, folder: Path, state: _State) -> None:
        self.folder, self._state = folder, state

    @property
    def finished(self) -> frozenset[str]:
        """Names of the stages that are done."""
        return frozenset(self._state.stages)

    def run(
        self, name: str, kind: type[_Value], files: Sequence[Path], make: Callable[[], _Value]
    ) -> _Value:
        """Return what a stage gave before, or run it and write down that it is done.

        Args:
            name: of the stage.
            kind: msgspec type of what it gives.
            files: below the folder, which `make` writes.
            make: does the work.

        Raises:
            UsageError: a file of a finished stage is not what it was.
        """
        stage = self._state.stages.get(name)
        if stage is not None:
            self._check(name, stage)
            return msgspec.convert(stage.value, kind)
        value = make()
        for path in files:
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        names = {str(path.relative_to(self.folder)): file_entry(path) for path in files}
        stage = _Stage(names, msgspec.to_builtins(value))
        self._state = msgspec.structs.replace(
            self._state, stages={**self._state.stages, name: stage}
        )
        _write(self.folder, self._state)
        return value

    def _check(self, name: str, stage: _Stage) -> None:
        for file, entry in stage.files.items():
            path = self.folder / file
            if not path.is_file() or file_entry(path) != entry:
                raise UsageError(
                    f"{path}: is not what the stage {name!r} of the unfinished export wrote; "
                    "leave --resume out to begin anew"
                )


def work_path(output: Path) -> Path:
    """Return where an export to `output` works."""
    return output.parent / f".{output.name}.export"


def kept_bytes(output: Path) -> int:
    """Return how much of the disk an unfinished export to `output` takes."""
    return sum(path.stat().st_size for path in work_path(output).rglob("*") if path.is_file())


@contextmanager
def open_work(
    output: Path,
    key: Key,
    *,
    resume: bool,
    final: type[Exception],
    report: Callable[[str], None],
) -> Iterator[WorkFolder]:
    """Yield the working folder of an export, which is removed when the block ends well.

    If the block fails, the folder stays if more than the description is finished, and the report
    says so.

    Args:
        output: what is to be written.
        key: what the export depends on.
        resume: go on from an unfinished export; otherwise one that is there is thrown away.
        final: error that another try would meet too, so that nothing is kept.
        report: told what becomes of an unfinished export.

    Raises:
        UsageError: the unfinished export was asked for something else, or another process is
            working there.
        OutputError: the folder cannot be written.
    """
    folder = work_path(output)
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
    with _locked(folder):
        work = WorkFolder(folder, _opened(folder, key, resume=resume, report=report))
        try:
            yield work
        except BaseException as error:
            if isinstance(error, final) or work.finished <= {DESCRIPTION}:
                _remove(folder)
            else:
                report(
                    f"{len(work.finished)} finished stages are kept in {folder}; the same command "
                    "with --resume goes on from them"
                )
            raise
        _remove(folder)


def _opened(folder: Path, key: Key, *, resume: bool, report: Callable[[str], None]) -> _State:
    new = _State(SCHEMA, key, {})
    old = _read(folder)
    if resume and old is not None:
        _refuse_other(folder, old, new)
        report(f"going on after {len(old.stages)} finished stages of {folder}")
        return old
    if old is not None:
        report(f"throwing away the unfinished export in {folder}, as --resume was not given")
    for path in folder.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _write(folder, new)
    return new


def _read(folder: Path) -> _State | None:
    path = folder / _STATE
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=_State)
    except msgspec.MsgspecError:
        return _State(0, {}, {})  # of another version, or damaged


def _write(folder: Path, state: _State) -> None:
    with atomic_path(folder / _STATE) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))


def _refuse_other(folder: Path, old: _State, new: _State) -> None:
    if old.schema != SCHEMA:
        raise UsageError(
            f"{folder}: what is kept there is damaged or of another version of refsam-export; "
            "leave --resume out to begin anew"
        )
    differing = [
        f"{name} was {old.key.get(name, 'not there')} and is {new.key.get(name, 'not there')}"
        for name in sorted(old.key.keys() | new.key.keys())
        if old.key.get(name) != new.key.get(name)
    ]
    if differing:
        raise UsageError(
            f"{folder}: the unfinished export cannot be gone on with, because it was asked for "
            f"something else: {'; '.join(differing)}. Ask for the same, or leave --resume out to "
            "begin anew"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if os.name == "nt":  # where a file that is open cannot be removed, so that two would not work
        yield
        return
    import fcntl

    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                "another export to the same output is at work here; wait for its end", folder
            ) from error
        yield


def _remove(folder: Path) -> None:
    """Remove the folder; its state goes first, so that half of it is never gone on with."""
    (folder / _STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
