import dataclasses
import re

import numpy as np
import pytest

from router_ml.errors import RequestError
from router_ml.request import (
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_NAMES,
    MAX_PROMPT_CHARS,
    MAX_TOKENS,
    check_request,
    make_request,
)
from router_ml.types import NO_CONSTRAINTS, Constraints, Message, Request


def test_plain_arguments_become_a_request():
    request = make_request(
        "Hello",
        segment="support",
        session_id="s1",
        tenant="acme",
        allowed_models=["a", "b"],
        denied_models={"c"},
        allowed_regions=("eu",),
        required_capabilities=iter(["tools"]),
        max_cost_usd=0.5,
        max_output_tokens=100,
        quality_target=0.95,
        min_success_probability=0.0,
        input_tokens=0,
        cached_input_tokens={"a": 7},
        batch=True,
    )
    assert request == Request(
        text="Hello",
        segment="support",
        session_id="s1",
        tenant="acme",
        constraints=Constraints(("a", "b"), ("c",), ("eu",), ("tools",), 0.5, 100),
        quality_target=0.95,
        min_success_probability=0.0,
        input_tokens=0,
        cached_input_tokens={"a": 7},
        batch=True,
    )


def test_no_limit_gives_the_shared_empty_constraints():
    assert make_request("Hello").constraints is NO_CONSTRAINTS


def test_empty_labels_mean_none():
    request = make_request("Hello", segment="", session_id="", tenant="")
    assert (request.segment, request.session_id, request.tenant) == (None, None, None)


def test_messages_may_be_mappings():
    user = {"role": "user", "content": "Hello"}
    request = make_request(messages=[Message("system", ""), user])
    assert request.messages == (Message("system", ""), Message("user", "Hello"))


def test_numbers_of_numpy_become_those_of_python():
    request = make_request(
        "Hello", max_cost_usd=np.float32(0.5), input_tokens=np.int64(3), cached_input_tokens={"a": np.int32(2)}
    )
    assert type(request.constraints.max_cost_usd) is float
    assert type(request.input_tokens) is int
    assert type(request.cached_input_tokens["a"]) is int


def test_an_embedding_becomes_float32():
    embedding = make_request(embedding=[3.0, 4.0]).embedding
    assert embedding is not None
    assert embedding.dtype == np.float32
    assert embedding.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800", "\u202eabc", "שלום", "🙂", "\0", "x" * 2_000_000])
def test_strange_text_is_accepted(text):
    assert make_request(text).text == text


