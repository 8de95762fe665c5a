"""The examples in the documents run, and the commands in the README are the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = sorted((ROOT / "docs" / "diffusers").glob("*.md"))  # one pipeline each, of real size


def blocks(document):
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_examples_run(document, capsys, tmp_path, monkeypatch):
    namespace: dict[str, object] = {}
    if any(re.search(r"\bpipe\b", block) for block in blocks(document)):
        tiny = pytest.importorskip("tiny_pipelines")
        namespace["pipe"] = tiny.build("sd3")  # small at its default size
    monkeypatch.chdir(tmp_path)
    for block in blocks(document):
        exec(compile(block, document.name, "exec"), namespace)


def test_there_are_examples_to_run():
    assert sum(len(blocks(document)) for document in DOCUMENTS) >= 5


@pytest.mark.parametrize("document", PAGES, ids=lambda d: d.name)
def test_examples_of_single_pipelines_are_python(document):
    for block in blocks(document):
        compile(block, document.name, "exec")


@pytest.mark.parametrize("document", [*DOCUMENTS, *PAGES], ids=lambda d: d.name)
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
    assert all("results.md#" in row for row in claims)


def test_the_ci_runs_the_commands_of_the_readme():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -c constraints.txt -e '.[test]' && .venv/bin/pytest\n" in readme
    assert "pip\" install -q -c constraints.txt -e '.[test]'" in ci
    assert "\npytest\n" in ci
