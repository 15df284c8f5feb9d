"""tdx_ioctl backend: exactly one quote source is selected, and its errors are final."""

import errno
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from attestkit.backends import load
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.tdx.fake_td import FakeTd, count_open_files
from tests.backends.tdx.qgs_server import QUOTE, answering, closing, framed, qgs_server, response
from tests.raising import errno_of, raises

REPORT_DATA = bytes(range(64))
CONF = b"port = 4050\n"


@pytest.fixture
def td(tmp_path: Path) -> FakeTd:
    """Return a TDX guest without configuration."""
    td = FakeTd(tmp_path)
    td.paths.tdx_attest_conf.parent.mkdir()
    return td


def make_tdx_ioctl(td: FakeTd, **options: Any) -> TdxIoctl:
    """Return a backend on a fake TD, with the call log empty."""
    found = TdxIoctl(paths=td.paths, calls=td.calls, sleep=td.sleep, **options)
    td.made.clear()
    return found


def test_tdx_ioctl_implements_backend_protocols(td: FakeTd) -> None:
    """It extends registers, is not simulated, and blocks."""
    found = make_tdx_ioctl(td, generation="D")
    assert load("tdx_ioctl") is TdxIoctl
    assert isinstance(found, Backend)
    assert isinstance(found, RegisterExtender)
    assert (found.name, found.simulated, found.blocking) == ("tdx_ioctl", False, True)
    found.close()
    found.close()
    assert td.made == []


def test_quote_from_qgs_is_over_the_device_report(td: FakeTd, socket_path: Path) -> None:
    """The QGS receives the TD report over the report data."""
    before = count_open_files()
    with qgs_server(socket_path, answering(framed(response()))) as server:
        assert make_tdx_ioctl(td, qgs=socket_path).get_quote(REPORT_DATA) == QUOTE
        assert make_tdx_ioctl(td, qgs=str(socket_path)).get_quote(REPORT_DATA) == QUOTE
    assert server.requests[0][24:] == td.report(REPORT_DATA)
    assert count_open_files() == before


