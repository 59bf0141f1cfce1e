"""A server on the very settings of `serve` that answers each message with so many bytes and does nothing else.

python -m router_ml.bench.floors BUNDLE N_BYTES
"""

from __future__ import annotations

import sys
from typing import Any

import grpc

from router_ml.router import Router
from router_ml.server import ServerSettings, serve

SERVICE = "router_ml.bench.Floor"
UNARY, STREAM = f"/{SERVICE}/Unary", f"/{SERVICE}/Stream"


def main(bundle: str, n_bytes: int) -> None:
    """Serve until told to stop."""
    answer = bytes(n_bytes)
    # The real server with two calls more, so that its settings cannot differ.
    server = serve(Router.load(bundle), settings=ServerSettings(listen="127.0.0.1:0"))
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(lambda message, context: answer),
        "Stream": grpc.stream_stream_rpc_method_handler(lambda messages, context: (answer for _ in messages)),
    }
    server._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.run(ready=lambda: print(f"the empty handler answers on {server.address}", flush=True))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
