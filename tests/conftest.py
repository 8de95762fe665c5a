"""Set before torch is imported: OpenMP threads that wait must not spin, and one is enough here."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, and nothing waits for a network


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Files are forced to the disk against power cuts, which no test brings about."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
