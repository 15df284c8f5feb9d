"""The seed of a simulated TEE is read from a file or an option, and never shown."""

from pathlib import Path
from traceback import format_exception

import pytest

from attestkit.errors import ConfigError
from attestkit.serve.config import option_values


def write(folder: Path, content: bytes) -> Path:
    """Put bytes into a file."""
    path = folder / "seed"
    path.write_bytes(content)
    return path


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """No file is an error with the file's name."""
    path = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=f"{path}: No such file"):
        option_values.read_seed(path)


@pytest.mark.parametrize("content", [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"])
def test_a_seed_is_raw_or_hex(tmp_path: Path, content: bytes) -> None:
    """Both forms of a seed file give the same 32 bytes."""
    assert option_values.read_seed(write(tmp_path, content)) == bytes(range(32))
    assert option_values.seed_from_hex(bytes(range(32)).hex(), "--seed") == bytes(range(32))


@pytest.mark.parametrize("content", [b"", b"s3cret", b"s3cret" * 10, b"ab" * 31, b"ab" * 33])
def test_a_wrong_seed_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    """The error names the source and never the content."""
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=str(path)) as from_file:
        option_values.read_seed(path)
    with pytest.raises(ConfigError, match="--seed") as from_option:
        option_values.seed_from_hex(content.decode(), "--seed")
    for caught in (from_file, from_option):
        assert "s3cret" not in str(caught.value)
        assert "abab" not in str(caught.value)


@pytest.mark.parametrize("there", [False, True], ids=["missing", "wrong"])
def test_a_seed_in_place_of_its_file_is_not_shown(tmp_path: Path, *, there: bool) -> None:
    """Who puts the seed where its file's name belongs is told so, without it."""
    path = tmp_path / ("5eed" * 16)
    if there:
        path.write_bytes(b"too short")
    with pytest.raises(ConfigError) as caught:
        option_values.read_seed(path)
    assert "5eed5eed" not in "".join(format_exception(caught.value))
    assert str(caught.value).startswith(f"{tmp_path}/<hex, not shown>: ")
    assert str(caught.value).endswith("; the name of a file is wanted, not the seed")
