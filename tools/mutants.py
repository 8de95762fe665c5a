"""Mutation testing: does a test fail when a sign, an operator or a number in the formulas changes?

Every mutant is one small change of one line of the code that computes (paths, plans, denoisers,
steering, rewards, schedulers): `+` for `-`, `<` for `<=`, `sin` for `cos`, 1.0 for 0.0, a minus put
before a result, and so on. Each runs against the fast tests that `TARGETS` lists for its file, in a
fork of a process that has imported everything, and there gives its functions other code; a mutant
of what runs on import, or one that survives so, in a fork that has yet to import the package, where
only that one module is replaced, first against the fast tests and then against the slow ones of the
same files. A mutant is killed when a test fails (or hangs); one that survives shows a number that
no test looks at. Those that cannot change any result are listed, with the
reason, in `tools/equivalent_mutants.json`.

    python tools/mutants.py --list                    every mutant, and how many there are
    python tools/mutants.py --sample 40 --seed 0      what CI runs
    python tools/mutants.py --all --report out.json   everything; give it again to resume
    python tools/mutants.py --all --only Kernel       those whose description contains "Kernel"

The exit status is 1 if a mutant survives that is not listed, 2 if nothing could be judged: the
tests fail without any mutant, or the list names mutants that the code no longer has.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import io
import json
import multiprocessing
import os
import random
import select
import signal
import sys
import time
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the tests import torch
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "glass_flows"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
PACKAGE = "glass_flows"

# The files, and the tests that decide about each, in the order in which they run: test files, or
# some tests of one, "file::test,test", with a blank between those that run together. REST stands
# for all others that look at formulas; without it no other test is run.
REST = "*"
FORMULAS = "test_mutants_steering"
LOOPS = (  # the tests of a large file that state what happens to each particle, and take no second
    "test_steering_exact::test_no_weight_is_lost,test_lineage_follows_the_ancestors,"
    "test_a_population_without_weight_is_carried,test_boundaries_where_values_are_taken,"
    "test_the_error_names_place_and_population_and_holds_the_particles,"
    "test_the_twist_learns_its_share_from_the_past,"
    "test_a_threshold_of_one_resamples_equal_weights_too"
)
STEERING = ("test_steering_details", LOOPS, "test_steering")
TILTS = (  # those that draw no samples
    "test_guidance::test_for_gaussian_data_and_a_linear_reward_both_rules_are_the_exact_tilt,"
    "test_both_rules_are_the_gradients_they_say,test_the_schedule_multiplies_the_strength,"
    "test_a_clip_bounds_the_step_in_posterior_deviations_and_keeps_its_direction,"
    "test_the_earliest_times_are_guided_too,test_the_costs_are_the_true_ones,"
    "test_bad_guided_denoisers_are_named,test_a_part_of_the_batch_is_named_in_errors,"
    "test_bad_value_functions_are_named,test_what_a_call_asks_for,"
    "test_where_every_level_is_nearly_noise_the_last_is_asked,"
    "test_the_data_are_of_deviation_one_unless_it_is_said"
)
GUIDED = (  # of the tests of guidance those that look at how a run is steered
    "test_guidance::test_the_costs_are_the_true_ones,test_what_guidance_took_is_not_taken_again,"
    "test_values_and_twist_see_the_untilted_estimate,"
    "test_a_posterior_value_draws_from_the_model_itself,"
    "test_the_result_says_that_guidance_biases_it,"
    "test_a_guided_denoiser_of_ones_own_is_steered_with_its_prompts_spread"
)
REFINED = (  # of the tests of refinement those that draw few samples
    "test_refine::test_ramps_and_evaluations_of_moves_are_as_documented,test_what_it_costs,"
    "test_a_move_goes_through_the_noising_and_the_transition_of_its_time,"
    "test_its_news_are_of_rewards_and_of_what_moves_accepted,"
    "test_held_out_rewards_are_looked_at_from_lambda_0_to_its_share_ahead,"
    "test_what_biases_the_law_is_named,test_moves_under_less_guidance_take_fewer_evaluations,"
    "test_a_denoiser_that_knows_one_guidance_moves_under_it,"
    "test_a_solver_that_was_told_of_guidance_has_its_share_in_moves,"
    "test_it_begins_with_what_is_given,test_settings_that_do_not_go_together_are_refused,"
    "test_as_many_moves_as_evaluations_last,test_it_begins_with_a_short_ode,"
    "test_the_unconditional_network_is_not_guided"
)
COMPOSED = (  # of the tests of rewards those that look at one number at a time
    "test_rewards::test_values_and_ranges_of_composites,test_normalised_from_samples,"
    "test_composites_take_over_what_their_parts_need,test_composites_check_their_arguments,"
    "test_the_cache_asks_once_about_equal_samples,"
    "test_the_cache_tells_dtypes_shapes_and_prompts_apart,"
    "test_the_cache_drops_the_least_recently_used,test_gradients_pass_the_cache,"
    "test_the_cache_keeps_no_graph,test_flat_samples_can_be_cached,test_decoding_is_split,"
    "test_nothing_to_normalise_by_is_named,test_rewards_differ_by_more_than_rounding,"
    "test_the_cache_tells_numbers_from_lists_of_one"
)
ANSWERED = (
    "test_rewards::test_batches_are_split_and_joined_in_order,test_prompts_must_be_one_per_sample,"
    "test_functions_become_rewards,test_gradients_are_taken_chunk_by_chunk,"
    "test_evaluate_gives_detached_float64_on_the_cpu,test_shapes_are_checked,"
    "test_answers_of_plain_functions_are_one_number_per_sample,"
    "test_values_that_are_no_numbers_are_named,test_the_declared_range_is_held,"
    "test_exceptions_become_reward_errors_with_their_place,"
    "test_named_errors_keep_their_type_and_name_the_place,"
    "test_values_and_ranges_of_composites,test_a_reward_is_clipped_from_above_alone"
)
FORMED = (  # of the tests of forms those that draw no samples
    "test_forms::test_what_is_recognised_is_known_and_said_once,"
    "test_what_is_wrong_is_explained_in_a_line,test_annotations_and_names_are_read,"
    "test_images_are_rounded_as_they_are_saved,"
    "test_a_bug_is_shown_where_it_is_and_not_hidden_by_other_forms,"
    "test_numbers_that_are_wrong_are_not_hidden_by_a_form_in_which_they_are_not,"
    "test_warnings_of_forms_that_are_not_meant_are_not_shown,"
    "test_a_function_that_draws_at_random_mixes_nothing_and_takes_no_draws_away,"
    "test_rounding_in_batches_of_other_sizes_is_no_mixing,"
    "test_what_is_written_into_the_pictures_of_a_trial_is_gone,"
    "test_composites_hold_functions_of_images,test_what_is_no_image_is_handed_over_as_it_is"
)
SAMPLERS = (  # of the tests of settings those that look at the values of samplers
    "test_settings::test_text_and_json_are_read_back,"
    "test_a_wrong_value_is_refused_by_its_name,test_what_differs_is_told_and_nothing_else,"
    "test_functions_are_written_by_their_name_and_not_read,"
    "test_the_evaluations_of_a_sampler,test_euler_maruyama_has_no_rho,"
    "test_no_other_solver_is_without_rho,test_the_plan_of_a_sampler_is_that_of_its_settings,"
    "test_the_forms_are_those_of_the_documentation"
)
TARGETS: dict[str, tuple[str, ...]] = {
    "paths.py": ("test_paths", "test_mutants_paths_and_grids", REST),
    "grids.py": ("test_grids", "test_mutants_paths_and_grids", REST),
    "plans/planner.py": ("test_mutants_tables", "test_interpret", "test_plans", REST),
    "plans/kernels.py": ("test_plans", REST),
    "plans/solvers.py": (
        "test_mutants_solvers",
        "test_inner_solvers",
        "test_plan_limits",
        "test_plans",
        REST,
    ),
    "plans/table.py": ("test_mutants_tables", "test_interpret", "test_plans", REST),
    "plans/allowed.py": (SAMPLERS,),
    "plans/sampler.py": (SAMPLERS, "test_settings"),
    "denoisers.py": ("test_denoisers",),
    "execute.py": ("test_interpret", "test_mutants_core", "test_execute"),
    "noise.py": ("test_mutants_core", "test_execute"),
    "sampling.py": ("test_mutants_core", "test_execute"),
    "k_diffusion.py": ("test_k_diffusion",),
    "guidance.py": (TILTS, "test_guidance"),
    "batching.py": ("test_mutants_core",),
    "measures.py": ("test_mutants_measures",),
    "rewards/base.py": (ANSWERED, "test_rewards", "test_video_rewards"),
    "rewards/composites.py": (COMPOSED, "test_video_rewards", "test_rewards"),
    "rewards/videos.py": ("test_video_rewards",),
    "rewards/forms.py": ("test_mutants_forms", FORMED),
    "rewards/signatures.py": ("test_mutants_forms", FORMED),
    "steering/weights.py": (f"{FORMULAS} test_steering",),
    "steering/resampling.py": ("test_resampling",),
    "steering/potentials.py": (FORMULAS,),
    "steering/schedules.py": (
        FORMULAS,
        "test_steering_exact::test_adaptive_shares_hold_the_effective_size,"
        "test_the_adaptive_share_is_the_largest_where_the_size_falls_steadily",
        "test_steering_errors",
    ),
    "steering/twist.py": (
        FORMULAS,
        "test_steering_exact::test_the_gain_of_the_noise,test_the_gain_is_the_derivative",
        LOOPS,
        "test_steering_errors",
    ),
    "steering/refinement.py": (
        "test_mutants_refine",
        REFINED,
        "test_stopping::test_chains_that_are_stopped_end_where_they_stand",
        "test_also::test_the_run_has_the_same_bits_and_costs,"
        "test_of_refinement_the_chains_are_scored",
        "test_refine",
    ),
    "steering/values.py": (
        FORMULAS,
        *STEERING,
        "test_steering_exact::test_network_evaluations_of_the_posterior_value,"
        "test_one_evaluation_is_the_posterior_mean,test_the_first_evaluation_is_not_repeated",
        "test_steering_errors",
        GUIDED,
    ),
    "steering/smc.py": (
        f"{FORMULAS} test_steering_details",
        *STEERING[1:],
        "test_evidence::test_biases_name_what_is_no_target_and_nothing_else test_biases",
        "test_steering_errors",
        "test_guidance",
    ),
    "steering/search.py": (
        FORMULAS,
        "test_steering_exact::test_a_beam_keeps_the_best,test_greedy_takes_the_best_child,"
        "test_greedy_draws_children_in_proportion",
        "test_steering_errors",
        "test_also",
    ),
    "steering/population.py": (
        "test_refine::test_it_begins_with_what_is_given,test_an_init_of_another_shape_is_refused,"
        "test_moves_have_their_share_of_the_guidance,"
        "test_moves_under_less_guidance_take_fewer_evaluations",
        FORMULAS,
        *STEERING,
        "test_steering_errors",
        GUIDED,
    ),
    "steering/method.py": (
        f"{FORMULAS} test_strength::test_files_of_before_mean_a_lambda_of_one",
        *STEERING,
        "test_steering_errors",
        GUIDED,
    ),
    "steering/methods.py": (
        "test_mutants_methods",
        "test_extending::test_what_is_of_another_kind_is_refused_when_it_is_registered,"
        "test_a_method_and_a_model_as_the_command_line_reads_them",
    ),
    "steering/loop.py": (
        "test_refine::test_a_bar_knows_how_long_it_will_be",
        FORMULAS,
        "test_stopping",
        *STEERING,
        "test_run_folder",
        "test_steering_errors",
        "test_also::test_every_boundary_with_values_is_scored_and_no_other,"
        "test_on_the_way_the_estimates_are_scored_and_weighted_before_selection,"
        "test_of_refinement_the_chains_are_scored,test_a_run_that_was_stopped_has_the_same",
    ),
    "steering/results.py": (f"{FORMULAS} {LOOPS}", "test_steering", "test_also", "test_stopping"),
    "steering/state.py": (FORMULAS, *STEERING),
    "steering/shards.py": (
        "test_mutants_shards",
        "test_shards::test_one_process_holds_all,test_estimates_of_parts_are_one_estimate,"
        "test_what_the_first_process_says_is_no_longer_ones_own,"
        "test_an_error_names_the_row_of_the_whole_batch,"
        "test_more_processes_than_micro_batches_are_refused,"
        "test_what_is_sent_is_where_the_processes_can_send_it,"
        "test_without_micro_batches_a_process_takes_its_share_at_once,"
        "test_micro_batches_lie_at_the_same_places_for_any_number_of_processes",
    ),
    "steering/api.py": ("test_strength::test_it_is_found_by_the_iterator_too", FORMULAS),
    "steering/strength.py": ("test_mutants_strength", "test_strength"),
    "steering/pilot.py": ("test_mutants_strength", "test_strength"),
    "steering/held_out.py": (
        "test_mutants_falls test_also::test_names_are_theirs,"
        "test_what_are_none_is_said_before_anything_is_drawn",
        "test_also",
    ),
    "steering/overoptimisation.py": ("test_mutants_falls", "test_also"),
    "diffusers/schedules.py": (
        "test_mutants_schedules",
        "test_diffusers_scheduler_checks",
        "test_diffusers_dropin",
    ),
    "diffusers/scheduler.py": (
        "test_mutants_scheduler",
        "test_mutants_schedules",
        "test_diffusers_scheduler_checks",
        "test_diffusers_dropin::test_noising_is_the_paths,test_ddim_with_any_eta_step_by_step,"
        "test_learned_variances_are_dropped_and_other_shapes_refused",
        "test_diffusers_scheduler_use",
        "test_diffusers_strength",
        "test_diffusers_dropin",
    ),
    "diffusers/beginnings.py": ("test_mutants_pipelines", "test_beginnings"),
    "diffusers/few_steps.py": ("test_mutants_pipelines", "test_few_steps"),
    "diffusers/rules.py": (
        "test_mutants_pipelines",
        "test_diffusers_refusals test_pipelines_table",
    ),
}
SHARPER = {  # by the class or function that a mutant is in
    "Paper": "test_paper_solver",
    "_check_schedule": "test_paper_solver",
    "_range": "test_paper_solver",
    "linear_schedule": "test_paper_solver",
    "cosine_schedule": "test_paper_solver",
    "EulerMaruyama": "test_classical",
    "KnownTimes": "test_interpret",
    "CPS": "test_samplers",
    "Precise": "test_samplers",
    "Ancestral": "test_samplers",
    "_renoise": "test_samplers",
}
# What REST stands for, the likeliest first: the other folders are about networks and files.
NEXT = ("test_paths", "test_grids", "test_plans", "test_paper_solver", "test_classical")
WHERE = ("core/", "steering/", "worlds/test_mixtures.py")
LEFT_OUT = ("core/test_settings.py", "steering/test_shards.py")  # texts; processes of their own
ONLY_TESTS: set[str] = set()  # filled by --tests
IGNORE_FAILING: list[bool] = []  # filled by --ignore-failing
# In this process, where the mutant is: workers of pytest-xdist would import the code as it is.
# That pytest could not clear an old folder, as happens to several at a time, is no kill.
PYTEST = (
    "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-n0",
    "-W", "ignore::pytest.PytestWarning",
)  # fmt: skip
SLOW = ("-m", "slow")
# What people or files read, not numbers that a sampler uses
SKIPPED_SCOPES = {"__str__", "__repr__", "to_json", "config"}
SKIPPED_NAMES = {"__all__"}

OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
FUNCTIONS = {
    "math.sin": "math.cos",
    "math.cos": "math.sin",
    "math.tan": "math.atan",
    "math.atan": "math.tan",
    "math.atan2": "math.hypot",
    "math.hypot": "max",
    "math.sqrt": "",
    "math.exp": "math.expm1",
    "math.expm1": "math.exp",
    "math.log": "math.log1p",
    "math.log1p": "math.log",
    "math.isinf": "math.isfinite",
    "math.isfinite": "math.isinf",
    "bisect.bisect_left": "bisect.bisect_right",
    "bisect.bisect_right": "bisect.bisect_left",
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "abs": "",
    "round": "",
}
KEPT_NUMBERS = {"field", "dataclass"}  # calls whose arguments are declarations


# --- enumeration --------------------------------------------------------------------------------

Edit = tuple[int, int, str]  # bytes from, to, and what stands there instead


@dataclass(frozen=True)
class Mutant:
    """One change of one source file."""

    file: str
    scope: str
    line: int
    column: int
    what: str
    edits: tuple[Edit, ...]
    before: str
    after: str

    @property
    def id(self) -> str:
        return f"{self.file}:{self.line}:{self.column}:{self.what}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What stays the same when lines move: the line's text, before and after."""
        return self.file, self.scope, self.before, self.after

    @property
    def module(self) -> str:
        parts = self.file.removesuffix(".py").removesuffix("/__init__").split("/")
        return ".".join((PACKAGE, *parts))

    @property
    def source(self) -> bytes:
        return _edited((SOURCE / self.file).read_bytes(), self.edits)

    def describe(self) -> str:
        where = f" (in {self.scope})" if self.scope else ""
        return f"{self.id}{where}\n    - {self.before}\n    + {self.after}"


