"""Conversations as outcome tables hold them: the JSON of their messages."""

from __future__ import annotations

import json
from typing import Any

from router_ml.text import prompt_text
from router_ml.types import Message


def messages_text(messages: str) -> str:
    """The one text of a conversation given as the JSON of its messages."""
    turns = json.loads(messages)
    return prompt_text([Message(turn.get("role", ""), _content(turn.get("content"))) for turn in turns])


def _content(content: Any) -> str:
    """Text of one message; a list of parts, as some APIs have it, gives its texts."""
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""
