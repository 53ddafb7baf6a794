"""How every command ends: exit code, one message, and tracebacks for our own mistakes only."""

import errno
from collections.abc import Callable
from typing import Any

import click
import pytest
from commands_in_process import Commands, Ended

from refsam_trt.commands import Terminated, run_command
from refsam_trt.errors import BundleError, InternalError, ParityError, RefsamError

NAME = "refsam-test"


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command that ends with an exception."""
    call = Commands(monkeypatch, capfd)

    def run(error: BaseException | None, *arguments: Any) -> Ended:
        @click.command()
        @click.option("--count", type=click.IntRange(min=1))
        def command(count: int | None) -> None:
            if error is not None:
                raise error
            click.echo("done")

        return call(lambda: run_command(command, "export", NAME), *arguments)

    return run


def test_success(end: Callable[..., Ended]) -> None:
    assert end(None) == Ended(0, "done\n", "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BundleError("bundle: missing; copy it again"), 2, "bundle: missing; copy it again"),
        (RefsamError("no"), 2, "no"),
        (ParityError("differs"), 1, "differs"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        *(
            (OSError(number, text, "out/a"), 2, f"{text}: 'out/a'; free some and try again")
            for number, text in (
                (errno.ENOSPC, "No space left on device"),
                (errno.EDQUOT, "Disk quota exceeded"),
                (errno.EFBIG, "File too large"),
            )
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            'needs an optional dependency: pip install "refsam-trt[export]" (No module named',
        ),
    ],
)
def test_what_a_user_or_a_machine_can_cause(
    error: BaseException, code: int, message: str, end: Callable[..., Ended]
) -> None:
    done = end(error)
    assert done.code == code
    assert done.out == ""
    (line,) = done.err.strip().splitlines()  # click ends the line on which ^C appeared
    assert line.startswith(f"{NAME}")
    assert message in line


def test_an_exit_code_that_was_asked_for(end: Callable[..., Ended]) -> None:
    assert end(click.exceptions.Exit(1)) == Ended(1, "", "")


def test_wrong_use_shows_how(end: Callable[..., Ended]) -> None:
    done = end(None, "--count", "0")
    assert done.code == 2
    assert done.err.startswith(f"Usage: {NAME} [OPTIONS]")
    assert "0 is not in the range x>=1" in done.message


@pytest.mark.parametrize(
    "error",
    [
        KeyError("oops"),
        InternalError("a promise is broken"),
        PermissionError(errno.EACCES, "Permission denied"),
        ModuleNotFoundError("No module named 'refsam_trt.gone'", name="refsam_trt.gone"),
    ],
)
def test_our_own_mistakes_are_tracebacks(error: Exception, end: Callable[..., Ended]) -> None:
    with pytest.raises(type(error), match=r"oops|broken|denied|gone"):
        end(error)
