"""What pipelines count, compare or blend by timestep: refused or right all the same, and why.

`tools/pipelines.py` finds the features in the sources of diffusers, and prints from these two
tables docs/diffusers/pipelines.md; :mod:`.refusals` refuses by the first when a pipeline runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..errors import InvalidArgument
from ..plans import DDIM
from .parts import network_of


@dataclass(frozen=True)
class Call:
    """A call of a pipeline whose scheduler is ours: its arguments, M and ρ."""

    pipe: Any
    given: Mapping[str, Any]
    steps: int
    rho: Any

    @property
    def random(self) -> bool:
        """Whether transitions draw noise."""
        return self.rho not in (1.0, "ode", DDIM(0.0))


def _is_given(value: Any, call: Call) -> bool:
    return value is not None


def _is_true(value: Any, call: Call) -> bool:
    return bool(value)


def _is_below_one(value: Any, call: Call) -> bool:
    return value is not None and value < 1.0


def _is_one(value: Any, call: Call) -> bool:
    return bool(value == 1)


def _is_another_eta(value: Any, call: Call) -> bool:
    if value is None:
        return False
    own = DDIM(value)
    return own.eta > 0.0 and not (call.rho == own and call.steps == 1)


def _is_part_of_a_window(value: Any, call: Call) -> bool:
    return 0.0 < value < call.steps


def _cuts_at_an_index(value: Any, call: Call) -> bool:
    several = value.callbacks if isinstance(value, MultiPipelineCallbacks) else [value]
    known = [one for one in several if isinstance(one, PipelineCallback)]
    return any(one.config.cutoff_step_index is not None for one in known)


def _always(pipe: Any) -> bool:
    """however it is made"""
    return True


def _blends(pipe: Any) -> bool:
    """its network has no channels for the mask"""
    network = network_of(pipe)
    return network is None or network.config.get("in_channels") not in (9, 33)


def _has_audio_scheduler(pipe: Any) -> bool:
    """it has an `audio_scheduler`"""
    return vars(pipe).get("audio_scheduler") is not None


def _is_mean_flow(pipe: Any) -> bool:
    """its network is a mean flow"""
    network = network_of(pipe)
    return network is not None and bool(network.config.get("use_meanflow"))


def _stands_on_unipc(pipe: Any) -> bool:
    """its scheduler is UniPC"""
    scheduler = vars(pipe).get("scheduler")
    base = {} if scheduler is None else scheduler.config.get("base", scheduler.config)
    name = base.get("_class_name", type(scheduler).__name__)
    return bool(name == "UniPCMultistepScheduler")


@dataclass(frozen=True)
class Rule:
    """A refusal: of which pipelines, on which conditions, and why.

    Attributes
    ----------
    feature : str
        What `tools/pipelines.py` finds in their sources; "" for what only a reader finds.
    why : str
        Ends the sentence "NAME is not supported: it ...".
    pipelines : str
        Names of classes, with their subclasses; empty for all that take one of the `arguments`.
    inside : bool
        Only where a transition has several evaluations, M > 1.
    random : bool
        Only where transitions draw noise: not with rho="ode".
    arguments : tuple of str
        Only if one of these arguments of the call is `wrong`, which is told its value; with the
        value `right` (a function of the call, if it depends on it) it never is.
    only : callable
        Of the pipeline: whether its parts make the rule hold. Its docstring is the condition as
        the page prints it.
    instead : str
        What else to do; "{value}" stands for what was given.
    """

    feature: str
    why: str
    pipelines: str = ""
    inside: bool = False
    random: bool = False
    arguments: tuple[str, ...] = ()
    wrong: Callable[[Any, Call], bool] = _is_given
    right: Any = None
    only: Callable[[Any], bool] = _always
    instead: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.pipelines.split())

    @property
    def whole(self) -> bool:
        """Whether it refuses the pipeline, however it is called and sampled."""
        return not (self.inside or self.random or self.arguments)

    @property
    def conditional(self) -> bool:
        """Whether it depends on how the pipeline is called or made."""
        return bool(self.arguments) or self.only is not _always

    def name_of(self, pipe: Any) -> str | None:
        """By which name it means this pipeline; None if it does not."""
        kinds = [kind.__name__ for kind in type(pipe).__mro__]
        if not self.names:
            return kinds[0]
        return next((name for name in kinds if name in self.names), None)

    def check(self, call: Call) -> None:
        """Raise :class:`InvalidArgument` if the call is one that it refuses."""
        name = self.name_of(call.pipe)
        unmet = (self.inside and call.steps == 1) or (self.random and not call.random)
        if name is None or unmet or not self.only(call.pipe):
            return
        held = [(n, call.given[n]) for n in self.arguments if n in call.given]
        bad = next((one for one in held if self.wrong(one[1], call)), None)
        if self.arguments and bad is None:
            return
        raise InvalidArgument(self._told(name, call, bad))

    def _told(self, name: str, call: Call, bad: tuple[str, Any] | None) -> str:
        ways, conditions = [], []
        if self.inside:
            conditions.append(f"steps={call.steps}")
            ways.append("steps=1")
        if self.random:
            conditions.append(f"rho={call.rho!r}")
            ways.append("rho='ode'")
        value = ""
        if bad is not None:
            plain = isinstance(bad[1], (bool, int, float, str))
            value = repr(bad[1]) if plain else "..."
            conditions.append(f"{bad[0]}={value}")
            right = self.right(call) if callable(self.right) else self.right
            ways.append(f"{bad[0]}={right!r}")
        ways += [self.instead.format(value=value)] if self.instead else []
        on = f" with {' and '.join(conditions)}" if conditions else ""
        use = f". Use {', or '.join(ways)}" if ways else ""
        return f"{name} is not supported{on}: it {self.why}{use}"


@dataclass(frozen=True)
class Handled:
    """A feature that is right all the same, in these pipelines or (empty) in all others."""

    feature: str
    how: str
    pipelines: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.pipelines.split())


_INTERVAL = "asks its network for an interval, not for a time"
_BY_TYPE = "decides by its scheduler's type"
_PASSES_ON = "only passes calls on to pipelines that it holds, which have schedulers of their own"

RULES = (
    # However it is called.
    Rule(
        "step arguments",
        "steps its scheduler with arguments that only its own understands",
        "AmusedInpaintPipeline CosmosTextToWorldPipeline CosmosVideoToWorldPipeline "
        "CycleDiffusionPipeline "
        "KandinskyPriorPipeline KandinskyV22PriorEmb2EmbPipeline KandinskyV22PriorPipeline "
        "KarrasVePipeline LEditsPPPipelineStableDiffusion LEditsPPPipelineStableDiffusionXL "
        "LLaDA2Pipeline LTXConditionPipeline RePaintPipeline RFD4ProteinaPipeline SanaWMPipeline "
        "UnCLIPImageVariationPipeline UnCLIPPipeline",
    ),
    Rule(
        "private state",
        "reads or changes what is its own scheduler's only",
        "AudioDiffusionPipeline DanceDiffusionPipeline DiffusionGemmaPipeline "
        "HeliosPyramidPipeline ScoreSdeVePipeline StableCascadeDecoderPipeline "
        "StableCascadePriorPipeline StableDiffusionDiffEditPipeline "
        "StableDiffusionParadigmsPipeline "
        "StableDiffusionPix2PixZeroPipeline TextToVideoZeroPipeline TextToVideoZeroSDXLPipeline",
    ),
    Rule(
        "scheduler's type",
        _BY_TYPE,
        "BriaPipeline EasyAnimateControlPipeline EasyAnimateInpaintPipeline EasyAnimatePipeline "
        "LTX2DFRPipeline LTX2DFRTemporalRefinePipeline",
    ),
    Rule(
        "scheduler's type",
        _BY_TYPE + ", and takes ours for FlowMatchEuler",
        "HiDreamImagePipeline",
        only=_stands_on_unipc,
        instead="pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=...), with the flow_shift "
        "of its own, before GlassScheduler.from_pipeline(pipe)",
    ),
    Rule(
        "reads sigmas",
        "preconditions its network by its scheduler's sigmas itself",
        "Cosmos2TextToImagePipeline Cosmos2VideoToWorldPipeline Cosmos2_5_PredictBasePipeline "
        "Cosmos2_5_TransferPipeline StableDiffusionLatentUpscalePipeline",
    ),
    Rule(
        "reads sigmas",
        "lays out its scheduler's sigmas again for every block, and takes the last step itself",
        "SanaWMLTX2Refiner",
    ),
    Rule("reads sigmas", _INTERVAL, "AnyFlowFARPipeline AnyFlowPipeline"),
    Rule("interval", _INTERVAL, "HunyuanImagePipeline"),
    Rule("", _INTERVAL, "HunyuanImageRefinerPipeline"),
    Rule("interval", _INTERVAL, "HunyuanVideo15ImageToVideoPipeline", only=_is_mean_flow),
    Rule(
        "last timestep left out",
        "leaves out the last of its scheduler's timesteps",
        "LTXI2VLongMultiPromptPipeline SanaSprintImg2ImgPipeline SanaSprintPipeline "
        "WuerstchenDecoderPipeline WuerstchenPriorPipeline",
    ),
    Rule(
        "replaces its scheduler",
        "replaces its scheduler without saying so",
        "LongCatAudioDiTPipeline",
    ),
    Rule(
        "no step of its own",
        _PASSES_ON,
        "KandinskyCombinedPipeline KandinskyImg2ImgCombinedPipeline "
        "KandinskyInpaintCombinedPipeline KandinskyV22CombinedPipeline "
        "KandinskyV22Img2ImgCombinedPipeline KandinskyV22InpaintCombinedPipeline",
        instead="pipe.decoder_pipe, and put the scheduler into that",
    ),
    Rule(
        "no step of its own",
        _PASSES_ON,
        "StableCascadeCombinedPipeline VisualClozePipeline WuerstchenCombinedPipeline",
    ),
    Rule("", "flows from a small video to a large one, and not from noise", "Kandinsky6SRPipeline"),
    Rule(
        "",
        "was trained with betas that only its own scheduler has",
        "ShapEImg2ImgPipeline ShapEPipeline",
    ),
    # With an argument, whatever the sampler.
    Rule(
        "private state",
        "edits what its scheduler remembers",
        "ChronoEditPipeline",
        arguments=("enable_temporal_reasoning",),
        wrong=_is_true,
        right=False,
    ),
    Rule(
        "one step is special",
        "takes a single step for a distilled model's, and returns the clean estimate",
        "PixArtAlphaPipeline",
        arguments=("num_inference_steps",),
        wrong=_is_one,
        right=2,
    ),
    Rule(
        "eta",
        "passes eta to schedulers that take it; ours has it as rho",
        arguments=("eta",),
        wrong=_is_another_eta,
        right=0.0,
        instead="rho='ddim:{value}' and steps=1",
    ),
    # Where transitions draw noise.
    Rule(
        "frozen by its velocity",
        "holds given frames by predicting that they stay, and noise would be added to them",
        "Cosmos3OmniPipeline",
        random=True,
        arguments=("image", "video", "action"),
    ),
    Rule(
        "frozen by its velocity",
        "holds given frames by predicting that they stay, and noise would be added to them",
        "LTX2ConditionPipeline LTX2HDRPipeline LTX2InContextPipeline",
        random=True,
        instead="LTX2Pipeline or LTX2ImageToVideoPipeline",
    ),
    # Inside transitions.
    Rule(
        "starts unannounced",
        "counts timesteps where it means steps, of which each has several",
        "Kandinsky3Img2ImgPipeline KandinskyImg2ImgPipeline KandinskyV22ControlnetImg2ImgPipeline "
        "KandinskyV22Img2ImgPipeline OnnxStableDiffusionImg2ImgPipeline "
        "OnnxStableDiffusionInpaintPipelineLegacy",
        inside=True,
        arguments=("strength",),
        wrong=_is_below_one,
        right=1.0,
    ),
    Rule(
        "cuts by value",
        "cuts the timesteps by their value, which lies inside a transition",
        inside=True,
        arguments=("denoising_end", "denoising_start"),
        instead="image-to-image with a strength",
    ),
    Rule(
        "window in steps",
        "counts the window of skip-layer guidance in network steps",
        "StableDiffusion3Pipeline",
        inside=True,
        arguments=("skip_guidance_layers",),
    ),
    Rule(
        "window in steps",
        "counts the window of its adapter in transitions, of several evaluations each",
        "StableDiffusionXLAdapterPipeline",
        inside=True,
        arguments=("adapter_conditioning_factor",),
        wrong=_is_part_of_a_window,
        right=lambda call: float(call.steps),
    ),
    Rule(
        "",
        "counts the cut-off of its callback in network steps",
        inside=True,
        arguments=("callback_on_step_end",),
        wrong=_cuts_at_an_index,
        instead="a cutoff_step_ratio, the share of all evaluations",
    ),
    Rule(
        "window in steps",
        "counts the windows of its guidance in network steps, and remembers them in order",
        "SemanticStableDiffusionPipeline StableDiffusionAttendAndExcitePipeline "
        "StableDiffusionPipelineSafe",
        inside=True,
    ),
    Rule(
        "listed by step",
        "lists its guidance for num_inference_steps evaluations, of which there are more",
        "Ideogram4Pipeline",
        inside=True,
    ),
    Rule(
        "history of guidance",
        "remembers its guidance from one timestep to the next",
        "AceStepPipeline",
        inside=True,
    ),
    Rule(
        "edits latents",
        "blends the known region into the network's input, which inside a transition is not the "
        "sampler's state",
        "ChromaInpaintPipeline Flux2KleinInpaintPipeline "
        "FluxControlInpaintPipeline FluxControlNetInpaintPipeline FluxInpaintPipeline "
        "FluxKontextInpaintPipeline IFInpaintingPipeline IFInpaintingSuperResolutionPipeline "
        "KandinskyV22InpaintPipeline "
        "OnnxStableDiffusionInpaintPipelineLegacy "
        "QwenImageEditInpaintPipeline QwenImageInpaintPipeline StableDiffusion3InpaintPipeline "
        "StableDiffusionControlNetInpaintPipeline StableDiffusionControlNetPAGInpaintPipeline "
        "StableDiffusionInpaintPipeline StableDiffusionInpaintPipelineLegacy "
        "StableDiffusionPAGInpaintPipeline StableDiffusionXLControlNetInpaintPipeline "
        "StableDiffusionXLControlNetUnionInpaintPipeline StableDiffusionXLInpaintPipeline "
        "StableDiffusionXLPAGInpaintPipeline ZImageInpaintPipeline",
        inside=True,
        only=_blends,
    ),
    Rule(
        "edits latents",
        "puts the given images into the latents at every evaluation, which inside a transition "
        "are not the sampler's state",
        "JoyImageEditPipeline JoyImageEditPlusPipeline Kandinsky6TI2VAPipeline "
        "StableDiffusionGLIGENPipeline StableDiffusionGLIGENTextImagePipeline",
        inside=True,
        arguments=("image", "images", "gligen_inpaint_image"),
    ),
    Rule(
        "edits latents",
        "sets the unused part of the action to zero at every evaluation",
        "Cosmos3OmniPipeline",
        inside=True,
        arguments=("action",),
    ),
    Rule(
        "private state",
        "keeps a copy of its scheduler's state for each of its views",
        "StableDiffusionPanoramaPipeline",
        inside=True,
    ),
    Rule(
        "several schedulers",
        "moves its frames at noise levels of their own, by several schedulers",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline SkyReelsV2DiffusionForcingPipeline "
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        inside=True,
    ),
    Rule(
        "several schedulers",
        "moves the sound by an audio_scheduler, which knows no transitions",
        "LTX2ConditionPipeline LTX2HDRPipeline LTX2InContextPipeline",
        inside=True,
        only=_has_audio_scheduler,
        instead="pipe.audio_scheduler = None",
    ),
)

_ROWS = "every evaluation is one of its scheduler's timesteps, and the share is of all of them"
_VALUE = "each evaluation is judged by its own noise level"
_STAYS = "the given frame is put before the others and never stepped"
_ARGUMENT = "only with an argument that is refused"

HANDLED = (
    Handled("share of evaluations", _ROWS),
    Handled("value of a timestep", _VALUE),
    Handled("number of steps in a formula", _VALUE + ", with K for the number of steps"),
    Handled("reads sigmas", "ours are those of its evaluations, row by row"),
    Handled("starts announced", "`strength` is a share of the transitions"),
    Handled("starts unannounced", "`strength` is; the first timestep tells where it starts"),
    Handled(
        "window in steps",
        "it passes sigmas, and then counts all evaluations as its steps",
        "Lumina2Pipeline",
    ),
    Handled("window in steps", _ROWS, "StableDiffusionGLIGENPipeline"),
    Handled("window in steps", _VALUE, "ZImagePipeline"),
    Handled("window in steps", _ARGUMENT, "ChronoEditPipeline"),
    Handled("listed by step", _VALUE, "ZImagePipeline"),
    Handled("listed by step", "the list is of images, not of steps", "ZImageOmniPipeline"),
    Handled(
        "edits latents",
        _STAYS,
        "HunyuanVideoImageToVideoPipeline LTX2ImageToVideoPipeline LTXImageToVideoPipeline "
        "SanaImageToVideoPipeline",
    ),
    Handled("edits latents", "both halves of its doubled batch are the same", "DiTPipeline"),
    Handled(
        "several schedulers",
        "copies of ours, each with its own latents, noise and counter",
        "Cosmos3OmniPipeline Kandinsky6TI2VAPipeline LTX2ImageToVideoPipeline LTX2Pipeline",
    ),
    Handled("several schedulers", "the prior keeps its own", "StableUnCLIPPipeline"),
    Handled("interval", "both times are the same", "AceStepPipeline"),
    Handled("private state", "the trained table, which ours has too", "StableDiffusionSAGPipeline"),
    Handled(
        "replaces its scheduler",
        "when it is made; put ours in afterwards",
        "DDIMPipeline PNDMPipeline",
    ),
    Handled(
        "no step of its own",
        "it makes the pipeline that steps, with the scheduler that it has",
        "VersatileDiffusionPipeline",
    ),
)
