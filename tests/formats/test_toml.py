"""TOML is read within bounds, and nothing but our error comes of it."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.toml import _MARKS, LARGEST, decode
from attestkit.errors import ConfigError


def test_what_it_says() -> None:
    """Text and bytes are read alike; brackets and dots in text and comments do not count."""
    text = 'a = "[[[[[[[[[[[[[[[[[[[["  # ' + "[." * 100 + '\n[b.c]\nd = """\n' + "{" * 50 + '"""\n'
    found = decode(text)
    assert decode(text.encode()) == found
    assert found["b"] == {"c": {"d": "{" * 50}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\xff", "not UTF-8 text"),
        ("a = ", "not TOML"),
        ("a = 1\na = 2", "not TOML"),
        ("a = " + "[" * 17 + "]" * 17, "brackets nest deeper than 16"),
        (".".join("a" * 18) + " = 1", "more than 16 dots"),
        *(
            ("".join(line % number for number in range(20_000)), "more than 16384 dots and opening")
            for line in ("k%x.a.b = 1\n", "[k%x]\n", "[[k%x]]\n", "k%x = {}\n", "k%x = []\n")
        ),
        ("a = " + "9" * 5000, "not TOML"),
        ("#" * (LARGEST + 1), "longer than 1048576 bytes"),
    ],
)
def test_what_is_refused(text: str | bytes, told: str) -> None:
    """The reason is told."""
    with pytest.raises(ConfigError, match=told):
        decode(text)


def test_as_many_tables_as_may_be_are_read() -> None:
    """At the bounds a file is read; what stands in comments and text does not count."""
    lines = [f"k{number}{'.a' * 16} = 1" for number in range(1024)]
    assert len(decode("\n".join([*lines, "x = '[{.'  # [{."]))) == 1025
    with pytest.raises(ConfigError, match="more than 16384 dots"):
        decode("\n".join([*lines, "x = []"]))


@pytest.mark.parametrize("text", ["a = {KEY = 1, KEY = 2}", "[KEY]\n[KEY]"])
def test_a_long_key_does_not_fill_the_line(text: str) -> None:
    """It is cut, and the place is told all the same."""
    with pytest.raises(ConfigError, match=r"not TOML: .*\.\.\. \(at line \d") as caught:
        decode(text.replace("KEY", "k" * 3000))
    assert len(str(caught.value)) < 300


def test_no_value_is_told() -> None:
    """What stands in a file may be secret: places are told, values are not."""
    for text in ("seed = s3cret", "seed = 's3cret", 'seed = "s3cret\n"', "seed = [ s3cret"):
        with pytest.raises(ConfigError) as caught:
            decode(text)
        assert "s3cret" not in str(caught.value)


@given(st.binary() | st.text())
def test_anything(text: str | bytes) -> None:
    """Whatever it is, it is read or refused."""
    with suppress(ConfigError):
        assert isinstance(decode(text), dict)


@pytest.mark.parametrize("text", ['"""', '"""a\\', '"""\\"""\n\\"""\n\\', "'''a''", '"""a""'])
def test_a_text_without_an_end_is_looked_at_once(text: str) -> None:
    """It is one mark, to the end of the file: else each beginning in it is read to there again."""
    assert [mark[0] for mark in _MARKS.finditer(text)] == [text]
