"""What the tests of pipelines share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _short(short_pilots):
    """Many a test leaves the scale to a pilot; of how many samples is the matter of few."""
