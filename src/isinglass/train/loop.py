"""The training loop, on Lightning Fabric: the same on one CPU, one GPU or many.

Every batch is a function of the seed, the step and the process, and a checkpoint holds all that changes: a run that was
killed and taken up again has the same losses as one that was not.
"""

from __future__ import annotations

import atexit
import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isinglass.datasets.layout import PathLike
from isinglass.devices import find_device
from isinglass.errors import MissingExtra, TrainingError
from isinglass.files import write_atomically
from isinglass.train.batch import PairBatch
from isinglass.train.budget import Budget
from isinglass.train.check import BEST, LAST, LOG
from isinglass.train.config import TrainConfig
from isinglass.train.lora import Matcher, add_low_rank, merged
from isinglass.train.objective import Counts, Objective
from isinglass.train.precision import FABRIC, Choice, choose_precision
from isinglass.train.sources import PairSource
from isinglass.train.state import Progress, Run, check_resumable, made_by, only_one, resume_run, save_run

PATIENCE = 25  # steps in a row without a finite gradient
EARLY = (1, 2, 3, 5, 10, 20)  # steps that are reported beside every `log_every`-th
SAVE_EVERY_S = 120.0  # a run that is killed loses no more than that
_NAMES: dict[str, Any] = {fabric: name for name, fabric in FABRIC.items()}
Tell = Callable[[Mapping[str, Any]], None]


