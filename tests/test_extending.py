"""Everything that can be added from outside is added here, from a file that is no part of us.

With what else only a fresh interpreter shows: what importing the package imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import diffusers
import pytest
import torch

import glass_flows
import tiny_pipelines as tiny
from glass_flows import Sampler, Steering
from glass_flows.diffusers.families import FAMILIES, family_of
from glass_flows.diffusers.families.base import Family
from glass_flows.errors import InvalidArgument, UnknownName
from glass_flows.jobs.models import MODELS, Model
from glass_flows.jobs.spelling import Options, jobs_of
from glass_flows.paths import Linear
from glass_flows.plans.kernels import RHO_RULES, Ends
from glass_flows.plans.solvers import SOLVERS
from glass_flows.registry import Registry
from glass_flows.rewards.pretrained import REWARDS
from glass_flows.settings import Count, setting
from glass_flows.steering import (
    METHODS,
    POTENTIALS,
    RESAMPLERS,
    Beam,
    Method,
    method_of,
    read_method,
)
from glass_flows.worlds import GaussianMixture

OUTSIDE = Path(__file__).parent / "outside"
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
DENOISER = GaussianMixture(MEANS, 0.5).denoiser(Linear())


@pytest.fixture(scope="module", autouse=True)
def rooms():
    sys.path.insert(0, str(OUTSIDE))
    import my_rooms

    yield my_rooms
    sys.path.remove(str(OUTSIDE))
    for registry in (
        POTENTIALS,
        RESAMPLERS,
        RHO_RULES,
        SOLVERS,
        REWARDS,
        FAMILIES,
        METHODS,
        MODELS,
    ):
        for name in [n for n in registry._things if n.startswith(("my-", "MyPipeline"))]:
            del registry._things[name]


@dataclass(frozen=True, repr=False)
class Untold(Beam):
    """Has a setting that it does not explain."""

    depth: int = setting(1, Count())
    word: ClassVar[str] = "my-wrong"


class Wordless(Beam):
    """Would be read back as a beam."""


@dataclass(frozen=True, repr=False)
class Unread(Beam):
    """Has a field that nobody can read.

    Parameters
    ----------
    depth : int
        Of something.
    """

    depth: int = 1
    word: ClassVar[str] = "my-wrong"


def steered(**given):
    shared = {"shape": (2,), "particles": 4, "seed": 1, "dtype": torch.float64}
    return glass_flows.steer(DENOISER, lambda z: z[:, 0], **shared, **given)


def test_a_potential_and_a_resampling_scheme():
    result = steered(potential="my-half", resampling="my-top", ess_threshold=1.0, scale=3.0)
    chosen = result.ancestry[1:]
    assert (chosen == chosen[..., :1]).all() and (chosen != torch.arange(4)).any()
    free = steered(potential="my-half", ess_threshold=0.0, scale=3.0)
    torch.testing.assert_close(free.log_weights, 3.0 * free.rewards)  # the end made it good
    settings = Steering(potential="my-half", resampling="my-top")
    assert Steering.parse(str(settings)) == Steering.from_json(settings.as_json()) == settings


def test_a_rho_rule_by_name_and_with_numbers():
    late = steered(rho="my-late")
    own = steered(rho=lambda t, t_next: 1.0 - t_next)
    assert torch.equal(late.samples, own.samples)
    sampler = Sampler(rho="my-power:0.25")
    assert Sampler.from_json(json.loads(json.dumps(sampler.as_json()))) == sampler
    table, ends = sampler.plan(Linear()), Ends.of(Linear(), 0.5, 2 / 3)
    assert table.transitions[3].rho == pytest.approx(ends.rho_ddpm**0.25)


def test_a_solver():
    one, other = steered(solver="my-euler"), steered(solver="first-order")
    assert torch.equal(one.samples, other.samples)
    assert "my-euler" in str(Sampler(solver="my-euler"))


def test_a_reward_by_name():
    images = torch.rand(2, 3, 4, 4)
    loaded = glass_flows.load_reward("my-redness:2")
    torch.testing.assert_close(loaded(images), 2.0 * images[:, 0].mean((1, 2)))
    with pytest.raises(UnknownName, match="Did you mean 'my-redness'"):
        glass_flows.load_reward("my-rednes")


@pytest.mark.slow
def test_a_family_of_pipelines():
    class MyPipeline(diffusers.StableDiffusion3Pipeline):
        pass

    base = tiny.build("sd3")
    pipe = MyPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    given = {k: v for k, v in tiny.CALL["sd3"].items() if k != "prompt"}
    given |= {"particles": 2, "transitions": 2, "steps": 1, "seed": 0}
    reward = glass_flows.load_reward("my-redness")
    assert family_of(pipe).__name__ == "MyFamily"
    one, two = (glass_flows.steer_pipeline(p, "a cat", reward, **given) for p in (pipe, base))
    assert torch.equal(one.result.samples, two.result.samples)


@pytest.mark.slow
def test_a_method(rooms):
    method = method_of("my-beam", {"particles": 4}, {"boldness": "0"})
    assert method == rooms.HalfBeam(4, boldness=0.0)
    assert read_method(method.as_json()) == method
    assert str(method) == "my-beam particles=4 scale=auto boldness=0"
    pipe, reward = tiny.build("sd3"), glass_flows.load_reward("my-redness")
    given = {k: v for k, v in tiny.CALL["sd3"].items() if k != "prompt"}
    given |= {"transitions": 3, "steps": 1, "seed": 0}
    first = glass_flows.steer_pipeline(pipe, "a cat", reward, method, **given)
    ancestry = first.result.ancestry
    assert (ancestry[1:-1] == torch.tensor([0, 0, 1, 1])).all() and len(ancestry) == 3
    whole = rooms.HalfBeam(4)
    bold = glass_flows.steer_pipeline(pipe, "a cat", reward, whole, **given)
    beam = glass_flows.steer_pipeline(pipe, "a cat", reward, Beam(4), **given)
    assert torch.equal(bold.result.samples, beam.result.samples)


def test_a_method_and_a_model_as_the_command_line_reads_them():
    options = Options({"particles": "4", "boldness": "0.5"}, {"transitions": "2", "steps": "1"})
    model, jobs = jobs_of("my-digits", ["my-beam"], options, seed=0)
    (job,) = jobs.values()
    assert (job.method.boldness, type(job).from_json(job.as_json())) == (0.5, job)
    result = model.run(job)
    assert result.prompts == ("8",) and result.rewards.shape == (1, 4)
    with pytest.raises(InvalidArgument, match="--boldness: nothing to --method beam"):
        jobs_of("digits", ["beam"], options)


@pytest.mark.parametrize(
    ("registry", "thing", "match"),
    [
        (POTENTIALS, lambda: None, "must be a Potential"),
        (RESAMPLERS, lambda weights, bits: [0, 1], "must be a function of normalised weights"),
        (RESAMPLERS, lambda weights, bits: [0, 1, 2], "none of weight zero"),
        (SOLVERS, lambda: None, "must be a frozen dataclass with transitions"),
        (RHO_RULES, 0.4, "must be a function of the transition's ends"),
        (RHO_RULES, int, "must be a function of the transition's ends"),
        (REWARDS, "clip", "must be a function"),
        (FAMILIES, dict, "must be a subclass of Family"),
        (FAMILIES, Family, r"must define ask\(\) or predict\(\)"),
        (METHODS, dict, "must be a subclass of glass_flows.steering.Method"),
        (METHODS, Method, "with all that is abstract there"),
        (METHODS, Wordless, "`word`, its name in files, must be the same, got None"),
        (METHODS, Beam, "`word`, its name in files, must be the same, got 'beam'"),
        (METHODS, Untold, "its docstring says nothing of depth under Parameters"),
        (METHODS, Unread, "depth must be made by glass_flows.settings.setting"),
        (MODELS, Model, "must be a subclass of Model with `load` and `run`"),
    ],
)
def test_what_is_of_another_kind_is_refused_when_it_is_registered(registry, thing, match):
    with pytest.raises(InvalidArgument, match=match):
        registry.register("my-wrong", thing)
    assert "my-wrong" not in registry


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "<a>", 5, "systematic"])
def test_names_are_words_that_are_free(name):
    with pytest.raises(InvalidArgument, match="among the resamplers"):
        RESAMPLERS.register(name, lambda weights, bits: [0, 0, 1])


PACKAGE = """
[glass_flows.potentials]
mine = my_package:potential
broken = my_package:nothing
"""


def install(folder, points):
    """A package with entry points, as pip would leave it."""
    (folder / "my_package.py").write_text(
        "from glass_flows.steering.potentials import Potential\n"
        "potential = Potential(lambda total, value, memory: (value, memory))\n"
    )
    about = folder / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(points)


def test_entry_points_are_found_when_they_are_wanted(tmp_path, monkeypatch):
    install(tmp_path, PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("potentials", {"ours": 1})
    assert registry["ours"] == 1
    assert registry._waiting is None  # nothing was looked for
    assert list(registry) == ["ours", "mine", "broken"]
    assert len(registry) == 3 and "mine" in registry and "other" not in registry
    assert registry["mine"].exact
    with pytest.raises(InvalidArgument, match=r"'broken' of the potentials.*my_package:nothing"):
        registry["broken"]
    with pytest.raises(KeyError):
        registry["other"]
    registry.load()
    assert list(registry.loaded) == ["ours", "mine"]


# --- in a fresh interpreter -----------------------------------------------------------------------

LIGHT = """
import sys

