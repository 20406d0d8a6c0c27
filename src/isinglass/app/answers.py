"""What requests are answered with, as OpenAPI shows it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Point = tuple[float, float]


class Problem(BaseModel):
    """Why a request was refused: what came, what was expected, what to do."""

    detail: str


class Model(BaseModel):
    """What the matches agree on, in px of the photos as stored: x1 ~ H x0 or x1^T F x0 = 0."""

    kind: Literal["homography", "fundamental"]
    matrix: list[list[float]] = Field(description="3 x 3, row by row")
    num_inliers: int


class MatchAnswer(BaseModel):
    """Matches of two photos. Points are (x, y) px of the photos as stored, (0, 0) = centre of the top-left pixel."""

    model_config = ConfigDict(extra="forbid")

    extractor: str
    matcher: str
    options: dict[str, Any] = Field(description="that were used")
    sizes: list[tuple[int, int]] = Field(description="(width, height) of both photos")
    keypoints: list[list[Point]] = Field(description="of both photos")
    pairs: list[tuple[int, int]] = Field(description="keypoint of the first and of the second photo; [] = no match")
    scores: list[float] = Field(description="of the pairs, 0 to 1")
    probabilities: list[float] | None = Field(description="that a pair is right; null: the matcher is not calibrated")
    inliers: list[bool] | None = Field(description="pairs that agree with the model; null: not asked for")
    model: Model | None = Field(description="null: not asked for, or none")
    stop_layer: int | None = Field(description="layers that were run")
    num_layers: int | None = Field(description="that the matcher has")
    timings_ms: dict[str, float] = Field(description="by stage")
    notes: list[str] = Field(description="for people")
    sha256: str = Field(description="of all other fields as ASCII JSON, keys sorted, no spaces")


class Submitted(BaseModel):
    """A job was queued. Its id is a secret: whoever has it can fetch the result."""

    id: str


class JobAnswer(BaseModel):
    """Where a job stands.

    `position` is how many are before it; `progress`, 0 to 1, is about right, null where it is not known.
    """

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    stage: str
    position: int
    progress: float | None
    error: str | None


class Health(BaseModel):
    """That the server is there, and how many jobs wait or run."""

    status: Literal["ok"]
    version: str
    waiting: int


class Choices(BaseModel):
    """What can be chosen; an extractor's or matcher's `available` is false where it cannot be had here."""

    extractors: list[dict[str, Any]]
    matchers: list[dict[str, Any]]
    defaults: dict[str, Any]
    limits: dict[str, float]
    examples: list[dict[str, Any]]
    live: dict[str, Any]
