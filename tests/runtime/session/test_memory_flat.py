"""Resident memory stays flat while 1,000 expressions come and go over 1,000 frames."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import memory_growth
import pytest

SMALL, ENDLESS = 16, 10**6
LIMIT_MIB = 4.0
"""The allocators' own; an embedding has 15 KiB (baseline) or more, so 500 of them 7 MiB."""


def grown_mib(measure: Callable[..., float], *arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(measure, arguments)


@pytest.mark.parametrize("text", ["resident", "lazy"])
def test_one_session(folder: Path, text: str) -> None:
    assert grown_mib(memory_growth.one_session, folder, text, SMALL) < LIMIT_MIB


def test_eight_threads_with_a_session_each(folder: Path) -> None:
    assert grown_mib(memory_growth.eight_threads, folder, SMALL) < LIMIT_MIB


def test_a_cache_without_end_would_be_seen(folder: Path) -> None:
    assert grown_mib(memory_growth.one_session, folder, "lazy", ENDLESS) > LIMIT_MIB
    assert grown_mib(memory_growth.eight_threads, folder, ENDLESS) > LIMIT_MIB
