"""Forms and signatures of functions of images, one by one: what `tools/mutants.py` asks first."""

import math
from typing import List, Optional  # noqa: UP035

import numpy as np
import pytest
import torch
from PIL import Image

from glass_flows.errors import InvalidArgument, RewardError, ShapeError, shown
from glass_flows.rewards import OfImages, Reward
from glass_flows.rewards.forms import FORMS, KINDS, Form, pictures, to_bytes, try_reward
from glass_flows.rewards.signatures import Signature

Z = pictures(4, 6)[:2]

# --- signatures -----------------------------------------------------------------------------------


def other_prompt(a, prompt="x", caption=None, *, strictness=1.0, more):
    pass


@pytest.mark.parametrize(
    ("function", "samples", "prompts", "swapped"),
    [
        (lambda x: 0, "x", None, False),
        (lambda images, prompts: 0, "images", "prompts", False),
        (lambda a, b: 0, "a", "b", False),
        (lambda caption, image: 0, "image", "caption", True),
        (lambda texts, prompt: 0, "texts", "prompt", False),
        (lambda z, power=1.0: 0, "z", None, False),
        (lambda z, power=1.0, prompts=None: 0, "z", "prompts", False),
        (lambda z, prompt=None: 0, "z", "prompt", False),
        (lambda z, prompt="x": 0, "z", None, False),
        (lambda z, caption=None: 0, "z", None, False),
        (lambda z=None: 0, "z", None, False),
        (lambda z=None, power=1.0, prompt=None: 0, "z", "prompt", False),
        (lambda prompt=None: 0, "prompt", None, False),
        (lambda prompt, image=None: 0, "prompt", None, False),
        (lambda *, images, prompts: 0, "images", "prompts", False),
        (lambda *, images=None: 0, None, None, False),
        (lambda *given: 0, None, None, False),
        (lambda **given: 0, None, None, False),
        (lambda x, *given, **named: 0, "x", None, False),
        (max, None, None, False),
        (other_prompt, "a", "more", False),
        (torch.nn.Identity(), "input", None, False),
    ],
)
def test_parameters_are_told_apart(function, samples, prompts, swapped):
    found = Signature.of(function, "f")
    assert (found.samples and found.samples.name) == samples
    assert (found.prompts and found.prompts.name) == prompts
    assert found.swapped is swapped


def test_strings_as_annotations_are_prompts():
    def first(x: str, y):
        pass

    def second(x, y: list[str]):
        pass

    for function, names in ((first, ("y", "x", True)), (second, ("x", "y", False))):
        found = Signature.of(function, "f")
        assert (found.samples.name, found.prompts.name, found.swapped) == names


def test_parameters_that_nobody_fills_are_named():
    with pytest.raises(InvalidArgument, match=r"^the reward 'f' takes 3 arguments \(a, b, c\): a"):
        Signature.of(lambda a, b, c: 0, "f")
    with pytest.raises(InvalidArgument, match=r"^the reward 'f' takes 0 arguments \(none\): a"):
        Signature.of(lambda: 0, "f")


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (lambda x: (x,), ("z",)),
        (lambda images, prompts: (images, prompts), ("z", "p")),
        (lambda prompts, images: (images, prompts), ("z", "p")),
        (lambda *, prompts, images: (images, prompts), ("z", "p")),
        (lambda z, power=1, prompt=None: (z, power, prompt), ("z", 1, "p")),
        (lambda z, /, power=1, *, prompt=None: (z, power, prompt), ("z", 1, "p")),
        (lambda prompts, /, images: (images, prompts), ("z", "p")),
        (lambda *given, **named: (given, named), (("z",), {})),
        (lambda a, *given, b, **named: (a, given, b, named), ("z", (), "p", {})),
    ],
)
def test_arguments_are_handed_over_where_they_belong(function, answer):
    assert Signature.of(function, "f").call(function, "z", "p") == answer


def many(image: list[Image.Image]):
    pass


def as_list(x: list):
    pass


def as_typing(image: List[Image.Image]):  # noqa: UP006
    pass


def maybe(x: Optional[torch.Tensor]):  # noqa: UP045
    pass


def of_exif(x: Image.Exif):
    pass


def of_image(x: Image.Image):
    pass


def in_words(x: "Sequence[Image.Image]"):  # noqa: F821
    pass


def tensors_of(image: torch.Tensor):
    pass


def arrays_of(x: np.ndarray):
    pass


def floats_of(x: "NDArray[np.float32]"):  # noqa: F821
    pass


