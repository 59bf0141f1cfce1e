"""What clients in the field rely on stays as it is."""

import inspect
import itertools
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import grpc
import pytest

from router_ml.aio_client import AsyncRouterClient
from router_ml.client import RouterClient
from router_ml.router import Router
from router_ml.service import RouterServicer
from router_ml.types import Reason, Rejection
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("router_v1.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STUBS = ROOT / "router_ml" / "v1"
SERVICE = pb.DESCRIPTOR.services_by_name["RouterService"]
# RPC -> what calls it.
CALLS = {
    "Route": {"decide", "route"},
    "RouteBatch": {"decide_batch"},
    "RouteStream": {"decide_stream"},
    "ReportOutcomes": {"report"},
    "Describe": {"describe"},
}

OF_THE_CLIENT = {"close", "flush", "report_counts", "report_later"}


def contract_lines():
    """One line per thing that clients rely on."""
    for method in SERVICE.methods:
        sides = (
            f"{'stream ' if method.client_streaming else ''}{method.input_type.full_name}",
            f"{'stream ' if method.server_streaming else ''}{method.output_type.full_name}",
        )
        yield f"rpc {SERVICE.full_name}/{method.name} ({sides[0]}) returns ({sides[1]})"
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        yield f"message {message.full_name}"
        for field in message.fields:
            yield f"field {message.full_name}.{field.name} = {field.number} {field_kind(field)}"
    for enum in pb.DESCRIPTOR.enum_types_by_name.values():
        for value in enum.values:
            yield f"value {enum.full_name}.{value.name} = {value.number}"


def field_kind(field):
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{field_kind(key)}, {field_kind(value)}>"
    named = field.message_type or field.enum_type
    kind = named.full_name if named else {1: "double", 2: "float", 5: "int32", 8: "bool", 9: "string"}[field.type]
    if field.is_repeated:
        return f"repeated {kind}"
    if field.containing_oneof is not None and not field.containing_oneof.name.startswith("_"):
        return f"{kind} in {field.containing_oneof.name}"
    return f"optional {kind}" if field.has_presence and field.message_type is None else kind


def test_nothing_that_clients_rely_on_has_changed():
    promised = set(SNAPSHOT.read_text(encoding="utf-8").splitlines())
    current = set(contract_lines())
    assert not promised - current, "a breaking change of v1: these lines are promised"
    assert not current - promised, f"additions: append these lines to {SNAPSHOT.name}"


def test_every_rpc_is_served_and_nothing_else():
    rpcs = {method.name for method in SERVICE.methods}
    own = {name for name, _ in inspect.getmembers(RouterServicer, inspect.isfunction) if not name.startswith("_")}
    assert own == rpcs
    assert all(name in vars(RouterServicer) for name in rpcs), "an RPC is left to the generated base class"


def test_every_rpc_has_a_method_of_the_client_and_the_reverse():
    methods = {name for name, _ in inspect.getmembers(RouterClient, inspect.isfunction) if not name.startswith("_")}
    assert set(CALLS) == {method.name for method in SERVICE.methods}
    assert methods - OF_THE_CLIENT == set().union(*CALLS.values())


def test_the_router_and_its_client_are_asked_alike():
    for name in ("route", "decide", "decide_batch", "describe"):
        assert inspect.signature(getattr(RouterClient, name)) == inspect.signature(getattr(Router, name))


def test_the_client_for_asyncio_is_asked_as_the_other_one():
    methods = {name for name, _ in inspect.getmembers(RouterClient, inspect.isfunction) if not name.startswith("_")}
    for name in {"__init__", *methods} - {"decide_stream"}:
        assert inspect.signature(getattr(AsyncRouterClient, name)) == inspect.signature(getattr(RouterClient, name))


def test_no_two_rpcs_share_a_message():
    used = [kind.name for method in SERVICE.methods for kind in (method.input_type, method.output_type)]
    assert used == [f"{method.name}{side}" for method in SERVICE.methods for side in ("Request", "Response")]


@pytest.mark.parametrize(("words", "enum"), [(Rejection, "Rejection"), (Reason, "Reason")])
def test_the_contract_has_a_number_for_every_word_and_a_word_for_every_number(words, enum):
    values = pb.DESCRIPTOR.enum_types_by_name[enum].values
    assert {value.name for value in values if value.number} == {f"{enum.upper()}_{word.name}" for word in words}


@pytest.mark.parametrize("name", sorted(pb.DESCRIPTOR.enum_types_by_name))
def test_zero_is_never_a_choice(name):
    first = pb.DESCRIPTOR.enum_types_by_name[name].values_by_number[0].name
    assert first == f"{re.sub('(?<=[a-z])(?=[A-Z])', '_', name).upper()}_UNSPECIFIED"


def test_every_definition_of_the_proto_is_explained():
    lines = (ROOT / "proto/router_ml/v1/router.proto").read_text(encoding="utf-8").splitlines()
    definition = re.compile(r"\s*(message|enum|service|rpc|oneof)\b|.* = \d+;")
    for before, line in itertools.pairwise(lines):
        if definition.match(line):
            assert before.strip().startswith("//"), f"no comment before: {line}"


def required(package):
    """Lower bound of a base dependency in pyproject."""
    (line,) = (line for line in PROJECT["dependencies"] if re.match(rf"{package}\b(?!-)", line))
    return version(re.search(r">=([\d.]+)", line)[1])


def version(text):
    return tuple(int(part) for part in text.split("."))


def at_least(have, need):
    return [*have, 0, 0, 0][:3] >= [*need, 0, 0, 0][:3]


def test_the_stubs_run_on_the_oldest_libraries_that_may_be_installed():
    grpcio = version(re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (STUBS / "router_pb2_grpc.py").read_text())[1])
    assert router_pb2_grpc.GRPC_GENERATED_VERSION == ".".join(map(str, grpcio))
    for package in ("grpcio", "grpcio-health-checking", "grpcio-reflection"):
        assert at_least(required(package), grpcio), package
    for stub in STUBS.glob("*_pb2.py"):
        protobuf = version(re.search(r"Protobuf Python Version: ([\d.]+)", stub.read_text(encoding="utf-8"))[1])
        assert at_least(required("protobuf"), protobuf), stub.name


def pinned_generator():
    (pin,) = (line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("grpcio-tools=="))
    return pin.removeprefix("grpcio-tools==")


def test_the_generator_is_pinned_to_what_made_the_stubs():
    assert pinned_generator() == router_pb2_grpc.GRPC_GENERATED_VERSION


def test_the_stubs_are_what_the_generator_makes_of_the_protos(tmp_path):
    try:
        installed = metadata.version("grpcio-tools")
    except metadata.PackageNotFoundError:
        pytest.skip("needs grpcio-tools: pip install router-ml[dev]")
    if installed != pinned_generator():
        pytest.skip(f"needs grpcio-tools {pinned_generator()}, found {installed}")
    generate = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto")]
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*generate, *outputs, f"--grpc_python_out={tmp_path}", "router_ml/v1/router.proto"], check=True)
    subprocess.run([*generate, *outputs, "router_ml/v1/log.proto"], check=True)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "router_ml/v1").iterdir()}
    assert fresh == {path.name: path.read_bytes() for path in STUBS.glob("*_pb2*.py*") if path.is_file()}


def test_the_generated_service_is_the_one_described():
    servicer = router_pb2_grpc.RouterServiceServicer
    assert {name for name in vars(servicer) if not name.startswith("_")} == {method.name for method in SERVICE.methods}
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        assert set(vars(router_pb2_grpc.RouterServiceStub(channel))) == {method.name for method in SERVICE.methods}
