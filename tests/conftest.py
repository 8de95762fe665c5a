"""Set before torch is imported: OpenMP threads that wait must not spin, and one is enough here."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, and nothing waits for a network

gc.disable()  # while some million objects are imported, all of which stay


def pytest_collection_finish() -> None:
    """What a process of the command line does once is not done for each of hundreds of tests.

    Nor is garbage looked for in what was imported: that took an eighth of the tests' time.
    """
    if "typer" in sys.modules:
        from typer import main, testing

        main.get_command = testing._get_command = functools.cache(main.get_command)
    gc.freeze()
    gc.enable()


@pytest.fixture
def short_pilots(monkeypatch):
    """Pilots of 6 samples for 24: most of the time of many a test was that of pilots."""
    for name in ("steering.pilot", "jobs.align", "diffusers.inside_loop"):
        if not name.startswith("diffusers") or importlib.util.find_spec("diffusers"):
            monkeypatch.setattr(importlib.import_module(f"glass_flows.{name}"), "SAMPLES", 6)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """Files are forced to the disk against power cuts, which no test brings about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield
