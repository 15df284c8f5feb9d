"""The parameters of a log: eight names, each once, and everything wrong told by its name."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.container_logs.query_parameters import Parameters, parse, parse_time
from tests.untyped import untyped
from tests.vectors import load, needs_shared

NOW = 1_700_000_000
VECTORS = load("logs_since.json") or {"now": NOW, "ok": [], "errors": []}
FLAGS = ("follow", "text", "bare", "timestamps", "ansi")


@needs_shared
def test_there_are_vectors() -> None:
    """Both lists have something in them, and they are of this moment."""
    assert VECTORS["ok"]
    assert VECTORS["errors"]
    assert VECTORS["now"] == NOW


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("case", VECTORS["ok"], ids=lambda case: case["text"] or "empty")
def test_times_of_the_vectors(name: str, case: dict[str, str]) -> None:
    """Each text means the time that the vectors say."""
    query = f"{name}={case['text']}".replace("+", "%2B").encode()
    assert getattr(parse(query, NOW + 0.9), name) == case["value"]


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("text", VECTORS["errors"])
def test_wrong_times_of_the_vectors(name: str, text: str) -> None:
    """What is no time is refused in the documented words."""
    with pytest.raises(FormatError) as caught:
        parse(f"{name}={text}".replace(" ", "%20").encode(), NOW)
    assert str(caught.value) == f"Invalid {name}"


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("0000000000000000000000000060", NOW - 60),  # zeros before a number change nothing
        ("00000000000000000000000000m", NOW),
        ("9223372036854775807", 2**63 - 1),
        ("18446744073709551615s", 0),  # before 1970 everything is
        ("18446744073709551615d", 0),
        ("000000000", 0),
    ],
)
def test_times_at_the_edges(text: str, time: int) -> None:
    """Numbers are taken up to 64 bits, whatever they are written with."""
    assert parse_time("since", text, NOW) == time


@pytest.mark.parametrize(
    "text",
    [
        *("9223372036854775808", "18446744073709551616s", "9" * 5000, "9" * 5000 + "h"),
        *(
            "+60",
            "++5m",
            "-0",
            "5mm",
            "m5",
            "0x10",
            "\N{ARABIC-INDIC DIGIT FIVE}m",
            "5\n",
            "1_000",
            "1e3",
            "now",
        ),
    ],
)
def test_wrong_times_at_the_edges(text: str) -> None:
    """A number that is too large is no time, nor is one in other digits or with a mere plus."""
    with pytest.raises(FormatError, match="Invalid until"):
        parse_time("until", text, NOW)


def test_a_bare_plus_is_a_space() -> None:
    """A query is a form: the plus of a relative time must be escaped."""
    with pytest.raises(FormatError, match="Invalid since"):
        parse(b"since=+5m", NOW)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize(
    ("value", "flag"),
    [
        *[(value, True) for value in ("", "=", "=on", "=yes", "=true", "=TRUE", "=Yes", "=%6fn")],
        *[(value, False) for value in ("=off", "=no", "=false", "=FALSE", "=oFF")],
    ],
)
def test_flags(name: str, value: str, *, flag: bool) -> None:
    """A flag is on by itself, or as its word says in any case of its letters."""
    assert parse(f"{name}{value}".encode(), NOW) == Parameters(**untyped({name: flag}))


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["1", "0", "2", "y", "truee", "%20on", "tr%C3%BCe", "%ff"])
def test_wrong_flags(name: str, value: str) -> None:
    """Any other word is refused, and the text lists what is possible."""
    with pytest.raises(FormatError, match=f"^Invalid {name}: want on, yes, true, off, no or false"):
        parse(f"{name}={value}".encode(), NOW)


def test_tail() -> None:
    """A number, or all; by default 1000."""
    assert [parse(query, NOW).tail for query in (b"", b"tail=0", b"tail=30", b"tail=all")] == [
        *("1000", "0", "30", "all"),
    ]


@pytest.mark.parametrize("text", ["", "-1", "ALL", "ten", "1.5", "%2B5", "9" * 19, "5%0A"])
def test_wrong_tails(text: str) -> None:
    """The engine would take such a tail for all, and never say so."""
    with pytest.raises(FormatError, match="Invalid tail"):
        parse(f"tail={text}".encode(), NOW)


@pytest.mark.parametrize("name", Parameters._fields)
def test_a_parameter_given_twice(name: str) -> None:
    """Which of the two would count is a guess, so neither does; also if both are the same."""
    value = {"tail": "=5", "since": "=5", "until": "=5"}.get(name, "")
    with pytest.raises(FormatError, match=f"^{name} is given twice$"):
        parse(f"{name}{value}&x&{name}{value}".encode(), NOW)


def test_unknown_keys_are_ignored() -> None:
    """Keys of others, in other letters or of no text at all, do not matter."""
    assert parse(b"&&=&x=1&x=2&Follow&%ff=%ff&\xff&details=true&since=0", NOW) == Parameters()


def test_what_the_engine_is_asked() -> None:
    """Both channels, always; times only where there is a bound."""
    names = ("stdout", "stderr", "follow", "timestamps", "tail", "since", "until")
    asked = Parameters().for_engine()
    assert asked == dict(zip(names[:5], ["1", "1", "0", "0", "1000"], strict=True))
    asked = Parameters(since=5, until=6, follow=True, timestamps=True, tail="all").for_engine()
    assert asked == dict(zip(names, ["1", "1", "1", "1", "all", "5", "6"], strict=True))


@given(
    st.binary()
    | st.lists(st.sampled_from([*b"since=until&tail=+%0123456789smhd", *b"follow"])).map(bytes)
    | st.tuples(st.sampled_from(Parameters._fields), st.text()).map("=".join).map(str.encode)
)
def test_any_query_raises_only_our_error(query: bytes) -> None:
    """Whatever comes in, there are parameters or a FormatError."""
    with suppress(FormatError):
        found = parse(query, NOW)
        assert all(0 <= time < 2**63 for time in (found.since, found.until))
        assert all(value.isascii() and value.isalnum() for value in found.for_engine().values())
