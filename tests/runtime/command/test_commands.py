"""How every command ends: exit code, one message, and tracebacks for our own mistakes only."""

import errno
import re
from collections.abc import Callable
from typing import Any

import click
import pytest
from commands_in_process import Commands, Ended

from refsam_trt.command.ending import Terminated, run_command
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


@pytest.mark.parametrize(
    ("arguments", "message"),  # click's own words, which differ between its versions
    [
        (["--count", "0"], r"Invalid value for '--count': 0 is not in the range x>=1"),
        (["--cout", "1"], r"No such option:? '?--cout'?[.]? .*--count.*"),
        (["--count"], r"Option '--count' requires an argument"),
        (["more"], r"Got unexpected extra argument \(?'?more'?\)?"),
    ],
)
def test_wrong_use_is_one_message(
    end: Callable[..., Ended], arguments: list[str], message: str
) -> None:
    done = end(None, *arguments)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(rf"{NAME}: {message}; see {NAME} --help\n", done.err)


def test_wrong_use_of_a_sub_command_names_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    @click.group()
    def group() -> None: ...

    @group.command("one")
    @click.option("--kind", type=click.Choice(["a", "b"]), required=True)
    def one(kind: str) -> None: ...

    call = Commands(monkeypatch, capfd)
    done = call(lambda: run_command(group, "export", NAME), "one")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(
        f"{NAME}: Missing option '--kind'. Choose from: a, b; see {NAME} one"
    )
    assert call(lambda: run_command(group, "export", NAME), "two").err == (
        f"{NAME}: No such command 'two'; see {NAME} --help\n"
    )
    assert call(lambda: run_command(group, "export", NAME)).err.startswith(f"Usage: {NAME} ")


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
