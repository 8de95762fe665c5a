"""Prompts from files of every kind, and the folders that GenEval's evaluator reads."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from glass_flows.errors import InvalidArgument, UnknownName
from glass_flows.jobs.prompts import PromptEntry, read_prompts, write_geneval

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
        ("p.jsonl", "[" * 100_000, r"p\.jsonl.*line 1 is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "x": NaN}', "line 2 is not JSON: NaN is no"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "a \\ud83d b"}', r"line 2 cannot .*surrogate"),
        ("p.jsonl", '{"prompt": 5}', "line 1 has no prompt"),
        # Never cut short, nor several lines as one.
        ("p.csv", "prompt\na cat, a dog and a mouse\na house\n", "line 2 has 2 fields, .* 1 col"),
        ("p.csv", "prompt,tag\na house,B\na cat, a dog,A\n", "line 3 has 3 fields, .* 2 columns"),
        ("p.csv", "prompt;tag\na cat; a dog;A\n", "line 2 has 3 fields, .* 2 columns"),
        ("p.csv", "prompt,tag\na cat\non a mat,A\n", "line 2 has 1 fields, .* 2 columns"),
        ("p.csv", 'prompt,tag\n"Hello" says a cat,A\n', "line 2 cannot be read"),
        ("p.csv", 'prompt,tag\n"a cat,A\na dog,A\n', "line 2 cannot be read: unexpected end"),
        ("p.csv", "prompt,tag\na cat\ra dog,A\n", "line 2 cannot be read: new-line"),
        ("p.csv", "prompt,Prompt\na cat,a dog\n", "line 1 has two columns of one name"),
        ("p.tsv", "Prompt\tCategory\na cat\ton a mat\tAnimals\n", "line 2 has 3 fields"),
        ("p.tsv", 'Prompt\tCategory\n"a sign:\n""Hello"""\tWriting\n', "line 2 has 1 fields"),
        ("p.tsv", "Prompt\tCategory\na cat\ra dog\tAnimals\n", "line 2 holds a carriage return"),
        ("p.txt", "a cat\ra dog\r", "line 1 holds a carriage return"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(name, text, message, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(InvalidArgument, match=f"(?s){message}"):
        read_prompts(tmp_path / name)


NO_LINE_ENDS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e")


@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv", "tsv"])
@pytest.mark.parametrize("character", NO_LINE_ENDS)
def test_only_newlines_end_a_line(kind, character, tmp_path):
    one = f"a cat{character}on a mat"
    if kind == "jsonl":
        entries = (json.dumps({"prompt": text}, ensure_ascii=False) for text in (one, "a dog"))
        text = "\n".join(entries)
    else:
        text = f"{'' if kind == 'txt' else 'prompt' + chr(10)}{one}\na dog\n"
    (tmp_path / f"a.{kind}").write_bytes(text.encode())
    assert [entry.text for entry in read_prompts(tmp_path / f"a.{kind}")] == [one, "a dog"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_as_programs_write_them(end, mark, tmp_path):
    """Spreadsheets with semicolons and a byte order mark; pandas with its quotation marks."""
    rows = {
        "a.csv": ["Prompt;Category", "a cat, a dog;Animals", '"a sign ""Go; now""";Writing'],
        "b.csv": ["Category,Prompt", "Animals,a cat; a dog", 'Writing,"a sign ""Go, now"""'],
        "c.tsv": ["Prompt\tCategory", "a cat, a dog\tAnimals", '"a sign ""Go, now"""\tWriting'],
    }
    for name, lines in rows.items():
        (tmp_path / name).write_bytes((mark + end.join(lines) + end).encode())
    found = {name: [(e.text, e.category) for e in read_prompts(tmp_path / name)] for name in rows}
    assert found == {
        "a.csv": [("a cat, a dog", "Animals"), ('a sign "Go; now"', "Writing")],
        "b.csv": [("a cat; a dog", "Animals"), ('a sign "Go, now"', "Writing")],
        "c.tsv": [("a cat, a dog", "Animals"), ('a sign "Go, now"', "Writing")],
    }


@pytest.mark.parametrize(
    "raw", ['"Hello"', '"Hello" says a cat', 'a cat says "Hello"', '"go", "now"', '"', '""']
)
def test_a_quotation_mark_of_a_prompt_stays_in_a_tsv(raw, tmp_path):
    (tmp_path / "a.tsv").write_text(f"Prompt\tCategory\n{raw}\tWriting\n", encoding="utf-8")
    assert [entry.text for entry in read_prompts(tmp_path / "a.tsv")] == [raw]


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a cat\na dog\n\xff\xfe\n")
    with pytest.raises(InvalidArgument, match="line 3 is not UTF-8"):
        read_prompts(tmp_path / "a.txt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["jsonl", "csv", *(pytest.param(k, marks=pytest.mark.slow) for k in ("txt", "tsv"))]
)
def test_long_prompts_and_many(kind, tmp_path):
    texts = ["x" * 1_000_000, *(f"prompt {i}" for i in range(20_000))]
    lines = [json.dumps({"text": t}) for t in texts] if kind == "jsonl" else texts
    (tmp_path / f"a.{kind}").write_text("\n".join(["text"] * (kind in ("csv", "tsv")) + lines))
    assert [entry.text for entry in read_prompts(tmp_path / f"a.{kind}")] == texts


def test_a_text_that_stands_again_counts_once_unless_asked(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\na dog\na cat \n")
    assert [e.number for e in read_prompts(tmp_path / "a.txt", duplicates=False)] == [0, 1]
    assert [e.number for e in read_prompts(tmp_path / "a.txt")] == [0, 1, 2]


def test_the_evaluator_finds_the_images_of_this_run_only(tmp_path):
    entry = PromptEntry(0, "a bench")
    write_geneval(tmp_path, entry, [Image.new("RGB", (8, 8), "red")] * 4)
    (tmp_path / "00000" / "samples" / "mine.png").write_bytes(b"")
    write_geneval(tmp_path, entry, [Image.new("RGB", (8, 8), "blue")] * 2)
    left = sorted(file.name for file in tmp_path.rglob("*.png"))
    assert left == ["00000.png", "00001.png", "mine.png"]  # and nothing of anybody else
