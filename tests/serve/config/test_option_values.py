"""Values of options: addresses, policies, limits, and seeds, which are never shown."""

from pathlib import Path
from traceback import format_exception

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.limits import Limits, parse_limit, read_limit
from attestkit.serve.config.option_values import (
    parse_address,
    read_policy,
    read_seed,
    seed_from_hex,
)
from attestkit.verifier.policy.appraisal_policy import PRESETS
from tests.raising import raises
from tests.runner.cases import every_case


def write_seed(folder: Path, content: bytes) -> Path:
    """Write a seed file."""
    path = folder / "seed"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"])
def test_read_seed_accepts_raw_and_hex(tmp_path: Path, content: bytes) -> None:
    """Raw bytes and hex give the same seed."""
    assert read_seed(write_seed(tmp_path, content)) == bytes(range(32))
    assert seed_from_hex(bytes(range(32)).hex(), "--seed") == bytes(range(32))


@pytest.mark.parametrize("content", [b"", b"s3cret", b"s3cret" * 10, b"ab" * 31, b"ab" * 33])
def test_read_seed_invalid_content_is_not_shown(tmp_path: Path, content: bytes) -> None:
    """The error names the source and never the content."""
    path = write_seed(tmp_path, content)
    with raises(ConfigError, "wrong_size") as from_file:
        read_seed(path)
    assert str(path) in str(from_file.value)
    with raises(ConfigError, "encoding" if b"s" in content else "wrong_size") as from_option:
        seed_from_hex(content.decode(), "--seed")
    assert "--seed" in str(from_option.value)
    for caught in (from_file, from_option):
        assert "s3cret" not in str(caught.value)
        assert "abab" not in str(caught.value)


@pytest.mark.parametrize("exists", [False, True], ids=["missing", "wrong"])
def test_read_seed_given_as_path_is_not_shown(tmp_path: Path, *, exists: bool) -> None:
    """A seed given as a file name is not shown; the error states the remedy."""
    path = tmp_path / ("5eed" * 16)
    if exists:
        path.write_bytes(b"too short")
    with pytest.raises(ConfigError) as caught:
        read_seed(path)
    assert "5eed5eed" not in "".join(format_exception(caught.value))
    assert str(caught.value).startswith(f"{tmp_path}/<hex, not shown>: ")
    assert str(caught.value).endswith("; give the name of a file, not the seed")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_read_policy_preset_name_precedes_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset's name selects the preset, not a file of that name; ./NAME selects the file."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text('preset = "strict"\nplatforms = ["sgx"]\n')
    assert read_policy("--policy", name) == PRESETS[name]()
    assert read_policy("--policy", f"./{name}").platforms == {"sgx"}


def test_read_policy_unreadable_file_names_option_and_path(tmp_path: Path) -> None:
    """Errors name the option and the file; a missing file also lists the presets."""
    with raises(ConfigError, "unreadable", start="--x nosuch: ") as caught:
        read_policy("--x", "nosuch")
    assert str(caught.value).endswith("; the presets are strict, default, development")
    with raises(ConfigError, "unreadable", start=f"--x {tmp_path}: "):
        read_policy("--x", str(tmp_path))
    bad = tmp_path / "bad"
    bad.write_text("colour = 1")
    with raises(ConfigError, "unknown_key", start=f"--x {bad}: colour: "):
        read_policy("--x", str(bad))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:8090", ("::1", 8090)),
    ],
)
def test_parse_address_round_trip(text: str, expected: tuple[str, int]) -> None:
    """HOST:PORT is parsed, and formatted as before."""
    found = parse_address(text)
    assert found == expected
    assert str(found) == text


@every_case(
    "text",
    [":", "8090", ":8090", "host:x", "host:65536", "::1:80", "h:-1", "h:" + "9" * 5000],
)
def test_parse_address_malformed_is_refused(text: str) -> None:
    """A malformed address is refused."""
    with raises(UsageError, "wrong_value"):
        parse_address(text)


# -- limits ---------------------------------------------------------------------------------------


@every_case(
    ("text", "expected"),
    [
        ("body=4096", 4096),
        ("body=64KiB", 65536),
        ("body=64 KiB", 65536),
        ("body=1.5MiB", 1_572_864),
        ("verifier_body=10MiB", 10 << 20),
        ("head=16384B", 16384),
        ("streams=10000", 10_000),
        ("stream_seconds=30", 30.0),
        ("head_seconds=500ms", 0.5),
        ("body_seconds=2m", 120.0),
        ("idle_seconds=1.5s", 1.5),
        ("write_seconds=1h", 3600.0),
        ("drain_seconds=0", 0.0),
    ],
)
def test_parse_limit_units(text: str, expected: float) -> None:
    """Sizes have binary units, times have seconds, minutes or hours, counts have no unit."""
    name, value = parse_limit(text)
    assert name == text.partition("=")[0]
    assert value == expected
    assert type(value) is type(getattr(Limits(), name))


def test_limits_documented_defaults() -> None:
    """The API documents these defaults."""
    assert Limits().body == 10_485_760
    assert (Limits().idle_seconds, Limits().stream_seconds) == (10, 600)


@every_case("name", Limits._fields)
def test_read_limit_out_of_range_is_refused(name: str) -> None:
    """The default is within the bounds; values far outside are refused."""
    default = getattr(Limits(), name)
    assert read_limit(name, default) == default
    for value in (-1, 1e15, float("nan"), float("inf"), -float("inf"), 10**100):
        with raises(UsageError, "out_of_range", "wrong_value"):
            read_limit(name, value)


@every_case(
    ("text", "reason", "message"),
    [
        ("body", "wrong_value", ""),
        ("size=1", "unknown_name", ""),
        (
            "\x1b[2J=1",
            "unknown_name",
            r"unknown limit '\x1b[2J'; the names are body, verifier_body,",
        ),
        ("body=", "wrong_value", ""),
        ("body=10MB", "wrong_value", ""),
        ("body=10s", "wrong_value", ""),
        ("body=-1", "wrong_value", ""),
        ("body=1e6", "wrong_value", ""),
        ("body=0.3B", "wrong_value", ""),
        ("body=\u0663", "wrong_value", "must be a size such as 65536, 64KiB or 10MiB: '\\u0663'"),
        ("body=1KiB", "out_of_range", ""),
        ("body=1GiB", "out_of_range", ""),
        ("headers=1KiB", "wrong_value", ""),
        ("headers=1.5", "wrong_value", "must be a whole number: '1.5'"),
        ("headers=1", "out_of_range", ""),
        ("idle_seconds=10MiB", "wrong_value", ""),
        ("idle_seconds=1ms", "out_of_range", "must be 0.1s to 86400s: '1ms'"),
        ("idle_seconds=2d", "wrong_value", "must be a time such as 30s, 500ms or 2m: '2d'"),
        ("idle_seconds=" + "9" * 99, "wrong_value", ""),
    ],
)
def test_parse_limit_invalid_value_is_refused(text: str, reason: str, message: str) -> None:
    """The reasons differ; the error states the allowed values and quotes the value."""
    with raises(UsageError, reason, start=message) as caught:
        parse_limit(text)
    assert str(caught.value).isprintable()
