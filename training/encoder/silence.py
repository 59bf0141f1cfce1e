"""Keep third-party libraries quiet and off the network while they load a local folder."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

_CHATTY = ("transformers", "sentence_transformers", "model2vec", "skeletoken", "huggingface_hub")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide their warnings, log lines and, unless standard error is a terminal, progress bars; then restore all."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Forbid the hub client to open a connection."""
    from huggingface_hub import constants

    before = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # read from the environment once, when the client is imported
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[1]
        if before[0] is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before[0]
