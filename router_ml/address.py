"""HOST:PORT, as it is listened on and connected to."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s,]+):(?P<port>[0-9]{1,5})")


def split_address(address: str) -> tuple[str, int] | None:
    """Host, an IPv6 one in its brackets, and port from 0 to 65535; None where it is no such thing."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        return None
    return match["host"], int(match["port"])
