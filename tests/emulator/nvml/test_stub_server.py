"""The server of the stub libraries, with requests that these do not send."""

import contextlib
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.emulator.nvml.simulated_machine import build_stub_libraries
from attestkit.emulator.nvml.stub_server import StubCall, StubServer
from attestkit.errors import BackendError, BackendUnavailableError
from tests.emulator.nvml.stub_programs import FakeMachine, switch
from tests.thorough import slow

REQUEST = struct.Struct("=III")
RESPONSE = struct.Struct("=iI")


@pytest.fixture
def server() -> Iterator[StubServer]:
    """A server with two GPUs and a switch."""
    with tempfile.TemporaryDirectory(prefix="stub-") as folder:
        server = StubServer(Path(folder), FakeMachine(switches=(switch(1),)))
        server.start()
        yield server
        server.close()


def ask(server: StubServer, request: bytes) -> bytes:
    """Return all that the server sends for a request."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server._listener.getsockname())
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        data = b""
        with contextlib.suppress(ConnectionResetError):  # the server left data unread
            while chunk := client.recv(1 << 16):
                data += chunk
    return data


def test_stub_server_disconnects_after_truncated_request(server: StubServer) -> None:
    """A request that is cut at any length gets no response."""
    request = REQUEST.pack(StubCall.DEVICE_REPORT, 0, 32) + bytes(32)
    for size in range(len(request)):
        assert ask(server, request[:size]) == b"", size
    code, size = RESPONSE.unpack_from(answer := ask(server, request))
    assert (code, size) == (0, len(answer) - RESPONSE.size)


def test_stub_server_disconnects_after_long_request(server: StubServer) -> None:
    """A request with more data than a nonce is refused."""
    assert ask(server, REQUEST.pack(StubCall.INIT, 0, 33) + bytes(33)) == b""


@pytest.mark.parametrize("number", [0, 24, 31, 38, 0xFFFFFFFF])
def test_stub_server_unknown_call_is_an_unknown_error(server: StubServer, number: int) -> None:
    """A call that does not exist fails."""
    assert ask(server, REQUEST.pack(number, 0, 0)) == RESPONSE.pack(999, 0)


@pytest.mark.parametrize(
    ("call", "index", "nonce", "code"),
    [
        (StubCall.DEVICE_REPORT, 0, 31, 2),
        (StubCall.DEVICE_REPORT, 2, 32, 2),
        (StubCall.DEVICE_UUID, 0xFFFFFFFF, 0, 2),
        (StubCall.SWITCH_REPORT, 0, 0, -4),
        (StubCall.SWITCH_REPORT, 1, 32, -128),
        (StubCall.SWITCH_PCIE_MODE, 1, 0, -128),
    ],
)
def test_stub_server_refuses_wrong_index_and_nonce(
    server: StubServer, call: StubCall, index: int, nonce: int, code: int
) -> None:
    """An index beyond the devices, or a nonce of another size, is an error of the library."""
    answer = ask(server, REQUEST.pack(call, index, nonce) + bytes(nonce))
    assert answer == RESPONSE.pack(code, 0)


@pytest.mark.parametrize(("call", "code"), [(18, 999), (37, -128)])
def test_stub_server_refuses_long_report(call: int, code: int) -> None:
    """A report beyond the library's buffer is an error."""
    machine = FakeMachine(switches=(switch(1),), report_size=0x2001)
    with tempfile.TemporaryDirectory(prefix="stub-") as folder:
        server = StubServer(Path(folder), machine)
        server.start()
        answer = ask(server, REQUEST.pack(call, 0, 32) + bytes(32))
        server.close()
    assert answer == RESPONSE.pack(code, 0)


def test_stub_server_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """The socket cannot be created there."""
    with pytest.raises(BackendError) as caught:
        StubServer(tmp_path / "missing", FakeMachine())
    assert caught.value.reason == "io_error"


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler",
    ["gcc", "clang", *slow(("gcc-12",), ("gcc-14",), ("clang-14",), ("clang-19",))],
)
def test_build_with_every_compiler_has_no_warning(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With warnings as errors, both libraries are compiled, and have the names that `ld` uses."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not here")
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("ATTESTKIT_STRICT_BUILD", "1")
    build_stub_libraries(tmp_path)
    for name in ("libnvidia-ml.so.1", "libnvidia-nscq.so.2"):
        assert (tmp_path / name).read_bytes().startswith(b"\x7fELF")
        assert (tmp_path / name.rpartition(".")[0]).resolve() == tmp_path / name


def test_build_without_compiler_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a C compiler the error says what to install."""
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(
        BackendUnavailableError, match=r"no-such-compiler.*apt install gcc"
    ) as caught:
        build_stub_libraries(tmp_path)
    assert caught.value.reason == "missing_dependency"


def test_build_with_failing_compiler_shows_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the output of the compiler."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(BackendError, match="out of order") as caught:
        build_stub_libraries(tmp_path)
    assert caught.value.reason == "io_error"
