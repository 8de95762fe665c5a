"""What the statistical tests of steering share."""

from __future__ import annotations

import pytest

from glass_flows.noise import TRANSITION, KeyedNoise, StreamNoise


class OneStream(KeyedNoise):
    """Noise of all particles at once; resampling has its keys as before."""

    def __call__(self, step, like, purpose=TRANSITION, draw=0):
        return StreamNoise(self.seed)(step, like, purpose, draw)


@pytest.fixture
def one_stream(monkeypatch):
    """A stream for each of 20,000 particles, as runs have it, costs more than all else in them."""
    monkeypatch.setattr("glass_flows.steering.population.KeyedNoise", OneStream)
