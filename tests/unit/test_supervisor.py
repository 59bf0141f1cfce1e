"""What a supervisor makes of a worker's death."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import CancelledError
from multiprocessing.connection import Connection

import pytest

from router_ml.supervisor import _Worker
from router_ml.traffic import Traffic

SPAWN = multiprocessing.get_context("spawn")


def die(pipe: Connection, begins: bool) -> None:
    pipe.recv()
    if begins:
        pipe.send(("begun", None))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("begins", [True, False])
def test_only_a_worker_that_had_begun_to_prepare_a_version_dies_of_it(begins: bool) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=die, args=(theirs, begins))
    process.start()
    theirs.close()
    worker = _Worker(process, ours)
    threading.Thread(target=worker.listen).start()
    preparing = worker.prepare(1, Traffic("v1"))
    if begins:
        assert preparing.result(60) == "a worker died of it (SIGKILL)"
    else:
        with pytest.raises(CancelledError):
            preparing.result(60)
    assert worker.ended.wait(60)
    assert worker.prepare(2, Traffic("v2")).cancelled()
