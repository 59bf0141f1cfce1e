import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router_ml.errors import InputError
from router_ml.server import ServerSettings, serve
from router_ml.types import Description
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ANY_PORT = ServerSettings("127.0.0.1:0")


class DescribingRouter:
    """Answers Describe once it is let go."""

    def __init__(self):
        self.called = threading.Event()
        self.let_go = threading.Event()
        self.let_go.set()

    def describe(self):
        self.called.set()
        assert self.let_go.wait(120)
        return Description("7", "ab", 1, "now", None, None, "static", 4, (), (), None, (), (), 0.95, 8192)


@pytest.fixture
def router():
    return DescribingRouter()


@pytest.fixture
def server(router):
    server = serve(router, settings=ANY_PORT)
    server.start()
    yield server
    router.let_go.set()
    server.stop(0)


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.01)


def is_refused(channel):
    """Whether a call that nothing holds up is not taken."""
    try:
        health(channel)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def health(channel, service=""):
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def describe(channel):
    return router_pb2_grpc.RouterServiceStub(channel).Describe(pb.DescribeRequest(), timeout=30)


def test_port_0_takes_a_free_port_and_says_which(server, channel):
    assert server.port > 0
    assert server.address == f"127.0.0.1:{server.port}"
    assert describe(channel).version == "7"


@pytest.mark.parametrize("service", ["", "router_ml.v1.RouterService"])
def test_health_is_served_for_the_server_and_the_service(channel, service):
    assert health(channel, service) == SERVING


def test_health_of_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.RpcError) as caught:
        health(channel, "other.v1.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_service(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = stub.ServerReflectionInfo(requests, timeout=10)
    services = {service.name for service in answer.list_services_response.service}
    assert {"router_ml.v1.RouterService", "grpc.health.v1.Health"} <= services


def test_a_port_in_use_is_an_input_error_that_says_what_to_do(server, capfd):
    with pytest.raises(InputError, match=f"port {server.port} is in use: stop what uses it, or choose another"):
        serve(DescribingRouter(), settings=ServerSettings(server.address))
    assert capfd.readouterr().err == ""


def test_a_port_in_use_by_another_program_is_seen_too():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InputError, match="is in use"):
            serve(DescribingRouter(), settings=ServerSettings(f"127.0.0.1:{other.getsockname()[1]}"))


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system has no SO_REUSEPORT")
def test_the_port_is_shared_with_nobody(server):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", server.port))


@pytest.mark.parametrize(
    "listen", ["", "127.0.0.1", ":50051", "50051", "127.0.0.1:65536", "127.0.0.1:http", "http://a:1", "::1:50051"]
)
def test_a_wrong_address_is_refused(listen):
    with pytest.raises(InputError, match=re.escape("`listen` must be HOST:PORT")):
        serve(DescribingRouter(), settings=ServerSettings(listen))


@pytest.mark.parametrize("listen", ["192.0.2.1:50051", "no-such-host.invalid:50051"])
def test_an_address_of_another_machine_is_refused(listen):
    with pytest.raises(InputError, match=f"cannot listen on {listen}: .*; choose a name or address of this machine"):
        serve(DescribingRouter(), settings=ServerSettings(listen))


@pytest.mark.parametrize(
    "settings", [{"threads": 0}, {"max_streams": 0}, {"max_message_bytes": 0}, {"grace_s": -1.0}, {"threads": "8"}]
)
def test_a_wrong_setting_is_named(settings):
    with pytest.raises(InputError, match=f"`{next(iter(settings))}`"):
        serve(DescribingRouter(), settings=ServerSettings("127.0.0.1:0", **settings))


def test_a_message_above_the_limit_is_refused_by_the_limit():
    server = serve(DescribingRouter(), settings=ServerSettings("127.0.0.1:0", max_message_bytes=1000))
    server.start()
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        router_pb2_grpc.RouterServiceStub(channel).Route(pb.RouteRequest(text="a" * 2000), timeout=10)
    server.stop(0)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1000" in caught.value.details()


def test_stopping_reports_not_serving_and_lets_calls_in_flight_finish(server, channel, router):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    router.let_go.clear()
    call = router_pb2_grpc.RouterServiceStub(channel).Describe.future(pb.DescribeRequest(), timeout=120)
    assert router.called.wait(60)
    stopping = threading.Thread(target=server.stop, args=(120,))
    stopping.start()
    assert next(watch).status == NOT_SERVING
    watch.cancel()
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as other:
        until(lambda: is_refused(other))
    assert not server.wait(0.05)
    router.let_go.set()
    assert call.result().version == "7"
    stopping.join(60)
    assert server.wait(60)


def test_a_stopped_server_gives_its_port_back(router):
    first = serve(router, settings=ANY_PORT)
    first.start()
    first.stop(0)
    first.stop(0)
    second = serve(router, settings=ServerSettings(first.address))
    assert second.port == first.port
    second.stop(0)


PROGRAM = """
import sys
from router_ml.server import ServerSettings, serve
server = serve(None, settings=ServerSettings("127.0.0.1:0", grace_s=300.0))
print(server.address, flush=True)
server.run()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_good_order(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            check = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
            assert check.status == SERVING
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)  # less than the grace: there was nothing to wait for
    assert (process.returncode, out, err) == (0, "stopped\n", "")


MISSED = """
import signal, threading, time
from router_ml.server import ServerSettings, serve

def hit():
    time.sleep(0.5)  # by now the main thread sleeps; one that comes a moment before it does goes by it like this one
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

serve(None, settings=ServerSettings("127.0.0.1:0")).run(ready=threading.Thread(target=hit).start)
print("stopped", flush=True)
"""


def test_a_signal_that_does_not_wake_the_main_thread_ends_the_process_too():
    done = subprocess.run([sys.executable, "-c", MISSED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_beyond_what_may_wait_calls_are_refused_at_once_and_the_others_are_answered(router):
    router.let_go.clear()
    settings = ServerSettings("127.0.0.1:0", threads=1, max_streams=1, max_waiting=2)
    server = serve(router, settings=settings)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        describe = router_pb2_grpc.RouterServiceStub(channel).Describe
        calls = [describe.future(pb.DescribeRequest(), timeout=120) for _ in range(12)]
        until(lambda: sum(call.done() for call in calls) >= 8)
        refused = [call for call in calls if call.done()]
        assert len(refused) == 8
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        router.let_go.set()
        answered = [call.result(timeout=60) for call in calls if call not in refused]
        assert [answer.version for answer in answered] == ["7"] * 4
    server.stop(0)


def test_a_client_that_begins_calls_and_never_sends_their_messages_does_not_starve_the_others(server, channel):
    never = threading.Event()

    def nothing():
        never.wait(120)
        yield from ()

    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as hostile:
        begin = hostile.stream_unary("/router_ml.v1.RouterService/Describe")
        held = [begin.future(nothing()) for _ in range(200)]
        calls = server._grpc._state.rpc_states  # no other way to see what gRPC has taken up
        until(lambda: len(calls) >= ANY_PORT.max_calls_per_connection)
        describe = router_pb2_grpc.RouterServiceStub(channel).Describe
        assert [describe(pb.DescribeRequest(), timeout=60).version for _ in range(20)] == ["7"] * 20
        for call in held:
            call.cancel()
        never.set()
