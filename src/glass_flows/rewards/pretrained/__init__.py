"""Rewards from pre-trained models: CLIP score, PickScore, HPS v2.1, ImageReward, aesthetics.

transformers' own classes with a preprocessing in torch, so that gradients reach the pixels. Needs
the extra "rewards". Weights are read from safetensors only, and no code from a hub is run. The last
three are published as pickled files: :func:`convert_reward` reads one as tensors, once.

===========  ============================  ==============  ==================  ===========
name         score                         usual values    standard deviation  suggested λ
===========  ============================  ==============  ==================  ===========
clip         100 cos(image, text)          20 to 35        about 2             0.5 to 2
pickscore    exp(logit_scale) cos          18 to 24        about 1             1 to 5
hps          cos(image, text)              0.2 to 0.35     about 0.02          50 to 200
imagereward  linear in BLIP's feature      -2 to 2         about 0.5           2 to 10
aesthetic    linear in CLIP's image        4 to 7          about 0.4           2 to 10
===========  ============================  ==============  ==================  ===========

A λ is the inverse of the difference in reward that shall multiply the odds by e: about one over the
standard deviation among samples of one prompt, more for a stronger pull.
"""

from .base import Preprocessing, PretrainedReward
from .blip import BlipReward
from .clip import AestheticReward, ImageTextReward
from .convert import CONVERTIBLE, convert_reward
from .load import PRETRAINED, REWARDS, Source, pretrained_reward

__all__ = [
    "CONVERTIBLE",
    "PRETRAINED",
    "REWARDS",
    "AestheticReward",
    "BlipReward",
    "ImageTextReward",
    "Preprocessing",
    "PretrainedReward",
    "Source",
    "convert_reward",
    "pretrained_reward",
]
