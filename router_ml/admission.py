"""Counts the calls that end without the service: refused by gRPC or an interceptor, or their callers gone.

gRPC refuses a call beyond `maximum_concurrent_rpcs` at once, and drops one whose client cancelled, or whose deadline
passed, while it waited for a thread; it tells nobody of either. Both show from outside: it asks the interceptors
for the handler of each call and then, in the same thread, hands the call to the pool of threads if it takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from router_ml.meter import METHODS, REFUSED_GONE, REFUSED_OVERLOAD, Meter


class MeteredPool(ThreadPoolExecutor):
    """The threads of a server, which count what becomes of the calls of one service, of that full name.

    `interceptor` must be the first one of that server, so that it sees each call, whatever others make of it.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str, service: str, meter: Meter) -> None:
        super().__init__(max_workers, thread_name_prefix)
        self._meter = meter
        self._here = meter.here
        self._asked: str | None = None
        self.interceptor = _Interceptor(self, {f"/{service}/{method}": method for method in METHODS}, meter)

    def asked(self, method: str | None) -> None:
        """A call came in, of that method of the service; None: of something else."""
        if self._asked is not None:  # the one before was not handed to us
            self._meter.refused(self._asked, REFUSED_OVERLOAD, "RESOURCE_EXHAUSTED")
        self._asked = method

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


class _Interceptor(grpc.ServerInterceptor):
    def __init__(self, pool: MeteredPool, methods: dict[str, str], meter: Meter) -> None:
        self._pool, self._methods, self._meter = pool, methods, meter
        self._counted: dict[str, tuple[Any, Any]] = {}

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        method = self._methods.get(details.method)
        self._pool.asked(method)
        handler = continuation(details)
        if method is None or handler is None:
            return handler
        before, counted = self._counted.get(method, (None, None))
        if before is not handler:
            counted = _counted(method, handler, self._meter)
            self._counted[method] = handler, counted
        return counted


def _counted(method: str, handler: Any, meter: Meter) -> Any:
    """The same handler, which counts a call that an interceptor ended before the service saw it."""
    behavior = handler.stream_stream or handler.unary_unary

    def call(argument: Any, context: grpc.ServicerContext) -> Any:
        try:
            return behavior(argument, context)
        except Exception:
            if not meter.here.answered:
                code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]
                meter.count(method, "INTERNAL" if code is None else code.name)
            raise

    kind = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.unary_unary_rpc_method_handler
    return kind(call, handler.request_deserializer, handler.response_serializer)
