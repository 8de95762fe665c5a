"""`glass-flows report` and `runs`: what is drawn is what happened, and text stays text."""

from __future__ import annotations

import base64
import html
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from glass_flows import Steering, steer
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument, RunFolderError
from glass_flows.jobs import Job, digits_denoiser
from glass_flows.jobs.pictures import digit_image
from glass_flows.plans import Sampler
from glass_flows.rewards import ClassReward, FunctionReward
from glass_flows.runs import RunFolder
from glass_flows.runs import result as result_module
from glass_flows.runs.command import command_of
from glass_flows.runs.listing import differences
from glass_flows.runs.report import write_report
from glass_flows.steering import Costs, SearchResult
from glass_flows.worlds.digits import IMAGE, load_digits_classifier

ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> \x1b[31mred"
K, N, P = 4, 6, 2
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="there is no Chromium")


def make_run(folder, stop=None, seed=0, particles=N, populations=P):
    """A real run, of prompts that are an attack."""
    job = {"model": "digits", "prompts": [ATTACK] * populations, "method": "steering", "seed": seed}
    record = RunFolder(folder, {**job, "settings": {"note": ATTACK}}, title=ATTACK)
    record.pictures = lambda z: [digit_image(image) for image in z]
    reward, asked = ClassReward(load_digits_classifier("reward"), 8), []

    def score(z, prompts):
        asked.append(len(z))
        if len(asked) == stop:
            raise ValueError(ATTACK)
        return reward(z)

    with record.failures():
        result = steer(
            digits_denoiser(), FunctionReward(score, takes_prompts=True), shape=IMAGE,
            particles=particles, prompts=[ATTACK] * populations, transitions=K, steps=2, rho=0.4,
            scale=4.0, seed=seed, record=record, progress=False,
        )  # fmt: skip
    record.finish(result)
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, make_run(folder)


