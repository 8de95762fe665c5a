"""The Shapes world: scenes with prompts in plain English, and a judge that reads images."""

from __future__ import annotations

from .judge import TOLERANCE, Finding, accepts, examine
from .world import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    SHAPES,
    SINGLE,
    SIZES,
    TWO,
    Placed,
    Prompt,
    Thing,
    contradict,
    contradictions,
    holds,
    prompts,
    render,
    sample_prompt,
    sample_scene,
)

__all__ = [
    "BACKGROUNDS",
    "CATEGORIES",
    "COLOURS",
    "SHAPES",
    "SINGLE",
    "SIZES",
    "TOLERANCE",
    "TWO",
    "Finding",
    "Placed",
    "Prompt",
    "Thing",
    "accepts",
    "contradict",
    "contradictions",
    "examine",
    "holds",
    "prompts",
    "render",
    "sample_prompt",
    "sample_scene",
]
