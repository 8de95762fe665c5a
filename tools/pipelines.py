"""What every pipeline of the installed diffusers does with its scheduler, and what we do about it.

    python tools/pipelines.py            # prints docs/diffusers/pipelines.md
    python tools/pipelines.py --write    # writes it

The detectors below read the sources of all pipelines, without importing them, for what only some
scheduler or some way of counting makes right. `glass_flows.diffusers.rules` says of each feature
found in each pipeline what is done about it, and does it; what it says nothing of ends this tool
with an error, as does what it says of a pipeline in which nothing like that is found.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import version as version_of
from pathlib import Path

from glass_flows.diffusers import schedules
from glass_flows.diffusers.rules import HANDLED, RULES, Handled, Rule

PAGE = Path(__file__).resolve().parent.parent / "docs" / "diffusers" / "pipelines.md"
HEAD = "<!-- python tools/pipelines.py --write, diffusers {version} -->"

# What any scheduler of diffusers may be asked for, and ours answers.
ASKED = (
    *("step", "order", "timesteps", "sigmas", "config", "num_inference_steps", "set_timesteps"),
    *("set_begin_index", "init_noise_sigma", "scale_model_input", "add_noise", "scale_noise"),
    *("register_to_config", "_internal_dict"),
)
TOLD = {"model_output", "timestep", "sample", "generator", "return_dict"}
TOLD |= {"eta", "use_clipped_model_output"}  # of DDIM; any but 0 is refused
# Methods of tensors that leave their values as they are.
CASTS = ("to", "float", "numpy", "detach", "clone")
CASTS += ("reshape", "permute", "squeeze", "unsqueeze", "view")


# --- the sources ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method of a pipeline, as text and as a tree."""

    name: str
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Of the statements from the first step of a scheduler to the last."""
        calls = [m.start() for m in re.finditer(r"scheduler\w*(\[\w+\])?\.step\(", self.text)]
        if not calls:
            return []
        begun = [m.start() for m in _STATEMENT.finditer(self.text)]
        first = max(one for one in begun if one < calls[0])
        end = min((one for one in begun if one > calls[-1]), default=len(self.text))
        return list(ast.walk(ast.parse(f"if True:\n{self.text[first:end]}")))

    @cached_property
    def steps(self) -> list[ast.Call]:
        """Calls of the `step` of a scheduler."""
        return [
            node
            for node in self.nodes
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "step"
            and "scheduler" in ast.unparse(node.func.value)
        ]

    @cached_property
    def loops(self) -> list[ast.For]:
        """The loops over steps in which a scheduler steps."""
        fors = [node for node in self.nodes if isinstance(node, ast.For)]
        stepping = [one for one in fors if any(_within(call, one) for call in self.steps)]
        return [one for one in stepping if "step" in ast.unparse(one.iter)]

    @cached_property
    def looped(self) -> list[ast.AST]:
        """All that stands in these loops."""
        kinds = (ast.Assign, ast.Compare, ast.Subscript)
        inner = [node for node in self.nodes if isinstance(node, kinds)]
        return [node for node in inner if any(_within(node, loop) for loop in self.loops)]

    @cached_property
    def indices(self) -> set[str]:
        """Names that count timesteps."""
        pairs = [one.target for one in self.loops if isinstance(one.target, ast.Tuple)]
        return {ast.unparse(pair.elts[0]) for pair in pairs}

    @cached_property
    def times(self) -> set[str]:
        """Names that hold a timestep."""
        targets = [one.target for one in self.loops]
        return {ast.unparse(t.elts[-1] if isinstance(t, ast.Tuple) else t) for t in targets}


_STATEMENT = re.compile(r"^ {8}(?!else|elif|except|finally|[)\]}#])\S", re.M)


def _within(node: ast.AST, outer: ast.AST) -> bool:
    return bool(outer.lineno <= node.lineno and node.end_lineno <= outer.end_lineno)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline class: its own and inherited methods, and the kinds of its scheduler."""

    name: str
    methods: tuple[Method, ...]
    schedulers: tuple[str, ...]


@dataclass(frozen=True)
class _Class:
    name: str
    bases: tuple[str, ...]
    methods: dict[str, str] = field(default_factory=dict)


