"""Functions of images are recognised before a run, in every form that people have them in."""

import io
import random
import warnings
from functools import cache, partial

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import tiny_pipelines as tiny
from glass_flows import progress, steer, steer_pipeline
from glass_flows.cli import app, main
from glass_flows.diffusers import pipeline as module
from glass_flows.errors import InvalidArgument, RewardError, ShapeError, UnknownName
from glass_flows.paths import Linear
from glass_flows.rewards import Decoded, FunctionReward, OfImages, Reward, WeightedSum, as_reward
from glass_flows.rewards import forms as forms_module
from glass_flows.rewards.forms import KINDS, Form, pictures, to_bytes, try_reward
from glass_flows.rewards.named import as_image_reward, load_reward
from glass_flows.worlds import digits_mixture

Z = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(5))
WORDS = ["a cat", "two dogs"]


@pytest.fixture
def said(monkeypatch):
    """The lines that are said of what was recognised."""
    lines = []
    monkeypatch.setattr(forms_module, "note", lines.append)
    return lines


# --- the same reward in many forms: how dark an image is, on its 8 bits ---------------------------


def tensors(images):
    return 1 - (images * 255).round().double().mean((1, 2, 3)) / 255


def column(images):
    return tensors(images)[:, None]


def listed(images):
    return tensors(images).tolist()


def one_tensor(image):
    return tensors(image[None])[0]


def pil_list(images):
    return [1 - np.asarray(image.convert("RGB")).mean() / 255 for image in images]


def pil_array(images: list[Image.Image]):
    return np.array(pil_list(images))


def one_pil(image):
    return 1 - np.asarray(image).mean() / 255


def one_pil_with_prompt(image: "Image.Image", prompt: str) -> float:
    assert isinstance(prompt, str)
    return one_pil(image)


def arrays(images: np.ndarray):
    return 1 - images.mean((1, 2, 3)) / 255


def one_array(pixels: np.ndarray):
    assert pixels.shape[-1] == 3 and pixels.ndim == 3 and pixels.dtype == np.uint8
    return 1 - pixels.mean() / 255


def floats(images: "np.typing.NDArray[np.float32]"):
    assert images.dtype == np.float32 and images.max() <= 1
    return 1 - np.round(images * 255.0).mean((1, 2, 3), dtype=np.float64) / 255


def prompted(images, prompts):
    assert len(images) == len(prompts)
    return tensors(images)


def prompts_first(captions, images):
    return prompted(images, captions)


class Network(torch.nn.Module):
    def forward(self, x, power=1.0):
        return tensors(x) ** power


class Critic:
    """An object that is called, and one with a method."""

    def __call__(self, photo):
        return one_pil(photo.convert("RGB"))

    def of_all(self, images, prompts=None):
        return prompted(images, prompts)


def scaled(images, factor, *, threshold=0.0):
    return (factor * tensors(images)).clamp(min=threshold)


FORMS_OF_ONE_REWARD = {
    "tensor (B, 1)": (column, "tensor", False),
    "list": (listed, "tensor", False),
    "one tensor": (one_tensor, "tensor", True),
    "PIL images": (pil_list, "pil", False),
    "PIL images, array": (pil_array, "pil", False),
    "one PIL image": (one_pil, "pil", True),
    "one PIL image and its prompt": (one_pil_with_prompt, "pil", True),
    "arrays": (arrays, "numpy", False),
    "one array": (one_array, "numpy", True),
    "arrays of floats": (floats, "floats", False),
    "images, prompts": (prompted, "tensor", False),
    "prompts, images": (prompts_first, "tensor", False),
    "torch.nn.Module": (Network(), "tensor", False),
    "an object": (Critic(), "pil", True),
    "a bound method": (Critic().of_all, "tensor", False),
    "functools.partial": (partial(scaled, factor=1.0), "tensor", False),
    "a function of x": (lambda x: 1 - (x * 255).round().double().mean() / 255, "tensor", True),
}


