"""TDX by its device alone: one way to a quote is chosen, and what it says is final."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestkit.backends import load
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from attestkit.quote import Quote
from attestkit.testing import BackendContract
from tests.backends.tdx.fake_td import FakeTd, open_files
from tests.backends.tdx.qgs_server import QUOTE, answering, closing, framed, qgs_server, response
from tests.rigs.emulator import Emulator, emulator, requires_fuse
from tests.untyped import untyped

ASKED = bytes(range(64))
CONF = b"port = 4050\n"


@pytest.fixture
def td(tmp_path: Path) -> FakeTd:
    """Return a TDX guest that configures nothing."""
    td = FakeTd(tmp_path)
    td.paths.tdx_attest_conf.parent.mkdir()
    return td


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a socket may be."""
    return tmp_path_factory.mktemp("q") / "s"


def backend(td: FakeTd, **options: Any) -> TdxIoctl:
    """Return what is tested, on a fake TD, with nothing on record of its making."""
    found = TdxIoctl(paths=td.paths, calls=td.calls, sleep=td.sleep, **options)
    td.made.clear()
    return found


def test_it_has_the_shape_of_a_backend(td: FakeTd) -> None:
    """A TDX guest with registers, no simulation, and calls that wait."""
    found = backend(td, generation="D")
    assert load("tdx_ioctl") is TdxIoctl
    assert isinstance(found, Backend)
    assert isinstance(found, RegisterExtender)
    assert (found.name, found.simulated, found.blocking) == ("tdx_ioctl", False, True)
    found.close()
    found.close()
    assert td.made == []


def test_the_device_reports_and_the_service_quotes(td: FakeTd, place: Path) -> None:
    """What the QGS gets is the report over what was asked."""
    before = open_files()
    with qgs_server(place, answering(framed(response()))) as server:
        assert backend(td, qgs=place).get_quote(ASKED) == QUOTE
        assert backend(td, qgs=str(place)).get_quote(ASKED) == QUOTE
    assert server.requests[0][24:] == td.report(ASKED)
    assert open_files() == before