def test_quote_reads_vsock_port_per_request(td: FakeTd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is read for each quote, so that corrections take effect."""
    reached: list[tuple[object, ...]] = []

    class Socket(socket.socket):
        def connect(self, address: object) -> None:
            reached.append((self.family, address))
            raise ConnectionResetError(errno.ECONNRESET, "")

    monkeypatch.setattr(socket, "socket", Socket)
    td.paths.tdx_attest_conf.write_bytes(CONF)
    found = make_tdx_ioctl(td)
    for port in (4050, 5000):
        td.paths.tdx_attest_conf.write_text(f"port = {port}\n")
        with raises(QuoteUnavailableError, "cannot_connect", path=f"vsock 2:{port}"):
            found.get_quote(REPORT_DATA)
    assert reached == [(socket.AF_VSOCK, (2, 4050)), (socket.AF_VSOCK, (2, 5000))]


def test_quote_after_qgs_failure_tries_nothing_else(td: FakeTd, socket_path: Path) -> None:
    """Neither the configured port nor an ioctl is tried."""
    td.paths.tdx_attest_conf.write_bytes(CONF)
    with (
        qgs_server(socket_path, closing) as server,
        raises(QuoteUnavailableError, "connection_lost"),
    ):
        make_tdx_ioctl(td, qgs=socket_path).get_quote(REPORT_DATA)
    assert server.connections == 1
    assert td.made == ["open tdx_guest", "ioctl 0xc4405401"]


def test_open_without_quote_source_names_all_options(td: FakeTd) -> None:
    """The error names the file, the port and both options; no ioctl is tried."""
    path = str(td.paths.tdx_attest_conf)
    with raises(BackendUnavailableError, "not_configured", path=path) as caught:
        make_tdx_ioctl(td)
    for part in (path, "ENOENT", "port = 4050", "option qgs", "generation"):
        assert part in str(caught.value)
    assert td.made == ["open tdx_guest", "open tdx-attest.conf"]


def test_quote_after_device_failure_does_not_contact_qgs(td: FakeTd, socket_path: Path) -> None:
    """A failed report ioctl ends the request."""
    td.fail["ioctl 0xc4405401"] = [errno.EIO]
    with qgs_server(socket_path, closing) as server, raises(BackendError, "io_error"):
        make_tdx_ioctl(td, qgs=socket_path).get_quote(REPORT_DATA)
    assert server.connections == 0


def test_generation_option_quotes_by_ioctl(td: FakeTd) -> None:
    """The option takes precedence over the configuration."""
    import ctypes

    td.paths.tdx_attest_conf.write_bytes(CONF)
    plain = td.ioctl
    seen = []

    def ioctl(fd: int, command: int, buffer: bytearray) -> int:
        if command != 0xC0105402:
            return plain(fd, command, buffer)
        address, size = struct.unpack("=QQ", buffer)
        seen.append(ctypes.string_at(address, size)[24 : 24 + 1024])
        ctypes.memmove(address + 20, struct.pack("<I", len(QUOTE)) + QUOTE, 4 + len(QUOTE))
        return 0

    td.calls = td.calls._replace(ioctl=ioctl)
    assert make_tdx_ioctl(td, generation="D").get_quote(REPORT_DATA) == QUOTE
    assert seen == [td.report(REPORT_DATA)]
    assert "open tdx-attest.conf" not in td.made


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"generation": "B"}, "unknown_name"),
        ({"qgs": 4050}, "wrong_value"),
        ({"qgs": ("vsock", 2)}, "wrong_value"),
        ({"generation": "D", "qgs": "/run/qgs"}, "conflict"),
    ],
)
def test_invalid_options_are_usage_errors(td: FakeTd, options: dict[str, Any], reason: str) -> None:
    """The constructor and the probe reject them alike."""
    with raises(UsageError, reason):
        make_tdx_ioctl(td, **options)
    with raises(UsageError, reason):
        TdxIoctl.probe(td.paths, **options)


def test_root_option_relocates_files(td: FakeTd, tmp_path: Path) -> None:
    """`root` gives the same files as `paths`, which takes precedence."""
    assert TdxIoctl(root=tmp_path, generation="D").read_rtmr(2) == td.rtmrs[2]
    found = TdxIoctl(root="/no-such", paths=td.paths, generation="D")
    assert found.read_rtmr(2) == td.rtmrs[2]
    with raises(BackendUnavailableError, "missing", path="/no-such/dev/tdx_guest"):
        TdxIoctl(root="/no-such", generation="D")


def test_environment_overrides_default_paths(td: FakeTd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable is used if neither `root` nor `paths` is given."""
    monkeypatch.setattr(KernelPaths, "__new__", lambda *_: td.paths)  # the default paths
    monkeypatch.setenv("DCAP_TDX_RTMR_SYSFS_PATH", str(td.paths.measurements))
    assert TdxIoctl(generation="D").read_rtmr(2) == td.rtmrs[2]
    monkeypatch.setenv("DCAP_TDX_RTMR_SYSFS_PATH", "/no-such-folder")
    with raises(BackendUnavailableError, "missing", path="/no-such-folder"):
        TdxIoctl(generation="D").read_rtmr(2)


# -- the probe ---------------------------------------------------------------------------------


def test_probe_with_device_and_quote_source_succeeds(td: FakeTd, socket_path: Path) -> None:
    """Configuration or an option is sufficient; no connection is made."""
    before = count_open_files()
    td.paths.tdx_attest_conf.write_bytes(CONF)
    TdxIoctl.probe(td.paths)
    td.paths.tdx_attest_conf.unlink()
    TdxIoctl.probe(td.paths, qgs=socket_path)
    TdxIoctl.probe(td.paths, qgs=("vsock", 2, 4050))
    TdxIoctl.probe(td.paths, generation="D'")
    assert count_open_files() == before


def test_probe_names_missing_device_before_quote_source(td: FakeTd) -> None:
    """The device is checked first."""
    path = str(td.paths.tdx_attest_conf)
    with raises(BackendUnavailableError, "not_configured", path=path):
        TdxIoctl.probe(td.paths)
    td.paths.tdx_guest.unlink()
    with raises(BackendUnavailableError, "missing", path=str(td.paths.tdx_guest)):
        TdxIoctl.probe(td.paths)
    td.paths.old_nodes[0].touch()
    with raises(BackendUnavailableError, "unsupported_kernel"):
        TdxIoctl.probe(td.paths)


def test_probe_without_vsock_support_is_unavailable(
    td: FakeTd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configured port needs AF_VSOCK sockets."""
    td.paths.tdx_attest_conf.write_bytes(CONF)

    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    with raises(BackendUnavailableError, "missing", path="vsock 2:4050") as caught:
        TdxIoctl.probe(td.paths)
    assert errno_of(caught.value) == errno.EAFNOSUPPORT
