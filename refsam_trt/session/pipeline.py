"""Work in stages that overlap: each stage has a thread, bounded queues lie between them.

Items leave in the order in which they came. What one thread does is what a plain loop would do, so
results are the same; only the time differs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from refsam_trt.errors import UsageError

_Item = TypeVar("_Item")

DEPTH = 2
"""Items that wait between two stages, if nothing else is asked for."""


def overlapped(
    items: Iterable[Any], *stages: Callable[[Any], Any], depth: int = DEPTH
) -> Iterator[Any]:
    """Yield the last stage's result of every item, while earlier stages work on later items.

    One thread takes the items, one runs each stage, and the caller has the results; at most
    `depth` items wait between two of them, so a slow stage or caller holds the others back.

    An error of the items or of a stage is raised after the results of the items before it; nothing
    later is then taken. Whoever closes the iterator, or loses it, stops the threads; they end after
    what they are at.

    Args:
        items: taken by a thread of their own, which closes them if they are a generator.
        stages: called with one item each, one call at a time each.
        depth: 0 does all in the caller's thread, one item after the other.

    Raises:
        UsageError: a negative depth.
    """
    if depth < 0:
        raise UsageError(f"ahead={depth}: expected a number of items, 0 or more")
    return _overlapped(items, stages, depth) if depth else _one_by_one(items, stages)


def _one_by_one(items: Iterable[Any], stages: Sequence[Callable[[Any], Any]]) -> Iterator[Any]:
    for item in items:
        for stage in stages:
            item = stage(item)
        yield item


def _overlapped(
    items: Iterable[Any], stages: Sequence[Callable[[Any], Any]], depth: int
) -> Iterator[Any]:
    queues: list[_Queue[_Outcome]] = [_Queue(depth) for _ in range(len(stages) + 1)]
    threads = [threading.Thread(target=_take, args=(items, queues[0]), daemon=True)]
    for stage, source, target in zip(stages, queues, queues[1:], strict=False):
        threads.append(threading.Thread(target=_run, args=(stage, source, target), daemon=True))
    for thread in threads:
        thread.start()
    yield from _results(queues[-1], queues, threads)


class Newest(Iterable[_Item]):
    """Items that come by themselves, such as a camera's: the newest, whatever came meanwhile.

    A thread takes them as they come; one waits, and is dropped when the next one comes first.

    Attributes:
        num_dropped: how many were, so far.
    """

    def __init__(self, items: Iterable[_Item]) -> None:
        self._items = items
        self.num_dropped = 0

    def __iter__(self) -> Iterator[_Item]:
        queue = _Queue[_Outcome](1, self._drop)
        thread = threading.Thread(target=_take, args=(self._items, queue), daemon=True)
        thread.start()
        yield from _results(queue, [queue], [thread])

    def _drop(self) -> None:
        self.num_dropped += 1


@dataclass(frozen=True)
class _Outcome:
    item: Any
    error: BaseException | None = None


def _results(
    last: _Queue[_Outcome], queues: Sequence[_Queue[_Outcome]], threads: Sequence[threading.Thread]
) -> Iterator[Any]:
    """Yield what comes out of the last queue; then end all threads."""
    try:
        while (outcome := last.get()) is not None:
            if outcome.error is not None:
                raise outcome.error
            yield outcome.item
    finally:
        for queue in queues:
            queue.close()
        for thread in threads:
            thread.join()


class _Queue(Generic[_Item]):
    """A bounded queue from one thread to another, which either may close.

    Args:
        size: items that can wait.
        on_drop: called for each item that gives way to a new one; None lets the new one wait.
    """

    def __init__(self, size: int, on_drop: Callable[[], None] | None = None) -> None:
        self._size = size
        self._on_drop = on_drop
        self._items: deque[_Item] = deque()
        self._is_ended = False
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, item: _Item) -> bool:
        """Wait for room and add an item; False if nobody wants it any more."""
        with self._changed:
            if self._on_drop and len(self._items) == self._size:
                self._items.popleft()
                self._on_drop()
            self._changed.wait_for(lambda: self._is_closed or len(self._items) < self._size)
            if self._is_closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> _Item | None:
        """Wait for an item and take it; None if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._is_ended or self._items)
            if self._is_closed or not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """Say that no item follows; those that wait can still be taken."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let both sides stop; what waits is dropped."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()


def _take(items: Iterable[Any], target: _Queue[_Outcome]) -> None:
    try:
        try:
            for item in items:
                if not target.put(_Outcome(item)):
                    return
        finally:
            if isinstance(items, Generator):  # whoever keeps an error would keep it going
                items.close()
    except BaseException as error:
        target.put(_Outcome(None, error))
    finally:
        target.end()


def _run(stage: Callable[[Any], Any], source: _Queue[_Outcome], target: _Queue[_Outcome]) -> None:
    try:
        while (outcome := source.get()) is not None:
            if outcome.error is None:
                outcome = _Outcome(stage(outcome.item))
            if not target.put(outcome):
                return
    except BaseException as error:
        target.put(_Outcome(None, error))
    finally:
        source.close()
        target.end()
