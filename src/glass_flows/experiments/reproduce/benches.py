"""What is steered and how it is judged: the digits, a diffusers pipeline, or a SiT."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Union

import numpy as np
import torch
from PIL import Image

from ...errors import InvalidArgument, MissingExtra
from ...models.digits import (
    IMAGE,
    digits_images,
    digits_labels,
    load_digits_classifier,
)
from ...models.shapes import Prompt, accepts, prompts
from ...models.shapes.pipeline import CALL
from ...rewards import ClassReward, Decoded, evaluate
from ...steering import SearchResult, best_of, steer
from ..align import DIGITS_STD, digits_denoiser
from ..align_pipeline import load_pipeline, load_reward, of_shapes
from ..judging import Estimate, diversity, frechet_distance, half_samples, mean, share
from ..prompt_sets import PromptEntry, read_prompts, write_geneval
from .base import Scale

__all__ = ["Bench", "Digits", "LabelledSiT", "Pipeline", "bench_of"]

Images = list[Image.Image]
Found = dict[str, Union[Estimate, float]]


class Bench(Protocol):
    """A model with a reward, targets to steer towards, and tuned strengths.

    Attributes
    ----------
    targets : list of dict
        What is steered towards, one at a time, under "target"; other entries sort them.
    particles : int
        N.
    scale, guidance : float
        λ, and the scale of guidance through the reward.
    sigma_data : float
        Standard deviation of the data.
    """

    targets: list[dict[str, str]]
    particles: int
    scale: float
    guidance: float
    sigma_data: float

    def run(self, settings: dict[str, Any], target: str, images: Path) -> Found:
        """The best of N particles by the reward, run by run, and what it is worth.

        `images` is a folder for them, where they are worth keeping.
        """
        ...


class Digits:
    """The bundled digits: each class is a target, and an independent classifier the judge."""

    particles, scale, guidance, sigma_data = 4, 16.0, 1.0, DIGITS_STD

    def __init__(self, scale: Scale) -> None:
        self.runs, self.seed = scale.of(96, 16), scale.seed
        self.targets = [{"target": str(n)} for n in range(scale.of(10, 2))]
        self.denoiser = digits_denoiser()
        self.reward, self.judge = (
            load_digits_classifier("reward"),
            load_digits_classifier("judge"),
        )

    def run(self, settings: dict[str, Any], target: str, images: Path) -> Found:
        label, given = int(target), dict(settings)
        sampler = best_of if given.pop("method", "steering") == "best-of-n" else steer
        result = sampler(
            self.denoiser,
            ClassReward(self.reward, label),
            shape=IMAGE,
            populations=self.runs,
            seed=self.seed + 1009 * label,
            progress=False,
            **given,
        )
        best = result.best
        with torch.no_grad():
            verdicts = (self.judge(best).argmax(1) == label).double().numpy()
            features, real = (
                self.judge.features(shown).double().numpy()
                for shown in (best, digits_images()[digits_labels() == label])
            )
        return {
            "judge": share(verdicts),
            "reward": mean(result.rewards.amax(1).double().numpy()),
            "other reward": mean(
                evaluate(ClassReward(self.judge, label), best, "the judge").double().numpy()
            ),
            "Fréchet": half_samples(features, lambda s: frechet_distance(s, real), rounds=30),
            "diversity": half_samples(features, diversity, rounds=30),
            "evaluations": (result.network_evaluations + result.network_gradients) / self.runs,
        }


class Pipeline:
    """A diffusers pipeline and a pre-trained reward; the targets are the prompts.

    The best images are written where GenEval's evaluator looks for them. The Shapes pipeline has
    prompts of its own and a judge.
    """

    particles, guidance, sigma_data = 4, 1.0, 1.0

    def __init__(self, scale: Scale) -> None:
        self.seed = scale.seed
        self.scale = 0.5 if scale.strength is None else scale.strength
        self.shapes = of_shapes(scale.model)
        if scale.prompts:
            entries = read_prompts(scale.prompts, count=scale.of(10**9, 2))
        elif self.shapes:
            listed = prompts("test", scale.of(120, 6), scale.seed)
            entries = [PromptEntry(i, str(p), p.category) for i, p in enumerate(listed)]
        else:
            raise InvalidArgument(
                f"the model {scale.model!r} needs --prompts FILE (.txt, .jsonl, .tsv, .csv)"
            )
        self.prompts = {f"{entry.number:05}": entry for entry in entries}
        self.targets = [
            {"category": entry.category or "all", "target": name}
            for name, entry in self.prompts.items()
        ]
        self.reward, *self.others = (
            load_reward(name, model=scale.model) for name in (scale.reward, *scale.also)
        )
        self.load(scale)

    def load(self, scale: Scale) -> None:
        """The model."""
        self.pipe = load_pipeline(scale.model)

    def draw(self, settings: dict[str, Any], entry: PromptEntry) -> tuple[Images, SearchResult]:
        """The particles of one prompt."""
        from ...integrations.diffusers import steer_pipeline

        call = {**CALL, "decode_batch": None} if self.shapes else {}
        label: Any = entry.text
        if type(self.pipe).__name__ == "DiTPipeline":
            label = int(label) if label.isdigit() else self.pipe.get_label_ids(label)[0]
        found = steer_pipeline(
            self.pipe, label, self.reward, seed=self.seed + 1009 * entry.number, progress=False,
            **call, **settings,
        )  # fmt: skip
        return found.images[0], found.result

    def run(self, settings: dict[str, Any], target: str, images: Path) -> Found:
        entry = self.prompts[target]
        drawn, result = self.draw(settings, entry)
        best = drawn[int(result.rewards[0].argmax())]
        write_geneval(images, entry, [best])
        costs = result.costs
        found: Found = {
            "reward": float(result.rewards.max()),
            "evaluations": costs.network_evaluations + costs.network_gradients,
        }
        for reward in self.others:
            score = float(evaluate(reward, _pixels([best]), "the best image", [entry.text]))
            found |= {reward.name: score, "other reward": found.get("other reward", score)}
        if len(drawn) > 1 and hasattr(self.reward, "features"):
            features = self.reward.features(_pixels(drawn))
            found["diversity"] = diversity(features.double().cpu().numpy())
        if self.shapes:
            (accepted,) = accepts([np.asarray(best)], [Prompt.parse(entry.text)])
            found["judge"] = float(accepted)
        return found


class LabelledSiT(Pipeline):
    """A converted SiT in a folder, with Stable Diffusion's autoencoder in its folder "vae".

    The prompts are numbers of classes.
    """

    guidance_scale = 4.0  # of the published samples

    def load(self, scale: Scale) -> None:
        try:
            import diffusers
        except ImportError as error:
            raise MissingExtra("diffusers", "diffusers", "a SiT's autoencoder") from error
        from ...integrations import sit

        self.folder = Path(scale.model.partition(":")[2])
        if not (self.folder / "vae").is_dir():
            raise InvalidArgument(
                f"{str(self.folder)!r} has no folder 'vae': save Stable Diffusion's autoencoder "
                "there, AutoencoderKL.from_pretrained('stabilityai/sd-vae-ft-ema')."
                "save_pretrained(...)"
            )
        for entry in self.prompts.values():
            if not entry.text.isdigit():
                raise InvalidArgument(f"a SiT is asked for classes by number, got {entry.text!r}")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        labels = [int(entry.text) for entry in self.prompts.values()]
        self.denoiser = sit.load(
            self.folder, labels, guidance_scale=self.guidance_scale, device=self.device
        )
        self.vae = diffusers.AutoencoderKL.from_pretrained(
            self.folder / "vae", local_files_only=True, use_safetensors=True
        ).to(self.device)

    def draw(self, settings: dict[str, Any], entry: PromptEntry) -> tuple[Images, SearchResult]:
        given, scaling = dict(settings), self.vae.config.scaling_factor
        network: Any = self.denoiser.network
        sizes = network.config
        label = torch.tensor([int(entry.text)], device=self.device)

        def decode(z: torch.Tensor) -> torch.Tensor:
            return (self.vae.decode(z / scaling).sample / 2 + 0.5).clamp(0, 1)

        sampler = best_of if given.pop("method", "steering") == "best-of-n" else steer
        result = sampler(
            self.denoiser.condition(label=label),
            Decoded(self.reward, decode, max_batch=1),
            shape=(sizes.channels, sizes.input_size, sizes.input_size),
            seed=self.seed + 1009 * entry.number,
            prompts=[entry.text],
            device=self.device,
            progress=False,
            **given,
        )
        with torch.no_grad():
            pictures = torch.cat([decode(z[None]) for z in result.samples[0]])
        arrays = (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(array) for array in arrays], result


def _pixels(images: Images) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1]."""
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255


@lru_cache(maxsize=1)
def bench_of(scale: Scale) -> Bench:
    """The bench of a model, which is loaded once for all experiments."""
    if scale.model == "digits":
        return Digits(scale)
    return (LabelledSiT if scale.model.startswith("sit:") else Pipeline)(scale)
