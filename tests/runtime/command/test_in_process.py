"""A function in a process of its own: what it returns, what it raises, and how it dies."""

import os
import pickle
import signal
import sys
from typing import Any

import pytest
from called_in_process import fail, modules, path, sum_and_pid, unpicklable

from refsam_trt import errors
from refsam_trt.command.in_process import in_process
from refsam_trt.errors import BundleError, InternalError, MissingExtraError, RefsamError


def test_the_value_comes_from_another_process() -> None:
    total, pid = in_process(sum_and_pid, 1, second=2)
    assert total == 3
    assert pid != os.getpid()


def test_nothing_of_this_process_is_imported() -> None:
    assert {"numpy", "pytest"} <= set(sys.modules)
    assert not {"numpy", "torch", "__mp_main__"} & in_process(modules)


def test_it_imports_from_where_this_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("/nowhere")
    assert in_process(path) == sys.path


def _all_errors() -> list[RefsamError]:
    kinds: list[Any] = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, RefsamError)
    ]
    return [
        kind("export", "this", "why") if kind is MissingExtraError else kind("why")
        for kind in kinds
    ]


@pytest.mark.parametrize("error", [BundleError("b"), MissingExtraError("dev", "x", "y")])
def test_our_errors_come_through_unchanged(error: RefsamError) -> None:
    with pytest.raises(RefsamError) as raised:
        in_process(fail, error)
    assert type(raised.value) is type(error)
    assert vars(raised.value) == vars(error)
    assert str(raised.value) == str(error)


def test_every_error_of_ours_can_be_pickled() -> None:
    for error in _all_errors():
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_no_space_left_stays_what_it_is() -> None:
    with pytest.raises(OSError, match="full") as raised:
        in_process(fail, OSError(28, "full"))
    assert raised.value.errno == 28


def test_any_other_error_is_ours_and_keeps_its_traceback() -> None:
    with pytest.raises(InternalError, match=r"(?s)process of its own:\n.*fail\n.*KeyError: 'k'"):
        in_process(fail, KeyError("k"))


def test_a_value_that_cannot_be_pickled_is_our_mistake() -> None:
    with pytest.raises(InternalError, match="in a process of its own"):
        in_process(unpicklable)


@pytest.mark.parametrize(
    ("function", "argument", "how"),
    [(os._exit, 3, "ended with exit code 3"), (signal.raise_signal, 9, "was killed by SIGKILL")],
)
def test_how_a_process_died_is_told(function: Any, argument: int, how: str) -> None:
    with pytest.raises(InternalError, match=f"the process of .*{function.__name__} {how}"):
        in_process(function, argument)