@pytest.mark.parametrize(
    ("function", "says_many", "says_one", "kinds"),
    [
        (lambda x: 0, False, False, ()),
        (lambda image: 0, False, True, ()),
        (lambda my_images: 0, True, False, ()),
        (lambda samples: 0, True, False, ()),
        (lambda *given: 0, False, False, ()),
        (many, True, False, ("pil",)),
        (as_list, True, False, ()),
        (as_typing, True, False, ("pil",)),
        (in_words, True, False, ("pil",)),
        (maybe, False, False, ("tensor",)),
        (of_exif, False, False, ()),
        (of_image, False, True, ("pil",)),
        (tensors_of, False, True, ("tensor",)),
        (arrays_of, False, False, ("numpy", "floats")),
        (floats_of, False, False, ("floats",)),
    ],
)
def test_names_and_annotations_say_what_is_taken(function, says_many, says_one, kinds):
    found = Signature.of(function, "f")
    assert (found.says_many, found.says_one, found.kinds) == (says_many, says_one, kinds)


# --- pictures and forms ---------------------------------------------------------------------------


def test_pixels_are_rounded_to_bytes():
    levels = torch.tensor([-0.2, 0.0, 0.25, 0.5, 1.0, 1.7])
    given = torch.stack([levels, levels.flip(0), levels])[None, :, None]
    found = to_bytes(given)
    row = [0, 0, 64, 128, 255, 255]
    assert found.shape == (1, 1, 6, 3) and found.is_contiguous()
    assert found[0, 0].T.tolist() == [row, row[::-1], row]
    for wrong in (levels, given[0], given[None], given.to(torch.complex64), [1.0], None):
        with pytest.raises(ShapeError, match=r"^pictures must be a real tensor"):
            to_bytes(wrong)


def test_the_pictures_of_a_trial_are_the_same_everywhere():
    """In bytes; a dark one, a colourful one, a bright one, all with some grain."""
    found = (pictures(2, 3) * 255).round().int().tolist()
    assert found == [
        [
            [[23, 32, 45], [20, 21, 24]],
            [[43, 33, 38], [32, 49, 27]],
            [[28, 30, 28], [19, 34, 33]],
        ],
        [
            [[115, 161, 161], [158, 69, 107]],
            [[187, 130, 124], [153, 168, 156]],
            [[84, 178, 55], [178, 111, 103]],
        ],
        [
            [[244, 211, 209], [205, 213, 215]],
            [[203, 231, 199], [213, 215, 223]],
            [[189, 214, 211], [227, 226, 234]],
        ],
    ]
    assert pictures(2, 3, torch.device("meta")).is_meta
    made = pictures(32, 32)
    assert made.dtype == torch.float32 and (made.min(), made.max()) == (0.0, 1.0)
    assert torch.equal(made, (made * 255).round() / 255)
    assert made[0].max() <= 0.36 and made[2].min() >= 0.64


def test_every_kind_of_image_is_tried_in_both_forms():
    assert len(FORMS) == 8 and set(FORMS) == {Form(k, e) for k in KINDS for e in (True, False)}
    assert FORMS[0] == Form() == Form("tensor", False)


def test_forms_in_words():
    assert Form("numpy").said() == "arrays (B, H, W, 3) of uint8"
    assert Form("numpy").said(Z) == "arrays (2, 4, 6, 3) of uint8"
    assert Form("tensor", each=True).said(Z) == "one tensor (3, 4, 6)"
    assert Form("pil").said() == "a list of PIL images"


def test_prompts_are_handed_over_with_their_images():
    asked = []
    for each in (False, True):
        for prompts in (None, ("a", "b")):
            Form("tensor", each).ask(lambda z, word: asked.append(word), Z, prompts)
    assert asked == [None, ["a", "b"], None, None, "a", "b"]


# --- what is tried --------------------------------------------------------------------------------


def no_images(asked, x):
    asked.append(type(x).__name__ + str(getattr(x, "shape", ()))[:2] * isinstance(x, np.ndarray))
    raise ValueError("none of these")


ALL = ["Tensor", "list", "ndarray", "Image", "Tensor", "ndarray", "ndarray", "ndarray"]


def typed(images: torch.Tensor):
    return no_images(typed.asked, images)


def typed_one(image: torch.Tensor):
    return no_images(typed_one.asked, image)


def said_many(images):
    return no_images(said_many.asked, images)


