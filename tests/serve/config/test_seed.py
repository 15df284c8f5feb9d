"""The seed of a simulated TEE is read from a file or an option, and never shown."""

from pathlib import Path
from traceback import format_exception

import pytest

from attestkit.errors import ConfigError
from attestkit.serve.config import option_values
from tests.raising import raises


def write_seed(folder: Path, content: bytes) -> Path:
    """Write a seed file."""
    path = folder / "seed"
    path.write_bytes(content)
    return path


def test_read_seed_missing_file_names_path(tmp_path: Path) -> None:
    """The error names the missing file."""
    path = tmp_path / "nowhere"
    with raises(ConfigError, "unreadable") as caught:
        option_values.read_seed(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"])
def test_read_seed_accepts_raw_and_hex(tmp_path: Path, content: bytes) -> None:
    """Raw bytes and hex give the same seed."""
    assert option_values.read_seed(write_seed(tmp_path, content)) == bytes(range(32))
    assert option_values.seed_from_hex(bytes(range(32)).hex(), "--seed") == bytes(range(32))


@pytest.mark.parametrize("content", [b"", b"s3cret", b"s3cret" * 10, b"ab" * 31, b"ab" * 33])
def test_read_seed_invalid_content_is_not_shown(tmp_path: Path, content: bytes) -> None:
    """The error names the source and never the content."""
    path = write_seed(tmp_path, content)
    with raises(ConfigError, "wrong_size") as from_file:
        option_values.read_seed(path)
    assert str(path) in str(from_file.value)
    with raises(ConfigError, "encoding" if b"s" in content else "wrong_size") as from_option:
        option_values.seed_from_hex(content.decode(), "--seed")
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
        option_values.read_seed(path)
    assert "5eed5eed" not in "".join(format_exception(caught.value))
    assert str(caught.value).startswith(f"{tmp_path}/<hex, not shown>: ")
    assert str(caught.value).endswith("; give the name of a file, not the seed")