def _edited(text: bytes, edits: Iterable[Edit]) -> bytes:
    for start, stop, new in sorted(edits, reverse=True):
        text = text[:start] + new.encode() + text[stop:]
    return text


class _Finder(ast.NodeVisitor):
    """Walks one file and collects its mutants."""

    def __init__(self, file: str, text: bytes) -> None:
        self.file, self.text = file, text
        self.scope: list[str] = []
        self.found: list[Mutant] = []
        self.offsets = [0]
        for line in text.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))

    # where things are

    def start(self, node: ast.expr) -> int:
        return self.offsets[node.lineno - 1] + node.col_offset

    def stop(self, node: ast.expr) -> int:
        return self.offsets[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    @cached_property
    def words(self) -> list[tuple[int, int, str]]:
        """(from, to, text) of every operator and word, in bytes."""
        lines = self.text.decode().splitlines(keepends=True)
        result: list[tuple[int, int, str]] = []
        for token in tokenize.tokenize(io.BytesIO(self.text).readline):
            if token.type in (tokenize.OP, tokenize.NAME) and token.start[0] > 0:
                row, column = token.start
                begin = self.offsets[row - 1] + len(lines[row - 1][:column].encode())
                result.append((begin, begin + len(token.string.encode()), token.string))
        return result

    def between(self, left: ast.expr, right: ast.expr, operator: str) -> tuple[int, int]:
        """Where `operator` stands between two nodes."""
        first, *rest = operator.split()
        inside = [w for w in self.words if self.stop(left) <= w[0] < self.start(right)]
        begin, end, _ = next(w for w in inside if w[2] == first)
        if rest:
            end = next(w[1] for w in inside if w[2] == rest[0] and w[0] >= end)
        return begin, end

    def add(self, what: str, *edits: Edit) -> None:
        where = min(begin for begin, _, _ in edits)
        row = max(i for i, offset in enumerate(self.offsets) if offset <= where)
        begin = self.offsets[row]
        line = self.text[begin:].split(b"\n", 1)[0]
        inside = [e for e in edits if e[1] <= begin + len(line)]
        after = _edited(line, [(a - begin, b - begin, new) for a, b, new in inside])
        column = where - begin
        scope = ".".join(self.scope)
        shown = (line.decode().strip(), after.decode().strip())
        self.found.append(Mutant(self.file, scope, row + 1, column, what, edits, *shown))

    # what is not looked at

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        if not names & SKIPPED_NAMES:
            self.visit(node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope.append(node.name)
        for child in node.body:
            self.visit(child)
        self.scope.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in SKIPPED_SCOPES:
            return
        self.scope.append(node.name)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for child in node.body:
            self.visit(child)
        if isinstance(node.returns, ast.Name) and node.returns.id == "float":
            for child in _own_statements(node):
                if isinstance(child, ast.Return) and child.value is not None:
                    self.negate(child.value, "Return x->-x")
        self.scope.pop()

    # what is changed

    def negate(self, node: ast.expr, what: str) -> None:
        if not isinstance(node, (ast.Constant, ast.UnaryOp)):
            begin, end = self.start(node), self.stop(node)
            self.add(what, (begin, begin, "-("), (end, end, ")"))

    def swap(self, kind: str, operator: ast.AST, left: ast.expr, right: ast.expr) -> None:
        if type(operator) in OPERATORS:
            old, new = OPERATORS[type(operator)]
            begin, end = self.between(left, right, old)
            self.add(f"{kind} {old}->{new}", (begin, end, new))

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.swap("BinOp", node.op, node.left, node.right)
        if isinstance(node.op, (ast.Mult, ast.Div)):
            for factor in (node.left, node.right):
                if isinstance(factor, ast.Constant) and isinstance(factor.value, float):
                    begin, end = self.start(factor), self.stop(factor)
                    text = self.text[begin:end].decode()
                    self.add(f"Factor {text}->-{text}", (begin, end, f"(-{text})"))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, (left, right) in zip(node.ops, pairwise(operands)):
            self.swap("Compare", operator, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in pairwise(node.values):
            self.swap("BoolOp", node.op, left, right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        begin, end = self.start(node), self.start(node.operand)
        if isinstance(node.op, ast.USub):
            self.add("UnaryOp -x->x", (begin, begin + 1, ""))
        elif isinstance(node.op, ast.Not):
            end = next(stop for start, stop, _ in self.words if start == begin)
            self.add("UnaryOp not x->x", (begin, end + 1, ""))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        begin, end, value = self.start(node), self.stop(node), node.value
        if isinstance(value, bool):
            self.add(f"Constant {value}->{not value}", (begin, end, str(not value)))
        elif isinstance(value, (int, float)):
            self.add(f"Constant {value}->{value + 1}", (begin, end, repr(value + 1)))

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name in KEPT_NUMBERS:
            return
        if name in FUNCTIONS:
            new = FUNCTIONS[name]
            self.add(
                f"Call {name}->{new or 'x'}", (self.start(node.func), self.stop(node.func), new)
            )
        if name == "Mix":
            for keyword in node.keywords:
                if keyword.arg:
                    self.negate(keyword.value, f"Coefficient {keyword.arg}->-{keyword.arg}")
        self.generic_visit(node)


def _own_statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """The statements of a function, without those of functions in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


def mutants() -> list[Mutant]:
    """Every mutant of every target file, in the order of the source."""
    result: list[Mutant] = []
    for file in TARGETS:
        text = (SOURCE / file).read_bytes()
        finder = _Finder(file, text)
        finder.visit(ast.parse(text))
        result += sorted(finder.found, key=lambda m: (m.line, m.column, m.what))
    return result


# --- running the tests against one mutant -------------------------------------------------------


def test_files(mutant: Mutant) -> list[tuple[str, ...]]:
    """The tests that exist, as arguments of one pytest each, those that look closest first."""
    tests = ROOT / "tests"
    found = {p.relative_to(tests).as_posix(): p for p in sorted(tests.rglob("test_*.py"))}
    places = {p.stem: str(p.relative_to(ROOT)) for p in found.values()}
    looking = [at for at in found if at.startswith(WHERE) and at not in LEFT_OUT]
    listed = TARGETS[mutant.file]
    rest = [*NEXT, *(found[at].stem for at in looking)] if REST in listed else []
    sharper = SHARPER.get(mutant.scope.split(".")[0], "")
    result = []
    for wanted in dict.fromkeys([sharper, *(one for one in listed if one != REST), *rest]):
        together: list[str] = []
        for name, _, some in (word.partition("::") for word in wanted.split()):
            if name not in places:
                raise SystemExit(f"TARGETS lists {name!r}, and there is no such file in tests/")
            if not ONLY_TESTS or name in ONLY_TESTS:
                ends = [f"::{one}" for one in some.split(",")] if some else [""]
                together += [places[name] + end for end in ends]
        if together:
            result.append(tuple(together))
    return result


def warm_up(files: Iterable[str]) -> None:
    """Import once what the forked processes for `files` need, but nothing of the package."""
    sys.path.insert(0, str(ROOT / "src"))
    os.chdir(ROOT)
    others = ("numpy", "scipy.stats", "sklearn.datasets", "mpmath", "rich", "typer", "PIL.Image")
    pipelines = "diffusers.pipelines.flux.pipeline_flux", "transformers.models.clip.modeling_clip"
    heavy = pipelines if any(file.startswith("diffusers/") for file in files) else ()
    for name in ("torch", "pytest", "hypothesis.strategies", "safetensors.torch", *others, *heavy):
        with suppress(ImportError):
            importlib.import_module(name)
    with suppress(ImportError):
        import torch

        torch.set_num_threads(1)
        torch.testing.assert_close(torch.ones(1), torch.ones(1))  # imports, too, and for seconds
    with suppress(ImportError):
        from hypothesis import HealthCheck, Phase, settings

        settings.register_profile(
            "mutants",
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),  # a failure is enough: no shrinking
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        settings.load_profile("mutants")
    imported = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    if imported:
        raise SystemExit(f"{PACKAGE} was imported before the mutants: {imported}")
    gc.freeze()


class _MutantLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self.mutated = source

    def get_code(self, fullname: str) -> Any:
        return compile(self.mutated, self.path, "exec", dont_inherit=True)


class _MutantFinder(importlib.abc.MetaPathFinder):
    """Serves the mutated source for one module; all others are found as usual."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.mutant.module:
            return None
        file = str(SOURCE / self.mutant.file)
        loader = _MutantLoader(name, file, self.mutant.source)
        return importlib.util.spec_from_file_location(name, file, loader=loader)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A module's code, and that of everything in it, always in the same order."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _itself(code: CodeType) -> tuple[object, ...]:
    """What it does, without the functions and classes in it."""
    constants = [None if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, repr(constants)


def transplant(mutant: Mutant) -> dict[CodeType, CodeType] | None:
    """Code of functions, and the mutant's instead; None where it changes what an import runs."""
    file = SOURCE / mutant.file
    texts = (file.read_bytes(), mutant.source)
    old, new = (list(_codes(compile(t, str(file), "exec", dont_inherit=True))) for t in texts)
    bodies = [pair for pair in zip(old, new) if not pair[0].co_flags & inspect.CO_OPTIMIZED]
    if len(old) != len(new) or any(_itself(a) != _itself(b) for a, b in bodies):
        return None
    return dict(zip(old, new))


def _put_in_place(mutant: Mutant) -> None:
    """Make it the mutant's package, imported or not."""
    if mutant.module not in sys.modules:
        sys.meta_path.insert(0, _MutantFinder(mutant))
        return
    codes = transplant(mutant) or {}
    for one in _FUNCTIONS[str(SOURCE / mutant.file)]:
        one.__code__ = codes.get(one.__code__, one.__code__)


class _Failures:
    """A pytest plugin that remembers which tests failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and report.nodeid not in self.names:
            self.names.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        self.pytest_runtest_logreport(report)


def _in_child(mutant: Mutant | None, arguments: Sequence[str], write: int) -> None:
    """Run pytest and write "passed" or the names of what failed; never returns."""
    result = "the process ended"
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        if mutant is not None:
            _put_in_place(mutant)
        import pytest

        seen = _Failures()
        status = pytest.main([*PYTEST, *arguments], plugins=[seen])
        fine = status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        result = "passed" if fine else "\n".join(seen.names) or repr(status)
    except BaseException as error:
        result = f"pytest: {type(error).__name__}"
    finally:
        os.write(write, result.encode()[:60000])  # a pipe holds 64 KiB
        os._exit(0)


def run_tests(mutant: Mutant | None, arguments: Sequence[str], limit: float) -> list[str]:
    """Run pytest in a fork; what failed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setpgid(0, 0)
        _in_child(mutant, arguments, write)
    os.close(write)
    try:
        if not select.select([read], [], [], limit)[0]:
            return [f"{arguments[-1]}: no end within {limit:.0f} s"]
        answer = os.read(read, 65536).decode() or f"{arguments[-1]}: the process died"
        return [] if answer == "passed" else answer.split("\n")
    finally:
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)


class BaselineError(Exception):
    """A test file fails without any mutant."""


Baselines = MutableMapping[tuple[str, ...], tuple[float, list[str]]]
_BASELINES: list[Baselines] = []  # one element, that of all processes
_MEASURING = multiprocessing.get_context("fork").Lock()


def baseline(tests: tuple[str, ...]) -> tuple[float, list[str]]:
    """How long `tests`, arguments of pytest, take without a mutant, and what to deselect.

    They must pass. Measured by the process that asks first; the others wait for it.
    """
    (known,) = _BASELINES
    if tests not in known:
        with _MEASURING:
            if tests not in known:
                known[tests] = measured(tests)
    return known[tests]


def measured(tests: tuple[str, ...]) -> tuple[float, list[str]]:
    begin = time.monotonic()
    failed = run_tests(None, tests, 1200.0)
    if failed and not IGNORE_FAILING:
        raise BaselineError(", ".join(failed))
    deselected = [word for name in failed for word in ("--deselect", name)]
    return time.monotonic() - begin, deselected


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the test that killed it, or "" if it survived."""

    mutant: Mutant
    killed_by: str
    seconds: float
    error: str = ""


def judge(mutant: Mutant, slow: bool = False) -> Verdict:
    """Run the tests, the sharpest first, until one fails; the slow ones last, if at all."""
    begin = time.monotonic()
    killed_by = ""
    try:
        for marks, files in product([(), SLOW][: 1 + slow], test_files(mutant)):
            tests = (*marks, *files)
            seconds, deselected = baseline(tests)
            failed = run_tests(mutant, ["-x", *deselected, *tests], 20.0 + 10.0 * seconds)
            if failed:
                killed_by = failed[0]
                break
    except BaselineError as error:
        return Verdict(mutant, "", 0.0, str(error))
    return Verdict(mutant, killed_by, time.monotonic() - begin)


_FUNCTIONS: dict[str, list[FunctionType]] = {}  # by file, of what a process has imported


def _import_all(tests: Sequence[str]) -> None:
    """The package and the tests, in a process whose forks are to have them."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(silence, stream)
    import pytest

    pytest.main([*PYTEST, "--collect-only", *tests])
    gc.unfreeze()  # what is frozen, as tests/conftest.py does, is not listed
    for one in gc.get_objects():
        if isinstance(one, FunctionType):
            _FUNCTIONS.setdefault(one.__code__.co_filename, []).append(one)
    gc.collect()
    gc.freeze()  # forks write into pages that they share, where their garbage is looked for


def judge_all(chosen: Sequence[Mutant], jobs: int) -> Iterator[Verdict]:
    context = multiprocessing.get_context("fork")
    waiting = [mutant for mutant in chosen if transplant(mutant)]
    late = [mutant for mutant in chosen if mutant not in waiting]
    files = sorted({one.split("::")[0] for m in waiting for some in test_files(m) for one in some})
    with context.Manager() as manager:
        _BASELINES[:] = [manager.dict()]
        with ProcessPoolExecutor(jobs, context, _import_all, (files,)) as pool:
            for done in as_completed([pool.submit(judge, mutant) for mutant in waiting]):
                verdict = done.result()
                if verdict.killed_by or verdict.error:
                    yield verdict
                else:
                    late.append(verdict.mutant)
        with ProcessPoolExecutor(jobs, context) as pool:
            for done in as_completed([pool.submit(judge, mutant, True) for mutant in late]):
                yield done.result()


# --- the list of equivalent mutants, and the report ---------------------------------------------


def equivalents(known: Sequence[Mutant]) -> dict[tuple[str, str, str, str], str]:
    """Key → reason; every entry must be a mutant of the code as it is."""
    if not EQUIVALENT.exists():
        return {}
    entries: list[dict[str, str]] = json.loads(EQUIVALENT.read_text())
    keys = {mutant.key for mutant in known}
    result: dict[tuple[str, str, str, str], str] = {}
    for entry in entries:
        key = (entry["file"], entry["scope"], entry["before"], entry["after"])
        if key not in keys:
            print(f"{EQUIVALENT.name} lists a mutant that the code does not have:\n  {entry}")
            raise SystemExit(2)
        if not entry["reason"].strip():
            print(f"{EQUIVALENT.name} has no reason for:\n  {entry}")
            raise SystemExit(2)
        result[key] = entry["reason"]
    return result


def read_report(path: Path | None) -> dict[str, Any]:
    return json.loads(path.read_text()) if path and path.exists() else {}


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    if path:
        fresh = path.with_suffix(".part")
        fresh.write_text(json.dumps(report, indent=1, ensure_ascii=False))
        fresh.replace(path)


def report_key(mutant: Mutant, number: int) -> str:
    """Survives line shifts; `number` tells apart the same change of the same text in a scope."""
    return " | ".join(mutant.key) + (f" | {number}" if number else "")


def numbered(known: Sequence[Mutant]) -> dict[str, str]:
    """Mutant id → report key."""
    seen: Counter[tuple[str, str, str, str]] = Counter()
    result: dict[str, str] = {}
    for mutant in known:
        result[mutant.id] = report_key(mutant, seen[mutant.key])
        seen[mutant.key] += 1
    return result


# --- the command --------------------------------------------------------------------------------


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mutants.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    what.add_argument("--all", action="store_true", help="run all of them (or all of --only)")
    what.add_argument("--sample", type=int, metavar="N", help="run N of them, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default 0)")
    parser.add_argument(
        "--only",
        metavar="TEXT",
        help="only mutants whose id, scope or line contains TEXT, e.g. 'paths.py', 'Default.', "
        "'Constant' or 'solvers.py:211:'",
    )
    parser.add_argument(
        "--tests", nargs="+", metavar="NAME", help="only these test files, e.g. test_paths"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.json",
        help="keep the verdicts here; killed mutants in it are not run again, survivors are",
    )
    parser.add_argument(
        "--ignore-failing",
        action="store_true",
        help="leave out tests that fail without any mutant, instead of stopping",
    )
    parser.add_argument(
        "--recheck", action="store_true", help="run mutants that are listed as equivalent, too"
    )
    options = parser.parse_args(given)
    if options.jobs < 1 or (options.sample is not None and options.sample < 1):
        parser.error("--jobs and --sample take a number of at least 1")
    return options


def choose(known: Sequence[Mutant], options: argparse.Namespace) -> list[Mutant]:
    chosen = [m for m in known if not options.only or options.only in m.describe()]
    if options.sample:
        drawn = random.Random(options.seed).sample(range(len(chosen)), len(chosen))
        chosen = [chosen[i] for i in sorted(drawn[: options.sample])]
    return chosen


def show_list(chosen: Sequence[Mutant], excused: dict[tuple[str, str, str, str], str]) -> None:
    for mutant in chosen:
        print(mutant.describe())
        if mutant.key in excused:
            print(f"    equivalent: {excused[mutant.key]}")
    for file, count in Counter(m.file for m in chosen).items():
        print(f"{count:5d} {file}")
    print(f"{len(chosen):5d} in all, {sum(m.key in excused for m in chosen)} listed as equivalent")


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    known = mutants()
    excused, keys = equivalents(known), numbered(known)
    chosen = choose(known, options)
    if options.list:
        show_list(chosen, excused)
        return 0
    ONLY_TESTS.update(options.tests or ())
    IGNORE_FAILING.extend([True] * options.ignore_failing)
    report = read_report(options.report)
    listed = [m for m in chosen if m.key in excused and not options.recheck]
    waiting = [m for m in chosen if m not in listed and not report.get(keys[m.id])]
    killed = len(chosen) - len(listed) - len(waiting)
    survivors: list[Mutant] = []
    begin = time.monotonic()
    warm_up(m.file for m in waiting)
    for number, verdict in enumerate(judge_all(waiting, options.jobs), start=1):
        if verdict.error:
            print(f"the tests fail without any mutant, so nothing can be judged: {verdict.error}")
            return 2
        mutant = verdict.mutant
        report[keys[mutant.id]] = verdict.killed_by
        write_report(options.report, report)
        outcome = f"killed by {verdict.killed_by}" if verdict.killed_by else "SURVIVED"
        print(
            f"[{number}/{len(waiting)}] {mutant.id} {outcome} ({verdict.seconds:.1f} s)", flush=True
        )
        if verdict.killed_by:
            killed += 1
        else:
            survivors.append(mutant)
    stale = [m for m in waiting if m.key in excused and m not in survivors]
    survivors = [m for m in survivors if m.key not in excused]
    for mutant in survivors:
        print(f"\nsurvived: {mutant.describe()}")
    for mutant in stale:
        print(f"\nlisted as equivalent, but killed: {mutant.describe()}")
    equivalent = sum(m.key in excused for m in chosen) - len(stale)
    print(
        f"\n{killed} killed, {equivalent} equivalent, {len(survivors)} survived "
        f"({time.monotonic() - begin:.0f} s)"
    )
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
