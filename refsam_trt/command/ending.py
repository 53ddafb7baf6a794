"""How every command ends: one clear message and a telling exit code."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from refsam_trt.errors import MissingExtraError, RefsamError

INTERRUPTED, TERMINATED = 130, 143


class _Warnings(logging.Handler):
    """Shows what our packages warn of on standard error, like every message of a command."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self._name = name

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line, over the progress bar if there is one: it is drawn anew anyway."""
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        click.echo(f"{clear}{self._name}: warning: {record.getMessage()}", err=True)


class Terminated(BaseException):
    """SIGTERM, raised where it arrives so that files are closed and temporaries removed."""


def run_command(command: click.Command, extra: str, name: str) -> NoReturn:
    """Run a click command and exit the process; warnings of ours go to standard error.

    0 done; 1 a check that was asked for failed; 2 usage, missing extra or unusable input; 130 and
    143 interrupted. Errors of ours become one line on standard error, without a traceback.

    Args:
        command: the click command.
        extra: the extra of `refsam-trt` that its heavy imports belong to.
        name: the console script's name.
    """
    signal.signal(signal.SIGTERM, _terminate)
    logger, handler = logging.getLogger("refsam_trt"), _Warnings(name)
    logger.addHandler(handler)
    try:
        _run(command, extra, name)
    finally:
        logger.removeHandler(handler)


def _run(command: click.Command, extra: str, name: str) -> NoReturn:
    try:
        # In its standalone mode click would word errors and choose exit codes of its own.
        sys.exit(command.main(prog_name=name, standalone_mode=False) or 0)
    except click.exceptions.Exit as request:
        sys.exit(request.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end(name, "interrupted", INTERRUPTED)
    except Terminated:
        _end(name, "terminated", TERMINATED)
    except click.ClickException as error:
        click.echo(_wrong_use(error, name), err=True)
        sys.exit(2)
    except RefsamError as error:
        _end(name, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("refsam_"):
            raise
        _end(name, str(MissingExtraError(extra, name, str(error))), MissingExtraError.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _end(name, f"no space left: {error}; free some and try again", 2)


def _wrong_use(error: click.ClickException, name: str) -> str:
    """Return click's words, which may have several lines, as one, and where to read on."""
    if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2; its words are the help page
        return error.format_message()
    context = getattr(error, "ctx", None)
    command = context.command_path if context else name
    return f"{name}: {' '.join(error.format_message().split()).rstrip('.')}; see {command} --help"


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _end(name: str, message: str, code: int) -> NoReturn:
    click.echo(f"{name}: {message}", err=True)
    sys.exit(code)