@cache
def steered(engine, name=""):
    """A run on a tiny pipeline, whose ancestry depends on the rewards."""
    given = {**tiny.CALL["sd3"], "particles": 4, "transitions": 3, "steps": 1, "scale": 400.0}
    reward = FORMS_OF_ONE_REWARD[name][0] if name else tensors
    pipe, prompt = shared(), given.pop("prompt")
    with pytest.MonkeyPatch.context() as patch:
        if engine == "loop":
            patch.setattr(module, "family_of", lambda pipe: None)
        return steer_pipeline(
            pipe, prompt, reward, ess_threshold=1.0, seed=2, progress=False, **given
        )


@cache
def shared():
    return tiny.build("sd3")


IN_LOOPS = ("list", "one tensor", "PIL images", "one PIL image and its prompt", "arrays",
            "images, prompts")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "name"),
    [("adapter", name) for name in FORMS_OF_ONE_REWARD] + [("loop", name) for name in IN_LOOPS],
)
def test_every_form_gives_the_result_of_the_tensor_form(engine, name):
    expected, found = steered(engine), steered(engine, name)
    ancestry = expected.result.ancestry
    assert (ancestry[1:] != torch.arange(4)).any()
    assert torch.equal(found.result.ancestry, ancestry)
    assert torch.equal(found.rewards, expected.rewards)
    assert torch.equal(found.result.samples, expected.result.samples)
    for one, other in zip(found.rows[0], expected.rows[0]):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", FORMS_OF_ONE_REWARD)
def test_what_is_recognised_is_known_and_said_once(name, said):
    function, takes, each = FORMS_OF_ONE_REWARD[name]
    reward = as_image_reward(function)
    assert "takes" not in repr(reward)
    assert torch.equal(reward(Z, WORDS).double(), tensors(Z))
    assert torch.equal(reward(Z[:1], WORDS[:1]).double(), tensors(Z[:1]))
    assert reward.form == Form(takes, each)
    assert repr(reward) == f"OfImages({reward.name!r}, takes={takes!r}, each={each})"
    assert reward.differentiable is (takes == "tensor")
    (line,) = said
    assert line == f"reward {reward.name!r}: a function of {reward.said()}"
    assert ("prompt" in line.partition(": ")[2]) is reward.takes_prompts


@pytest.mark.slow
def test_functions_of_tensors_are_asked_about_the_same_tensors_as_ever():
    """But for the trial: as often, about as many, and their graph is kept."""
    seen = []

    def watched(images):
        seen.append(images.detach().clone())
        return images.square().mean((1, 2, 3))

    pipe, given = shared(), {k: v for k, v in tiny.CALL["sd3"].items() if k != "prompt"}
    given |= {"particles": 2, "transitions": 2, "steps": 1, "twist": 0.5, "seed": 1}
    runs = []
    for reward in (FunctionReward(watched), watched):
        seen.clear()
        steer_pipeline(pipe, "a cat", reward, progress=False, **given)
        runs.append(list(seen))
    explicit, recognised = runs
    trial = len(recognised) - len(explicit)
    assert [len(images) for images in recognised[: trial + 1]] == [3, 1, 1]
    assert all(map(torch.equal, recognised[trial:], explicit))
    values, gradient = OfImages(watched).value_and_gradient(Z)
    torch.testing.assert_close(gradient, 2 * Z / Z[0].numel())
    assert torch.equal(values, watched(Z))


def test_gradients_of_tensors_one_at_a_time_are_kept():
    _, gradient = OfImages(lambda image: image.mean()).value_and_gradient(Z)
    torch.testing.assert_close(gradient, torch.full_like(Z, 1 / Z[0].numel()))


