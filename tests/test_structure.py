"""The house holds: budgets, floors, names, docstrings, what is forbidden, what importing costs, what is shipped."""

import ast
import importlib
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import isinglass

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in SOURCES if path.stem != "__main__"
]
CODE = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").glob("*.py")])
TREES = {path: ast.parse(path.read_text("utf-8")) for path in CODE}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BIN = Path(sys.executable).parent

PUBLIC_NAMES = [
    "ALIKED",
    "DISK",
    "SIFT",
    "ChecksumError",
    "Extractor",
    "Features",
    "InputError",
    "IsinglassError",
    "LicenceError",
    "LightGlue",
    "MatchResult",
    "Matcher",
    "Matches",
    "MissingExtra",
    "Nearest",
    "Options",
    "Pipeline",
    "Signature",
    "SuperGlue",
    "SuperPoint",
    "WeightsError",
    "WriteError",
    "XFeat",
    "accept_licence",
    "extract",
    "fetch",
    "match",
    "record",
    "records",
]  # isinglass.__all__, in its order


def short(path):
    return str(path.relative_to(ROOT))


def functions(path):
    return [node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def calls(path):
    return [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]


def run_python(code, **environment):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- budgets


def test_no_file_is_longer_than_500_lines():
    lengths = {short(path): len(path.read_text("utf-8").splitlines()) for path in CODE}
    assert not {name: length for name, length in lengths.items() if length > 500}


def test_no_function_is_longer_than_50_lines():
    lengths = {(short(path), f.name): f.end_lineno - f.lineno + 1 for path in CODE for f in functions(path)}
    assert not {name: length for name, length in lengths.items() if length > 50}


def test_no_function_takes_more_than_8_parameters():
    """The command line is exempt: a command has as many as it has options."""
    counts = {}
    for path in SOURCES:
        for function in functions(path) if path.parent.name != "cli" else []:
            given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            counts[short(path), function.name] = len([one for one in given if one.arg not in ("self", "cls")])
    assert not {name: count for name, count in counts.items() if count > 8}


# --- names and floors


def test_public_names_are_the_agreed_ones():
    assert list(getattr(isinglass, "__all__", [])) == PUBLIC_NAMES
    assert len(PUBLIC_NAMES) <= 40
    assert all(hasattr(isinglass, name) for name in PUBLIC_NAMES)


def test_floors_hold():
    done = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_whatever_is_public_is_documented():
    def undocumented(node, name):
        if ast.get_docstring(node) is None:
            yield name
        for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else []:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
                yield from undocumented(child, f"{name}.{child.name}")

    assert not [name for path in SOURCES for name in undocumented(TREES[path], short(path))]


# --- what is forbidden


def test_no_pickles_and_no_lenient_loading():
    for path in SOURCES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle", "joblib"} & {name.split(".")[0] for name in names}, path
        for call in calls(path):
            name = ast.unparse(call.func)
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            if name == "torch.load":
                assert options.get("weights_only") == "True", f"{path}:{call.lineno}"
            if name.endswith("load_state_dict"):
                assert options.get("strict", "True") == "True", f"{path}:{call.lineno}"


def test_the_library_prints_nothing_and_sets_nothing_global():
    setters = {"print", "torch.manual_seed", "torch.set_default_dtype", "torch.set_default_device"}
    setters |= {"torch.set_num_threads", "torch.use_deterministic_algorithms", "logging.basicConfig", "random.seed"}
    state = ("torch.backends", "os.environ", "np.random", "sys.path")
    allowed = {"threads.py": {"torch.set_num_threads"}}  # for its own threads: see test_torchs_threads_are_shared_out
    for path in SOURCES:
        assert not (setters & {ast.unparse(call.func) for call in calls(path)}) - allowed.get(path.name, set()), path
        assignments = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Assign)]
        targets = [ast.unparse(target) for assignment in assignments for target in assignment.targets]
        assert not [target for target in targets if target.startswith(state)], path


def test_no_file_names_a_registry_host_or_a_folder_of_one_machine():
    parts = [
        ("pypi", r"\.org"),
        ("pythonhosted", r"\.org"),
        ("download", r"\.pytorch"),
        ("/work", "/"),
        ("/tmp/", "peer"),
    ]
    foreign = re.compile("|".join("".join(part) for part in (*parts, ("/root", "/"), ("/opt", "/"), ("/home", "/"))))
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git work tree")
    for name in listed.stdout.splitlines():
        try:
            text = (ROOT / name).read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or removed
        assert not (found := foreign.search(text)), f"{name} names {found.group()!r}"