class Page(html.parser.HTMLParser):
    """The elements of a page, as (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, kind=""):
        return [
            a for t, a in self.elements if t == tag and kind in [*a.get("class", "").split(), ""]
        ]


def page_of(folders, out):
    return Page(write_report(folders, out).read_text(encoding="utf-8"))


def test_nothing_is_asked_of_anywhere(run, tmp_path):
    page = page_of([run[0]], tmp_path / "r.html")
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), attributes
    text = (tmp_path / "r.html").read_text()
    assert not re.search(r"url\(|@import|https?://", text)


def test_a_prompt_that_is_a_script_stays_text(run, tmp_path):
    page = page_of([run[0]], tmp_path / "r.html")
    assert page.text.count("<script>document.title") >= 4  # heading, title, prompts, settings
    assert "\x1b" not in page.text
    assert not page.all("script")


def test_the_tree_is_the_ancestry(run, tmp_path):
    page, result = page_of([run[0]], tmp_path / "r.html"), run[1]
    edges = [a["data-edge"].split() for a in page.all("path", "edge")]
    assert len(edges) == P * K * N
    for p in range(P):
        own = edges[p * K * N : (p + 1) * K * N]
        wanted = [
            [f"{k}-{int(result.ancestry[k, p, n])}", f"{k + 1}-{n}"]
            for k in range(K)
            for n in range(N)
        ]
        assert sorted(own) == sorted(wanted)


def test_the_line_of_the_best_is_highlighted_and_what_died_is_faded(run, tmp_path):
    page, result = page_of([run[0]], tmp_path / "r.html"), run[1]
    nodes = page.all("g", "node")
    assert len(nodes) == P * (K + 1) * N
    for p in range(P):
        kinds = {
            a["data-node"]: a["class"].split()[1]
            for a in nodes[p * (K + 1) * N : (p + 1) * (K + 1) * N]
        }
        best = int(result.rewards[p].argmax())
        for k in range(K + 1):
            line = result.lineage[k, p]
            for n in range(N):
                wanted = "lost" if n not in line else "best" if n == line[best] else "alive"
                assert kinds[f"{k}-{n}"] == wanted


def test_a_tile_is_the_clean_estimate_of_its_slot(run, tmp_path):
    page, result = page_of([run[0]], tmp_path / "r.html"), run[1]
    (uri,) = (a["href"] for a in page.all("image") if a["id"].endswith(f"-{K}"))
    sheet = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    order = result.rewards[1].argsort(descending=True).tolist()
    shown = [
        a["viewbox"]
        for t, a in page.elements
        if (t == "svg" and "best first" in a.get("aria-label", ""))
        or (t == "svg" and a.get("aria-label", "").startswith("best image"))
    ]
    assert len(shown) == P * N
    views = [list(map(int, view.split())) for view in shown[N:]]  # of the second population
    for n, (x, y, width, height) in zip(order, views):
        tile = sheet.crop((x, y, x + width, y + height)).convert("L")
        assert tile.tobytes() == digit_image(result.samples[1, n]).tobytes()


def test_an_unfinished_and_a_failed_run_are_reported_with_what_there_is(tmp_path):
    with pytest.raises(Exception, match="script"):
        make_run(tmp_path / "failed", stop=3)
    page = page_of([tmp_path / "failed"], tmp_path / "r.html")
    assert "failed" in page.text
    assert "ValueError: <script>" in page.text
    assert len(page.all("g", "node")) == P * 3 * N
    (tmp_path / "failed" / "error.json").unlink()
    assert "unfinished" in page_of([tmp_path / "failed"], tmp_path / "r.html").text


def test_several_runs_are_compared(run, tmp_path):
    make_run(tmp_path / "batch" / "a", seed=1)
    make_run(tmp_path / "batch" / "b", seed=2, populations=6)
    page = page_of([run[0], tmp_path / "batch"], tmp_path / "r.html")
    assert len(page.all("section", "run")) == 3
    assert "2 more populations are not shown" in page.text
    table = page.text[page.text.index("Side by side") :]
    assert re.search(r"seed\s*0\s*1\s*2", table)


def test_what_cannot_be_reported_says_why(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(RunFolderError, match="is no folder"):
        write_report([tmp_path / "none"], tmp_path / "r.html")
    with pytest.raises(InvalidArgument, match="at least one run"):
        write_report([], tmp_path / "r.html")
    RunFolder(tmp_path / "new", {"seed": 3})
    write_report([tmp_path / "new"], tmp_path / "r.html")  # one that has not begun


def test_more_than_24_runs_are_on_pages_that_lead_to_each_other(tmp_path):
    for i in range(25):
        RunFolder(tmp_path / "many" / f"{i:02}", {"seed": i}, title=f"run {i}")
    first = page_of([tmp_path / "many"], tmp_path / "runs #2 of them.html")
    other = Page((tmp_path / "runs #2 of them-2.html").read_text(encoding="utf-8"))
    assert [len(page.all("section", "run")) for page in (first, other)] == [24, 1]
    links = [a["href"] for a in first.all("a")]
    assert links.count("runs%20%232%20of%20them-2.html") == 2  # above and below
    assert [a for a in links if "#" in a] == [
        *(f"runs%20%232%20of%20them.html#s{i}" for i in range(24)),
        "runs%20%232%20of%20them-2.html#s24",
    ]
    assert {a["href"] for a in other.all("a")} == {"runs%20%232%20of%20them.html"}
    assert [section["id"] for section in other.all("section", "run")] == ["s24"]


def test_the_head_says_what_was_run_and_how_to_repeat_it(tmp_path):
    prompt = "a cat's <b>hat</b>"
    method = Steering(3, scale=2.5)
    job = Job("shapes", method, Sampler(4, 1), (prompt,), reward="clip", seed=9)
    files = [["0.png", "1.png", "2.png"]]
    record = RunFolder(tmp_path / "run", job.as_json(), title=prompt)
    for name in (*files[0], "plain-0.png", "plain-1.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / "run" / name)
    ancestry, rewards = torch.zeros(1, 1, 3).long(), torch.tensor([[1.0, 3.0, 2.0]])
    result = SearchResult(torch.zeros(1, 3, 2), rewards, ancestry, Costs(1200))
    plain = SearchResult(torch.zeros(1, 2, 2), torch.tensor([[0.5, 0.75]]), ancestry, Costs())
    record.finish(
        result, files, prompts=[prompt], accepted=[[True, False, True]],
        plain_accepted=[[True] * 2], plain=plain, plain_files=[["plain-0.png", "plain-1.png"]],
    )  # fmt: skip
    told = json.loads((tmp_path / "run" / "result.json").read_text())
    schema = Path(result_module.__file__).with_name("result.schema.json").read_text()
    jsonschema.validate(told, json.loads(schema))
    for sample, other in zip(told["samples"], (0.125, 0.25, 0.375)):
        sample["also"] = {"<i>other</i>": other}
    jsonschema.validate(told, json.loads(schema))
    (tmp_path / "run" / "result.json").write_text(json.dumps(told))
    page = page_of([tmp_path / "run"], tmp_path / "r.html")
    text = " ".join(page.text.split())
    for said in (
        "modelshapes", "rewardclip", "λ2.5", "seed9", "methodsteering particles=3 scale=2.5",
        "cost1,200 network evaluations", "<i>other</i> 0.25",
    ):  # fmt: skip
        assert said in text
    command = text[text.index("glass-flows align") :]
    assert command.startswith(command_of(job.as_json()))
    assert """--prompt 'a cat'"'"'s <b>hat</b>'""" in command
    assert [image["alt"] for image in page.all("img")] == [
        "best plain image: plain-1.png, reward 0.75",
        "image 2, best first: plain-0.png, reward 0.5",
        "best image: 1.png, reward 3",
        "image 2, best first: 2.png, reward 2",
        "image 3, best first: 0.png, reward 1",
    ]
    boxes = page.all("input")
    assert len(boxes) == 5  # one for each picture, by which it is enlarged
    assert all(box["type"] == "checkbox" for box in boxes)
    assert not page.all("b")
    assert not page.all("i")


def test_a_boundary_at_which_nothing_is_seen_has_no_column(tmp_path):
    """Of a pipeline nothing is decoded at t = 0, where no value is taken."""
    record = RunFolder(tmp_path / "run", {"seed": 0})
    result = steer(
        digits_denoiser(), ClassReward(load_digits_classifier("reward"), 8), shape=IMAGE,
        particles=N, transitions=K, steps=1, ess_threshold=1.0, scale=4.0, seed=0, record=record,
        boundaries=[1, 3], progress=False,
    )  # fmt: skip
    record.finish(result)
    page = page_of([tmp_path / "run"], tmp_path / "r.html")
    columns = {int(a["data-node"].split("-")[0]) for a in page.all("g", "node")}
    assert columns == {1, 3, K}
    edges = sorted(a["data-edge"] for a in page.all("path", "edge"))
    assert edges == sorted(
        f"{k}-{int(result.ancestry[k, 0, n])} {later}-{n}"
        for k, later in ((1, 3), (3, K))
        for n in range(N)
    )


def test_the_commands(run, tmp_path):
    invoke = CliRunner().invoke
    made = invoke(app, ["report", str(run[0]), "--out", str(tmp_path / "a" / "r.html")])
    assert made.exit_code == 0
    assert (tmp_path / "a" / "r.html").exists()
    listed = invoke(app, ["runs", "list", str(run[0].parent), "--json"])
    (one,) = json.loads(listed.output)
    assert one["status"] == "finished"
    assert one["best"] == pytest.approx(float(run[1].rewards.amax(1).mean()))
    assert one["boundary"] == one["transitions"] == K
    for command in (["list", str(run[0].parent)], ["show", str(run[0])], ["compare", str(run[0])]):
        told = invoke(app, ["runs", *command])
        assert told.exit_code == 0, told.output
        assert "finished" in told.output
        assert "\x1b" not in told.output
    told = invoke(app, ["runs", "show", str(run[0])]).output
    assert f"{float(run[1].rewards.amax(1).mean()):.4g}" in told
    shown = json.loads(invoke(app, ["runs", "show", str(run[0]), "--json"]).output)
    assert shown["job"]["method"] == "steering"
    ancestors = [boundary["ancestors"] for boundary in shown["boundaries"][:-1]]
    assert ancestors == run[1].ancestry.tolist()


def test_runs_are_compared_by_what_differs(run, tmp_path):
    make_run(tmp_path / "other", seed=7)
    told = CliRunner().invoke(
        app, ["runs", "compare", str(run[0]), str(tmp_path / "other"), "--json"]
    )
    found = json.loads(told.output)
    assert found["differences"] == {"seed": ["0", "7"]}
    assert len(found["runs"]) == 2


def test_a_damaged_run_is_listed_as_such(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "copy")
    events = tmp_path / "copy" / "events.jsonl"
    events.write_text(events.read_text().replace('"ancestors": [[', '"ancestors": [[99, ', 1))
    with pytest.raises(RunFolderError, match=r"events.jsonl.*damaged"):
        write_report([tmp_path / "copy"], tmp_path / "r.html")
    (one,) = json.loads(CliRunner().invoke(app, ["runs", "list", str(tmp_path), "--json"]).output)
    assert one["status"] == "damaged"


def test_a_search_has_no_boundaries_but_its_images_are_shown(tmp_path):
    record = RunFolder(tmp_path / "run", {"method": "beam", "prompts": ["a cat"]}, title="a cat")
    files = [f"000-0{i}.png" for i in range(3)]
    for file in files:
        Image.new("RGB", (64, 64), "red").save(tmp_path / "run" / file)
    ancestry = torch.zeros(1, 1, 3, dtype=torch.int64)
    rewards = torch.tensor([[1.0, 3.0, 2.0]])
    record.finish(SearchResult(torch.zeros(1, 3, 2), rewards, ancestry, Costs(10)), [files])
    page = page_of([tmp_path / "run"], tmp_path / "r.html")
    assert [image["alt"] for image in page.all("img")] == [
        "best image: 000-01.png, reward 3",
        "image 2, best first: 000-02.png, reward 2",
        "image 3, best first: 000-00.png, reward 1",
    ]
    assert "of 0" not in page.text


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("run.json", {"title": 5}),
        ("run.json", {"versions": ["1"]}),
        ("run.json", {"particles": "6"}),
        ("error.json", {}),
        ("result.json", {"samples": []}),
        ("result.json", {"populations": []}),
        ("result.json", {"version": 1, "rewards": [[1.0]] * P, "images": []}),
        ("result.json", {"version": 1, "rewards": [[1.0] * N] * P, "images": [["000-00.png"]]}),
    ],
)
def test_a_damaged_file_is_named(file, change, run, tmp_path):
    shutil.copytree(run[0], tmp_path / "copy")
    damaged = tmp_path / "copy" / file
    found = json.loads(damaged.read_text()) if damaged.exists() else {}
    damaged.write_text(json.dumps({**found, **change}))
    with pytest.raises(RunFolderError, match=rf"{file}.*damaged"):
        write_report([tmp_path / "copy"], tmp_path / "r.html")
    told = CliRunner().invoke(app, ["runs", "list", str(tmp_path)])
    assert told.exit_code == 0
    assert "damaged" in told.output


def browse(page, width, home, *flags):
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1600",
         f"--user-data-dir={home / 'profile'}", "--virtual-time-budget=2000", *flags, f"file://{page}"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_scrolling_sideways(width, run, tmp_path):
    """A script that the test adds says how wide the page is; the page itself has none.

    In a frame, as a window of Chromium is never narrower than 500 pixels.
    """
    file = write_report([run[0]], tmp_path / "r.html")
    probe = (
        "<script>onload = () => { const small = document.querySelector('.zoom svg'),"
        "wide = () => small.getBoundingClientRect().width > .5 * innerWidth,"
        "found = [innerWidth, document.documentElement.scrollWidth - innerWidth,"
        "document.title, document.querySelectorAll('script').length,"
        "[...document.images].every(i => i.naturalWidth > 0), wide(),"
        "getComputedStyle(document.querySelector('.hint')).display];"
        "document.querySelector('.zoom input').click();"
        "parent.postMessage([...found, wide()].join('|'), '*') }</script></body>"
    )
    copy, inside = tmp_path / "probed.html", file.read_text().replace("</body>", probe)
    copy.write_text(
        "<!doctype html><script>onmessage = e => document.body.dataset.found = e.data</script>"
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(inside)}"></iframe>',
        encoding="utf-8",
    )
    found = re.search(r'data-found="([^"]*)"', browse(copy, 1400, tmp_path, "--dump-dom"))
    seen, wider, title, scripts, loaded, wide, hint, enlarged = found[1].split("|")
    assert int(seen) == width
    assert int(wider) <= 0
    assert title != "taken"
    assert (scripts, loaded) == ("1", "true")
    assert (wide, enlarged) == ("false", "true")
    assert hint == ("block" if width == 390 else "none")  # the tree scrolls on a phone only


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_the_pictures(run, tmp_path):
    file, shot = write_report([run[0]], tmp_path / "r.html"), tmp_path / "shot.png"
    browse(file, 1280, tmp_path, f"--screenshot={shot}", "--force-color-profile=srgb")
    with Image.open(shot) as image:
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) > 100
    green = sum(n for n, (r, g, b) in colours if g > r + 60 and g > b + 20)
    assert green > 500  # the line of the best


def test_a_folder_that_is_not_there_is_not_a_folder_without_runs(tmp_path):
    told = CliRunner().invoke(app, ["runs", "list", str(tmp_path / "none")])
    assert isinstance(told.exception, RunFolderError)
    assert "no runs below" in CliRunner().invoke(app, ["runs", "list", str(tmp_path)]).output


def test_differences_are_named_with_dots():
    one = {"seed": 1, "sampler": Sampler(12).as_json(), "same": [1], "gone": 0}
    other = {"seed": 2, "sampler": Sampler(12, 2).as_json(), "same": [1], "method": {"scale": 2}}
    assert differences([one, other]) == {
        "seed": ["1", "2"],
        "sampler.steps": ["-", "2"],
        "gone": ["0", "-"],
        "method.scale": ["-", "2"],
    }
    assert differences([one, one]) == {}
