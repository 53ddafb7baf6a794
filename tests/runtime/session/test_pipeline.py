"""Stages overlap and still give what a plain loop gives, whatever breaks."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from refsam_trt.errors import UsageError
from refsam_trt.session.pipeline import Newest, overlapped

WAIT_S = 20


def double(item: int) -> int:
    return 2 * item


def stages_now() -> int:
    return threading.active_count()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = stages_now()
    yield
    gc.collect()
    assert stages_now() == before


@pytest.mark.parametrize("depth", [0, 1, 2, 7])
@pytest.mark.parametrize("num_stages", [0, 1, 3])
def test_items_keep_their_order(depth: int, num_stages: int) -> None:
    stages = [double] * num_stages
    items = list(overlapped(range(50), *stages, depth=depth))
    assert items == [item * 2**num_stages for item in range(50)]


def test_every_stage_works_at_once() -> None:
    """Each waits for all others, which only works if all are at work on items of their own."""
    together = threading.Barrier(4)

    def part(number: int, item: int) -> int:
        """Wait with item 3 - number and the six behind it: at the same time as the other parts."""
        if 3 <= item + number < 10:
            together.wait(WAIT_S)
        return item

    items = (part(0, item) for item in range(13))
    stages = (lambda item: part(1, item), lambda item: part(2, item))
    assert [part(3, item) for item in overlapped(items, *stages, depth=1)] == list(range(13))


@pytest.mark.parametrize("slow", ["items", "first", "second", "caller"])
def test_a_slow_part_holds_the_others_back(slow: str) -> None:
    """Nobody gets further ahead than the queues allow, so memory is bounded."""
    done = dict.fromkeys(("items", "first", "second", "caller"), 0)
    most_ahead = 0

    def part(name: str) -> Callable[[int], int]:
        def work(item: int) -> int:
            nonlocal most_ahead
            if name == slow:
                time.sleep(0.003)
            done[name] += 1
            most_ahead = max(most_ahead, done["items"] - done["caller"])
            return item

        return work

    frames = map(part("items"), range(40))
    for item in overlapped(frames, part("first"), part("second"), depth=2):
        part("caller")(item)
    # Two in each of the three queues, and one in the hands of each of the four parts.
    assert most_ahead <= 3 * 2 + 4
    assert set(done.values()) == {40}


class Broken(Exception):
    pass


def breaking(at: int) -> Callable[[int], int]:
    def stage(item: int) -> int:
        if item >= at:
            raise Broken(str(item))
        return item

    return stage


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_first_error_comes_behind_the_results_before_it(part: int, depth: int) -> None:
    parts: list[Callable[[int], int]] = [lambda item: item] * 3
    parts[part] = breaking(5)
    taken = []

    def items() -> Iterator[int]:
        for item in range(10_000):
            taken.append(item)
            yield parts[0](item)

    seen: list[int] = []
    with pytest.raises(Broken, match=r"^5$"):
        seen.extend(overlapped(items(), parts[1], parts[2], depth=depth))
    assert seen == [0, 1, 2, 3, 4]
    assert len(taken) < 100


def test_of_two_errors_the_earlier_item_wins() -> None:
    seen = []
    with pytest.raises(Broken, match=r"^4$"):
        seen += overlapped(map(breaking(6), range(9)), double, breaking(4))
    with pytest.raises(Broken, match=r"^4$"):
        seen += overlapped(range(9), breaking(5), breaking(4))
    assert seen == [0, 2, 0, 1, 2, 3]  # what came before each of the two


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_every_kind_of_error_reaches_the_caller(error: type[BaseException]) -> None:
    def stage(item: int) -> int:
        raise error

    with pytest.raises(error):
        list(overlapped(range(3), stage))


def test_closing_stops_all_threads() -> None:
    endless = overlapped(iter(int, 1), lambda item: item, lambda item: item)
    assert [next(endless) for _ in range(3)] == [0, 0, 0]
    endless.close()  # type: ignore[attr-defined]


def test_losing_the_iterator_stops_all_threads() -> None:
    before = stages_now()
    endless = overlapped(iter(int, 1), lambda item: item)
    next(endless)
    assert stages_now() > before
    del endless


def test_nothing_is_taken_before_somebody_asks() -> None:
    taken: list[Any] = []

    def items() -> Iterator[int]:
        taken.append(0)
        yield 0

    overlapped(items(), double)
    assert not taken


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="ahead=-1: expected a number of items, 0 or more"):
        overlapped([], depth=-1)


def test_the_newest_item_is_never_late() -> None:
    """Items come one by one, the caller takes some: always the last one that had come by then."""
    come, taken = threading.Semaphore(0), threading.Semaphore(0)

    def items() -> Iterator[int]:
        for item in range(10):
            come.acquire(timeout=WAIT_S)
            yield item
            taken.release()  # the item before is in the queue by now

    def let_come(num: int) -> None:
        for _ in range(num):
            come.release()
            assert taken.acquire(timeout=WAIT_S)

    newest = Newest(items())
    iterator = iter(newest)
    come.release()
    assert next(iterator) == 0
    taken.acquire(timeout=WAIT_S)
    let_come(4)
    assert (next(iterator), newest.num_dropped) == (4, 3)
    let_come(5)
    assert (next(iterator), newest.num_dropped) == (9, 7)
    assert list(iterator) == []


def test_the_newest_items_error_is_raised() -> None:
    with pytest.raises(Broken, match=r"^2$"):
        list(Newest(map(breaking(2), range(9))))