def test_images_are_rounded_as_they_are_saved():
    seen = {}
    for takes in KINDS:
        for each in (False, True):

            def look(images, key=(takes, each)):
                seen[key] = images
                return 0.0 if key[1] else [0.0] * len(images)

            OfImages(look, takes=takes, each=each)(Z)
    rounded = to_bytes(Z).numpy()
    assert torch.equal(seen["tensor", False], Z) and torch.equal(seen["tensor", True], Z[1])
    assert seen["numpy", False].dtype == np.uint8 and (seen["numpy", False] == rounded).all()
    assert (seen["numpy", True] == rounded[1]).all()
    assert [np.asarray(i).tolist() for i in seen["pil", False]] == rounded.tolist()
    assert seen["pil", True].size == (12, 8) and seen["pil", True].mode == "RGB"
    assert seen["floats", False].dtype == np.float32
    assert (np.round(seen["floats", False] * 255) == rounded).all()


def test_pictures_of_a_trial_differ_and_lie_on_eight_bits():
    made = pictures(8, 12)
    assert made.shape == (3, 3, 8, 12)
    assert torch.equal(made, (made * 255).round() / 255)
    dark, _, bright = made.mean((1, 2, 3)).tolist()
    assert dark < 0.25 and bright > 0.75
    assert torch.equal(made, pictures(8, 12))


# --- what is wrong is explained -------------------------------------------------------------------


def of_the_batch(images):
    return images.mean()


def of_five(images):
    return torch.zeros(5)


def nothing(images):
    images.mean((1, 2, 3))


def praise(image):
    return "good"


def undefined(images):
    return images.mean((1, 2, 3)) * float("nan")


def centred(images):
    mean = images.mean((1, 2, 3))
    return mean - mean.mean()


def channels(images):  # three of them, as there are three pictures
    return images.mean((0, 2, 3))


def of_three(images, prompts, target):
    return target


def arrays_of_anything(images):
    return [np.asarray(image).mean() for image in images]


def seldom(image):
    if np.asarray(image).mean() < 60:
        raise ValueError("no face found")
    return float(np.asarray(image).mean())


WRONG = [
    (seldom, RewardError, r"raised ValueError: no face found \(test_forms.py:\d+: raise"),
    (
        of_the_batch,
        ShapeError,
        r"returned one number, 0\.\d+, for tensors \(3, 3, 8, 12\): it",
    ),
    (of_five, ShapeError, r"returned a tensor \(5,\) of torch.float32 for tensors \(3, 3, 8, 12\)"),
    (nothing, ShapeError, r"returned None for tensors \(3, 3, 8, 12\): it must return one number"),
    (praise, ShapeError, "returned 'good' for one PIL image: it must return one number per image"),
    (undefined, RewardError, r"returned NaN or \+inf for tensors"),
    (centred, RewardError, r"mixes the images of a batch: it says .* beside others, and 0 of the"),
    (
        channels,
        ShapeError,
        r"returned a tensor \(3,\) of torch.float32 for one image in a batch of",
    ),
    (of_three, InvalidArgument, r"takes 3 arguments \(images, prompts, target\): .* functools"),
    (arrays_of_anything, RewardError, r"is not clear: it says 0\.\d+, .* of tensors .* PIL images"),
]


@pytest.mark.parametrize(("function", "error", "match"), WRONG, ids=lambda x: str(x)[:20])
def test_what_is_wrong_is_explained_in_a_line(function, error, match):
    with pytest.raises(error, match=match) as raised:
        try_reward(as_image_reward(function), 8, 12, WORDS, device=torch.device("cpu"))
    assert type(raised.value) is error
    message = str(raised.value)
    assert message.count(f"the reward {function.__name__!r}") == 1 and "\n" not in message
    if function is not of_three:
        assert f"glass_flows.rewards.OfImages({function.__name__}, takes=" in message


@pytest.mark.parametrize("engine", ["adapter", "loop"])
def test_it_is_explained_before_the_network_is_asked(engine, monkeypatch):
    if engine == "loop":
        monkeypatch.setattr(module, "family_of", lambda pipe: None)
    pipe, calls = shared(), []
    given = {**tiny.CALL["sd3"], "particles": 2, "transitions": 1}
    prompt = given.pop("prompt")
    handle = tiny.network(pipe).register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(RewardError, match="mixes the images of a batch"):
        steer_pipeline(pipe, prompt, centred, **given)
    for way in ({"twist": 1.0}, {"guidance": "reward"})[: 1 if engine == "loop" else 2]:
        for reward in (one_pil, OfImages(one_pil, takes="pil", each=True)):
            with pytest.raises(
                InvalidArgument, match="'one_pil' has no gradient: it takes one PIL"
            ):
                steer_pipeline(pipe, prompt, reward, **way, **given)
    handle.remove()
    assert not calls


