"""A look in words, as an address carries it, and back."""

import pytest

from viewer.options import Scale, View, ViewOptions, XAxis, options_of, words_of

LOOKS = [
    ViewOptions(),
    ViewOptions(
        View.PARAM,
        "a run",
        r"^a\.[bc]",
        "a.b",
        "value_norm",
        "3",
        "lr|a,b",
        "&",
        "nll",
        "%",
        0.0,
        XAxis.WALL,
        Scale.LOG,
        True,
    ),
]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("base", LOOKS)
def test_a_look_in_words_is_the_same_look(look: ViewOptions, base: ViewOptions) -> None:
    """Whatever it is compared with, a look comes back from its words as it was."""
    assert options_of(words_of(look), base) == (look, {})


def test_what_is_not_said_is_as_usual() -> None:
    """Words that are missing leave the base as it is, and those that mean nothing here are passed over."""
    assert options_of({"utm_source": ["x"]}, LOOKS[1]) == (LOOKS[1], {})


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("view", "all"),
        ("x", ""),
        ("scale", "Log"),
        ("dark", "yes"),
        ("rank", "-1"),
        ("smoothing", "1"),
        ("smoothing", "nan"),
        ("smoothing", "much"),
        ("params", "("),
        ("params", "a{999999999}"),
    ],
)
def test_a_word_that_cannot_be_is_refused_alone(name: str, word: str) -> None:
    """It is answered with a reason, what it asks for stays as it was, and the others hold."""
    look, refused = options_of({name: [word], "param": ["a.b"]}, ViewOptions())
    assert look == ViewOptions(param="a.b")
    assert list(refused) == [name]
    assert refused[name]
