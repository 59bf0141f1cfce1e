"""What the server writes to standard error: lines for a person, or one JSON object a line for a program.

Whoever logs gives the message, and what a program may want to find by itself as `extra`:
`_log.info("version %s is in force", name, extra={"version": name})`. No prompt, token or key is ever logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

FORMATS = ("text", "json")
LEVELS = ("info", "warning", "error")

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (ISO, UTC), `level`, `logger`, `message`, `pid`, what `extra` held, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        extra = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            extra["exception"] = self.formatException(record.exc_info)
        return json.dumps(extra | line, default=str)


def set_up_logs(form: str = "text", level: str = "warning") -> None:
    """Write the records of this process from `level` on to standard error, as one of FORMATS."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It tells what metadata it cannot decode, and that may be a caller's token.
    logging.getLogger("grpc._cython").setLevel(logging.CRITICAL)
