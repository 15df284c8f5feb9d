"""Query parameters of a container log: eight names, at most once each, errors by name."""

from attestkit.errors import FormatError
from attestkit.serve.container_logs.view import Parameters, parse, parse_time
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import load

NOW = 1_700_000_000
VECTORS = load("logs_since.json") or {"ok": [], "errors": []}
FLAGS = ("follow", "text", "bare", "timestamps", "ansi")


@every_case("name", ["since", "until"])
@every_case("case", VECTORS["ok"], ids=lambda case: case["text"] or "empty")
def test_parse_time_vectors(name: str, case: dict[str, str]) -> None:
    """Each text is the time given in the vectors."""
    query = f"{name}={case['text']}".replace("+", "%2B").encode()
    assert getattr(parse(query, NOW + 0.9), name) == case["value"]


@every_case("name", ["since", "until"])
@every_case("text", VECTORS["errors"])
def test_parse_invalid_time_vectors_are_refused(name: str, text: str) -> None:
    """An invalid time is refused with the documented text."""
    with raises(FormatError, "wrong_value") as caught:
        parse(f"{name}={text}".replace(" ", "%20").encode(), NOW)
    assert str(caught.value) == f"Invalid {name}"


@every_case(
    ("text", "time"),
    [
        ("0000000000000000000000000060", NOW - 60),  # leading zeros
        ("00000000000000000000000000m", NOW),
        ("9223372036854775807", 2**63 - 1),
        ("18446744073709551615s", 0),  # clamped to 1970
        ("18446744073709551615d", 0),
        ("000000000", 0),
    ],
)
def test_parse_time_bounds(text: str, time: int) -> None:
    """Numbers up to 64 bits are accepted; times before 1970 are 0."""
    assert parse_time("since", text, NOW) == time


@every_case(
    "text",
    [
        *("9223372036854775808", "18446744073709551616s", "9" * 5000 + "h"),
        *("+60", "-0", "0x10", "\N{ARABIC-INDIC DIGIT FIVE}m", "5\n", "1_000"),
    ],
)
def test_parse_time_malformed_is_refused(text: str) -> None:
    """Numbers over 64 bits, non-ASCII digits and a leading plus are refused."""
    with raises(FormatError, "wrong_value"):
        parse_time("until", text, NOW)


def test_parse_unescaped_plus_is_a_space() -> None:
    """An unescaped plus is a space, so the relative time is refused."""
    with raises(FormatError, "wrong_value"):
        parse(b"since=+5m", NOW)


@every_case("name", FLAGS)
@every_case(
    ("value", "flag"),
    [
        *[(value, True) for value in ("", "=", "=on", "=yes", "=true", "=TRUE", "=Yes", "=%6fn")],
        *[(value, False) for value in ("=off", "=no", "=false", "=FALSE", "=oFF")],
    ],
)
def test_parse_flag(name: str, value: str, *, flag: bool) -> None:
    """A flag is on without a value, or by its value, in any case."""
    assert parse(f"{name}{value}".encode(), NOW) == Parameters(**untyped({name: flag}))


@every_case("name", FLAGS)
@every_case("value", ["1", "0", "2", "y", "truee", "%20on", "tr%C3%BCe", "%ff"])
def test_parse_invalid_flag_is_refused(name: str, value: str) -> None:
    """The error lists the allowed values."""
    with raises(FormatError, "wrong_value") as caught:
        parse(f"{name}={value}".encode(), NOW)
    assert str(caught.value) == f"Invalid {name}: must be on, yes, true, off, no or false"


def test_parse_tail() -> None:
    """`tail` is a number or `all`; the default is 1000."""
    assert [parse(query, NOW).tail for query in (b"", b"tail=0", b"tail=30", b"tail=all")] == [
        *("1000", "0", "30", "all"),
    ]


@every_case("text", ["", "-1", "ALL", "ten", "1.5", "%2B5", "9" * 19, "5%0A"])
def test_parse_invalid_tail_is_refused(text: str) -> None:
    """The engine would silently treat such a value as `all`."""
    with raises(FormatError, "wrong_value"):
        parse(f"tail={text}".encode(), NOW)


@every_case("name", Parameters._fields)
def test_parse_duplicate_parameter_is_refused(name: str) -> None:
    """A parameter must not be repeated, even with the same value."""
    value = {"tail": "=5", "since": "=5", "until": "=5"}.get(name, "")
    with raises(FormatError, "duplicate", start=f"{name}: "):
        parse(f"{name}{value}&x&{name}{value}".encode(), NOW)


def test_parse_unknown_parameter_is_ignored() -> None:
    """Unknown names, and names in other case, are ignored."""
    assert parse(b"&&=&x=1&x=2&Follow&%ff=%ff&\xff&details=true&since=0", NOW) == Parameters()


def test_for_engine_query() -> None:
    """Both channels are always requested; times only if given."""
    names = ("stdout", "stderr", "follow", "timestamps", "tail", "since", "until")
    query = Parameters().for_engine()
    assert query == dict(zip(names[:5], ["1", "1", "0", "0", "1000"], strict=True))
    query = Parameters(since=5, until=6, follow=True, timestamps=True, tail="all").for_engine()
    assert query == dict(zip(names, ["1", "1", "1", "1", "all", "5", "6"], strict=True))