def test_the_configuration_names_the_port_at_the_host(
    td: FakeTd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read for each quote, so a later correction counts."""
    reached: list[tuple[object, ...]] = []

    class Socket(socket.socket):
        def connect(self, address: object) -> None:
            reached.append((self.family, address))
            raise ConnectionResetError(errno.ECONNRESET, "")

    monkeypatch.setattr(socket, "socket", Socket)
    td.paths.tdx_attest_conf.write_bytes(CONF)
    found = backend(td)
    for port in (4050, 5000):
        td.paths.tdx_attest_conf.write_text(f"port = {port}\n")
        with pytest.raises(QuoteUnavailableError, match=f"vsock 2:{port}"):
            found.get_quote(ASKED)
    assert reached == [(socket.AF_VSOCK, (2, 4050)), (socket.AF_VSOCK, (2, 5000))]


def test_nothing_is_tried_after_the_service_failed(td: FakeTd, place: Path) -> None:
    """Neither the port of the configuration, nor an ioctl."""
    td.paths.tdx_attest_conf.write_bytes(CONF)
    with qgs_server(place, closing) as server, pytest.raises(QuoteUnavailableError, match="closed"):
        backend(td, qgs=place).get_quote(ASKED)
    assert server.connections == 1
    assert td.made == ["open tdx_guest", "ioctl 0xc4405401"]


def test_without_a_way_to_a_quote_the_text_names_them_all(td: FakeTd) -> None:
    """The file, the port, both options; and no ioctl is tried by itself."""
    with pytest.raises(BackendUnavailableError) as caught:
        backend(td)
    text = str(caught.value)
    for part in (str(td.paths.tdx_attest_conf), "ENOENT", "port = 4050", "qgs", "generation"):
        assert part in text
    assert td.made == ["open tdx_guest", "open tdx-attest.conf"]


def test_a_way_that_was_lost_is_missed_by_the_quote(td: FakeTd) -> None:
    """The same text, after the report, and again no ioctl for a quote."""
    td.paths.tdx_attest_conf.write_bytes(CONF)
    found = backend(td)
    td.paths.tdx_attest_conf.unlink()
    with pytest.raises(BackendUnavailableError, match="no way to a quote"):
        found.get_quote(ASKED)
    assert td.made == ["open tdx_guest", "ioctl 0xc4405401", "open tdx-attest.conf"]


def test_a_bad_configuration_is_told_by_its_line(td: FakeTd) -> None:
    """It does not count as none."""
    td.paths.tdx_attest_conf.write_text("# one\nport: 4050\n")
    with pytest.raises(BackendUnavailableError, match="line 2"):
        backend(td)


@pytest.mark.parametrize("report_data", [b"", bytes(63), bytes(65), bytearray(64), None])
def test_report_data_is_64_bytes(td: FakeTd, report_data: object) -> None:
    """Nothing is opened otherwise."""
    with pytest.raises(UsageError, match="64 bytes"):
        backend(td, generation="D").get_quote(untyped(report_data))
    assert td.made == []


def test_a_device_that_fails_ends_it(td: FakeTd, place: Path) -> None:
    """The service is not asked."""
    td.fail["ioctl 0xc4405401"] = [errno.EIO]
    with qgs_server(place, closing) as server, pytest.raises(BackendError, match="EIO"):
        backend(td, qgs=place).get_quote(ASKED)
    assert server.connections == 0


def test_a_named_generation_quotes_by_its_ioctl(td: FakeTd) -> None:
    """The option wins over the configuration; the request is this report."""
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
    assert backend(td, generation="D").get_quote(ASKED) == QUOTE
    assert seen == [td.report(ASKED)]
    assert "open tdx-attest.conf" not in td.made


def test_a_named_generation_that_is_not_there_ends_it(td: FakeTd) -> None:
    """The configured QGS does not take its place."""
    td.paths.tdx_attest_conf.write_bytes(CONF)
    with pytest.raises(BackendUnavailableError, match="ENOTTY"):
        backend(td, generation="C").get_quote(ASKED)
    assert td.times("open tdx-attest.conf") == 0
    assert td.times("ioctl 0x80105404") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"generation": "B"},
        {"generation": ""},
        {"qgs": 4050},
        {"qgs": ("vsock", 2)},
        {"generation": "D", "qgs": "/run/qgs"},
    ],
)
def test_options_that_cannot_be_are_the_callers_mistake(
    td: FakeTd, options: dict[str, Any]
) -> None:
    """When it is made, and when it is only probed."""
    with pytest.raises(UsageError):
        backend(td, **options)
    with pytest.raises(UsageError):
        TdxIoctl.probe(td.paths, **options)


def test_it_looks_below_a_root(td: FakeTd, tmp_path: Path) -> None:
    """The same files as by `paths`, which win."""
    assert TdxIoctl(root=tmp_path, generation="D").read_rtmr(2) == td.rtmrs[2]
    found = TdxIoctl(root="/no-such", paths=td.paths, generation="D")
    assert found.read_rtmr(2) == td.rtmrs[2]
    with pytest.raises(BackendUnavailableError, match="/no-such/dev/tdx_guest"):
        TdxIoctl(root="/no-such", generation="D")


def test_without_both_the_environment_says_where(
    td: FakeTd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everywhere: the variable counts, and is not a mere proposal."""
    monkeypatch.setattr(KernelPaths, "__new__", lambda *_: td.paths)  # the usual places
    monkeypatch.setenv("DCAP_TDX_RTMR_SYSFS_PATH", str(td.paths.measurements))
    assert TdxIoctl(generation="D").read_rtmr(2) == td.rtmrs[2]
    monkeypatch.setenv("DCAP_TDX_RTMR_SYSFS_PATH", "/no-such-folder")
    with pytest.raises(BackendUnavailableError, match="/no-such-folder"):
        TdxIoctl(generation="D").read_rtmr(2)


# -- the probe ---------------------------------------------------------------------------------


def test_a_probe_that_finds_all_says_nothing(td: FakeTd, place: Path) -> None:
    """Device and a configured way; an option is a way, too. Nobody is connected to."""
    before = open_files()
    td.paths.tdx_attest_conf.write_bytes(CONF)
    TdxIoctl.probe(td.paths)
    td.paths.tdx_attest_conf.unlink()
    TdxIoctl.probe(td.paths, qgs=place)
    TdxIoctl.probe(td.paths, qgs=("vsock", 2, 4050))
    TdxIoctl.probe(td.paths, generation="D'")
    assert open_files() == before


def test_a_probe_names_what_is_missing(td: FakeTd) -> None:
    """The way to a quote; then, before all, the device."""
    with pytest.raises(BackendUnavailableError, match=r"tdx-attest\.conf.*qgs.*generation"):
        TdxIoctl.probe(td.paths)
    td.paths.tdx_guest.unlink()
    with pytest.raises(BackendUnavailableError, match="tdx_guest"):
        TdxIoctl.probe(td.paths)
    td.paths.old_nodes[0].touch()
    with pytest.raises(BackendUnavailableError, match="driver too old"):
        TdxIoctl.probe(td.paths)


def test_a_probe_notices_that_there_is_no_vsock(
    td: FakeTd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is named, and sockets for it cannot be had."""
    td.paths.tdx_attest_conf.write_bytes(CONF)

    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(BackendUnavailableError, match="EAFNOSUPPORT"):
        TdxIoctl.probe(td.paths)


def test_the_default_calls_are_the_real_ones(td: FakeTd, tmp_path: Path) -> None:
    """A plain file in the device's place is asked, and has no such command."""
    assert td.paths.tdx_guest.exists()
    with pytest.raises(BackendUnavailableError, match="ENOTTY"):
        TdxIoctl(root=tmp_path, generation="D", calls=DeviceCalls()).get_quote(ASKED)


# -- on the emulator ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> Iterator[Emulator]:
    """Run a TDX guest with a quote generation service."""
    with emulator(qgs=True) as found:
        yield found


@pytest.mark.rig
@requires_fuse
class TestOnTheEmulator(BackendContract):
    """The contract, on a kernel made of files: real descriptors, real ioctls, signed quotes."""

    @pytest.fixture(autouse=True)
    def _machine(self, machine: Emulator) -> None:
        machine.reboot()
        self.machine = machine

    def make_backend(self) -> Backend:
        """Return a backend of the guest, whose probe looks at that guest, too."""
        paths, place = KernelPaths.below(self.machine.root), self.machine.qgs

        class Emulated(TdxIoctl):
            @classmethod
            def probe(cls, *_: object, **__: object) -> None:
                super().probe(paths, qgs=place)

        return Emulated(paths=paths, qgs=place)


@pytest.mark.rig
@requires_fuse
@pytest.mark.parametrize("generation", ["C", "C'", "D", "D'"])
def test_each_generation_quotes_on_the_emulator(generation: str) -> None:
    """Its driver takes our buffer, and the quote is over what was asked; another's is not tried."""
    with emulator(driver=generation, kernel="6.12") as machine:
        found = TdxIoctl(root=machine.root, generation=generation)
        assert Quote.parse(found.get_quote(ASKED)).report_data == ASKED
        machine.fault("empty_outblob")
        with pytest.raises(QuoteUnavailableError, match="answered nothing"):
            found.get_quote(ASKED)
        assert found.read_event_log()
        other = "D" if generation != "D" else "C"
        with pytest.raises(BackendUnavailableError, match="ENOTTY"):
            TdxIoctl(root=machine.root, generation=other).get_quote(ASKED)
