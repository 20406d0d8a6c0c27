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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isinglass.datasets.layout import PathLike
from isinglass.errors import MissingExtra, TrainingError
from isinglass.train.batch import PairBatch
from isinglass.train.config import TrainConfig
from isinglass.train.lora import Matcher, add_low_rank, merged
from isinglass.train.objective import Counts, Objective
from isinglass.train.sources import PairSource
from isinglass.train.state import Progress, Run, made_by, resume_run, save_run

LAST, BEST, LOG = "last.safetensors", "best.safetensors", "log.jsonl"
PATIENCE = 25  # steps in a row without a finite gradient
Tell = Callable[[Mapping[str, Any]], None]


class Trainer:
    """A run of `config` in `folder`, where it writes last.safetensors, best.safetensors and log.jsonl.

    source, validation  where pairs come from; validation has other images
    devices, accelerator, strategy  of Lightning Fabric
    trained_on  what the weights will say of their data; accepts: extractors whose features the matcher is for

    Raises MissingExtra where Fabric is not installed.
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
        self.config, self.source, self.validation, self.folder = config, source, validation, Path(folder)
        self.fabric = fabric or make_fabric(config)
        if self.fabric.world_size > 1:
            atexit.register(_leave_group)
        self.about = {
            "config": config.as_dict(),
            "data": source.digest,
            "validation_data": validation.digest,
            "trained_on": trained_on,
            "features": str(source.signature),
            "made_by": made_by(),
        }
        self.run_state = self._begin()

    def run(self, *, until_s: float = math.inf, tell: Tell = lambda row: None) -> Progress:
        """Train to the end, or for so many seconds. A run that is there already goes on where it was.

        `tell` gets each row of the log. Raises TrainingError where the loss is not finite for PATIENCE steps,
        WeightsError where the folder holds another run or cannot be written.
        """
        progress, began = self.run_state.progress, time.monotonic()
        before, bad = progress.seconds, 0
        log = _Log(self.folder, progress.step, tell) if self.fabric.is_global_zero else None
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._batch, progress.step)
            while progress.step < self.config.steps:
                batch, coming = coming.result(), ahead.submit(self._batch, progress.step + 1)
                row = self._step(batch)
                progress.seconds = before + time.monotonic() - began
                bad = 0 if row["finite"] else bad + 1
                if bad == PATIENCE:
                    raise TrainingError(self._exploded(row))
                last = progress.step == self.config.steps or progress.seconds - before > until_s
                if log and (progress.step % self.config.log_every == 0 or not row["finite"]):
                    log.add(self._told(row))
                if progress.step % self.config.validate_every == 0 or last:
                    found = self._validate()
                    if log:
                        log.add(found)
                if progress.step % self.config.save_every == 0 or last:
                    self._save(LAST)
                if last:
                    break
            coming.cancel()
        return progress

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
        norm = nn.utils.clip_grad_norm_([p for p in run.model.parameters() if p.requires_grad], config.clip_norm)
        finite = bool(self.fabric.all_reduce((norm + sums["loss"]).isfinite().float(), reduce_op="min") > 0)
        if finite:  # all processes agree
            run.optimizer.step()
            self._update_mean()
            run.progress.updates += 1
        else:
            run.progress.skipped += 1
        run.optimizer.zero_grad(set_to_none=True)
        run.progress.step += 1
        run.progress.pairs += len(batch) * self.fabric.world_size
        return {"finite": finite, "rate": rate, "norm": norm, **sums}

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
        progress = self.run_state.progress
        rate = progress.pairs / max(progress.seconds, 1e-9)
        left_s = (self.config.steps - progress.step) * self.config.batch_size / max(rate, 1e-9)
        values = {name: float(value) for name, value in row.items() if name != "finite"}
        about = {"step": progress.step, "pairs": progress.pairs, "seconds": round(progress.seconds, 2)}
        return {**about, **values, "finite": row["finite"], "pairs_a_second": rate, "left_s": left_s}

    def _validate(self) -> dict[str, Any]:
        """Of the mean weights, on the same pairs each time; the best so far are kept."""
        progress, config = self.run_state.progress, self.config
        self.mean_objective.eval()
        counts, losses, size = Counts(), [], min(config.batch_size, config.validation_pairs)
        for i in range(math.ceil(config.validation_pairs / size)):
            batch = self.validation.batch(size, np.random.default_rng([i, 1])).to(self.fabric.device)
            with torch.no_grad(), self.fabric.autocast():
                losses.append(float(self.mean_objective(**batch.tensors())["loss"]))
                counts += self.mean_objective.judge(batch)
        found = {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
        quality = counts.f1 if config.learn == "matching" else -float(np.mean(losses))
        if progress.best_step == 0 or quality > progress.best:
            progress.best, progress.best_step = quality, progress.step
            self._save(BEST)
        return {"step": progress.step, "pairs": progress.pairs, "validation_loss": float(np.mean(losses)), **found}

    def _save(self, name: str) -> None:
        run = self.run_state
        if self.fabric.is_global_zero:
            extractor = self.source.signature.extractor
            save_run(run, self.folder / name, self.about, plain=merged(run.mean), accepts=(extractor,))
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
        model = self._fresh_model()
        mean = copy.deepcopy(model).requires_grad_(False).to(self.fabric.device)
        learnt = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        self.objective, optimizer = self.fabric.setup(
            Objective(model, self.config.learn, deep_supervision=self.config.deep_supervision), optimizer
        )
        self.mean_objective = Objective(mean, self.config.learn)
        run = Run(model=model, mean=mean, optimizer=optimizer, progress=Progress())
        if (self.folder / LAST).is_file():
            resume_run(run, self.folder / LAST, self.about)
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


def make_fabric(config: TrainConfig, **options: Any) -> Any:
    """Lightning Fabric in the config's precision, launched. Raises MissingExtra where it is not installed."""
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtra("lightning-fabric", "train") from error
    fabric = Fabric(precision=config.precision, **options)
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
        rows = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= step]
        self.path.write_text("".join(f"{row}\n" for row in kept))
        self.board = _board(folder)

    def add(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name in row.keys() - {"step", "finite"}:
                self.board.add_scalar(name, row[name], row["step"])
            self.board.flush()
        self.tell(row)


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard")
