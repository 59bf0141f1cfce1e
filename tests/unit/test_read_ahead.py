"""Messages are given in order, all that wait at once, and no more are held than may wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from router_ml.read_ahead import ReadAhead


def ahead(messages: Iterator[str], *, most_messages: int = 4, most_bytes: int = 100) -> ReadAhead[str]:
    return ReadAhead(messages, len, most_messages=most_messages, most_bytes=most_bytes)


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    return holds()


def readers() -> int:
    return sum(thread.name == "router-ml-stream" for thread in threading.enumerate())


class Counted:
    """An endless iterator that tells how far it was read."""

    def __init__(self, message: str = "a") -> None:
        self.n_read = 0
        self._message = message

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.n_read += 1
        return self._message


def test_every_message_is_given_once_and_in_order() -> None:
    words = [str(n) for n in range(5000)]
    with ahead(iter(words)) as lists:
        parts = list(lists)
    assert [word for part in parts for word in part] == words
    assert all(1 <= len(part) <= 4 for part in parts)


def test_a_message_is_given_before_the_next_one_comes() -> None:
    queue: SimpleQueue[str] = SimpleQueue()
    with ahead(iter(queue.get, "end")) as lists:
        given = iter(lists)
        for word in ("a", "b"):
            queue.put(word)
            assert next(given) == [word]
        queue.put("end")
        assert list(given) == []


@pytest.mark.parametrize(("most_messages", "most_bytes", "held"), [(4, 100, 4), (50, 10, 4), (50, 1, 1)])
def test_no_more_is_read_than_may_wait(most_messages: int, most_bytes: int, held: int) -> None:
    endless = Counted("abc")
    with ahead(iter(endless), most_messages=most_messages, most_bytes=most_bytes) as lists:
        assert eventually(lambda: endless.n_read == held)
        time.sleep(0.05)
        assert endless.n_read == held
        assert len(next(iter(lists))) == held
        assert eventually(lambda: endless.n_read >= 2 * held)


def test_an_error_comes_after_the_messages_before_it() -> None:
    def broken() -> Iterator[str]:
        yield "a"
        yield "b"
        raise ValueError("gone")

    given: list[str] = []
    with pytest.raises(ValueError, match="gone"), ahead(broken()) as lists:
        for part in lists:
            given += part
    assert given == ["a", "b"]


def test_the_reader_ends_when_nobody_takes_any_more() -> None:
    before = readers()
    with ahead(iter(Counted())) as lists:
        next(iter(lists))
    assert eventually(lambda: readers() == before)