import glass_flows, glass_flows.rewards, glass_flows.steering, glass_flows.worlds.digits

heavy = {"diffusers", "transformers", "ray", "matplotlib", "sklearn", "scipy", "typer"}
print(sorted(heavy & set(sys.modules)))
"""
FRESH = (
    LIGHT
    + """
import runpy

from glass_flows import Sampler
from glass_flows.errors import GlassError, MissingExtra
from glass_flows.paths import Linear

table = Sampler(rho="my-half:0.25").plan(Linear())
print(Sampler(rho=0.3), "/", table.transitions[1].rho)
try:
    Sampler(solver="my-broken")
except GlassError as error:
    print(error)

sys.modules["diffusers"] = None  # as if it were not installed
for name in ("GlassScheduler", "load_reward", "steer_pipeline"):
    try:
        print(getattr(glass_flows, name).__name__)
    except MissingExtra:
        print("missing")

given = sys.argv[1:]
for name in ("mien", "mine"):
    sys.argv = ["glass-flows", *given, "--potential", name]
    try:
        runpy.run_module("glass_flows", run_name="__main__")
    except SystemExit as stopped:
        print(f"{name} ends with {stopped.code}", file=sys.stderr)
"""
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A fresh interpreter that finds a package with entry points, and what it said.

    Of the settings' own kinds too, of which one is broken and one imports glass_flows.
    """
    folder = tmp_path_factory.mktemp("installed")
    points = (
        "[glass_flows.rho_rules]\nmy-half = my_rules:Half\n"
        "[glass_flows.solvers]\nmy-broken = my_missing:Solver\n"
    )
    install(folder, PACKAGE + points)
    (folder / "my_rules.py").write_text(
        "from dataclasses import dataclass\n"
        "from glass_flows import Sampler\n"
        "@dataclass(frozen=True)\n"
        "class Half:\n"
        "    share: float = 0.5\n"
        "    def rho(self, ends):\n"
        "        return self.share\n"
    )
    command = ["align", "--populations", "2", "--particles", "2", "--transitions", "2"]
    command += ["--steps", "1", "--out", str(folder / "out")]
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_importing_the_package_imports_no_heavy_dependency():
    """Nor do the digits."""
    told = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


@pytest.mark.slow
def test_what_needs_diffusers_looks_for_it_when_it_is_wanted(fresh):
    heavy, _, _, *lazy = fresh[1].stdout.splitlines()[:6]
    assert heavy == "[]"
    assert lazy == ["missing", "load_reward", "missing"]


@pytest.mark.slow
def test_an_installed_package_reaches_the_command_line(fresh):
    folder, done = fresh
    wrong, right = done.stderr.split("mien ends with 2\n")
    assert "Did you mean 'mine'" in wrong
    assert right.endswith("mine ends with 0\n"), right
    job = json.loads((folder / "out" / "comparison.json").read_text())["job"]
    assert job["method"]["potential"] == "mine"


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_does_not_stop_the_others(fresh):
    _, first, second, *_ = fresh[1].stdout.splitlines()
    assert first == "sampler rho=0.3 / 0.25"
    assert "my_missing:Solver" in second
