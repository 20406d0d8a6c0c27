"""Who may ask, what can be read, and what pages may do: over real sockets, with requests that no browser would send."""

import contextlib
import http.client
import logging
import socket
from pathlib import Path

import pytest
import requests

import isinglass.app
import isinglass.pages
from asked_server import SMALL, photos, running
from isinglass.app.guard import HEADERS
from isinglass.app.settings import Limits, Settings

SECRET = "def "  # is in every module


@pytest.fixture(scope="module")
def server():
    with running() as client:
        yield client


def raw(server, method, path, headers=None, body=None):
    """A request whose path is sent as it is: (status, headers, text)."""
    host, port = server.address.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode("utf-8", "replace")


@pytest.mark.parametrize("folder", ["/static", "/shared", "/examples", "/jobs", ""])
@pytest.mark.parametrize(
    "name",
    [
        "../settings.py",
        "..%2fsettings.py",
        "%2e%2e/settings.py",
        "%2e%2e%2fsettings.py",
        "..%5csettings.py",
        "../../../../../../../../etc/passwd",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        "....//settings.py",
        "..;/settings.py",
        "settings.py%00.js",
        "settings.py",
        "__init__.py",
        ".",
        "..",
        "",
        "%c0%ae%c0%ae/settings.py",
        "index.html/../../settings.py",
        "a" * 3000,
    ],
)
def test_no_path_of_the_server_can_be_read(server, folder, name):
    status, _, text = raw(server, "GET", f"{folder}/{name}")
    if (folder, name) == ("", ""):
        return  # the page itself
    assert status in (307, 400, 404, 405, 422), status
    assert "root:" not in text
    assert SECRET not in text


def test_every_file_of_the_pages_can_be_read_and_nothing_else(server):
    static, shared = Path(isinglass.app.__file__).parent / "static", Path(isinglass.pages.__file__).parent / "static"
    for folder, route in ((static, "static"), (shared, "shared")):
        files = [file for file in folder.iterdir() if file.suffix in (".js", ".css", ".html", ".svg")]
        for file in files:
            answer = server.get(f"/{route}/{file.name}")
            assert answer.status_code == 200
            assert answer.content == file.read_bytes()
            assert answer.headers["x-content-type-options"] == "nosniff"
    assert server.get("/shared/page.css").text == (shared.parent / "page.css").read_text("utf-8")
    assert server.get("/shared/page.py").status_code == 404


@pytest.mark.parametrize(
    ("path", "method"),
    [("/", "GET"), ("/choices", "GET"), ("/nothing", "GET"), ("/match", "POST"), ("/jobs/abc", "DELETE")],
)
def test_every_answer_has_the_headers_that_keep_pages_to_themselves(server, path, method):
    answer = requests.request(method, server.address + path, timeout=20)
    for name in HEADERS:
        assert name in answer.headers, (path, name)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "server" not in answer.headers


def test_a_failure_of_ours_has_them_too_and_says_nothing(server, monkeypatch):
    monkeypatch.setattr(type(server.home.jobs), "get", lambda *given: 1 / 0)
    answer = server.get("/jobs/abc")
    assert answer.status_code == 500
    assert "content-security-policy" in answer.headers
    assert answer.json()["detail"].startswith("the server failed (ZeroDivisionError)")
    assert "division by zero" not in answer.text


@pytest.mark.parametrize("debug", [False, True])
def test_a_failure_of_ours_is_one_line_with_an_id(server, monkeypatch, caplog, debug):
    monkeypatch.setattr(type(server.home.jobs), "get", lambda *given: 1 / 0)
    monkeypatch.setenv("ISINGLASS_DEBUG", str(int(debug)))
    detail = server.get("/jobs/abc").json()["detail"]
    assert server.get("/health").status_code == 200
    failures = [record for record in caplog.records if detail.split()[-1] in record.getMessage()]
    assert len(failures) == 1
    line = failures[0].getMessage()
    assert "GET /jobs/abc" in line
    assert "division by zero" in line
    assert detail.split()[-1] in line
    assert bool(failures[0].exc_info) == debug