_CLASS = re.compile(r"^class (\w+)\(([^)]*)\):\n((?:.*\n)*?)(?=^[^\s#)]|\Z)", re.M)
_DOC = re.compile(r'r?"""[\s\S]*?"""')
_METHOD = re.compile(r"^    def (\w+)\([\s\S]*?(?=^    (?:def |@|async )|\Z)", re.M)
_COUNTS = re.compile(r"scheduler|timesteps|num_inference_steps")
_SKIPPED = ("check_inputs", "encode_prompt", "prepare_extra_step_kwargs")


def _classes(folder: Path) -> Iterator[_Class]:
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for name, bases, body in _CLASS.findall(_DOC.sub("0", text)) if "class " in text else ():
            named = tuple(base.strip().split(".")[-1] for base in bases.split(","))
            methods = {m.group(1): m.group(0) for m in _METHOD.finditer(body)}
            yield _Class(name, named, methods)


_method = lru_cache(maxsize=None)(Method)  # many are copies of one another


def read(folder: Path) -> list[Pipeline]:
    """All pipeline classes of a folder of sources, by name."""
    known = {one.name: one for one in _classes(folder)}

    def line(name: str) -> list[str]:
        """A class and what it inherits from, the nearest first."""
        bases = known[name].bases if name in known else ()
        return [name, *(n for base in bases for n in line(base))]

    found = []
    for name in sorted(known):
        kinds = line(name)
        if "DiffusionPipeline" not in kinds[1:]:
            continue
        bodies: dict[str, str] = {}
        for kind in (known[k] for k in kinds if k in known and k != "DiffusionPipeline"):
            for method, body in kind.methods.items():
                bodies.setdefault(method, body)
        wanted = {m: b for m, b in bodies.items() if m not in _SKIPPED and _COUNTS.search(b)}
        annotated = re.search(r"\bscheduler: ([^=\n]+?),? *(?:=.*)?\n", wanted.get("__init__", ""))
        kind = re.sub(r"[\"']|None", "", annotated.group(1)) if annotated else ""
        made = tuple(_method(m, body) for m, body in sorted(wanted.items()))
        found.append(Pipeline(name, made, tuple(re.findall(r"\w*Scheduler\w*", kind))))
    return found


# --- the detectors ------------------------------------------------------------------------------

Detector = Callable[[Method], bool]
DETECTORS: dict[str, Detector] = {}
NO_STEP = "no step of its own"
REASONS = {NO_STEP: "a scheduler that the pipeline never steps"}


def detector(feature: str, reason: str) -> Callable[[Detector], Detector]:
    """Add one: what it finds, and why that is looked for."""

    def added(found: Detector) -> Detector:
        DETECTORS[feature], REASONS[feature] = found, reason
        return found

    return added


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


_ATTRIBUTE = re.compile(r"(?<![.\w])(?:self\.)?(?:\w+_)?scheduler(?:_copy)?\.(\w+)( =[^=])?")


def _compared(method: Method) -> Iterator[ast.Compare]:
    for node in method.looped:
        if isinstance(node, ast.Compare) and not isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            yield node


@detector("step arguments", "`scheduler.step` given more than output, timestep, sample, generator")
def _step_arguments(method: Method) -> bool:
    named = {k.arg for call in method.steps for k in call.keywords if k.arg}
    return bool(named - TOLD) or any(len(call.args) > 3 for call in method.steps)


@detector("private state", "what only some schedulers have, or a change of what they have")
def _private_state(method: Method) -> bool:
    if method.name == "__init__":
        return False
    asked = _ATTRIBUTE.findall(method.text)
    copied = re.search(r"scheduler\.__dict__|self\.scheduler = scheduler_copy", method.text)
    return bool(copied) or any(name not in ASKED or written for name, written in asked)


@detector("scheduler's type", "`isinstance` of the scheduler")
def _scheduler_type(method: Method) -> bool:
    asked = re.search(r"isinstance\(\s*self\.scheduler,", method.text)
    return bool(asked) and method.name != "__init__"


@detector("replaces its scheduler", "another scheduler made in the constructor")
def _replaces(method: Method) -> bool:
    return method.name == "__init__" and bool(
        re.search(
            r"(?<!image_noising_)(?<!low_res_)scheduler = \w+Scheduler(\.from_config)?\(",
            method.text,
        )
    )


@detector("reads sigmas", "`scheduler.sigmas[i]` of the step")
def _reads_sigmas(method: Method) -> bool:
    return bool(re.search(r"scheduler\.sigmas\b", method.text))


@detector("interval", "a network told two times")
def _interval(method: Method) -> bool:
    return bool(re.search(r"\btimestep_r\b", method.text)) and bool(method.loops)


