"""Where the QGS is: what an option or /etc/tdx-attest.conf says, or why it says nothing."""

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.tdx.qgs import configured_port, host_endpoint, parse_endpoint
from attestkit.errors import BackendUnavailableError, UsageError


def test_addresses() -> None:
    """The host by default, or what an option names."""
    assert host_endpoint(4050) == (socket.AF_VSOCK, (2, 4050))
    assert parse_endpoint(("vsock", 3, 5)) == (socket.AF_VSOCK, (3, 5))
    assert parse_endpoint("/run/qgs") == parse_endpoint(Path("/run/qgs"))
    assert str(parse_endpoint("/run/qgs")) == "the QGS at /run/qgs"


@pytest.mark.parametrize(
    "address",
    [
        None,
        4050,
        "",
        b"/run/qgs",
        "a\0b",
        "x" * 108,
        ("vsock", 2),
        ("unix", 2, 4050),
        ("vsock", -1, 4050),
        ("vsock", 2, 1 << 32),
        ("vsock", 2, 4050.0),
        ("vsock", "2", "4050"),
        ["vsock", 2, 4050],
    ],
)
def test_other_addresses_are_the_callers_mistake(address: object) -> None:
    """Before a socket is made of them."""
    with pytest.raises(UsageError):
        parse_endpoint(address)


GOOD = [
    (b"port = 4050\n", 4050),
    (b"port=4050", 4050),
    (b" \t port\t=\t4050 \t\n", 4050),
    (b"# port = 1\n\n  # more\nport = 4050 # here\n", 4050),
    (b"port = 4050\r\n", 4050),
    (b"port = 0000004050\n", 4050),
    (b"port = 65535\n", 65535),
    (b"#\nport=1", 1),
]


@pytest.mark.parametrize(("text", "port"), GOOD)
def test_a_configuration_names_the_port(tmp_path: Path, text: bytes, port: int) -> None:
    """Blanks and comments do not matter."""
    file = tmp_path / "tdx-attest.conf"
    file.write_bytes(text)
    assert configured_port(file) == port


BAD = [
    (b"", "no line names a port"),
    (b"# port = 4050\n", "no line names a port"),
    (b"port = 0\n", "port 0 means none"),
    (b"port = 0000000000\n", "port 0 means none"),
    (b"\nport = 65536\n", "line 2: port 65536 is above 65535"),
    (b"port = 9999999999\n", "line 1: port 9999999999 is above"),
    (b"port = 00000004050\n", "line 1: want"),
    (b"port = 4050 4051\n", "line 1: want"),
    (b"port = 4050x\n", "line 1: want"),
    (b"port = 0x10\n", "line 1: want"),
    (b"port = -1\n", "line 1: want"),
    (b"port = \xd9\xa3\n", "line 1: want"),
    (b"port =\n", "line 1: want"),
    (b"port 4050\n", "line 1: want"),
    (b"# ok\n\nPort = 4050\n", "line 3: want"),
    (b"port = 4050\nprot = 4050\n", "line 2: want"),
    (b"port = 4050\nport = 4051\n", "line 2: a second port"),
    (b"port = 0\nport = 4050\n", "line 2: a second port"),
    (b"\0" * 100, "line 1: want"),
    (b"#" * 70_000, "more than 65536 bytes"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_configuration_that_names_none_says_why(tmp_path: Path, text: bytes, said: str) -> None:
    """The file and the line; the way over QGS is then not offered."""
    file = tmp_path / "tdx-attest.conf"
    file.write_bytes(text)
    with pytest.raises(BackendUnavailableError, match=said) as caught:
        configured_port(file)
    assert str(file) in str(caught.value)


def test_a_configuration_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Missing, or not ours."""
    file = tmp_path / "tdx-attest.conf"
    with pytest.raises(BackendUnavailableError, match="ENOENT") as caught:
        configured_port(file)
    assert str(file) in str(caught.value)
    file.touch(0o600)

    def open_file(*_: object) -> int:
        raise PermissionError(errno.EACCES, "")

    with pytest.raises(BackendUnavailableError, match=r"EACCES.*mode 0600"):
        configured_port(file, calls=DeviceCalls(open_file=open_file))


@given(st.binary(max_size=60))
def test_any_configuration_gives_a_port_or_an_error_of_ours(text: bytes) -> None:
    """A port is from 1 to 65535."""

    def read(fd: int, size: int) -> bytes:
        del fd
        nonlocal text
        piece, text = text[:size], text[size:]
        return piece

    calls = DeviceCalls(open_file=lambda *_: os.dup(0), read=read)
    with contextlib.suppress(BackendUnavailableError):
        assert 0 < configured_port(Path("/x"), calls=calls) <= 0xFFFF