def test_a_failed_job_is_one_line_with_the_same_id(server, monkeypatch, caplog):
    monkeypatch.setattr("isinglass.app.server.run", lambda *given: 1 / 0)
    problem = server.wait(server.submit(photos()))["error"]
    failures = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(failures) == 1
    assert problem.split()[-1] in failures[0].getMessage()
    assert failures[0].exc_info is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
def test_foreign_names_are_refused(server, host):
    """A page of the web whose name points to this machine (DNS rebinding) asks with its own name."""
    for method, path in (("GET", "/"), ("GET", "/choices"), ("POST", "/match"), ("GET", "/static/index.html")):
        status, _, text = raw(server, method, path, {"Host": host})
        assert status == 421
        assert "expected 127.0.0.1" in text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8090", "LocalHost:80"])
def test_own_names_are_known(server, host):
    assert raw(server, "GET", "/health", {"Host": host})[0] == 200


def test_a_name_can_be_added():
    with running(Settings(port=0, device="cpu", names=("lab.example",))) as server:
        assert raw(server, "GET", "/health", {"Host": "lab.example"})[0] == 200
        assert raw(server, "GET", "/health", {"Host": "evil.example"})[0] == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_origins_cannot_change_anything(server, headers):
    job = server.submit(photos())
    for method, path in (("POST", "/match"), ("POST", "/jobs"), ("DELETE", f"/jobs/{job}")):
        answer = requests.request(method, server.address + path, headers=headers, timeout=20)
        assert answer.status_code == 403
        assert "expected one of this server" in answer.json()["detail"]
    assert server.wait(job)["state"] == "done"
    assert (
        "access-control-allow-origin"
        not in requests.options(server.address + "/match", headers=headers, timeout=20).headers
    )


def test_its_own_page_can(server):
    headers = {"Origin": server.address, "Sec-Fetch-Site": "same-origin"}
    assert server.post("/match", photos(), headers=headers).status_code == 200


# --- sizes

LIMITS = Limits(file_bytes=200_000)


@pytest.fixture(scope="module")
def small():
    with running(Settings(port=0, device="cpu", limits=LIMITS)) as client:
        yield client


def test_a_file_over_the_limit_is_refused(small):
    answer = small.match([photos()[0] + bytes(200_000), photos()[1]])
    assert answer.status_code == 413
    assert "0 MB" in answer.json()["detail"]


def test_a_body_over_the_limit_is_refused_and_the_sender_hears_it(small):
    answer = small.match([bytes(LIMITS.body_bytes + 1), photos()[1]])
    assert answer.status_code == 413
    assert "too large" in answer.json()["detail"]


def test_a_body_that_does_not_say_its_size_is_refused_where_it_is_too_large(small):
    boundary = b"--x\r\ncontent-disposition: form-data; name=image0; filename=a\r\n\r\n"

    def pieces():
        yield boundary
        for _ in range(40):
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = requests.post(small.address + "/match", data=pieces(), headers=headers, timeout=20)
    assert answer.status_code == 413
    assert "too large" in answer.json()["detail"]
    assert "content-security-policy" in answer.headers


def test_a_liar_about_its_size_is_cut_off(small):
    """It announces a terabyte and sends little: nothing is waited for longer than the connection lives."""
    host, port = small.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /match HTTP/1.1\r\nhost: {host}\r\ncontent-length: {10**12}\r\n\r\n"
        connection.sendall(head.encode() + bytes(1000))
    assert small.match(photos()).status_code == 200


def test_many_files_and_fields_are_refused(small):
    many = [(f"image{i}", b"x") for i in range(50)]
    answer = requests.post(small.address + "/match", files=many, timeout=20)
    assert answer.status_code == 422
    answer = small.post("/match", photos(), fields={f"f{i}": "1" for i in range(200)})
    assert answer.status_code == 422
    answer = small.post("/match", photos(), fields={**SMALL, "ratio": "9" * 100_000})
    assert answer.status_code == 422
    assert len(answer.text) < 1000