@detector("last timestep left out", "`timesteps[:-1]`")
def _left_out(method: Method) -> bool:
    return bool(re.search(r"timesteps\[:-1\]", method.text))


@detector("starts unannounced", "timesteps cut off without `set_begin_index`")
def _starts_unannounced(method: Method) -> bool:
    return _cuts(method) and "set_begin_index" not in method.text


@detector("starts announced", "timesteps cut off, with `set_begin_index`")
def _starts_announced(method: Method) -> bool:
    return _cuts(method) and "set_begin_index" in method.text


def _cuts(method: Method) -> bool:
    return bool(re.search(r"timesteps\[(t_start|-|start)", method.text))


@detector("one step is special", "`num_inference_steps == 1`")
def _one_step(method: Method) -> bool:
    return "num_inference_steps == 1" in method.text


@detector("eta", "`eta` for schedulers that take it")
def _eta(method: Method) -> bool:
    given = {k.arg for call in method.steps for k in call.keywords}
    return "eta" in given or bool(
        re.search(r"step_kwargs\(generator, eta\)|kwargs\[.eta.\]", method.text)
    )


@detector("cuts by value", "`denoising_end`, `denoising_start`")
def _cuts_by_value(method: Method) -> bool:
    return bool(re.search(r"denoising_(end|start)\b", method.text)) and bool(method.loops)


@detector("window in steps", "the number of the step, compared with other numbers")
def _window(method: Method) -> bool:
    usual = (
        r"{0} (==|<) len\(timesteps\) - 1|{0} \+ 1 > num_warmup_steps|{0} (>|==) 0|.*len\(.*|.*%.*"
    )
    for node in _compared(method):
        counted = _names(node) & method.indices
        if any(not re.fullmatch(usual.format(name), ast.unparse(node)) for name in counted):
            return True
    return False


@detector("share of evaluations", "the number of the step, over `len(timesteps)`")
def _share(method: Method) -> bool:
    return bool(re.search(r"[/*] len\(timesteps\)", method.text))


@detector("value of a timestep", "a timestep, compared with other values")
def _value(method: Method) -> bool:
    return any(_names(node) & method.times for node in _compared(method))


@detector("number of steps in a formula", "`num_inference_steps - t`")
def _formula(method: Method) -> bool:
    return bool(re.search(r"num_inference_steps - (t\b|timesteps)", method.text))


@detector("next timestep", "`timesteps[i + 1]` or the one before")
def _next(method: Method) -> bool:
    return bool(re.search(r"timesteps(_tensor)?\[i [+-] 1\]", method.text))


@detector("listed by step", "what has an entry for each step")
def _listed(method: Method) -> bool:
    usual = re.compile(r"(controlnet_keep|timesteps|sigmas|ip_adapter_image_embeds)")
    taken = [
        node.value
        for node in method.looped
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Name)
        and node.slice.id in method.indices
    ]
    return any(not usual.search(ast.unparse(one)) for one in taken)


@detector("history of guidance", "momentum from one step to the next")
def _history(method: Method) -> bool:
    return "omentum" in method.text and bool(method.loops)


@detector("frozen by its velocity", "predictions masked so that parts of the latents stay")
def _frozen(method: Method) -> bool:
    return bool(re.search(r"\bclean_latents\b|_mask_velocity", method.text)) and bool(method.loops)


@detector("edits latents", "the sampler's state changed between steps, other than by a cast")
def _edits(method: Method) -> bool:
    given = [a for call in method.steps for a in call.args[2:3]]
    given += [k.value for call in method.steps for k in call.keywords if k.arg == "sample"]
    states = {_state(arg) for arg in given}
    for node in method.looped:
        if isinstance(node, ast.Assign) and not any(_within(call, node) for call in method.steps):
            target = node.targets[0]
            target = target.value if isinstance(target, ast.Subscript) else target
            named = isinstance(target, ast.Name) and target.id in states
            if named and not _keeps(node.value, states):
                return True
    return False


def _state(value: ast.expr) -> str:
    """The name of what is cast, reshaped or cut here."""
    while not isinstance(value, ast.Name):
        if isinstance(value, ast.Call):
            value = value.args[0] if "from_numpy" in ast.unparse(value.func) else value.func
        elif isinstance(value, (ast.Attribute, ast.Subscript)):
            value = value.value
        else:
            return ""
    return value.id