def misspelt(images):
    mean = images.mean((1, 2, 3))
    return mean.skwared()  # the bug


def misspelt_later(image):
    grey = image.convert("L")
    array = np.asarray(grey)
    return array.maen()  # the bug, two lines behind where tensors fail


def missing(images):
    import no_such_package_at_all as package  # the bug

    return package(images)


@pytest.mark.parametrize("function", [misspelt, misspelt_later, missing])
def test_a_bug_is_shown_where_it_is_and_not_hidden_by_other_forms(function):
    with pytest.raises(RewardError, match=r"test_forms.py:\d+: .*  # the bug") as raised:
        OfImages(function)(Z)
    cause = raised.value.__cause__
    assert type(cause).__name__ in str(raised.value) and str(cause) in str(raised.value)
    assert ("for one PIL image" in str(raised.value)) is (function is misspelt_later)
    assert "Tried as well: " in str(raised.value)


def test_numbers_that_are_wrong_are_not_hidden_by_a_form_in_which_they_are_not():
    def rooted(x):  # NaN of tensors, and of arrays of uint8 some numbers that nobody meant
        return ((x - 1) ** 0.5).mean((1, 2, 3))

    with pytest.raises(RewardError, match=r"'rooted' returned NaN .* for tensors") as raised:
        OfImages(rooted)(Z)
    assert "Tried as well" not in str(raised.value)
    assert OfImages(rooted, takes="numpy")(Z).shape == (2,)


@pytest.mark.slow
def test_a_bug_on_the_way_is_shown_with_its_line_and_place():
    asked = []

    def late(images):
        asked.append(len(images))
        if len(asked) > 3:
            raise ValueError("no faces")
        return [0.5 for image in images if image.convert("L")]

    given = {**tiny.CALL["sd3"], "particles": 2, "transitions": 2, "steps": 1}
    match = r"'late' raised ValueError: no faces at .*\(test_forms.py:\d+: raise ValueE"
    with pytest.raises(RewardError, match=match) as raised:
        steer_pipeline(shared(), given.pop("prompt"), late, **given)
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_wrong_answer_on_the_way_is_named():
    reward = OfImages(lambda image: None, "shy", takes="pil", each=True)
    with pytest.raises(ShapeError, match="'shy' returned None for one PIL image: it must return"):
        reward(Z)


def annotated(names: list[str], pictures: list[Image.Image], strictness: float = 1.0):
    return pil_list(pictures)


def of_float_arrays(x: "Float[np.ndarray, 'b h w c']"):  # noqa: F722, F821
    return 1 - x.mean((1, 2, 3), dtype=float)


def of_one_or_many(x: torch.Tensor):
    return tensors(x if x.ndim == 4 else x[None])


def by_name(*, images, prompts):
    return prompted(images, prompts)


@pytest.mark.parametrize(
    ("function", "form", "swapped"),
    [
        (annotated, Form("pil"), True),
        (of_float_arrays, Form("floats"), False),
        (of_one_or_many, Form("tensor"), False),
        (by_name, Form("tensor"), False),
        (torch.no_grad()(tensors), Form("tensor"), False),
        (lambda *given: tensors(*given), Form("tensor"), False),
    ],
)
def test_annotations_and_names_are_read(function, form, swapped):
    reward = OfImages(function)
    assert reward.signature.swapped is swapped
    torch.testing.assert_close(reward(Z, WORDS).double(), tensors(Z), rtol=0, atol=1e-6)
    assert reward.form == form


