"""Counts the calls that gRPC ends before they reach the service, of which it tells nobody.

It refuses a call beyond `maximum_concurrent_rpcs` at once, and drops one whose client cancelled, or whose
deadline passed, while it waited for a thread. Both can be told from outside: gRPC shows each call to the
interceptors first and then, in the same thread, hands it to the pool of threads if it takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from router_ml.meter import METHODS, REFUSED_GONE, REFUSED_OVERLOAD, Meter


class MeteredPool(ThreadPoolExecutor):
    """The threads of a server whose calls are counted; `interceptor` must be the first of that server's."""

    def __init__(self, max_workers: int, thread_name_prefix: str, *, service: str, meter: Meter) -> None:
        """`service` is the full name of the service whose calls count."""
        super().__init__(max_workers, thread_name_prefix)
        self._methods = {f"/{service}/{method}": method for method in METHODS}
        self._meter = meter
        self._shown: str | None = None
        self.interceptor = _Interceptor(self)

    def shown(self, name: str) -> None:
        """A call of that full name came in."""
        if self._shown is not None:  # the one before was not handed to us
            self._meter.refused(self._shown, REFUSED_OVERLOAD, "RESOURCE_EXHAUSTED")
        self._shown = self._methods.get(name)

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        method, self._shown = self._shown, None
        if method is None:
            return super().submit(work, *args, **kwargs)
        self._meter.begin()
        return super().submit(self._serve, method, work, *args, **kwargs)

    def _serve(self, method: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._meter.serving()
        try:
            work(*args, **kwargs)
        finally:
            if not self._meter.served():
                self._meter.refused(method, REFUSED_GONE, "CANCELLED")


class _Interceptor(grpc.ServerInterceptor):
    def __init__(self, pool: MeteredPool) -> None:
        self._pool = pool

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        self._pool.shown(details.method)
        return continuation(details)