def _keeps(value: ast.expr, states: set[str]) -> bool:
    """Whether an expression is the state itself, cast, reshaped, or out of a callback or step."""
    while True:
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            if value.func.attr == "pop":
                return True
            if value.func.attr not in CASTS:
                return False
            value = value.func.value
        elif isinstance(value, (ast.Subscript, ast.Attribute)):
            value = value.value
        else:
            return isinstance(value, ast.Name) and value.id in {*states, "scheduler_output"}


@detector("several schedulers", "copies of the scheduler, or others, that step along")
def _several(method: Method) -> bool:
    stepped = {ast.unparse(call.func) for call in method.steps}
    return len(stepped) > 1 or any("self.scheduler" not in one for one in stepped)


def features(pipeline: Pipeline) -> list[str]:
    """What is found in a pipeline."""
    found = [name for name, sees in DETECTORS.items() if any(map(sees, pipeline.methods))]
    if "starts announced" in found and "starts unannounced" in found:
        found.remove("starts unannounced")  # the announcement stands in another method
    stepping = any(m.steps for m in pipeline.methods)
    return found if stepping or not pipeline.schedulers else [*found, NO_STEP]


# --- joined with what is done -------------------------------------------------------------------

# Right where every evaluation is a transition, so that a rule for M > 1 settles them.
COUNTED = frozenset(
    ["edits latents", "history of guidance", "listed by step", "next timestep", "window in steps"]
)


@dataclass(frozen=True)
class Judged:
    """A pipeline with what was found in it and what is done about that."""

    pipeline: Pipeline
    features: list[str]
    rules: list[Rule]
    handled: list[Handled]
    open: list[str]


def has_base(pipeline: Pipeline) -> bool:
    """Whether one of the schedulers that it is made for is one that GLASS can stand on."""
    any_of = {*schedules._FLOW, *schedules._DISCRETE, "KarrasDiffusionSchedulers", "SchedulerMixin"}
    return any(name in any_of for name in pipeline.schedulers)


def judge(pipeline: Pipeline) -> Judged:
    found = features(pipeline)
    rules = [r for r in RULES if pipeline.name in r.names]
    rules += [r for r in RULES if not r.names and r.feature in found]
    handled = [h for h in HANDLED if h.feature in found and pipeline.name in h.names]
    told = {one.feature for one in (*rules, *handled)}
    handled += [h for h in HANDLED if not h.names and h.feature in set(found) - told]
    told |= {one.feature for one in handled}
    if any(r.inside and not r.arguments for r in rules):
        told |= COUNTED
    settled = any(r.whole for r in rules) or not has_base(pipeline)
    left = [] if settled else [name for name in found if name not in told]
    return Judged(pipeline, found, rules, handled, left)


def faults(judged: Iterable[Judged]) -> list[str]:
    """Where the table of refusals and the sources disagree."""
    by_name = {one.pipeline.name: one for one in judged}
    wrong = [
        f"{name}: {feature} ({REASONS[feature]}); rules.py says nothing of it"
        for name, one in by_name.items()
        for feature in one.open
    ]
    for entry in (*RULES, *HANDLED):
        for name in entry.names:
            if name not in by_name:
                wrong.append(f"{name}: in rules.py, but diffusers has no such pipeline")
            elif entry.feature and entry.feature not in by_name[name].features:
                wrong.append(f"{name}: {entry.feature} in rules.py, but not in its source")
    return wrong


# --- the page -----------------------------------------------------------------------------------

# Run with random weights by tests/diffusers (test_pipelines_run.py, and the families).
RUN = {
    "AnimateDiffPipeline",
    "AuraFlowPipeline",
    "ChromaImg2ImgPipeline",
    "ChromaPipeline",
    "DDPMPipeline",
    "DiTPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "FluxControlNetPipeline",
    "FluxControlPipeline",
    "FluxFillPipeline",
    "FluxImg2ImgPipeline",
    "FluxKontextPipeline",
    "FluxPipeline",
    "KandinskyV22Img2ImgPipeline",
    "KandinskyV22Pipeline",
    "LTXPipeline",
    "Lumina2Pipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "QwenImageEditPipeline",
    "QwenImageImg2ImgPipeline",
    "QwenImagePipeline",
    "SanaPAGPipeline",
    "SanaPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3PAGPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionSAGPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLPAGPipeline",
    "StableDiffusionXLPipeline",
    "WanPipeline",
    "ZImagePipeline",
}

