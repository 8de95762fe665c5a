"""Models: exact mixtures, the ground truth, and the small networks shipped with the package."""

from __future__ import annotations

from .digits import DigitsClassifier, DigitsNet, load_digits_classifier, load_digits_network
from .mixtures import GaussianMixture, MixtureDenoiser, digits_mixture

__all__ = [
    "DigitsClassifier",
    "DigitsNet",
    "GaussianMixture",
    "MixtureDenoiser",
    "digits_mixture",
    "load_digits_classifier",
    "load_digits_network",
]
