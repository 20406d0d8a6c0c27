"""Where a run is, in one safetensors file: `pretrained(path)` loads it, and training goes on from it.

The running mean of the weights has the model's own names. What only training needs is beside them: the weights as they
are, and the optimiser's two moments of each. A file is replaced only when the new one is whole.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from isinglass.errors import InputError, WeightsError, WriteError
from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.superglue import SuperGlue
from isinglass.train.check import LAST, about_run
from isinglass.weights.checkpoint import TrainingState, load_strictly, read_training_state, save_checkpoint

LICENCE = "Apache-2.0"  # of what people train with this; their photos' licences are theirs to know
MAY_CHANGE = ("steps", "validate_every", "validation_pairs", "save_every", "log_every", "notes")  # of a run's config
_OLD_PRECISIONS = {"32-true": "float32"}  # as runs of version 0.1 named it
_LOCK = ".lock"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts since the start. `updates` leaves out the `skipped` steps, whose gradient was not finite."""

    step: int = 0
    updates: int = 0
    skipped: int = 0
    pairs: int = 0
    seconds: float = 0.0
    best: float = 0.0
    best_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that changes in the course of a run."""

    model: LightGlue | SuperGlue
    mean: LightGlue | SuperGlue  # of the same structure: the running mean of the weights
    optimizer: torch.optim.Optimizer
    progress: Progress


def save_run(run: Run, path: Path, about: Mapping[str, Any], *, plain: nn.Module, accepts: tuple[str, ...]) -> None:
    """Write the checkpoint; `plain` is `mean` as the matcher that people load. Raises WeightsError if it cannot be."""
    tensors = {f"weights/{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"mean/{name}": value for name, value in run.mean.state_dict().items()}
    for name, value in run.model.named_parameters():
        kept = run.optimizer.state.get(value, {})
        tensors |= {f"{moment}/{name}": kept[moment] for moment in MOMENTS if moment in kept}
    save_checkpoint(
        plain,
        path,
        name=about["config"]["name"],
        licence=LICENCE,
        trained_on=about["trained_on"],
        accepts=accepts,
        training=TrainingState(tensors=tensors, about={**about, "progress": asdict(run.progress)}),
    )


def resume_run(run: Run, path: Path, about: Mapping[str, Any]) -> Mapping[str, Any]:
    """Set everything to what the file says, and return what it says of the run.

    Raises InputError where it is of another run than `about` describes, WeightsError where it is damaged.
    """
    kept = read_training_state(path)
    there = {**kept.about, "config": _with_new_names(kept.about.get("config"))}
    for name in ("config", "data", "validation_data"):
        if differing := _difference(there.get(name), about[name]):
            raise InputError(_other_run(path, name, differing))
    for module, prefix in ((run.model, "weights/"), (run.mean, "mean/")):
        load_strictly(module, _under(kept.tensors, prefix), f"{path} ({prefix.rstrip('/')})")
    progress = _progress_of(kept.about, path)
    moments = {moment: _under(kept.tensors, f"{moment}/") for moment in MOMENTS}
    for name, parameter in run.model.named_parameters():
        values = [moments[moment].get(name) for moment in MOMENTS]
        if all(value is None for value in values):
            continue
        if any(value is None or value.shape != parameter.shape or not value.is_floating_point() for value in values):
            raise WeightsError(f"{path} is damaged: the optimiser's moments of {name} do not fit. Get it again")
        run.optimizer.state[parameter] = {
            "step": torch.tensor(float(progress.updates)),
            **{moment: moments[moment][name].to(parameter.device) for moment in MOMENTS},
        }
    for name, value in asdict(progress).items():
        setattr(run.progress, name, value)
    return kept.about


def check_resumable(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what the run in the folder says of itself, None where there is none: cheap, to be done before work.

    Raises InputError where its checkpoint is none of a run, or its config another one; a precision of "auto" is the
    run's own.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    about = about_run(path)
    kept = _with_new_names(about["config"])
    auto = {"precision": kept["precision"]} if config["precision"] == "auto" else {}
    if differing := _difference(kept, {**config, **auto}):
        raise InputError(_other_run(path, "config", differing))
    return {**about, "config": kept}


def _with_new_names(config: Any) -> Any:
    """Return the config of a run with precisions as they are named now; what is none, as it is."""
    if not isinstance(config, dict):
        return config
    return {**config, "precision": _OLD_PRECISIONS.get(str(config.get("precision")), config.get("precision"))}


def _other_run(path: Path, name: str, differing: str) -> str:
    return f"{path} is of another run: its {name} {differing}. Choose another folder to begin anew"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder for this process. Raises InputError where another one trains in it, or it cannot be made."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process trains in {str(folder)!r}; wait for it, or choose another folder") from error
    except OSError as error:
        raise WriteError(f"{str(folder)!r} cannot be written ({error}); choose a folder you may write to") from error
    try:
        for left in (part for name in ("last", "best") for part in folder.glob(f".{name}.safetensors.*.tmp")):
            left.unlink(missing_ok=True)  # of a run that was killed while it wrote
        yield
    finally:
        lock.release()


def _progress_of(about: Mapping[str, Any], path: Path) -> Progress:
    """Return the counts that a file has. Raises WeightsError where they are none."""
    told, known = about.get("progress"), asdict(Progress())
    if not isinstance(told, dict) or any(name not in known or type(told[name]) not in (int, float) for name in told):
        raise WeightsError(f"{path} is damaged: its progress is {str(told)[:80]!r}. Get it again")
    return Progress(**told)


def made_by() -> dict[str, str | None]:
    """The version of this package and, where it lies in a git checkout, the commit ("+" = with changes)."""
    git = ["git", "-C", str(Path(__file__).parent)]
    version = importlib.metadata.version("isinglass")
    try:
        _, commit, changes = (
            subprocess.run([*git, *what], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for what in (
                ["ls-files", "--error-unmatch", Path(__file__).name],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", ".."],
            )
        )
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or one of something else
        return {"version": version, "commit": None}
    return {"version": version, "commit": commit + ("+" if changes else "")}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _difference(there: Any, here: Any) -> str:
    """What is not the same, empty if nothing that matters."""
    if not isinstance(there, dict):
        return "" if there == here else f"is {there!r} instead of {here!r}"
    keys = [key for key in here if key not in MAY_CHANGE and there.get(key) != here[key]]
    told = ", ".join(f"{key} {there.get(key)!r} instead of {here[key]!r}" for key in keys[:3])
    return f"differs: {told}" if told else ""