# --- what importing costs


def test_importing_everything_does_nothing(tmp_path):
    """No seed, flag, handler, folder or optional package: only definitions."""
    code = f"""
import importlib, logging, random, sys, warnings
import numpy, torch
def state():
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda.matmul
    return (torch.initial_seed(), torch.get_rng_state().sum().item(), random.getstate(), torch.get_default_dtype(),
            torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, cuda.allow_tf32,
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), list(logging.root.handlers),
            str(numpy.random.get_state()))
before = state()
for name in {MODULES!r}:
    importlib.import_module(name.removesuffix(".__init__"))
assert state() == before, "importing changed global state"
optional = {{"cv2", "poselib", "matplotlib", "h5py", "skimage", "transformers"}} & set(sys.modules)
assert not optional, f"importing brought {{optional}}"
"""
    assert run_python(code, ISINGLASS_HOME=str(tmp_path / "home")) == ""
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("module", ["isinglass", "isinglass.cli", "isinglass.weights"])
def test_light_modules_do_not_import_torch(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"there is no {module} yet")
    assert run_python(f"import sys, {module}; print('torch' in sys.modules)").strip() == "False"


def test_help_answers_under_0_3_s():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([BIN / "isinglass", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "match" in done.stdout
    assert min(seconds) < 0.3, seconds


# --- what is shipped and said


def requirement_names(requirements):
    names = [re.match(r"[\w-]+", requirement).group() for requirement in requirements]
    return [name for name in names if name != "isinglass"]


def test_every_dependency_is_pinned_for_development_and_listed_with_its_licence():
    extras = PROJECT["optional-dependencies"]
    needed = requirement_names([*PROJECT["dependencies"], *(one for extra in extras.values() for one in extra)])
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(set(needed)) == sorted(pinned)
    listed = (ROOT / "THIRD_PARTY.md").read_text("utf-8")
    assert not [name for name in needed if f"| {name} |" not in listed]
    assert re.search(r"^torch==2\.13\.0$", (ROOT / "constraints.txt").read_text("utf-8"), flags=re.MULTILINE)


def test_the_extra_all_has_every_other_but_those_under_the_gpl():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = re.search(r"\[(.*)\]", everything).group(1).split(",")
    assert sorted(named) == sorted(set(extras) - {"all", "dev", "heic"})


def test_published_weights_are_listed_with_their_licences():
    from isinglass.weights import records

    listed = (ROOT / "THIRD_PARTY.md").read_text("utf-8")
    for one in records():
        rows = [line for line in listed.splitlines() if f"`{one.name}`" in line]
        assert rows, f"{one.name} is not in THIRD_PARTY.md"
        assert any(one.licence.split(" (")[0] in row for row in rows), one.name
        assert one.paper in listed, one.paper


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    command += [str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("isinglass-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
    expected = {path.relative_to(ROOT / "src").as_posix() for path in SOURCES} | {"isinglass/py.typed"}
    assert expected <= members
    assert [name for name in members if name.endswith("dist-info/licenses/LICENSE")]
    assert not [name for name in members if not name.startswith("isinglass")]
    assert wheel.stat().st_size < 30e6


@pytest.mark.weights
def test_the_readme_runs(tmp_path, monkeypatch, motorcycle):
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE))
    assert blocks
    monkeypatch.chdir(tmp_path)
    for name, image in zip(("a.jpg", "b.jpg"), motorcycle[:2], strict=True):
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(name, quality=95)
    camera = np.array([[1000.0, 0, 320], [0, 1000, 240], [0, 0, 1]])
    names = {"K0": camera, "K1": camera}
    for block in blocks:
        lines_before = "\n" * readme[: block.start(1)].count("\n")  # so that an error names the README's line
        exec(compile(lines_before + block.group(1), "README.md", "exec"), names)
    results = [value for value in names.values() if isinstance(value, isinglass.MatchResult)]
    assert results
    assert all(len(result.points0) == len(result.points1) > 100 for result in results)


def test_a_pipeline_does_not_bring_torchs_compiler_along():
    """It takes as long to import as all the rest."""
    code = "import sys, isinglass.pipeline; print([name for name in sys.modules if name.startswith('torch._dynamo')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
