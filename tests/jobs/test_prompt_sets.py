"""Prompts from files of every kind, and the folders that GenEval's evaluator reads."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from glass_flows.errors import InvalidArgument, UnknownName
from glass_flows.jobs.prompts import read_prompts, write_geneval

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cup", "count": 3}],
        "exclude": [{"class": "cup", "count": 4}],
        "prompt": "three cups",
    },
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"},
]


@pytest.fixture
def geneval(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, GENEVAL)) + "\n\n", encoding="utf-8")
    return file


def test_geneval_by_category_and_number(geneval):
    every = read_prompts(geneval)
    assert [e.text for e in every] == ["a bench", "three cups", "two dogs"]
    assert every[1].metadata == GENEVAL[1]
    counting = read_prompts(geneval, categories=["counting"], start=1)
    assert [(e.number, e.text, e.category) for e in counting] == [(2, "two dogs", "counting")]
    assert [e.number for e in read_prompts(geneval, start=1, count=1)] == [1]


def test_its_folders_are_those_that_geneval_evaluates(geneval, tmp_path):
    entry = read_prompts(geneval)[2]
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    files = write_geneval(tmp_path / "out", entry, images)
    home = tmp_path / "out" / "00002"
    assert files == [home / "samples" / "00000.png", home / "samples" / "00001.png"]
    assert Image.open(files[1]).getpixel((0, 0)) == (0, 0, 255)
    # The evaluator takes the first line as the metadata.
    assert json.loads((home / "metadata.jsonl").read_text()) == GENEVAL[2]


def test_partiprompts_keep_their_quotation_marks(tmp_path):
    file = tmp_path / "PartiPrompts.tsv"
    file.write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        'a sign that says "go, now"\tWorld Knowledge\tWriting\t\n'
        "a cat\tAnimals\tBasic\tsimple\n",
        encoding="utf-8",
    )
    one, two = read_prompts(file)
    assert (one.text, one.category) == ('a sign that says "go, now"', "World Knowledge")
    assert two.metadata["Challenge"] == "Basic"
    assert read_prompts(file, categories=["Animals"]) == [two]


def test_text_and_comma_separated(tmp_path):
    plain = tmp_path / "prompts.txt"
    plain.write_text("\ufeffa cat\n\n  a dog, running \n", encoding="utf-8")
    assert [(e.number, e.text) for e in read_prompts(plain)] == [
        (0, "a cat"),
        (1, "a dog, running"),
    ]
    table = tmp_path / "prompts.csv"
    table.write_text('caption,tag\n"a dog,\nrunning",animals\n', encoding="utf-8")
    assert [(e.text, e.category) for e in read_prompts(table)] == [("a dog,\nrunning", "animals")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n\n", "holds no prompts"),
        ("p.jsonl", '{"prompt": "a"}\n{', r"line 2 is not JSON"),
        ("p.jsonl", "[1]", r"line 1 must be a JSON object"),
        ("p.jsonl", '{"name": "a"}', r"line 1 has no prompt: one of prompt, text.*'name'"),
        ("p.tsv", "Prompt\tCategory\n\tAnimals\n", r"line 2 has no prompt"),
        ("p.txt", None, "cannot read the prompts"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(name, content, message, tmp_path):
    file = tmp_path / name
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidArgument, match=message):
        read_prompts(file)


def test_other_choices_are_refused(geneval, tmp_path):
    with pytest.raises(UnknownName, match=r"'countin'.*counting"):
        read_prompts(geneval, categories=["countin"])
    with pytest.raises(InvalidArgument, match=r"no prompt number 9 .* holds 3"):
        read_prompts(geneval, start=9)
    with pytest.raises(UnknownName, match=r"\.yaml.*\.jsonl"):
        read_prompts(tmp_path / "prompts.yaml")


def test_a_line_of_json_ends_where_the_line_does(tmp_path):
    """A text in it may hold what breaks lines elsewhere."""
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\n', encoding="utf-8"
    )
    assert [entry.text for entry in read_prompts(tmp_path / "p.jsonl")] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt\n" + "x" * 200_000, r"p\.csv.*line 2 cannot be read.*field limit"),
        ("p.jsonl", "[" * 100_000, r"p\.jsonl.*line 1 is not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidArgument, match=message):
        read_prompts(tmp_path / name)
