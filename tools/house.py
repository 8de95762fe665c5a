"""Measure the house: is everything as short, as narrow and as one-way as it is meant to be?

    python tools/house.py            # figures, and what is over a limit; exit 1 if something is

Of `src/glass_flows`, from its sources alone. A function's length is without its docstring. Fronts
(calls for people, under the decorator ``front``, commands, under ``with_settings``, and diffusers'
configurations, under ``register_to_config``) name every setting, and their defaults are held to
those of the settings objects by the code itself or by a test. `research` is measured for circles
only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "glass_flows"
LONGEST = 60  # lines of a function
WIDEST = 12  # parameters of a function
PROBES = 23  # calls of getattr with a fixed name; only ever lower this
CIRCLES = 0  # of imports; only ever lower this
REPEATED = 0  # functions that repeat defaults of a settings class; only ever lower this
FRONTS = ("front", "register_to_config", "with_settings")


@dataclass(frozen=True)
class Function:
    """A function with what is measured of it."""

    place: str
    lines: int
    parameters: list[str]
    defaults: dict[str, str]
    front: bool
    research: bool


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def functions(name: str, tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body, lines = node.body, node.end_lineno - node.lineno + 1
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            lines -= first.end_lineno - first.lineno + 1
        given = node.args
        positional = [*given.posonlyargs, *given.args]
        named = [a.arg for a in (*positional, *given.kwonlyargs)]
        named += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
        pairs = [*zip(reversed(positional), reversed(given.defaults))]
        pairs += [(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults) if d is not None]
        defaults = {a.arg: ast.dump(d) for a, d in pairs}
        marks = {_called(d) for d in node.decorator_list}
        yield Function(
            f"{name}:{node.name}",
            lines,
            [n for n in named if n not in ("self", "cls")],
            defaults,
            bool(marks & set(FRONTS)),
            name.startswith("glass_flows.research"),
        )


def _called(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def settings(trees: dict[str, ast.Module]) -> list[dict[str, str]]:
    """For every settings class its fields and their defaults, as they stand in the source."""
    found = []
    for node in (n for tree in trees.values() for n in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            held = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            made = [n for n in held if isinstance(n.value, ast.Call)]
            named = {
                n.target.id: ast.dump(n.value.args[0])
                for n in made
                if isinstance(n.target, ast.Name) and _called(n.value) == "setting"
            }
            found += [named] if named else []
    return found


def repeated(function: Function, classes: list[dict[str, str]]) -> list[str]:
    """Settings of one class whose defaults a function writes again; two may be chance."""
    for named in classes:
        same = [n for n, default in named.items() if function.defaults.get(n) == default]
        if len(same) > 2:
            return same
    return []


def imports(
    name: str, tree: ast.Module, known: set[str], package: bool
) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a module imports from the package, wherever it does."""
    parts = name.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level + (1 if package else 0)]
            target = ".".join([*base, *(node.module.split(".") if node.module else [])])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glass_flows"):
            target = node.module or ""
        else:
            continue
        for alias in node.names:
            inside = f"{target}.{alias.name}"
            yield (inside, "") if inside in known else (target, alias.name)


def graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Which module needs which; a name that a package hands on counts for where it is made."""
    known = set(trees)
    packages = {n for n in known if any(k.startswith(n + ".") for k in known)}
    taken = {n: list(imports(n, tree, known, n in packages)) for n, tree in trees.items()}
    handed = {n: {name: module for module, name in taken[n] if name} for n in packages}

    def home(module: str, name: str) -> str:
        while module in handed and name in handed[module]:
            module = handed[module][name]
        return module

    found = {}
    for name in known - packages:
        needed = {home(module, what) for module, what in taken[name]}
        found[name] = needed - {name, "glass_flows"} - (packages - {"glass_flows"})
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that need each other in a loop: strongly connected components (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            loop = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(loop) > 1:
                found.append(sorted(loop))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def main() -> int:
    trees = modules()
    every = [f for name, tree in trees.items() for f in functions(name, tree)]
    measured = [f for f in every if not f.research]
    names = settings(trees)
    calls = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.Call)]
    looked = sum(
        _called(call) == "getattr" and isinstance(call.args[1], ast.Constant) for call in calls
    )
    words = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.Name)]
    loops = circles(graph(trees))
    long = [f for f in measured if f.lines > LONGEST and not f.front]
    wide = [f for f in measured if len(f.parameters) > WIDEST and not f.front]
    twice = {f.place: repeated(f, names) for f in measured if not f.front}
    twice = {place: found for place, found in twice.items() if found}
    size = sum(len(f.read_text().splitlines()) for f in SOURCE.rglob("*.py"))
    print(f"{size} lines in {len(trees)} modules, {len(every)} functions")
    print(f"'Any' {sum(w.id == 'Any' for w in words)} times")
    print(f"getattr of a fixed name {looked} (limit {PROBES})")
    problems = [f"{f.place} has {f.lines} lines, more than {LONGEST}" for f in long]
    problems += [f"{f.place} has {len(f.parameters)} parameters, over {WIDEST}" for f in wide]
    if len(loops) > CIRCLES:
        problems += [f"a circle of imports: {' - '.join(loop)}" for loop in loops]
    if looked > PROBES:
        problems.append(f"getattr of a fixed name {looked} times, more than {PROBES}")
    if len(twice) > REPEATED:
        problems += [f"{place} repeats defaults: {', '.join(n)}" for place, n in twice.items()]
    print(f"circles of imports {len(loops)} (limit {CIRCLES})")
    print(f"functions that repeat defaults of settings: {len(twice)} (limit {REPEATED})")
    longest = sorted((f for f in measured if not f.front), key=lambda f: -f.lines)[:5]
    print("longest:", ", ".join(f"{f.place} {f.lines}" for f in longest))
    print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
