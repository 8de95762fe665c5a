"""Images among the arguments of a pipeline's call, from the command line: `--argument image=FILE`.

A text is a file there by the name of its argument. The run is that of the file's bytes.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import tiny_pipelines as tiny
from glass_flows import Sampler, Steering
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument
from glass_flows.jobs import Job
from glass_flows.jobs.again import Wish, repeated
from glass_flows.jobs.spelling import Options
from glass_flows.pixels import files_in, opened

REWARD = """
def red(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
"""


def align(*arguments):
    return CliRunner().invoke(app, ["align", *arguments])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "red_of_mine.py").write_text(REWARD)
    tiny.picture(16, 16).save("in.png")
    return tmp_path


def asked(*more):
    return [
        "--model", "kontext", "--prompt", "a cat", "--reward", "red_of_mine:red", "--scale", "5",
        "--particles", "2", "--transitions", "2", "--steps", "1", "--out", "out",
        "--height", "16", "--width", "16", "--argument", "max_area=256", "--argument",
        "_auto_resize=false", "--argument", "max_sequence_length=32", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_with_an_image_is_that_of_its_bytes(here):
    tiny.save("kontext", here / "kontext")
    given = asked("--argument", "image=in.png")
    first = align(*given)
    assert first.exit_code == 0, first.output
    figures = json.loads((here / "out" / "result.json").read_text())
    assert figures["job"]["call"]["image"] == "in.png"
    again = align(*given)
    assert again.exit_code == 0, again.output
    tiny.picture(16, 16, seed=1).save("in.png")
    other = align(*given)
    assert other.exit_code != 0
    assert "image 0" in " ".join((other.output + str(other.exception)).split())
    (figure,) = (here / "out").glob("000-00.png")
    with pytest.raises(InvalidArgument, match=r"--argument image=in\.png"):
        repeated(figure, Wish(model="kontext", reward="red_of_mine:red"))
    wish = Wish(model="kontext", reward="red_of_mine:red",
                options=Options(call={"image": "in.png"}))  # fmt: skip
    assert repeated(figure, wish).options.call["image"] == "in.png"


@pytest.mark.parametrize(
    ("value", "said"),
    [("none.png", "'none.png' cannot be read as an image"),
     ("red_of_mine.py", "'red_of_mine.py' cannot be read as an image"),
     ('["in.png", "none.png"]', "'none.png' cannot be read as an image")],
)  # fmt: skip
def test_what_is_no_image_is_refused_before_anything_is_loaded(here, value, said):
    (here / "kontext").mkdir()  # nothing is in it that could be loaded
    shown = align(*asked("--argument", f"image={value}"))
    assert shown.exit_code != 0 and said in " ".join((shown.output + str(shown.exception)).split())


def test_a_text_is_a_file_by_the_name_of_its_argument(here):
    call = {"image": "in.png", "mask_image": ["in.png"], "negative_prompt": "in.png",
            "num_images": "2", "control_image": tiny.picture(8, 8), "strength": 0.5}  # fmt: skip
    assert files_in(call) == {"image": ("in.png",), "mask_image": ("in.png",)}
    found = opened(call)
    assert found["image"].mode == "RGB" and found["mask_image"][0].size == (16, 16)
    same = ("negative_prompt", "num_images", "control_image", "strength")
    assert all(found[name] is call[name] for name in same)


def test_the_pictures_of_a_job_are_known_by_their_bytes(here):
    job = Job("kontext", Steering(2), Sampler(2, 1), ("a",), call={"image": "in.png"})
    first = job.beginnings()
    assert list(first) == ["image 0"]
    assert replace(job, call={"mask_image": ["in.png", "in.png"]}).beginnings() == {
        f"mask_image {i}": first["image 0"] for i in range(2)
    }
    tiny.picture(16, 16, seed=1).save("in.png")
    assert job.beginnings()["image 0"] != first["image 0"]
