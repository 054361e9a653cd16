"""What of a run record and of a summary is read again, with its types; other keys may stand beside these."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict

from virnucpro.stored_json import Count

Facts = dict[str, str | int | float | bool | list[str | int | float] | None]
"""What a page lists."""


class _Model(TypedDict, total=False):
    name: str
    fingerprint: str
    encoders: dict[str, str]
    files: dict[str, str]


class _Cascade(TypedDict, total=False):
    seconds: dict[str, float]


class _Called(TypedDict, total=False):
    run: str


class _Request(TypedDict):
    settings: dict[str, Any]
    options: dict[str, Any]


class RunRecord(TypedDict, total=False):
    """``STEM.run.json``."""

    version: str
    command: list[str]
    started: datetime
    warnings: list[str]
    request: _Request
    versions: dict[str, str]
    hardware: Facts
    parameters: Facts
    model: _Model
    cascade: _Cascade
    called: _Called
    inputs: list[Facts]
    counts: dict[str, Any]
    outputs: dict[str, str]
    seconds: dict[str, float]


class _CascadeSummary(TypedDict, total=False):
    sequences_by_model: dict[str, Count]
    bases_by_model: dict[str, Count]


class Summary(TypedDict, total=False):
    """``STEM.summary.json``."""

    input: str
    model: str
    model_fingerprint: str
    preset: str | None
    threshold_virus: float | None
    threshold_not_virus: float | None
    fdr: float | None
    prevalence: float | None
    prevalence_is: str
    num_sequences: Count
    num_rows_failed: Count
    cascade: _CascadeSummary
    calls_digest: str
