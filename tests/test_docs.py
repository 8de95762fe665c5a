"""The examples in the documents run, and what they name is there: options, names, headings."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from glass_flows.cli import app
from glass_flows.plans.kernels import RHO_RULES
from glass_flows.plans.solvers import SOLVERS
from glass_flows.steering import METHODS, POTENTIALS, RESAMPLERS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
settings_table = importlib.import_module("settings_table")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = sorted((ROOT / "docs" / "diffusers").glob("*.md"))  # one pipeline each, of real size
EVERY = [*DOCUMENTS, *PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
COMMANDS = typer.main.get_command(app)
GROUPS = {
    "methods",
    "models",
    "potentials",
    "resamplers",
    "rho_rules",
    "solvers",
    "rewards",
    "families",
}
"""Of entry points; each is named as glass_flows.GROUP."""
OTHERS = {"--against", "--nproc-per-node", "--out", "--quick"}
"""Options of tools, benchmarks and torchrun that documents name by themselves."""


def blocks(document):
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def given(text):
    """What examples take for granted: parts by their names, and a LoRA in the folder "style"."""
    found = {}
    if re.search(r"\bpipe\b", text):
        tiny = pytest.importorskip("tiny_pipelines")
        found["pipe"] = tiny.build("sd3")  # small at its default size
    if re.search(r"\bvideo\b", text):
        found["video"], _ = importlib.import_module("more_pipelines").build("WanPipeline")
    if re.search(r"\bcontrolnet\b", text):
        kind = importlib.import_module("diffusers").SD3ControlNetModel
        sizes = {"num_layers": 1, "num_extra_conditioning_channels": 0}
        found["controlnet"] = kind.from_transformer(tiny.build("sd3").transformer, **sizes)
    if '"style"' in text:
        peft, other = pytest.importorskip("peft"), tiny.build("sd3")
        other.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
        layers = peft.get_peft_model_state_dict(other.transformer)
        other.save_lora_weights("style", transformer_lora_layers=layers)
    return found


@pytest.fixture
def registered_for_now(monkeypatch):
    """What an example registers is there until it is over."""
    for registry in (METHODS, POTENTIALS, RESAMPLERS, RHO_RULES, SOLVERS):
        monkeypatch.setattr(registry, "_things", dict(registry._things))


# What their examples run for seconds is in tests of its own among the fast ones, too.
LONG = (
    "README.md", "check_model.md", "diffusers.md", "recipes.md", "refinement.md", "rewards.md",
    "shapes.md", "steering.md", "video.md",
)  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [pytest.param(d, marks=[pytest.mark.slow] * (d.name in LONG)) for d in DOCUMENTS],
    ids=lambda d: d.name,
)
def test_examples_run(document, registered_for_now, short_pilots, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = given("\n".join(blocks(document)))
    for block in blocks(document):
        exec(compile(block, document.name, "exec", dont_inherit=True), namespace)


def test_there_are_examples_to_run():
    assert sum(len(blocks(document)) for document in DOCUMENTS) >= 5


@pytest.mark.parametrize("document", PAGES, ids=lambda d: d.name)
def test_examples_of_single_pipelines_are_python(document):
    for block in blocks(document):
        compile(block, document.name, "exec")


@pytest.mark.parametrize("document", EVERY, ids=lambda d: d.name)
def test_links_to_files_exist(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_to_headings_exist(document):
    """For headings of plain words, whose anchors are the same on every site."""
    for target, anchor in re.findall(r"\]\(([^)#:]+)#([^)]+)\)", document.read_text()):
        page = (document.parent / target).read_text()
        headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in anchors, f"{target}#{anchor}"


def test_every_claim_of_the_front_page_points_to_where_it_is_measured():
    readme = (ROOT / "README.md").read_text()
    claims = re.findall(r"^\| .* \| (\[.*) \|$", readme, re.MULTILINE)
    assert len(claims) >= 5
    assert all(re.search(r"\]\(docs/\S+\.md#", row) for row in claims)


def test_the_ci_runs_the_commands_of_the_readme():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -c constraints.txt -e '.[test]' && .venv/bin/pytest\n" in readme
    assert "pip\" install -q -c constraints.txt -e '.[test]'" in ci
    assert '" pytest -m "slow or not slow"\n' in ci  # all of what `pytest` runs, and the slow ones


# --- what documents name --------------------------------------------------------------------------


def commands(text):
    """The words after `glass-flows` of every command in blocks and between lines."""
    joined = re.sub(r"\\\n\s*", " ", text)
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", joined, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "bash")]
    prose = re.sub(r"^```.*?^```", "", joined, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        for found in re.findall(r"(?:glass-flows|-m glass_flows) ([a-z].*)", line):
            yield shlex.split(found.split("&&")[0], comments=True)


def options_of(words):
    """Those given, and those that the command has."""
    command, left = COMMANDS, list(words)
    while left and left[0] in getattr(command, "commands", {}):
        command = command.commands[left.pop(0)]
    assert not hasattr(command, "commands") or not left, f"no command {' '.join(words)}"
    given = {word.partition("=")[0] for word in left if word.startswith("--")}
    return given, {option for parameter in command.params for option in parameter.opts} | {"--help"}


def test_commands_are_found():
    block = "```bash\n.venv/bin/glass-flows align --out a \\\n  --rho 1  # b --c\n```\n"
    text = block + "`glass-flows check`"
    assert list(commands(text)) == [["align", "--out", "a", "--rho", "1"], ["check"]]
    assert len([words for document in EVERY for words in commands(document.read_text())]) > 40


@pytest.mark.parametrize("document", EVERY, ids=lambda d: d.name)
def test_commands_have_the_options_that_documents_give_them(document):
    for words in commands(document.read_text()):
        given, known = options_of(words)
        assert given <= known, f"{' '.join(words)}: no {given - known}"


@pytest.mark.parametrize(
    "document", [d for d in EVERY if d.name != "CHANGELOG.md"], ids=lambda d: d.name
)
def test_options_that_stand_alone_are_some_commands(document):
    def every(command):
        yield from (option for parameter in command.params for option in parameter.opts)
        for inner in getattr(command, "commands", {}).values():
            yield from every(inner)

    known = set(every(COMMANDS)) | OTHERS
    named = re.findall(r"`(--[a-z-]+)[^`]*`", document.read_text())
    assert set(named) <= known, set(named) - known


def look_up(name):
    """What a dotted name of the package stands for."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("document", EVERY, ids=lambda d: d.name)
