"""Counts the calls that gRPC ends before they reach the service, of which it tells nobody.

It refuses a call beyond `maximum_concurrent_rpcs` at once, and drops one whose client cancelled, or whose
deadline passed, while it waited for a thread. Both can be told from outside: gRPC looks up the handler of each
call first and then, in the same thread, hands it to the pool of threads if it takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from router_ml.meter import METHODS, REFUSED_GONE, REFUSED_OVERLOAD, Meter


class MeteredPool(ThreadPoolExecutor):
    """The threads of a server, which count what becomes of the calls of one service, of that full name."""

    def __init__(self, max_workers: int, thread_name_prefix: str, service: str, meter: Meter) -> None:
        super().__init__(max_workers, thread_name_prefix)
        self._methods = {f"/{service}/{method}": method for method in METHODS}
        self._meter = meter
        self._here = meter.here
        self._asked: str | None = None

    def registrar(self, server: grpc.Server) -> Any:
        """What to register services at in place of `server`, all of them, so that no call is taken for another."""
        return _Registrar(server, self)

    def asked(self, name: str) -> None:
        """A call of the method of that full name came in."""
        if self._asked is not None:  # the one before was not handed to us
            self._meter.refused(self._asked, REFUSED_OVERLOAD, "RESOURCE_EXHAUSTED")
        self._asked = self._methods.get(name)

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        method, self._asked = self._asked, None
        if method is None:
            return super().submit(work, *args, **kwargs)
        self._meter.taken()
        return super().submit(self._serve, method, work, *args, **kwargs)

    def _serve(self, method: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        work(*args, **kwargs)
        if self._here.answered:
            self._here.answered = False
        else:
            self._meter.refused(method, REFUSED_GONE, "CANCELLED")


class _Registrar:
    """Takes the handlers that generated code registers, and puts itself before their look-up."""

    def __init__(self, server: grpc.Server, pool: MeteredPool) -> None:
        self._server, self._pool = server, pool

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_LookUp(handler, self._pool) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Not passed on: those are looked up without us."""


class _LookUp(grpc.GenericRpcHandler):
    def __init__(self, handler: grpc.GenericRpcHandler, pool: MeteredPool) -> None:
        self._handler, self._pool = handler, pool

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        found = self._handler.service(details)
        if found is not None:
            self._pool.asked(details.method)
        return found