def said_one(image):
    return no_images(said_one.asked, image)


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        (said_one, {}, ALL),
        (said_one, {"takes": "numpy"}, ["ndarray", "ndarray"]),
        (said_one, {"each": False}, ["Tensor", "list", "ndarray", "ndarray"]),
        (said_many, {}, ["Tensor", "list", "ndarray", "ndarray"]),
        (said_many, {"each": True}, ["Image", "Tensor", "ndarray", "ndarray"]),
        (typed, {}, ["Tensor"]),
        (typed, {"takes": "pil"}, ["list"]),  # against its annotation, by whoever made it
        (typed_one, {}, ["Tensor", "Tensor"]),
        (typed_one, {"each": True}, ["Tensor"]),
    ],
)
def test_the_forms_that_are_tried(function, options, expected):
    function.asked = []
    reward = OfImages(function, **options)
    assert reward.form is None
    with pytest.raises(RewardError, match="raised ValueError: none of these"):
        reward(Z)
    assert [one.partition("(")[0] for one in function.asked] == expected


def test_a_form_that_was_said_is_known_at_once():
    assert OfImages(said_one, takes="pil", each=True).form == Form("pil", True)
    assert OfImages(said_one, takes="pil", each=False).form == Form("pil")
    assert OfImages(lambda image: 1.0, takes="pil")(Z).tolist() == [1.0, 1.0]
    assert OfImages(lambda images: [1.0, 2.0, 1.0], each=False).form is None


def level_of(images):
    return [float(np.asarray(one).mean()) for one in images]


def test_what_is_said_is_not_asked_in_another_form():
    """Of tensors and PIL images it says something else, of which one was chosen."""
    assert OfImages(level_of, takes="tensor")(Z).tolist() == pytest.approx(level_of(Z))
    with pytest.raises(RewardError, match="is not clear: it says"):
        OfImages(level_of)(Z)


def test_the_same_of_tensors_and_images_is_clear():
    assert OfImages(lambda images: [0.5] * len(images))(Z).tolist() == [0.5, 0.5]
    assert OfImages(lambda images: [0.0] * len(images))(Z).tolist() == [0.0, 0.0]


def test_chance_is_not_taken_for_another_answer():
    def drawn(images):
        return [float(np.asarray(one).mean()) + torch.rand(()).item() for one in images]

    assert OfImages(drawn)(Z).shape == (2,)


def test_what_is_no_picture_recognises_nothing():
    for size in ((2, 4, 4, 6), (2, 4, 3, 6), (0, 3, 4, 6), (2, 3, 2, 4, 6)):
        reward = OfImages(lambda z: z.flatten(1).sum(1))
        assert reward(torch.ones(size)).tolist() == [math.prod(size[1:])] * size[0]
        assert reward.form is None
    squeezed = OfImages(lambda images: images.sum((1, 2, 3)).squeeze())
    assert squeezed(torch.ones(1, 3, 4, 6)).tolist() == [72.0]  # of one image, a number
    assert squeezed.form == Form()


# --- whether images are mixed ---------------------------------------------------------------------


def of_trial(values, alone):
    """A function that knows the pictures of a trial, says these values of them, and of one by
    itself what `alone` says of its number and prompt."""
    trial = pictures(4, 6)

    def reward(images, prompts):
        numbers = [int((trial - one).abs().sum((1, 2, 3)).argmin()) for one in images]
        if len(images) == 1:
            return torch.tensor([alone(numbers[0], prompts[0])], dtype=torch.float64)
        return torch.tensor(values, dtype=torch.float64)[numbers]

    return OfImages(reward, takes="tensor", each=None)


WORDS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ((-1.0, 5.0, 6.0), 0),
        ((0.0, 1.0, 9.0), 2),
        ((3.0, -7.0, 3.0), 1),
        ((0.0, -math.inf, 1.0), 1),
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_the_picture_farthest_from_the_mean_is_asked_about_alone(values, chosen):
    asked = []

    def alone(number, prompt):
        asked.append((number, prompt))
        return values[number]

    assert of_trial(values, alone)(pictures(4, 6), WORDS).tolist() == list(values)
    assert asked == [(chosen, WORDS[chosen])]


@pytest.mark.parametrize("values", [(0.0, 1.0, 2.0), (0.0, -3.0, -3.5), (0.0, 4.0, 4.0)])
def test_rewards_may_differ_by_a_hundredth_and_a_twentieth_of_their_spread(values):
    size, spread = max(map(abs, values)), max(values) - min(values)
    allowed = 0.01 * size + 0.05 * spread
    for sign in (-1.0, 1.0):
        just = of_trial(values, lambda number, prompt: values[number] + sign * allowed)  # noqa: B023
        assert just(pictures(4, 6), WORDS).tolist() == list(values)
        more = of_trial(values, lambda n, p: values[n] + sign * 1.001 * allowed)  # noqa: B023
        with pytest.raises(RewardError, match="mixes the images of a batch: it says 0 of one"):
            more(pictures(4, 6), WORDS)
    shifted = tuple(value + 10.0 for value in values)
    spread_alone = of_trial(shifted, lambda n, p: shifted[n] + 0.05 * spread + 0.01 * 6.0)
    assert spread_alone(pictures(4, 6), WORDS).tolist() == list(shifted)


