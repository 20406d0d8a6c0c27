"""What no honest client sends, byte by byte to a server in a process of its own: 4xx, one line of log, no traceback."""

import base64
import socket
import struct
import subprocess
import sys
import time

import pytest

from asked_server import SMALL, photos

pytest.importorskip("fastapi", reason="needs FastAPI, which the extra app installs")

FILE_BYTES, STALLED_S = 200_000, 1.5
SERVER = f"""
from isinglass.app import guard
from isinglass.app.serve import serve
from isinglass.app.settings import Limits, Settings
guard._STALLED_S = {STALLED_S}
settings = Settings(port=0, device="cpu", limits=Limits(file_bytes={FILE_BYTES}))
serve(settings, lambda address: print(address, flush=True))
"""


class Server:
    """A server in another process: `port`, and the lines that it logs."""

    def __init__(self, process, log):
        self.process, self.log, self.read = process, log, 0
        self.port = int(process.stdout.readline().strip().rpartition(":")[2])

    def ask(self, data, *, leave=False):
        """All that comes back for these bytes, until the server closes; `leave` closes before that."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            try:
                connection.sendall(data)
                return b"" if leave else _all_of(connection)
            except ConnectionError:
                return b""

    def lines(self, expected=1):
        """What was logged since the last call; the server must still answer."""
        deadline = time.monotonic() + 10
        while True:
            assert self.ask(request("GET /health")).startswith(b"HTTP/1.1 200 ")
            found = [line for line in self.log.read_text().splitlines()[self.read :] if line.strip()]
            if len(found) >= expected or time.monotonic() > deadline:
                self.read += len(found)
                return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "stderr"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=file, text=True)
    yield Server(process, log)
    process.terminate()
    process.communicate(timeout=30)


def _all_of(connection):
    content = b""
    try:
        while piece := connection.recv(65536):
            content += piece
    except ConnectionError:
        pass
    return content


def request(line, *headers, body=b"", host=b"127.0.0.1"):
    """A request that asks for the connection to be closed; headers are bytes or latin-1 text, `host` may be None."""
    lines = [f"{line} HTTP/1.1".encode("latin-1") if isinstance(line, str) else line]
    lines += [b"Host: " + host] if host is not None else []
    lines += [one if isinstance(one, bytes) else one.encode("latin-1") for one in headers]
    if body and not any(one.lower().startswith((b"content-length", b"transfer-encoding")) for one in lines):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


def part(name="image0", content=b"x", more=""):
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode("latin-1") + content + b"\r\n"


def form(parts, more="", kind="multipart/form-data; boundary=x"):
    return request("POST /match", f"Content-Type: {kind}{more}", body=parts + b"--x--\r\n")


def whole_form(more=""):
    """What would be matched, were it not for the end of its content type."""
    texts = b"".join(part(name, value.encode()) for name, value in SMALL.items())
    return form(texts + b"".join(part(f"image{i}", photos()[i], '; filename="a.png"') for i in (0, 1)), more)


POST, CHUNKED = "POST /match", "Transfer-Encoding: chunked"
FORM = "Content-Type: multipart/form-data; boundary=x"
KEY = f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}"
UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
MALFORMED = {
    "origin that is no URL": request(POST, "Origin: http://["),
    "origin of a wrong port": request(POST, "Origin: http://a:b:c"),
    "origin of other letters": request(POST, "Origin: http://\x80\xff"),
    "two origins": request(POST, "Origin: http://127.0.0.1", "Origin: http://["),
    "charset undefined": whole_form("; charset=undefined"),
    "charset unknown": whole_form("; charset=nope"),
    "charset that is no text": whole_form("; charset=base64"),
    "charset of wide letters": whole_form("; charset=utf-16"),
    "charset with a NUL": whole_form('; charset="a\\0"'),
    "charset that escapes": form(part("a\\ud800"), "; charset=unicode_escape"),
    "charset utf-7": form(part("a+2AA-"), "; charset=utf-7"),
    "charset of a kilobyte": whole_form("; charset=" + "a" * 1000),
    "charset of another encoding": whole_form("; charset*=nope''%ff"),
    "charset undefined, urlencoded": form(b"a=%ff&b", kind="application/x-www-form-urlencoded; charset=undefined"),
    "charset undefined, JSON": form(b"{}", kind="application/json; charset=undefined"),
    "no boundary": form(part(), kind="multipart/form-data"),
    "empty boundary": form(part(), kind="multipart/form-data; boundary="),
    "another boundary": form(part(), kind="multipart/form-data; boundary=y"),
    "boundary of other letters": form(part(), kind="multipart/form-data; boundary=\xff"),
    "boundary of 5,000 letters": form(part(), kind="multipart/form-data; boundary=" + "y" * 5000),
    "10,000 parts": form(part("a") * 10_000),
    "5,000 files": form(part("a", more='; filename="b"') * 5_000),
    "part with a huge header": form(part("a" * 200_000)),
    "part with 20,000 headers": form(b"--x\r\n" + b"A: b\r\n" * 20_000 + b"\r\nb\r\n"),
    "part without a name": form(b"--x\r\nContent-Disposition: form-data\r\n\r\nb\r\n"),
    "part without headers": form(b"--x\r\n\r\nb\r\n"),
    "part with a strange name": form(b"--x\r\nContent-Disposition: form-data; name*=nope''%ff\r\n\r\nb\r\n"),
    "part that does not end": request(POST, FORM, body=part()[:-2]),
    "form of noise": form(bytes(range(256)) * 10),
    "200,000 fields": form(b"a=1&" * 200_000, kind="application/x-www-form-urlencoded"),
    "content type that is none": form(part(), kind=";;;="),
    "JSON": form(b"{", kind="application/json"),
    "no content type": request(POST, body=b"abc"),
    "host that is none": request("GET /health", host=b"["),
    "host with a user": request("GET /health", host=b"a@127.0.0.1"),
    "host of other letters": request("GET /health", host=b"\xff\xfe"),
    "host with a word for a port": request("GET /health", host=b"127.0.0.1:http"),
    "empty host": request("GET /health", host=b""),
    "no host": request("GET /health", host=None),
    "two hosts": request("GET /health", "Host: localhost"),
    "negative length": request(POST, "Content-Length: -5"),
    "length in words": request(POST, "Content-Length: five"),
    "length of another script": request(POST, "Content-Length: \xb2", body=b"ab"),
    "two lengths": request(POST, "Content-Length: 3", "Content-Length: 4", body=b"abcd"),
    "length of 5,000 digits": request(POST, "Content-Length: " + "9" * 5000),
    "length of 19 digits": request(POST, FORM, "Content-Length: " + "9" * 19, body=part()),
    "length of a terabyte": request(POST, FORM, "Content-Length: 1000000000000", body=part()),
    "chunk that is none": request(POST, CHUNKED, body=b"zz\r\nabc"),
    "chunk of a form that is none": request(POST, FORM, CHUNKED, body=b"5\r\n--x\r\n\r\nzz\r\n"),
    "chunk of a negative size": request(POST, FORM, CHUNKED, body=b"-1\r\nabc"),
    "chunk of a huge size": request(POST, FORM, CHUNKED, body=b"f" * 40 + b"\r\nabc"),
    "unknown transfer": request(POST, "Transfer-Encoding: gzip", body=b"abc"),
    "path with a NUL": request("GET /static/%00.js"),
    "path with a raw NUL": request(b"GET /\0 HTTP/1.1"),
    "path with bad escapes": request("GET /%zz%f%"),
    "path of other letters": request("GET /%ff%fe"),
    "path of raw bytes": request(b"GET /\xff HTTP/1.1"),
    "path of lines": request("GET /jobs/%0d%0aX:%20y"),
    "path of 50,000 letters": request("GET /" + "a" * 50_000),
    "path that is a URL": request("GET http://[/health"),
    "path without a slash": request("GET health"),
    "path of a proxy": request("CONNECT a:1"),
    "unknown method": request("FOO /match"),
    "method of other letters": request(b"F\x01O /match HTTP/1.1"),
    "method for another path": request("OPTIONS /match"),
    "HTTP of tomorrow": request(b"GET /health HTTP/9.9"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300) + b"\r\n\r\n",
    "noise": bytes(range(256)) * 2 + b"\r\n\r\n",
    "header without a colon": request("GET /health", "colon"),
    "header with a NUL": request("GET /health", "X: a\0b"),
    "header with a space": request("GET /health", "A B: c"),
    "header of 200 kB": request("GET /health", "X: " + "a" * 200_000),
    "handshake without a key": request("GET /live", *UPGRADE),
    "handshake with a wrong key": request("GET /live", *UPGRADE, "Sec-WebSocket-Key: \xff"),
    "handshake of another version": request("GET /live", *UPGRADE[:2], "Sec-WebSocket-Version: 99", KEY),
    "handshake by POST": request("POST /live", *UPGRADE, KEY),
    "handshake for another path": request("GET /nothing", *UPGRADE, KEY),
    "handshake of another origin": request("GET /live", *UPGRADE, KEY, "Origin: http://["),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_in_one_line(server, name):
    answer = server.ask(MALFORMED[name])
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    lines = server.lines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    assert len(lines[0]) < 500


ODD = {
    "range": request("GET /static/app.js", "Range: bytes=9-1,-,zz"),
    "what is known of it": request("GET /static/app.js", 'If-None-Match: "\xff', "If-Modified-Since: never"),
    "cookie": request("GET /health", "Cookie: \xff=;;;="),
    "accept": request("GET /health", "Accept: \xff;q=z", "Accept-Encoding: ,,"),
    "5,000 headers": request("GET /health", *(f"X{i}: a" for i in range(5000))),
    "query": request("GET /health?%ff=%zz&&=;["),
    "HTTP/1.0": request(b"GET /health HTTP/1.0"),
    "an unknown upgrade": request("GET /health", "Upgrade: foo", "Connection: upgrade"),
    "HEAD": request("HEAD /health"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_answered(server, name):
    answer = server.ask(ODD[name])
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
    if name == "HEAD":
        assert answer.endswith(b"\r\n\r\n")
    assert server.lines(expected=0) == []


def test_requests_in_a_row_are_answered_in_a_row(server):
    first = request("GET /health").replace(b"Connection: close\r\n", b"")
    answer = server.ask(first + request("GET /nothing"))
    assert answer.index(b"HTTP/1.1 200 ") < answer.index(b"HTTP/1.1 404 ")
    assert len(server.lines()) == 1


BROKEN = {
    "form": request(POST, FORM, "Content-Length: 100000", body=part()),
    "job": request("POST /jobs", FORM, "Content-Length: 100000", body=part()),
    "photo": request(POST, FORM, "Content-Length: 100000", body=part(more='; filename="a"', content=bytes(50_000))),
    "chunk": request(POST, FORM, CHUNKED, body=b"32\r\n--x\r\n"),
    "refused": request(POST, FORM, "Origin: http://evil", "Content-Length: 100000", body=part()),
    "no form": request(POST, "Content-Length: 100000", body=b"ab"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_upload_that_breaks_off_is_one_line(server, name):
    server.ask(BROKEN[name], leave=True)
    lines = server.lines()
    assert len(lines) == 1, lines
    assert "broke off" in lines[0] or "422" in lines[0]


@pytest.mark.parametrize("name", ["form", "refused"])
def test_an_upload_that_stalls_is_given_up(server, name):
    started = time.monotonic()
    answer = server.ask(BROKEN[name])
    assert answer.startswith(b"HTTP/1.1 408 " if name == "form" else b"HTTP/1.1 403 ")
    assert time.monotonic() - started < STALLED_S + 5
    assert len(server.lines()) == 1


@pytest.mark.parametrize(("path", "status"), [("POST /match", 413), ("DELETE /jobs/abc", 404), ("GET /health", 200)])
def test_a_body_without_an_end_is_cut_off(server, path, status):
    """A part of a file, in chunks, for ever: whether the body is read or not."""
    head = part(more='; filename="a"').removesuffix(b"x\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request(path, FORM, CHUNKED, body=b"%x\r\n%b\r\n" % (len(head), head)))
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        with pytest.raises(ConnectionError):
            for _ in range(100):  # MB, of a limit of 1.8 MB, four times that, and what the sockets hold
                connection.sendall(chunk)
    lines = server.lines(expected=int(status >= 400))
    assert len(lines) <= 1, lines
    assert all(f" {status} " in line or "broke off" in line for line in lines)


# --- WebSockets


def frame(kind, content=b"", *, first=0x80, masked=True, length=None):
    """A frame of a WebSocket with the mask 0."""
    size, mask = len(content) if length is None else length, 0x80 if masked else 0
    if size < 126:
        head = bytes([first | kind, mask | size])
    else:
        head = bytes([first | kind, mask | 127]) + struct.pack(">Q", size)
    return head + (bytes(4) if masked else b"") + content


TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
ANSWERED = {
    "no JSON": frame(TEXT, b"{"),
    "no object": frame(TEXT, b"[]"),
    "deep": frame(TEXT, b"[" * 15_000),
    "a number of 6,000 digits": frame(TEXT, b'{"type":' + b"9" * 6000 + b"}"),
    "a list for a type": frame(TEXT, b'{"type":[]}'),
    "lists for words": frame(TEXT, b'{"type":"settings","mode":[1],"source":{}}'),
    "half a letter": frame(TEXT, b'{"type":"settings","\\ud800":1}'),
    "NaN": frame(TEXT, b'{"type":"settings","ratio":NaN}'),
    "a frame too early": frame(BINARY, bytes(100)),
    "noise for a frame": frame(TEXT, b'{"type":"settings"}') + frame(BINARY, bytes(range(256))),
}
CLOSED = {
    "text that is no UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "no mask": (frame(TEXT, b"{}", masked=False), 1002),
    "reserved bits": (frame(TEXT, b"{}", first=0xF0), 1002),
    "an unknown kind": (frame(11), 1002),
    "too large": (frame(BINARY, length=2**40), 1009),
    "a cut code": (frame(CLOSE, b"\x03"), 1002),
    "a code that may not be sent": (frame(CLOSE, struct.pack(">H", 1005)), 1002),
    "a reason that is no text": (frame(CLOSE, struct.pack(">H", 4999) + b"\xff"), 1007),
    "an honest end": (frame(CLOSE, struct.pack(">H", 1000)), 1000),
    "a large ping": (frame(PING, bytes(200)), 1002),
    "a piece without a beginning": (frame(0, b"x"), 1002),
}


def live(server, frames, until):
    """What a live page answers, until these bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request("GET /live", *UPGRADE, KEY).replace(b"Connection: close\r\n", b""))
        assert connection.recv(65536).startswith(b"HTTP/1.1 101 ")
        connection.sendall(frames)
        answer = b""
        while until not in answer and (piece := connection.recv(65536)):
            answer += piece
        return answer


@pytest.mark.parametrize("name", ANSWERED)
def test_messages_that_are_none_are_problems(server, name):
    assert b'{"type":"problem"' in live(server, ANSWERED[name], b'{"type":"problem"')
    assert server.lines(expected=0) == []


@pytest.mark.parametrize("name", CLOSED)
def test_frames_that_are_none_close_the_page(server, name):
    frames, code = CLOSED[name]
    ended = struct.pack(">H", code)
    assert ended in live(server, frames, ended)
    lines = server.lines(expected=0)
    assert len(lines) <= 1, lines
    assert not any("Traceback" in line for line in lines)