class Trainer:
    """A run of `config` in `folder`, where it writes last.safetensors, best.safetensors and log.jsonl.

    source, validation  where pairs come from; validation has other images
    devices, accelerator, strategy  of Lightning Fabric
    trained_on  what the weights will say of their data; accepts: extractors whose features the matcher is for

    Raises MissingExtra where Fabric is not installed, InputError where the folder holds another run.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: PairSource,
        validation: PairSource,
        folder: PathLike,
        *,
        trained_on: str,
        fabric: Any = None,
    ) -> None:
        self.source, self.validation, self.folder = source, validation, Path(folder)
        if config.precision == "auto" and fabric is not None:
            config = replace(config, precision=_NAMES[fabric.strategy.precision.precision])
        elif config.precision == "auto":
            config = settled(config, folder, find_device())[0]
        self.config, self.fabric = config, fabric or make_fabric(config)
        if self.fabric.world_size > 1:
            atexit.register(_leave_group)
        self.about = {
            "config": self.config.as_dict(),
            "data": source.digest,
            "validation_data": validation.digest,
            "trained_on": trained_on,
            "features": str(source.signature),
            "made_by": made_by(),
        }
        self.budget = Budget()
        self.run_state = self._begin()

    def run(self, *, until_s: float = math.inf, tell: Tell = lambda row: None) -> Progress:
        """Train to the end, or for so many seconds, in which the last validation and checkpoint are included.

        A run that is there already goes on where it was. At least one step is made. The last validation is left out
        where there is no time for it. `tell` gets the rows of the log, and those of the first steps of this call.
        Raises TrainingError where the loss is not finite for PATIENCE steps, InputError where another process trains
        in the folder, WeightsError where a checkpoint cannot be written.
        """
        self.budget = Budget(until_s)
        with only_one(self.folder) if self.fabric.is_global_zero else nullcontext():
            return self._run(tell)

    def _run(self, tell: Tell) -> Progress:
        progress, config = self.run_state.progress, self.config
        log = _Log(self.folder, progress.step, tell) if self.fabric.is_global_zero else None
        bad, first, validated, saved, saved_at = 0, progress.step, progress.step, progress.step, time.monotonic()
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._batch, progress.step)
            while progress.step < config.steps and (progress.step == first or self._agreed(self.budget.allows_step())):
                start = time.monotonic()
                batch, coming = coming.result(), ahead.submit(self._batch, progress.step + 1)
                row = self._step(batch)
                bad = 0 if row["finite"] else bad + 1
                if bad == PATIENCE:
                    raise TrainingError(self._exploded(row))
                self.budget.add_step(time.monotonic() - start)
                if progress.step == first + 1 and math.isfinite(self.budget.deadline):
                    self.budget.validation_s = self._estimate_validation()
                progress.seconds += time.monotonic() - start
                if log:
                    log.report(self._told(row), config.log_every, progress.step - first)
                if progress.step % config.validate_every == 0 and self._agreed(self.budget.allows_validation()):
                    validated = self._validate_and_log(log)
                too_long = time.monotonic() - saved_at > SAVE_EVERY_S
                if progress.step % config.save_every == 0 or self._agreed(too_long):
                    self._save(LAST)
                    saved, saved_at = progress.step, time.monotonic()
            coming.cancel()
        if validated < progress.step and self._agreed(self.budget.allows_validation()):
            self._validate_and_log(log)
            saved = -1  # what is best is part of the checkpoint
        if saved < progress.step:
            self._save(LAST)
        return progress

    def _agreed(self, decision: bool) -> bool:
        """Return what the first process decides: clocks differ."""
        return decision if self.fabric.world_size == 1 else bool(self.fabric.broadcast(decision))

    # --- a step

    def _batch(self, step: int) -> PairBatch:
        """The part of the batch of this process."""
        rng = np.random.default_rng([self.config.seed, step, self.fabric.global_rank])
        return self.source.batch(self.config.batch_size // self.fabric.world_size, rng)

    def _step(self, batch: PairBatch) -> dict[str, Any]:
        run, config = self.run_state, self.config
        rate = config.learning_rate_at(run.progress.step)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        self.objective.train()
        parts = batch.to(self.fabric.device).split(config.accumulate)
        sums: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.objective, enabled=i + 1 < len(parts)):
                losses = self.objective(**part.tensors())
                self.fabric.backward(losses["loss"] / len(parts))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        norm = self.fabric.clip_gradients(
            self.objective, run.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
        )
        finite = bool(self.fabric.all_reduce((norm + sums["loss"]).isfinite().float(), reduce_op="min") > 0)
        if finite:  # all processes agree
            run.optimizer.step()
            self._update_mean()
            run.progress.updates += 1
        else:
            run.progress.skipped += 1
            if self._scaler is not None:
                self._scaler.update()  # to a smaller scale, at which float16 may hold the gradient
        run.optimizer.zero_grad(set_to_none=True)
        run.progress.step += 1
        run.progress.pairs += len(batch) * self.fabric.world_size
        return {"finite": finite, "rate": rate, "norm": norm, **sums}

    @property
    def _scaler(self) -> Any:
        """The scaler of float16's gradients; None in other precisions."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    @torch.no_grad()
    def _update_mean(self) -> None:
        run = self.run_state
        decay = min(self.config.ema, (1 + run.progress.updates) / (10 + run.progress.updates))
        for mean, value in zip(run.mean.parameters(), run.model.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - decay)
        for mean, value in zip(run.mean.buffers(), run.model.buffers(), strict=True):
            mean.copy_(value)

    # --- what is said and kept

    def _told(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of the log. `left_s`: until this call ends; `last_step`: where that will be."""
        progress, budget = self.run_state.progress, self.budget
        to_come = self.config.steps - progress.step
        left_s = to_come * budget.step_s + to_come / self.config.validate_every * budget.validation_s
        last_step = self.config.steps
        if budget.left_s < left_s:
            left_s, last_step = budget.left_s, min(last_step, progress.step + int(budget.steps_left()))
        values = {name: float(value) for name, value in row.items() if name != "finite"}
        about = {"step": progress.step, "pairs": progress.pairs, "seconds": round(progress.seconds, 2)}
        speed = {"pairs_a_second": self.config.batch_size / max(budget.step_s, 1e-9), "left_s": left_s}
        return {**about, **values, "finite": row["finite"], **speed, "last_step": last_step}

    def _estimate_validation(self) -> float:
        """Return about how many seconds a validation takes, from one of its batches."""
        start = time.monotonic()
        self._validate_batch(0)
        return (time.monotonic() - start) * self._validation_batches

    @property
    def _validation_size(self) -> int:
        return min(self.config.batch_size, self.config.validation_pairs)

    @property
    def _validation_batches(self) -> int:
        return math.ceil(self.config.validation_pairs / self._validation_size)

    def _validate_batch(self, i: int) -> tuple[float, Counts]:
        self.mean_objective.eval()
        batch = self.validation.batch(self._validation_size, np.random.default_rng([i, 1])).to(self.fabric.device)
        with torch.no_grad(), self.fabric.autocast():
            return self.mean_objective.evaluate(batch)

    def _validate_and_log(self, log: _Log | None) -> int:
        """Validate, and return at which step that was; 0 where the time was over before the end of it."""
        start, progress = time.monotonic(), self.run_state.progress
        found = self._validate()
        seconds = time.monotonic() - start
        progress.seconds += seconds
        if found is None:
            return 0
        self.budget.set_validation(seconds)
        if log:
            log.add(found)
        return progress.step

    def _validate(self) -> dict[str, Any] | None:
        """Judge the mean weights, on the same pairs each time, and keep them if they are the best so far.

        Returns None where only the last checkpoints fit before the deadline.
        """
        progress, config, results = self.run_state.progress, self.config, []
        for i in range(self._validation_batches):
            if i and not self._agreed(self.budget.allows_going_on()):
                return None
            results.append(self._validate_batch(i))
        loss, counts = float(np.mean([loss for loss, _ in results])), sum((one for _, one in results), Counts())
        found = {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
        quality = counts.f1 if config.learn == "matching" else -loss
        if progress.best_step == 0 or quality > progress.best:
            progress.best, progress.best_step = quality, progress.step
            self._save(BEST)
        return {"step": progress.step, "pairs": progress.pairs, "validation_loss": loss, **found}

    def _save(self, name: str) -> None:
        run, about = self.run_state, dict(self.about)
        if self._scaler is not None:
            about["scaler"] = self._scaler.state_dict()
        if self.fabric.is_global_zero:
            extractor = self.source.signature.extractor
            with self.budget.saving():
                save_run(run, self.folder / name, about, plain=merged(run.mean), accepts=(extractor,))
        self.fabric.barrier()

    def _exploded(self, row: Mapping[str, Any]) -> str:
        progress, last = self.run_state.progress, self.folder / LAST
        kept, also = "nothing was saved yet", ""
        if last.is_file():
            kept, also = f"{last} has all up to its last save", ", or from those weights,"
        return (
            f"the loss or its gradient was not finite for {PATIENCE} steps in a row, up to step {progress.step}, at a "
            f"learning rate of {row['rate']:.3g}: {kept}. Begin anew{also} with a lower learning_rate"
        )

    # --- the start

    def _begin(self) -> Run:
        self.fabric.seed_everything(self.config.seed, verbose=False)
        model = self._fresh_model().to(self.fabric.device)  # before the optimizer takes its parameters
        mean = copy.deepcopy(model).requires_grad_(False)
        learnt = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        self.objective, optimizer = self.fabric.setup(
            Objective(model, self.config.learn, deep_supervision=self.config.deep_supervision), optimizer
        )
        self.mean_objective = Objective(mean, self.config.learn)
        run = Run(model=model, mean=mean, optimizer=optimizer, progress=Progress())
        if (self.folder / LAST).is_file():
            kept = resume_run(run, self.folder / LAST, self.about)
            if self._scaler is not None and "scaler" in kept:
                self._scaler.load_state_dict(kept["scaler"])
        return run

    def _fresh_model(self) -> Matcher:
        config = self.config
        model = config.make_model()
        if config.start is not None:
            start = type(model).pretrained(config.start, **asdict(config.model))
            model.load_state_dict(start.state_dict())
        if config.lora_rank:
            add_low_rank(model, config.lora_rank)
        for name, value in model.named_parameters():
            of_confidence = name.startswith("confidences.")
            if name.startswith(config.frozen) or of_confidence != (config.learn == "confidence"):
                value.requires_grad_(False)
        return model


def settled(config: TrainConfig, folder: PathLike, device: torch.device) -> tuple[TrainConfig, Choice]:
    """Return the config with its precision chosen for the device, and why; a run that is there keeps its own.

    Raises InputError where the device cannot train in the precision that is wanted, or the folder holds a run of
    another config.
    """
    kept = check_resumable(Path(folder), config.as_dict())
    if config.precision == "auto" and kept is not None:
        choice = choose_precision(kept["config"]["precision"], device, config.model)
        choice = replace(choice, reason="as the run began")
    else:
        choice = choose_precision(config.precision, device, config.model)
    return replace(config, precision=choice.precision), choice  # pyright: ignore[reportArgumentType]


def make_fabric(config: TrainConfig, **options: Any) -> Any:
    """Return Lightning Fabric in the config's precision, launched. Raises MissingExtra where it is not installed."""
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtra("lightning-fabric", "train") from error
    if config.precision == "auto":
        place = torch.device(options.get("accelerator", "cpu"))
        config = replace(config, precision=choose_precision("auto", place, config.model).precision)  # pyright: ignore[reportArgumentType]
    fabric = Fabric(precision=FABRIC[config.precision], **options)
    fabric.launch()
    return fabric


def _leave_group() -> None:
    """gloo's threads, left running, may abort a process that has done all its work; Fabric only ends nccl's."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Log:
    """One JSON object a line, and TensorBoard's file where that is installed. Rows after `step` are forgotten."""

    def __init__(self, folder: Path, step: int, tell: Tell) -> None:
        self.path, self.tell = folder / LOG, tell
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            rows = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [row for row in rows if (number := _step_of(row)) is not None and number <= step]
            with write_atomically(self.path) as temporary:
                temporary.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")
        self.board = _board(folder)

    def report(self, row: Mapping[str, Any], every: int, since_start: int) -> None:
        """Keep and tell a step's row if it is one of every so many, early, or bad; only tell it if early in this call.

        A log is so the same whether or not a run was stopped in between.
        """
        if row["step"] % every == 0 or row["step"] in EARLY or not row["finite"]:
            self.add(row)
        elif since_start in EARLY:
            self.tell(row)

    def add(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name in row.keys() - {"step", "finite"}:
                self.board.add_scalar(name, row[name], row["step"])
            self.board.flush()
        self.tell(row)


def _step_of(row: str) -> int | None:
    """The step of a row of the log, None where it is not whole: its process was killed."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard")
