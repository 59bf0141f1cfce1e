"""Messages of a stream, read while those before them are answered, so that what waits is answered together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

_Message = TypeVar("_Message")


class ReadAhead(Generic[_Message]):
    """Iterates over lists of messages: all that wait, and at least one. For one thread.

    Whatever the iterator of messages raises is raised once the messages before it were given.
    """

    def __init__(
        self,
        messages: Iterator[_Message],
        size: Callable[[_Message], int],
        *,
        most_messages: int,
        most_bytes: int,
    ) -> None:
        """Reads on while fewer messages wait than `most_messages`, of fewer bytes in all than `most_bytes`."""
        self._messages = messages
        self._size = size
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._changed = threading.Condition(threading.Lock())  # guards what follows
        self._waiting: deque[_Message] = deque()
        self._bytes = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._read, name="router-ml-stream", daemon=True).start()

    def __iter__(self) -> Iterator[list[_Message]]:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                some = list(self._waiting)
                self._waiting.clear()
                self._bytes = 0
                self._changed.notify()
            if not some:
                break
            yield some
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nobody will take any more: the reader ends with the message that it waits for, or with its stream."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _read(self) -> None:
        try:
            for message in self._messages:
                size = self._size(message)
                with self._changed:
                    self._waiting.append(message)
                    self._bytes += size
                    self._changed.notify()
                    while not self._closed and (
                        len(self._waiting) >= self._most_messages or self._bytes >= self._most_bytes
                    ):
                        self._changed.wait()
                    if self._closed:
                        return
        except BaseException as error:  # whatever it is, it is for the thread that answers
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()
