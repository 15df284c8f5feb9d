"""TOML is read within limits and raises only FormatError."""

import pytest

from attestkit._formats.toml import _TOKENS, LARGEST, decode
from attestkit.errors import ConfigError
from tests.raising import raises
from tests.runner.cases import every_case


def test_decode_of_text_and_bytes_returns_equal_tables() -> None:
    """Text and bytes are read alike; brackets and dots in strings and comments do not count."""
    text = 'a = "[[[[[[[[[[[[[[[[[[[["  # ' + "[." * 100 + '\n[b.c]\nd = """\n' + "{" * 50 + '"""\n'
    found = decode(text)
    assert decode(text.encode()) == found
    assert found["b"] == {"c": {"d": "{" * 50}}


@every_case(
    ("text", "reason"),
    [
        (b"\xff", "encoding"),
        ("a = ", "syntax"),
        ("a = 1\na = 2", "syntax"),
        ("a = " + "[" * 17 + "]" * 17, "too_deep"),
        (".".join("a" * 18) + " = 1", "too_deep"),
        *(
            ("".join(line % number for number in range(20_000)), "too_many")
            for line in ("k%x.a.b = 1\n", "[k%x]\n", "[[k%x]]\n", "k%x = {}\n", "k%x = []\n")
        ),
        ("a = " + "9" * 5000, "syntax"),
        ("#" * (LARGEST + 1), "too_large"),
    ],
)
def test_decode_of_invalid_toml_fails(text: str | bytes, reason: str) -> None:
    """Malformed files and files over a limit are rejected with the reason."""
    with raises(ConfigError, reason):
        decode(text)


def test_decode_at_limits_is_accepted() -> None:
    """A file at its limits is read; comments and strings do not count."""
    lines = [f"k{number}{'.a' * 16} = 1" for number in range(1024)]
    assert len(decode("\n".join([*lines, "x = '[{.'  # [{."]))) == 1025
    with raises(ConfigError, "too_many"):
        decode("\n".join([*lines, "x = []"]))


@pytest.mark.parametrize("text", ["a = {KEY = 1, KEY = 2}", "[KEY]\n[KEY]"])
def test_decode_error_with_long_key_truncates_it(text: str) -> None:
    """A long key is cut in the error text, which still names the place."""
    with raises(ConfigError, "syntax") as caught:
        decode(text.replace("KEY", "k" * 3000))
    assert len(str(caught.value)) < 300
    assert "... (at line " in str(caught.value)


def test_decode_error_contains_no_value() -> None:
    """An error names the place but no value, which may be secret."""
    for text in ("seed = s3cret", "seed = 's3cret", 'seed = "s3cret\n"', "seed = [ s3cret"):
        with pytest.raises(ConfigError) as caught:
            decode(text)
        assert "s3cret" not in str(caught.value)


@every_case("text", ['"""', '"""a\\', '"""\\"""\n\\"""\n\\', "'''a''", '"""a""'])
def test_decode_of_unterminated_strings_takes_linear_time(text: str) -> None:
    """An unterminated string is scanned once, whatever number of opening marks it contains."""
    assert [mark[0] for mark in _TOKENS.finditer(text)] == [text]
