"""kill -9 at many steps of an export over an earlier one: the folder holds one project or the other, no mixture."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from isinglass.files.folder import LIST, file_hash
from isinglass.sfm.colmap import Project
from isinglass.sfm.exchange import export_colmap, export_hloc
from isinglass.sfm.reconstruct import read_model
from isinglass.sfm.store import FeatureStore, MatchStore
from mapped_scene import mapped

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
EXPORTS = {"colmap": export_colmap, "hloc": export_hloc}
READY = ".isinglass-export.ready"

RUN = """
import json, os, shutil, signal, sys, time
from isinglass.sfm import exchange

second, folder, what = sys.argv[1:]
export = {"colmap": exchange.export_colmap, "hloc": exchange.export_hloc}[what]
STEPS = ("os.mkdir", "os.re", "os.rm", "shutil.", "sqlite3.")

def forked(out, kill_step=None, kill_s=None):
    # export over the first export in a forked child; return its exit status, and its steps and time if it ends
    shutil.copytree(f"{folder}/first", out)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        steps = [0, None]  # all, and the first after the new files are ready
        def count(event, args):
            if event.startswith(STEPS):
                steps[0] += 1
                if event == "os.rename" and str(args[1]).endswith(".ready"):
                    steps[1] = steps[0]
                if steps[0] == kill_step:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        started = time.monotonic()
        export(second, out)
        os.write(writer, json.dumps([*steps, time.monotonic() - started]).encode())
        os._exit(0)
    os.close(writer)
    if kill_s is not None:
        time.sleep(kill_s)
        os.kill(child, signal.SIGKILL)
    told = os.read(reader, 1000)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(told) if told else None

code, (steps, ready, seconds) = forked(f"{folder}/whole")
assert code == 0
chosen = *range(1, ready, max(1, ready // 8)), *range(ready, steps, max(1, (steps - ready) // 20))
moments = [{"kill_step": step} for step in chosen]
moments += [{"kill_s": seconds * i / 4} for i in range(4)]
print(json.dumps([forked(f"{folder}/{i}", **moment)[0] for i, moment in enumerate(moments)]))
"""


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Maps of five views without the second one, and without the last two: numbers of images differ."""
    first = mapped(tmp_path_factory.mktemp("first"), views=5, without=("003.png", "004.png"))
    return first, mapped(tmp_path_factory.mktemp("second"), views=5, without=("001.png",))


def shown(folder):
    """Return what a person sees in a folder: names of files, and what is in them."""
    files = (file for file in folder.rglob("*") if file.is_file())
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: content(file) for name, file in names.items() if not name.startswith(".isinglass-export")}


def content(file):
    if file.suffix != ".h5":
        return file_hash(file)
    with FeatureStore(file) if file.stem == "features" else MatchStore(file) as store:  # bytes hold times
        assert not store.problems
        if isinstance(store, FeatureStore):
            return [(name, store.keypoints(name).tobytes()) for name in store]
        return [(pair, store.get(*pair).indices.tobytes()) for pair in store]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["colmap", "hloc"])
def test_killed_at_every_step(maps, tmp_path, what):
    first, second = maps
    references = {}
    for name, scene in (("first", first), ("second", second)):
        EXPORTS[what](scene.folder, tmp_path / name)
        references[name] = shown(tmp_path / name)
    command = [sys.executable, "-c", RUN, str(second.folder), str(tmp_path), what]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    codes = json.loads(run.stdout)
    assert codes.count(-9) >= 20, codes
    states = Counter()
    for i in range(len(codes)):
        out = tmp_path / str(i)
        state = state_of(out, references)
        states[state] += 1
        if states[state] == 1 and state in references:
            check_opens(out, what, first if state == "first" else second)
        EXPORTS[what](first.folder, out)
        assert shown(out) == references["first"], (i, state)
        assert {file.name for file in out.iterdir() if file.name.startswith(".")} - {LIST} <= leftovers(out), i
    assert states["first"] >= 8 and states["second"] >= 2, states
    check_opens(tmp_path / "0", what, first)


def state_of(out, references):
    """Return which project the folder holds; "part" if some files of one, which a next export completes."""
    found = shown(out)
    for name, files in references.items():
        if found == files:
            return name
    assert (out / READY / LIST).is_file(), (out, sorted(found))
    assert any(found.items() <= files.items() for files in references.values()), f"a mixture: {sorted(found)}"
    return "part"


def leftovers(out):
    """Return folders of runs that were killed before anything was ready, which go after an hour."""
    return {folder.name for folder in out.glob(".isinglass-export.*.tmp")}


def check_opens(out, what, scene):
    """Check that names and numbers agree in all files."""
    if what == "hloc":
        with FeatureStore(out / "features.h5") as features, MatchStore(out / "matches.h5") as matches:
            assert (list(features), set(matches)) == (scene.names, set(scene.pairs))
        return
    assert (out / "image-list.txt").read_text().split() == scene.names
    with Project(out / "database.db") as project:
        numbers = {name: project.image_id(name) for name in project.names}
    assert list(numbers) == scene.names
    model = read_model(out / "sparse/0")
    assert {image.name: number for number, image in model.images.items()} == numbers
