"""Clients that hold connections without asking anything, or that ask byte by byte; and where uvicorn's log goes."""

import contextlib
import select
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi", reason="needs FastAPI, which the extra app installs")

from asked_server import running
from isinglass.app import guard
from isinglass.app.settings import Limits, Settings

PLACES, HEAD_S = 4, 0.5
FORM = (
    b"POST /match HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: 100000\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(request):
    """A server of few places, and of a short wait for heads where a test asks for no other."""
    limits = Limits(connections=PLACES, head_s=getattr(request, "param", HEAD_S))
    with running(Settings(port=0, device="cpu", limits=limits)) as client:
        yield client


patient = pytest.mark.parametrize("server", [60.0], indirect=True, ids=["patient"])  # it must make room itself


@pytest.fixture
def connect(server):
    """Opens sockets to the server, and closes them after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(place_of(server), timeout=20))
    eventually(lambda: server.get("/health").status_code == 200)  # once it has seen that their requests broke off


def place_of(server):
    host, port = server.address.removeprefix("http://").split(":")
    return host, int(port)


def is_closed(connection):
    """Whether the other side has closed; what it sent before that is read."""
    while select.select([connection], [], [], 0)[0]:
        try:
            if not connection.recv(65536):
                return True
        except ConnectionError:
            return True
    return False


def eventually(holds, within_s=3):
    """Whether it holds within a time."""
    end = time.monotonic() + within_s
    while not (result := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return result


def drip(connection, data, interval_s, until):
    """Send byte by byte until the other side closes; return whether it did."""
    for letter in data:
        if is_closed(connection):
            return True
        with contextlib.suppress(ConnectionError):
            connection.sendall(bytes([letter]))
        if time.monotonic() > until:
            return False
        select.select([connection], [], [], interval_s)
    return is_closed(connection)


@patient
def test_silent_connections_keep_nobody_out(server, connect):
    silent = [connect() for _ in range(3 * PLACES)]
    for _ in range(3):
        assert server.get("/health").status_code == 200
    assert eventually(lambda: sum(map(is_closed, silent)) >= 2 * PLACES)  # at once, or a moment later


@patient
@pytest.mark.parametrize("sent", [b"G", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_unfinished_heads_keep_nobody_out(server, connect, sent):
    for _ in range(3 * PLACES):
        connect().sendall(sent)
    for _ in range(3):
        assert server.get("/health").status_code == 200


@patient
def test_idle_connections_after_an_answer_keep_nobody_out(server, connect):
    for _ in range(3 * PLACES):
        connection = connect()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_a_head_that_drips_is_given_up(server, connect, before):
    """Also that of a second request: every byte stops the timer of connections that are kept."""
    connection = connect()
    if before:
        connection.sendall(before)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert drip(connection, b"GET /health HTTP/1.1\r\nX: " + b"a" * 1000, 0.02, time.monotonic() + HEAD_S + 3)


def test_a_connection_without_a_byte_is_closed_without_a_word(server, connect):
    connection = connect()
    connection.settimeout(HEAD_S + 3)
    assert connection.recv(100) == b""


def test_an_unfinished_head_is_answered_in_one_line_of_log(server, connect, caplog):
    connection = connect()
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: ")
    assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        f"408 the head of the request was not whole after {HEAD_S:g} seconds"
    ]


def test_a_request_in_work_is_not_closed_for_a_new_connection(server, connect):
    """Its head came in time, however long the rest takes."""
    first = connect()
    first.sendall(FORM)
    silent = [connect() for _ in range(2 * PLACES)]
    time.sleep(1.5 * HEAD_S)
    assert server.get("/health").status_code == 200
    assert eventually(lambda: sum(map(is_closed, silent)) >= PLACES)
    assert not is_closed(first)


@patient
def test_where_all_places_have_a_request_the_next_is_told_to_come_later(server, connect):
    """A slow machine may close one as silent before its request is read; then one more takes its place."""
    assert eventually(lambda: server.get("/health").status_code == 503 or connect().sendall(FORM), within_s=20)
    assert "requests are being answered" in server.get("/health").json()["detail"]


def test_a_body_that_drips_is_given_up(server, connect, monkeypatch):
    monkeypatch.setattr(guard, "_STALLED_S", 0.5)
    connection = connect()
    connection.sendall(FORM + b'--x\r\nContent-Disposition: form-data; name="image0"; filename="a"\r\n\r\n')
    assert drip(connection, b"a" * 1000, 0.02, time.monotonic() + 4)


LOGGED = """
import io, socket, sys, threading, time
from isinglass.app.serve import listen
from isinglass.app.settings import Settings

usual, sys.stderr = sys.stderr, io.StringIO()
server = listen(Settings(port=0, device="cpu"))
sys.stderr.close()  # as that of a test, or of a notebook's cell, once it is over
sys.stderr = usual
thread = threading.Thread(target=server.run)
thread.start()
while not server.runner.started:
    time.sleep(0.01)
with socket.create_connection(server.listener.getsockname()) as connection:
    connection.sendall(b"no HTTP\\r\\n\\r\\n")
    while connection.recv(1000):
        pass
server.runner.should_exit = True
thread.join()
"""


def test_uvicorn_logs_to_the_stderr_of_the_moment():
    done = subprocess.run([sys.executable, "-c", LOGGED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.splitlines() == ["Invalid HTTP request received."]