INTRO = """
Every pipeline class of diffusers {version}, once. What they do with their schedulers was found in
their sources, by the detectors of `tools/pipelines.py`; what is done about it is the table that
[refuses](refused.md) at run time, and `tests/diffusers/test_pipelines_table.py` holds both and this
page together. **Bold** ones have been run with random weights: with `steps=1, rho=1.0` they draw
what their own sampler draws, with `steps=2` they ask their network twice per transition. The others
were judged by reading. Right is a pipeline with a scheduler that GLASS can stand on; the ones that
are published with it may be others, as those of Mochi (its clock runs backwards) and of Stable
Video Diffusion (timesteps between the trained ones). A pipeline that is not here, of another
version or somebody's own, runs unless it inherits from one that is refused.
"""


def page(judged: list[Judged], version: str) -> str:
    """The text of docs/diffusers/pipelines.md."""
    groups: dict[str, dict[str, list[str]]] = {}
    for one in judged:
        verdict, why = _verdict(one)
        groups.setdefault(verdict, {}).setdefault(why, []).append(one.pipeline.name)
    parts = [
        HEAD.format(version=version),
        "# Pipelines, one by one",
        INTRO.format(version=version).strip(),
    ]
    parts += ["## What is looked for", "\n".join(_table(judged))]
    for verdict in VERDICTS:
        if verdict in groups:
            lines = [
                f"- {why}: {_listed_names(names)}" for why, names in sorted(groups[verdict].items())
            ]
            parts += [f"## {verdict}", VERDICTS[verdict], "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


VERDICTS = {
    "Refused": "However they are called.",
    "Refused where noise is drawn": 'They run with `rho="ode"`.',
    "Refused inside transitions": "They run with `steps=1`.",
    "Refused on a condition": "They run without it. With *steps > 1* only several evaluations "
    "per transition are refused, with *noise* only transitions that draw some.",
    "Refused for their schedulers": "None of those that they are made for is one that GLASS can "
    "stand on.",
    "Without a scheduler": "",
    "Right, with what is looked for": "For the reasons in the table above, or those given here.",
    "Right": "Nothing that is looked for was found.",
}


def _verdict(one: Judged) -> tuple[str, str]:
    """The heading under which a pipeline stands, and the line."""
    named = [r for r in one.rules if r.names]
    for verdict, held in (
        ("Refused", [r for r in named if r.whole and not r.conditional]),
        ("Refused where noise is drawn", [r for r in named if r.random and not r.arguments]),
        ("Refused inside transitions", [r for r in named if r.inside and not r.conditional]),
    ):
        if held:
            return verdict, f"it {held[0].why}"
    if not one.pipeline.schedulers:
        return "Without a scheduler", "nothing is sampled"
    if not has_base(one.pipeline):
        return "Refused for their schedulers", ", ".join(one.pipeline.schedulers)
    if named:
        return "Refused on a condition", "; ".join(_condition(r) for r in named)
    if one.features:
        special = [f" ({h.how})" if h.names else "" for h in one.handled]
        told = {h.feature: text for h, text in zip(one.handled, special, strict=True)}
        return "Right, with what is looked for", ", ".join(
            n + told.get(n, "") for n in one.features
        )
    return "Right", "no more than a loop"


def _condition(rule: Rule) -> str:
    named = " or ".join(f"`{name}`" for name in rule.arguments) or rule.only.__doc__
    extra = " and *steps > 1*" if rule.inside else " and *noise*" if rule.random else ""
    return f"{named}{extra}: it {rule.why}"


def _table(judged: list[Judged]) -> Iterator[str]:
    yield "| what | seen as | in | what is done |"
    yield "|-|-|-|-|"
    for feature, reason in sorted(REASONS.items()):
        count = sum(feature in one.features for one in judged)
        done = [f"right: {h.how}" for h in HANDLED if h.feature == feature and not h.names]
        for rule in (r for r in RULES if r.feature == feature and not r.names):
            done.append(f"refused with {_condition(rule)}")
        yield f"| {feature} | {reason} | {count} | {'; '.join(done) or 'each by itself, below'} |"


def _listed_names(names: list[str]) -> str:
    return ", ".join(f"**{name}**" if name in RUN else name for name in names)


def installed() -> tuple[Path, str]:
    """The folder of the installed pipelines, and the version of diffusers."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        sys.exit("diffusers is not installed: pip install 'glass-flows[diffusers]'")
    return Path(spec.origin).parent / "pipelines", version_of("diffusers")


def main() -> int:
    folder, version = installed()
    judged = [judge(one) for one in read(folder)]
    wrong = faults(judged)
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    text = page(judged, version)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
