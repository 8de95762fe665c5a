"""Runs that last: a folder for each, written as it goes, read by people and by `report`."""

from __future__ import annotations

from .folder import RunFolder, clear_run, disk_is_full
from .processes import process_group, started_by_torchrun
from .record import RunRecord, find_runs, read_run
from .result import RESULT, Sample

__all__ = [
    "RESULT",
    "RunFolder",
    "RunRecord",
    "Sample",
    "clear_run",
    "disk_is_full",
    "find_runs",
    "process_group",
    "read_run",
    "started_by_torchrun",
]
