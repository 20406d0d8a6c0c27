"""`isinglass app` and `live` as commands: what they say, what they cost, how they end."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from asked_server import running
from isinglass.app import examples, serve
from isinglass.app.serve import listen
from isinglass.app.settings import Settings
from isinglass.errors import InputError, MissingExtra

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("command", ["app", "live"])
def test_help_needs_neither_torch_nor_a_server(command):
    code = f"""
import sys
sys.argv = ["isinglass", "{command}", "--help"]
from isinglass.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None)
heavy = {{"torch", "fastapi", "uvicorn", "pydantic", "starlette", "PIL", "numpy", "cv2"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout


def test_the_app_serves_until_ctrl_c(tmp_path):
    command = [BIN / "isinglass", "app", "--port", "0", "--no-browser", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
            assert json.load(answer)["status"] == "ok"
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert errors == "Ctrl-C ends it\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart", "websockets"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    from isinglass import app
    from isinglass.app import server

    monkeypatch.setattr(app, "server", server)  # puts back the one that others have, after it was imported again
    monkeypatch.delitem(sys.modules, "isinglass.app.server")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package.replace('_', '-')} is not installed.*isinglass\[app\]"):
        listen(Settings(port=0))


def test_the_command_says_what_is_missing(isinglass, monkeypatch):
    monkeypatch.setattr(serve, "_uvicorn", lambda: (_ for _ in ()).throw(MissingExtra("uvicorn", "app")))
    code, _, errors = isinglass("app", "--no-browser", "--port", 0)
    assert code == 3
    assert "isinglass[app]" in errors


def test_a_video_that_is_none_is_told(isinglass, tmp_path):
    code, _, errors = isinglass("live", tmp_path / "none.mp4", "--no-browser")
    assert code == 2
    assert "no file" in errors


def test_a_reference_that_is_none_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        listen(Settings(port=0), reference=tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no photo")
    with pytest.raises(InputError, match="text file"):
        listen(Settings(port=0), reference=tmp_path / "text.png")


def test_a_port_that_is_taken_is_followed_by_the_next_free_one():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = listen(Settings(port=port))
        server.listener.close()
    assert port < int(server.address.rpartition(":")[2]) <= port + 20


def test_an_address_that_is_none_is_told():
    with pytest.raises(InputError, match="not known"):
        listen(Settings(host="no such host"))
    with pytest.raises(InputError, match="nothing can listen"):
        listen(Settings(host="192.0.2.1", port=0))


def test_only_this_machine_is_listened_to_unless_told_otherwise():
    with running() as server:
        assert server.home.settings.host == "127.0.0.1"
    server = listen(Settings(port=0))
    assert server.listener.getsockname()[0] == "127.0.0.1"
    server.listener.close()


def test_examples_do_not_need_scikit_image(monkeypatch):
    monkeypatch.setattr(examples, "_skimage", lambda: False)
    assert examples.names() == ("turned",)
    first, second = examples._turned()
    assert isinstance(first, Image.Image)
    assert first.size == second.size


def test_the_page_opens_once_it_is_there(monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(serve.Listening, "run", lambda self: self.listener.close())
    from click.testing import CliRunner

    from isinglass.cli.app import app

    done = CliRunner().invoke(app, ["--port", "0"], standalone_mode=False)
    assert done.exception is None, done.exception
    assert opened == [done.stdout.strip()]
