"""Rewards: callables on a batch of clean samples, (B, *shape) to (B,), higher is better."""

from __future__ import annotations

from .classes import ClassReward

__all__ = ["ClassReward"]