def test_excluded_images_are_excluded_alone_too():
    values = (0.0, -math.inf, 1.0)
    with pytest.raises(RewardError, match="mixes the images"):
        of_trial(values, lambda number, prompt: 0.0)(pictures(4, 6), WORDS)
    for wrong in (math.nan, math.inf):
        reward = of_trial((0.0, 1.0, wrong), lambda number, prompt: 0.0)
        with pytest.raises(RewardError, match=r"returned NaN or \+inf for tensors"):
            reward(pictures(4, 6), WORDS)


# --- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "answers", "told"),
    [
        ({"each": True}, [None, 1.0], "returned None for one PIL image"),
        ({"each": True}, [1.0, "bad"], "returned 'bad' for one PIL image"),
        ({"each": True}, [torch.ones(1), [1.0, 2.0]], "returned [1.0, 2.0] for one PIL image"),
        ({"each": False}, [0.5], "returned one number, 0.5, for a list of 2 PIL images"),
        ({"each": False}, [[0.5]], "returned one number, 0.5, for a list of 2 PIL images"),
        ({"each": False}, [(1.0, None)], "returned a tuple of 2, (1.0, None), for a list of 2"),
        ({"each": False}, [None], "returned None for a list of 2 PIL images"),
        ({"each": False}, [np.ones(3)], "returned an array (3,) of float64 for a list of 2 PIL"),
        ({"each": False}, [torch.ones(3)], "returned a tensor (3,) of torch.float32 for a list"),
        ({"each": False}, ["x" * 99], f"returned {shown('x' * 99, 60)} for a list of 2 PIL"),
    ],
)
def test_what_was_returned_instead_is_told(options, answers, told):
    waiting = iter(answers)
    reward = OfImages(lambda image: next(waiting), "odd", takes="pil", **options)
    with pytest.raises(ShapeError) as raised:
        reward(Z)
    assert str(raised.value).startswith(f"the reward 'odd' {told}")


def test_what_was_tried_is_told():
    with pytest.raises(RewardError) as raised:
        OfImages(said_one, "f", takes="pil")(Z)
    told, _, rest = str(raised.value).partition(" (test_mutants_forms.py:")
    assert told == "the reward 'f' raised ValueError: none of these"
    assert rest.partition(" for ")[2] == (
        "one PIL image. Tried as well: a list of 3 PIL images: ValueError. To say what it takes: "
        "glass_flows.rewards.OfImages(f, takes='pil', each=True); takes is one of tensor, pil, "
        "numpy, floats, each=True is of one image at a time"
    )
    with pytest.raises(ShapeError) as raised:
        OfImages(lambda photos: 0.5, "g", each=False)(Z)
    assert str(raised.value).startswith(
        "the reward 'g' returned one number, 0.5, for tensors (3, 3, 4, 6): it must return one "
        "number per image, which depends on that image only. Tried as well: a list of 3 PIL "
        "images, arrays (3, 4, 6, 3) of uint8, arrays (3, 4, 6, 3) of float32: returned one "
        "number, 0.5. To say"
    )


# --- before a run ---------------------------------------------------------------------------------


class Watching(Reward):
    """Of anything, and remembers what."""

    def __init__(self, video):
        self.takes_video, self.asked = video, []

    def score(self, z, prompts):
        self.asked.append(z.clone())
        return z.flatten(1).sum(1)


@pytest.mark.parametrize("frames", [None, 5])
def test_a_reward_is_tried_with_as_many_pictures_as_prompts(frames):
    reward = Watching(frames is not None)
    try_reward(reward, 4, 6, ["p"] * 5, device=torch.device("cpu"), frames=frames)
    (found,) = reward.asked
    expected = pictures(4, 6)[[0, 1, 2, 0, 1]]
    if frames is not None:
        expected = torch.stack([expected] * 5, 1)
    assert torch.equal(found, expected)


def test_a_gradient_is_asked_for_where_it_is_wanted():
    reward = OfImages(lambda image: 1.0, takes="pil", each=True)
    given = (reward, 4, 6, ["p"])
    try_reward(*given, device=torch.device("cpu"))
    with pytest.raises(InvalidArgument, match="has no gradient: it takes one PIL image"):
        try_reward(*given, device=torch.device("cpu"), gradient=True)