WRONG = [
    ({}, "exactly one of `text`, `messages` and `embedding`; found none"),
    ({"text": "a", "embedding": [1.0]}, "found `text` and `embedding`"),
    ({"text": "a", "messages": [Message("user", "b")]}, "found `text` and `messages`"),
    ({"text": ""}, "`text` must be a prompt with at least one character that is not white space; found ''"),
    ({"text": " \n\t\u3000"}, "`text` must be"),
    ({"text": b"a"}, "`text` must be a string; found b'a'"),
    ({"messages": [Message("user", " ")]}, "`messages` must hold"),
    ({"messages": [Message("", "a")]}, "`messages[0].role` must be a string that is not empty"),
    ({"messages": [Message("user", None)]}, "`messages[0].content` must be a string; found None"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "`messages[0]` must be a message"),
    ({"messages": ["a"]}, "`messages[0]` must be a message"),
    ({"embedding": []}, "found shape (0,)"),
    ({"embedding": [[1.0]]}, "found shape (1, 1)"),
    ({"embedding": [1.0, float("nan")]}, "found nan at index 1"),
    ({"embedding": [1e300]}, "found inf at index 0"),
    ({"embedding": [0.0, 0.0]}, "`embedding` must have a length above 0"),
    ({"embedding": [3e38, 3e38]}, "finite in float32; found inf"),
    ({"embedding": ["a"]}, "`embedding` must be a sequence of numbers"),
    ({"text": "a", "segment": 3}, "`segment` must be a string or None; found 3"),
    ({"text": "a", "tenant": 3}, "`tenant` must be a string or None"),
    ({"text": "a", "session_id": 3}, "`session_id` must be a string or None"),
    ({"text": "a", "allowed_models": "gpt"}, "`allowed_models` must be a sequence of names; found 'gpt'"),
    ({"text": "a", "denied_models": [""]}, "`denied_models` must be"),
    ({"text": "a", "allowed_regions": [3]}, "`allowed_regions` must be"),
    ({"text": "a", "required_capabilities": None}, "`required_capabilities` must be"),
    ({"text": "a", "max_cost_usd": -0.1}, "`max_cost_usd` must be a number, 0 or more and finite; found -0.1"),
    ({"text": "a", "max_cost_usd": float("inf")}, "`max_cost_usd` must be"),
    ({"text": "a", "max_cost_usd": float("nan")}, "`max_cost_usd` must be"),
    ({"text": "a", "max_cost_usd": 10**400}, "`max_cost_usd` must be"),
    ({"text": "a", "max_cost_usd": "1"}, "`max_cost_usd` must be"),
    ({"text": "a", "max_cost_usd": True}, "`max_cost_usd` must be"),
    ({"text": "a", "max_output_tokens": 0}, "`max_output_tokens` must be a whole number from 1 to 2147483647; found 0"),
    ({"text": "a", "max_output_tokens": 1.5}, "`max_output_tokens` must be"),
    ({"text": "a", "quality_target": 0.0}, "`quality_target` must be a number, above 0 and at most 1; found 0.0"),
    ({"text": "a", "quality_target": 1.01}, "`quality_target` must be"),
    ({"text": "a", "min_success_probability": 1.01}, "`min_success_probability` must be"),
    ({"text": "a", "min_success_probability": -1e-9}, "`min_success_probability` must be"),
    ({"text": "a", "input_tokens": -1}, "`input_tokens` must be"),
    ({"text": "a", "input_tokens": MAX_TOKENS + 1}, "`input_tokens` must be"),
    ({"text": "a", "input_tokens": True}, "`input_tokens` must be"),
    ({"text": "a", "cached_input_tokens": {"o": -1}}, "`cached_input_tokens['o']` must be"),
    ({"text": "a", "cached_input_tokens": {"": 1}}, "`cached_input_tokens` must be keyed by the names of offers"),
    ({"text": "a", "cached_input_tokens": ["o"]}, "`cached_input_tokens` must be a mapping"),
    ({"text": "a", "batch": "false"}, "`batch` must be True or False; found 'false'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        make_request(**arguments)


def at_the_limits(more: int) -> list[dict[str, object]]:
    """Arguments as long as they may be, or by `more` longer."""
    name, names = "n" * (MAX_NAME_CHARS + more), [f"n{i}" for i in range(MAX_NAMES + more)]
    lists = ("allowed_models", "denied_models", "allowed_regions", "required_capabilities")
    halves = [Message("user", "a" * (MAX_PROMPT_CHARS // 2)), Message("user", "b" * (MAX_PROMPT_CHARS // 2 + more))]
    return [
        {"text": "a" * (MAX_PROMPT_CHARS + more)},
        {"messages": halves},
        {"messages": [Message("user", "a")] * (MAX_MESSAGES + more)},
        {"messages": [Message(name, "a")]},
        *({"text": "a", label: name} for label in ("segment", "session_id", "tenant")),
        *({"text": "a", field: [name]} for field in lists),
        *({"text": "a", field: names} for field in lists),
        {"text": "a", "cached_input_tokens": {name: 1}},
        {"text": "a", "cached_input_tokens": dict.fromkeys(names, 1)},
    ]


@pytest.mark.parametrize("index", range(len(at_the_limits(0))))
def test_what_is_longer_than_its_limit_is_named(index):
    make_request(**at_the_limits(0)[index])
    arguments = at_the_limits(1)[index]
    with pytest.raises(RequestError, match=rf"^`{list(arguments)[-1]}.*` must hold at most \d+ ") as caught:
        make_request(**arguments)
    assert len(str(caught.value)) < 200


def test_a_message_quotes_only_the_start_of_a_long_value():
    with pytest.raises(RequestError) as caught:
        make_request(" " * 2_000_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": [1.0]},
        {"embedding": np.ones(3)},
        {"text": "a", "constraints": Constraints(allowed_models="gpt")},
        {"text": "a", "quality_target": np.float32(0.5)},
    ],
)
def test_a_request_built_by_hand_is_held_to_its_types(change):
    with pytest.raises(RequestError):
        check_request(dataclasses.replace(Request(), **change))