def test_names_of_the_package_exist(document):
    pytest.importorskip("diffusers")
    for name in re.findall(r"`(glass_flows(?:\.\w+)+)", document.read_text()):
        if name.removeprefix("glass_flows.") not in GROUPS:
            look_up(name)
    for name in re.findall(r"^::: (\S+)", document.read_text(), re.MULTILINE):
        look_up(name)


def test_old_options_of_the_changelog_are_gone_and_new_ones_there():
    text = (ROOT / "CHANGELOG.md").read_text()
    table = text[text.index("Renamed on the command line:") : text.index("Renamed in files:")]
    compared = 0
    for before, after in re.findall(r"^\| (`.*) \| (.*) \|$", table, re.MULTILINE):
        new = set(re.findall(r"--[a-z-]+", after))
        for name, line in re.findall(r"`(\w+) (--[^`]*)`", before):
            _, known = options_of([name])
            old = set(re.findall(r"--[a-z-]+", line)) - new
            # --prompts was a number, and is a file now.
            left = old & known - {"--guidance-scale", "--prompts"}
            assert not left, f"{name} still has {left}"
            assert new & known, f"{name} has none of {new}"
            compared += 1
    assert compared > 6


def test_the_page_of_settings_has_the_tables_of_the_classes():
    page = (ROOT / "docs" / "settings.md").read_text()
    _, _, rest = page.partition("<!-- begin: python tools/settings_table.py -->\n\n")
    found, mark, _ = rest.partition("\n<!-- end -->")
    assert mark
    assert found == settings_table.text(), "paste what `python tools/settings_table.py` prints"
