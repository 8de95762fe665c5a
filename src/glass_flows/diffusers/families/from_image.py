"""Image-to-image: particles begin on the way, with noise on the encoded image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ...errors import InvalidArgument, check_number
from ...grids import outer_times
from ...plans import Sampler
from ..schedules import Schedule
from .base import OwnDefaults
from .flux import Flux


class FromImage(Flux):
    """What the image-to-image pipelines of FLUX's kin have in common.

    `strength` is the share of the transitions that are run, whole ones, as in the pipelines: of K
    the last K - int(K - K strength). The first begins with x = α_t z + σ_t ε, where z is the image,
    encoded, and every particle has an ε of its own.
    """

    def prepare(self) -> None:
        super().prepare()
        check_number(
            "strength", self.given["strength"], "lie in (0, 1]", lambda share: 0.0 < share <= 1.0
        )

    def timed(self, schedule: Schedule, sampler: Sampler) -> Sampler:
        share, whole = self.given["strength"], sampler
        if sampler.transitions == 1 and sampler.times is None and isinstance(sampler.steps, int):
            whole = Sampler(sampler.steps, 1)  # whose grid has a place to begin at
        n = whole.transitions
        first = int(max(n - min(n * share, n), 0))
        times = outer_times(schedule.path, n, super().timed(schedule, whole).times)[first:]
        steps, rho = sampler.steps, sampler.rho
        if whole is not sampler:
            steps, times = n - first, (times[0], 1.0)
        elif isinstance(steps, tuple):
            steps = steps[first:]
        rho = rho[first:] if isinstance(rho, tuple) else rho
        found = replace(
            sampler, transitions=len(times) - 1, steps=steps, rho=rho, times=tuple(times)
        )
        self._check_start(schedule, found, n)
        return found

    def _check_start(self, schedule: Schedule, sampler: Sampler, n: int) -> None:
        """Raise where the image would do nothing, or would be taken for noise."""
        start = sampler.times[0] if isinstance(sampler.times, tuple) else 0.0
        if schedule.path.alpha(start) == 0.0:
            most = f"at most {(n - 1) / n:.4g}, or " if n > 1 else ""
            raise InvalidArgument(
                f"strength={self.given['strength']:g} begins with pure noise (of steps: {n}), "
                f"where the image does nothing: give {most}more transitions"
            )
        if sampler.start != "trained":
            raise InvalidArgument(
                f"start={sampler.start!r} is a start from noise, and {type(self.pipe).__name__} "
                "begins with an image: leave it out"
            )

    def around(self, prompts: Sequence[Any]) -> Tensor | None:
        latents = self.packed(self.latents_of(self.sized("image", len(prompts))))
        return self.for_prompts(latents, len(prompts))


class FluxImg2Img(FromImage):
    """FluxImg2ImgPipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxImg2ImgPipeline",)
    options = OwnDefaults(
        "image strength prompt_2 negative_prompt true_cfg_scale guidance_scale "
        "max_sequence_length joint_attention_kwargs ip_adapter_image ip_adapter_image_embeds"
    )
