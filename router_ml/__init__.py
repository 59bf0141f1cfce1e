"""router-ml: the cheapest model likely to succeed, per prompt, learned from your own logs."""

from router_ml.types import Constraints, Decision, Message, Request

__all__ = ["Constraints", "Decision", "Message", "Request"]
