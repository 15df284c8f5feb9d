"""The C code of the stub libraries under ASan and UBSan, with malformed answers of their server."""

import contextlib
import random
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attestkit.emulator.nvml.simulated_machine import FLAGS, SOURCES, find_compiler
from attestkit.emulator.nvml.stub_server import StubCall, StubServer
from tests.emulator.nvml.stub_programs import FakeMachine, requires_compiler, switch

MAIN = Path(__file__).with_name("stub_calls.c")
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
REQUEST = struct.Struct("=III")
SIZES = (
    0,
    1,
    3,
    4,
    5,
    8,
    12,
    16,
    17,
    96,
    1024,
    0x1400,
    0x1401,
    0x2000,
    0x2001,
    1 << 31,
    0xFFFFFFFF,
)
CODES = (0, 0, 0, 1, 7, -8, -128, -129, 999, 1000, -(1 << 31), (1 << 31) - 1)

pytestmark = requires_compiler

Answer = Callable[[int], bytes]


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """The program that makes all calls, in a folder where a server can listen."""
    with tempfile.TemporaryDirectory(prefix="stub-") as folder:
        path = Path(folder, "stub_calls")
        sources = [str(SOURCES / name) for name in ("nvml_stub.c", "nscq_stub.c", "stub_client.c")]
        command = (
            find_compiler(),
            *FLAGS,
            *SANITIZE,
            "-Werror",
            "-o",
            str(path),
            str(MAIN),
            *sources,
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "libasan" in done.stderr or "libclang_rt" in done.stderr:
            pytest.skip("the compiler has no sanitizers")
        assert done.returncode == 0, done.stderr
        yield path


@contextlib.contextmanager
def answering(folder: Path, answer: Answer) -> Iterator[None]:
    """Answer each request with bytes that depend on its call."""
    place = folder / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(64)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as client, contextlib.suppress(OSError):
                        call, *_ = REQUEST.unpack(client.recv(1024)[: REQUEST.size])
                        client.sendall(answer(call))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            place.unlink()


def run(program: Path, rounds: int) -> None:
    """Run the program; a finding of a sanitizer, or a value out of range, fails."""
    done = subprocess.run(
        [program, str(rounds)],
        capture_output=True,
        text=True,
        env={"ASAN_OPTIONS": "detect_leaks=0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def initialised(answer: Answer) -> Answer:
    """Return a function that answers the initialisation correctly, so that calls follow."""
    good = {StubCall.INIT, StubCall.SHUTDOWN, StubCall.SWITCH_SESSION}
    uuids = struct.pack("=iI", 0, 32) + bytes(16) + bytes([1]) * 16

    def answer_call(call: int) -> bytes:
        if call in good:
            return struct.pack("=iI", 0, 0)
        return uuids if call == StubCall.SWITCH_UUIDS else answer(call)

    return answer_call


def test_sanitized_stub_with_its_own_server_is_clean(program: Path) -> None:
    """Correct answers of a machine with GPUs and switches give no finding."""
    machine = FakeMachine(switches=(switch(0), switch(1)), report_size=0x2000)
    server = StubServer(program.parent, machine)
    server.start()
    try:
        run(program, 3)
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_sanitized_stub_with_malformed_answers_is_clean(program: Path, seed: int) -> None:
    """Wrong codes and sizes, and fewer or more bytes than stated, are errors of the call."""
    chance = random.Random(seed)

    def answer(_call: int) -> bytes:
        code, size = chance.choice(CODES), chance.choice(SIZES)
        sent = chance.choice((size, max(size - 1, 0), size + 1, 0, chance.randrange(0x2100)))
        whole = struct.pack("=iI", code, size) + chance.randbytes(min(sent, 0x3000))
        return whole[: chance.randrange(len(whole))] if chance.random() < 0.2 else whole

    with answering(program.parent, initialised(answer) if seed % 2 else answer):
        run(program, 40)


def test_sanitized_stub_with_every_cut_answer_is_clean(program: Path) -> None:
    """An answer that ends anywhere in its head or its data is an error."""
    whole = struct.pack("=iI", 0, 12) + b"\xff" * 12
    for size in range(len(whole) + 2):
        with answering(program.parent, initialised(lambda _, s=size: (whole + b"\0")[:s])):  # type: ignore[misc]
            run(program, 1)
