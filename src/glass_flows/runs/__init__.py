"""Runs that last: a folder for each, written as it goes, read by people and by `report`."""

from __future__ import annotations

from .folder import RunFolder, RunRecord, find_runs, read_run

__all__ = ["RunFolder", "RunRecord", "find_runs", "read_run"]
