"""One step's forward pass: what a matcher says of a batch, what it loses, and how right it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isinglass.matchers.lightglue import LightGlue, Prediction
from isinglass.matchers.superglue import SuperGlue
from isinglass.train.batch import IGNORED, PairBatch
from isinglass.train.losses import confidence_loss, lightglue_loss, matches_of, superglue_loss


class Objective(nn.Module):
    """A matcher and its loss as one module, so that gradients are averaged over processes whatever is learnt."""

    def __init__(self, model: LightGlue | SuperGlue, learn: str, *, deep_supervision: bool = True) -> None:
        super().__init__()
        self.model, self.learn, self.deep_supervision = model, learn, deep_supervision

    def forward(self, **tensors: Any) -> dict[str, Tensor]:
        """Return losses, 0-d, "loss" among them, of the fields of a `PairBatch` (Fabric takes no frozen dataclass)."""
        return self._losses(PairBatch(**tensors))[0]

    @torch.no_grad()
    def evaluate(self, batch: PairBatch) -> tuple[float, Counts]:
        """Return the loss, and how right the matcher is, by one run of all layers for all points."""
        losses, log_assignment_BNN = self._losses(batch)
        return float(losses["loss"]), self._counts(log_assignment_BNN, batch)

    @torch.no_grad()
    def judge(self, batch: PairBatch) -> Counts:
        """Return how right the matcher is, all layers for all points."""
        return self._counts(self.log_assignment(batch), batch)

    def _counts(self, log_assignment_BNN: Tensor, batch: PairBatch) -> Counts:
        matches_BN = matches_of(log_assignment_BNN, self.model.config.filter_threshold)[:, 0]
        return counts_of(matches_BN, batch.target_B2N[:, 0])

    def _losses(self, batch: PairBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses, and the assignment of the last layer without dustbins."""
        if isinstance(self.model, SuperGlue):
            log_assignment_BNN = self._superglue(self.model, batch)
            return superglue_loss(log_assignment_BNN, batch.target_B2N), log_assignment_BNN[:, :-1, :-1]
        every_layer = self.deep_supervision or self.learn == "confidence"
        predictions = self._lightglue(self.model, batch, every_layer=every_layer)
        if self.learn == "confidence":
            losses = confidence_loss(predictions, self.model.config.filter_threshold)
        else:
            losses = lightglue_loss(predictions, batch.target_B2N)
        return losses, predictions[-1].log_assignment_BNN

    def log_assignment(self, batch: PairBatch) -> Tensor:
        """(B, N, N), of the last layer, without dustbins."""
        if isinstance(self.model, SuperGlue):
            return self._superglue(self.model, batch)[:, :-1, :-1]
        return self._lightglue(self.model, batch, every_layer=False)[-1].log_assignment_BNN

    def _lightglue(self, model: LightGlue, batch: PairBatch, *, every_layer: bool) -> list[Prediction]:
        return model(
            batch.keypoints_B2N2,
            batch.descriptors_B2ND,
            batch.image_size_B22,
            batch.scale_orientation_B2N2 if model.config.scale_orientation else None,
            batch.mask_B2N,
            every_layer=every_layer,
        )

    def _superglue(self, model: SuperGlue, batch: PairBatch) -> Tensor:
        return model(
            batch.keypoints_B2N2, batch.descriptors_B2ND, batch.scores_B2N, batch.image_size_B22, batch.mask_B2N
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the keypoints of view 0: how many have a match, how many matches were found, and how many of those are right.

    Points whose truth is ignored count nowhere.
    """

    true: int = 0
    found: int = 0
    right: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.true + other.true, self.found + other.found, self.right + other.right)

    @property
    def precision(self) -> float:
        """Share of what is found that is right; 0 where nothing is found."""
        return self.right / max(self.found, 1)

    @property
    def recall(self) -> float:
        """Share of what is there that is found."""
        return self.right / max(self.true, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        return 2 * self.right / max(self.true + self.found, 1)


def counts_of(matches_BN: Tensor, target_BN: Tensor) -> Counts:
    """Of the matches of view 0."""
    known_BN = target_BN != IGNORED
    found_BN = (matches_BN >= 0) & known_BN
    right_BN = found_BN & (matches_BN == target_BN)
    return Counts(int((target_BN >= 0).sum()), int(found_BN.sum()), int(right_BN.sum()))
