"""Address of the QGS, from an option or from /etc/tdx-attest.conf."""

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.tdx.qgs import host_endpoint, parse_endpoint, read_configured_port
from attestkit.errors import BackendUnavailableError, UsageError
from tests.raising import errno_of, raises


def test_endpoint_from_option_or_default() -> None:
    """The default is the host's vsock address."""
    assert host_endpoint(4050) == (socket.AF_VSOCK, (2, 4050))
    assert parse_endpoint(("vsock", 3, 5)) == (socket.AF_VSOCK, (3, 5))
    assert parse_endpoint("/run/qgs") == parse_endpoint(Path("/run/qgs"))
    assert str(parse_endpoint("/run/qgs")) == "/run/qgs"


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
def test_parse_endpoint_invalid_address_is_rejected(address: object) -> None:
    """It is rejected before a socket is created."""
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
def test_read_configured_port_accepts_spaces_and_comments(
    tmp_path: Path, text: bytes, port: int
) -> None:
    """A configuration may contain blanks, comments and CRLF."""
    file = tmp_path / "tdx-attest.conf"
    file.write_bytes(text)
    assert read_configured_port(file) == port


BAD = [
    (b"", "no port"),
    (b"# port = 4050\n", "no port"),
    (b"port = 0\n", "port 0 disables vsock"),
    (b"port = 0000000000\n", "port 0 disables vsock"),
    (b"\nport = 65536\n", "line 2: port above 65535: 65536"),
    (b"port = 9999999999\n", "line 1: port above 65535: 9999999999"),
    (b"port = 00000004050\n", "line 1: not `port = N`"),
    (b"port = 4050 4051\n", "line 1: not `port = N`"),
    (b"port = 4050x\n", "line 1: not `port = N`"),
    (b"port = 0x10\n", "line 1: not `port = N`"),
    (b"port = -1\n", "line 1: not `port = N`"),
    (b"port = \xd9\xa3\n", "line 1: not `port = N`"),
    (b"port =\n", "line 1: not `port = N`"),
    (b"port 4050\n", "line 1: not `port = N`"),
    (b"# ok\n\nPort = 4050\n", "line 3: not `port = N`"),
    (b"port = 4050\nprot = 4050\n", "line 2: not `port = N`"),
    (b"port = 4050\nport = 4051\n", "line 2: a second port"),
    (b"port = 0\nport = 4050\n", "line 2: a second port"),
    (b"\0" * 100, "line 1: not `port = N`"),
    (b"#" * 70_000, "more than 65536 bytes"),
]


@pytest.mark.parametrize(("text", "problem"), BAD)
def test_read_configured_port_without_port_is_not_configured(
    tmp_path: Path, text: bytes, problem: str
) -> None:
    """The error has the file and the line."""
    file = tmp_path / "tdx-attest.conf"
    file.write_bytes(text)
    with raises(BackendUnavailableError, "not_configured", path=str(file), part=problem):
        read_configured_port(file)


def test_read_configured_port_unreadable_file_is_not_configured(tmp_path: Path) -> None:
    """The file may be missing or inaccessible."""
    file = tmp_path / "tdx-attest.conf"
    with raises(BackendUnavailableError, "not_configured", path=str(file)) as caught:
        read_configured_port(file)
    assert errno_of(caught.value) == errno.ENOENT
    file.touch(0o600)

    def open_file(*_: object) -> int:
        raise PermissionError(errno.EACCES, "")

    with raises(BackendUnavailableError, "permission_denied", path=str(file), part="mode 0600"):
        read_configured_port(file, calls=DeviceCalls(open_file=open_file))


@given(st.binary(max_size=60))
def test_read_configured_port_any_text_gives_port_or_error(text: bytes) -> None:
    """A port is from 1 to 65535."""

    def read(fd: int, size: int) -> bytes:
        del fd
        nonlocal text
        piece, text = text[:size], text[size:]
        return piece

    calls = DeviceCalls(open_file=lambda *_: os.dup(0), read=read)
    with contextlib.suppress(BackendUnavailableError):
        assert 0 < read_configured_port(Path("/x"), calls=calls) <= 0xFFFF