def test_warnings_of_forms_that_are_not_meant_are_not_shown(recwarn):
    def warned(image):
        warnings.warn(f"of {type(image).__name__}", UserWarning, stacklevel=2)
        return one_pil(image.convert("RGB"))

    OfImages(warned)(Z)
    assert {str(one.message) for one in recwarn} == {"of Image"}


def test_a_line_is_said_once_where_somebody_looks(monkeypatch):
    written = io.StringIO()
    terminals = {"force_terminal": True}
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=written, **terminals))
    monkeypatch.delenv("RANK", raising=False)
    progress.note.cache_clear()
    for _ in range(2):
        progress.note("reward [1]: a function")
    assert written.getvalue().count("reward [1]: a function") == 1
    terminals["force_terminal"] = False
    progress.note("nobody looks")
    terminals["force_terminal"] = True
    monkeypatch.setenv("RANK", "1")
    progress.note("another process")
    assert written.getvalue().count("\n") == 1
    progress.note.cache_clear()


# --- in doubt -------------------------------------------------------------------------------------


def test_a_function_that_draws_at_random_mixes_nothing_and_takes_no_draws_away():
    def noisy(images):
        drawn = torch.rand(1) + random.random() + np.random.random()
        return images.mean((1, 2, 3)) + drawn

    def draws():
        return torch.rand(1).item(), random.random(), np.random.random()

    def start():
        torch.manual_seed(1), random.seed(1), np.random.seed(1)

    start()
    expected = draws()
    start()
    try_reward(as_image_reward(noisy), 8, 8, WORDS, device=torch.device("cpu"))
    assert draws() == expected


def test_rounding_in_batches_of_other_sizes_is_no_mixing():
    def rounded(images):
        return 20 + images.mean((1, 2, 3)) + (1e-2 if len(images) == 1 else 0.0)

    assert OfImages(rounded)(Z).shape == (2,)


def test_what_is_written_into_the_pictures_of_a_trial_is_gone():
    def careless(images):
        images -= images.mean((1, 2, 3), keepdim=True)
        return images.abs().mean((1, 2, 3))

    before = Z.clone()
    assert OfImages(careless)(Z).shape == (2,)
    assert torch.equal(Z, before)


def test_defaults_are_kept_but_for_prompts_that_have_none():
    def text(image, text="STOP"):
        return float(len(text))

    def prompt(image, strictness=1.0, prompt=None):
        return strictness * len(prompt)

    assert OfImages(text)(Z, WORDS).tolist() == [4.0, 4.0]
    assert OfImages(prompt)(Z, WORDS).tolist() == [5.0, 8.0]


def test_what_was_said_is_not_tried():
    asked = []

    def counting(images):
        asked.append(type(images))
        return np.asarray(images).mean((1, 2, 3))

    OfImages(counting, takes="numpy", each=False)(Z)
    assert asked == [np.ndarray]
    with pytest.raises(UnknownName, match="unknown kind of image 'jpeg'"):
        OfImages(counting, takes="jpeg")
    with pytest.raises(InvalidArgument, match="each must be"):
        OfImages(counting, each="yes")
    with pytest.raises(InvalidArgument, match="is a Reward already"):
        OfImages(as_reward(tensors))


def test_a_reward_is_taken_as_it_is():
    class Own(Reward):
        def score(self, z, prompts):
            return z.mean((1, 2, 3))

    own = Own()
    assert as_image_reward(own) is own
    with pytest.raises(InvalidArgument, match="must be a Reward or a function"):
        as_image_reward(3)


def test_composites_hold_functions_of_images():
    both = 2.0 * OfImages(one_pil) + WeightedSum([OfImages(prompted), tensors], [1.0, 0.5])
    assert both.takes_prompts
    torch.testing.assert_close(both(Z, WORDS).double(), 3.5 * tensors(Z))
    with pytest.raises(InvalidArgument, match="'one_pil' has no gradient: it takes one PIL image"):
        both.value_and_gradient(Z, WORDS)


