"""What the doctor says: findings, how much each stage left, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

CHECKS = (  # in the order of the report; of several problems the verdict names the first
    *("signature", "reading", "values", "coordinates", "exposure", "keypoints", "rotation", "scale", "threshold"),
    *("overlap", "geometry", "matching", "sharpness"),
)
Status = Literal["ok", "warning", "problem"]
POOR_INLIERS = 30  # under this a pair is poor: twice what a geometry needs to be believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check of CHECKS: what was measured, and what to do if all is not well."""

    check: str
    status: Status
    measured: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """How much is left after each stage. `inliers` is None where PoseLib is not installed."""

    keypoints0: int
    keypoints1: int
    candidates: int = 0  # keypoints with a mutual partner, whatever its score
    matches: int = 0  # those over the matcher's least score
    inliers: int | None = None  # those that agree on one geometry

    @property
    def lost_at(self) -> Literal["detector", "descriptors", "threshold", "geometry"] | None:
        """The first stage that leaves fewer than POOR_INLIERS; None if all leave enough."""
        if min(self.keypoints0, self.keypoints1) < POOR_INLIERS:
            return "detector"
        if self.candidates < POOR_INLIERS:
            return "descriptors"
        if self.matches < POOR_INLIERS:
            return "threshold"
        return "geometry" if self.inliers is not None and self.inliers < POOR_INLIERS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is known of a pair. `str()` is the report for people, `as_dict()` the one for machines."""

    findings: tuple[Finding, ...]
    stages: Stages

    @property
    def verdict(self) -> str:
        """One line: how well the pair matches, and the likeliest cause if that is badly."""
        agree = "" if self.stages.inliers is None else f", {self.stages.inliers} of them in agreement"
        counts = f"{self.stages.matches} matches{agree}." if self.stages.matches else "No matches."
        problem = next((one for one in self.findings if one.status == "problem"), None)
        if problem is not None:
            return f"{counts} Likely cause, {problem.check}: {problem.measured}. {problem.advice}"
        if self.stages.lost_at is None:
            return f"{counts} The pair matches well."
        warned = [one.check for one in self.findings if one.status == "warning"]
        return f"{counts} No cause could be shown; see {', '.join(warned)}."

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        stages = {**asdict(self.stages), "lost_at": self.stages.lost_at}
        return {"verdict": self.verdict, "stages": stages, "findings": [asdict(one) for one in self.findings]}

    def __str__(self) -> str:
        lines = [self.verdict, ""]
        for one in self.findings:
            lines.append(f"  {one.status:<9}{one.check:<13}{one.measured}")
            if one.advice:
                lines.append(f"{'':<24}-> {one.advice}")
        return "\n".join(lines)