def test_what_is_no_image_is_handed_over_as_it_is():
    latents = torch.rand(2, 4, 3, 3)
    assert OfImages(lambda z: z.flatten(1).sum(1))(latents).shape == (2,)
    assert Decoded(OfImages(one_pil), lambda z: z[:, :3])(latents).shape == (2,)


# --- tensors of other worlds: answers and prompts -------------------------------------------------


def level(z):
    return z.mean((1, 2, 3))


def with_words(prompts, z):
    assert list(prompts) == ["eight"] * len(z)
    return level(z)


def with_word_behind(z, prompts, power=1):
    assert list(prompts) == ["eight"] * len(z)
    return level(z) ** power


def without_words(z, prompts=None):
    assert prompts is None  # as ever
    return level(z)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: level(z)[:, None],
        lambda z: level(z).tolist(),
        lambda z: level(z).numpy(),
        lambda z: [one.mean() for one in z],
        with_words,
        with_word_behind,
        without_words,
    ],
)
def test_steer_takes_answers_and_prompts_as_people_have_them(function):
    denoiser = digits_mixture(0.3).denoiser(Linear())
    settings = {"transitions": 2, "steps": 1, "shape": (1, 8, 8), "particles": 3, "seed": 4}
    found, expected = (
        steer(denoiser, one, scale=20.0, prompts=["eight"], **settings) for one in (function, level)
    )
    torch.testing.assert_close(found.rewards, expected.rewards)
    torch.testing.assert_close(found.samples, expected.samples)


def test_names_are_for_images():
    with pytest.raises(InvalidArgument, match=r"got 'clip': .* glass_flows.load_reward\('clip'\)"):
        as_reward("clip")


# --- by name --------------------------------------------------------------------------------------

MODULE = """
import numpy as np

def dark(image):
    return (np.asarray(image.convert("L")) < 64).mean()

def broken(image):
    grey = image.convert("L")
    return grey.no_such_method()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "darkness_of_mine.py").write_text(MODULE)
    return "darkness_of_mine"


@pytest.mark.slow
def test_a_name_in_python(mine):
    given = {**tiny.CALL["sd3"], "particles": 2, "transitions": 1, "steps": 2, "seed": 0}
    prompt = given.pop("prompt")
    by_name = steer_pipeline(shared(), prompt, f"{mine}:dark", **given)
    by_object = steer_pipeline(shared(), prompt, load_reward(f"{mine}:dark"), **given)
    expected = [(np.asarray(i.convert("L")) < 64).mean() for i in by_name.rows[0]]
    assert by_name.rewards[0].tolist() == by_object.rewards[0].tolist() == expected
    with pytest.raises(UnknownName, match="unknown reward 'clap'"):
        steer_pipeline(shared(), prompt, "clap", **given)


@pytest.mark.slow
def test_on_the_command_line(mine, tmp_path, monkeypatch, capsys):
    tiny.save("sd3", tmp_path / "sd3")
    command = ["align", "--model", "sd3", "--prompt", "a cat", "--height", "16", "--width", "16",
               "--particles", "2", "--transitions", "1", "--steps", "1",
               "--argument", "max_sequence_length=32"]  # fmt: skip
    shown = CliRunner().invoke(app, [*command, "--reward", f"{mine}:dark", "--out", "out"])
    assert shown.exit_code == 0, shown.output
    with Image.open(tmp_path / "out" / "000-01.png") as image:
        dark = (np.asarray(image.convert("L")) < 64).mean()
        assert float(image.text["reward"]) == dark
    wrong = [*command, "--reward", f"{mine}:broken", "--out", "more"]
    monkeypatch.setattr("sys.argv", ["glass-flows", *wrong])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().err.splitlines()
    error, *frames = lines[[line.startswith("error: ") for line in lines].index(True) :]
    assert error.startswith("error: the reward 'broken' raised AttributeError: ")
    assert f"{mine}.py:9: return grey.no_such_method()" in error
    (frame,) = frames  # none of ours
    assert frame.endswith(f"/{mine}.py:9 in broken: return grey.no_such_method()")
