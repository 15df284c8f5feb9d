"""Transports carry one command at a time, within a time limit, and refuse malformed responses."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeAlias

import pytest

from attestkit.backends.tpm import TpmBackend
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.frames import MAX_FRAME, TpmCommand, TpmResponse
from attestkit.backends.tpm.tpm_device import open_tpm
from attestkit.backends.tpm.transports import DeviceTransport, StreamTransport
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from attestkit.tpm.response_codes import RC_RESMGR_COMMAND_CODE
from tests.backends.tpm.fake_node import DROPPED, FakeNode, Handler
from tests.backends.tpm.templates import SHA256
from tests.backends.tpm.tpm_peer import CLOSE, AnsweringTpm
from tests.machines.software_tpm import needs_swtpm
from tests.raising import raises
from tests.runner.cases import every_case

COMMAND = TpmCommand(0x144, (), b"\0\0").encode()
RESPONSE = TpmResponse(0, None, b"parameters").encode()
MakeNode: TypeAlias = Callable[[Handler], FakeNode]
LONG = 30.0  # seconds that no test waits for


@pytest.fixture
def make_node() -> "Iterator[MakeNode]":
    """Return a function that makes nodes; they are closed with the test."""
    with ExitStack() as stack:
        yield lambda handler: stack.enter_context(closing(FakeNode(handler)))


def device(node: FakeNode) -> DeviceTransport:
    """Return a transport on a fake node."""
    return DeviceTransport("/dev/tpmrm0", node.open_node, calls=node.calls)


# -- a device --------------------------------------------------------------------------------------


def test_device_carries_a_command_and_its_response(make_node: MakeNode) -> None:
    """One write has the whole command, one read the whole response; the node stays open."""
    node = make_node(lambda command: RESPONSE if command == COMMAND else None)
    transport = device(node)
    assert node.opened == []
    transport.open()
    for _ in range(3):
        assert transport.exchange(COMMAND, LONG) == RESPONSE
    assert node.commands == [COMMAND] * 3
    assert len(node.opened) == 1
    transport.close()


def test_device_that_does_not_answer_is_busy(make_node: MakeNode) -> None:
    """After the time limit the node is opened anew, so that a late response is never taken."""
    late: list[int] = []
    node = make_node(lambda _: None if not late else RESPONSE)
    transport = device(node)
    with raises(BackendBusyError, "timed_out", part="0.01 s", path="/dev/tpmrm0"):
        transport.exchange(COMMAND, 0.01)
    late.append(1)
    assert transport.exchange(COMMAND, LONG) == RESPONSE
    assert len(node.opened) == 2
    transport.close()


@pytest.mark.parametrize("on_read", [False, True], ids=["write", "read"])
@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.EBUSY, BackendBusyError, "device"),
        (errno.EINVAL, BackendError, "io_error"),
        (errno.ENODEV, BackendUnavailableError, "missing"),
        (errno.ENXIO, BackendUnavailableError, "missing"),
        (errno.EPIPE, BackendError, "io_error"),
        (errno.ETIME, BackendError, "io_error"),
        (errno.EIO, BackendError, "io_error"),
        (errno.EPERM, BackendError, "io_error"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_device_errors_are_reported_once(
    make_node: MakeNode, number: int, kind: type[BackendError], reason: str, *, on_read: bool
) -> None:
    """An error of the driver is reported, and the command is not sent again."""
    node = make_node(lambda _: RESPONSE)
    transport = device(node)
    node.errors = [0, number] if on_read else [number]
    with raises(kind, reason, part=errno.errorcode[number], path="/dev/tpmrm0"):
        transport.exchange(COMMAND, LONG)
    assert len(node.commands) == on_read
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(node.opened[0])
    assert transport.exchange(COMMAND, LONG) == RESPONSE
    transport.close()


def test_device_interruptions_are_retried_a_limited_number_of_times(make_node: MakeNode) -> None:
    """EINTR has no effect, unless it never ends."""
    node = make_node(lambda _: RESPONSE)
    transport = device(node)
    node.errors = [errno.EINTR] * 3 + [0] + [errno.EINTR] * 3
    assert transport.exchange(COMMAND, LONG) == RESPONSE
    node.errors = [errno.EINTR] * 1000
    with raises(BackendBusyError, "interrupted"):
        transport.exchange(COMMAND, LONG)
    transport.close()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (DROPPED, "truncated"),
        (RESPONSE[:9], "malformed_response"),
        (RESPONSE[:-1], "truncated"),
        (RESPONSE + b"\0", "malformed_response"),
        (RESPONSE[:2] + b"\0\0\0\x09" + RESPONSE[6:], "malformed_response"),
        (RESPONSE[:2] + b"\0\0\x10\x01" + RESPONSE[6:] + bytes(MAX_FRAME), "malformed_response"),
        (RESPONSE[:2] + b"\xff\xff\xff\xff" + RESPONSE[6:], "malformed_response"),
    ],
    ids=["empty", "header", "shorter", "longer", "small", "large", "largest"],
)
def test_device_response_of_wrong_size_is_refused(
    make_node: MakeNode, response: bytes, reason: str
) -> None:
    """A response has the size in its header, 10 to 4096 bytes."""
    transport = device(make_node(lambda _: response))
    with raises(BackendError, reason):
        transport.exchange(COMMAND, LONG)
    transport.close()


def test_device_that_takes_a_part_of_a_command_has_failed(make_node: MakeNode) -> None:
    """A short write is an error, because the kernel takes whole commands."""
    node = make_node(lambda _: RESPONSE)
    node.written = 5
    with raises(BackendError, "io_error", part="5 of 12 bytes"):
        device(node).exchange(COMMAND, LONG)


def test_device_closes_its_descriptor(make_node: MakeNode) -> None:
    """Closing is final and idempotent."""
    node = make_node(lambda _: RESPONSE)
    transport = device(node)
    transport.open()
    transport.close()
    transport.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(node.opened[0])
    with raises(UsageError, "closed"):
        transport.exchange(COMMAND, LONG)
    with raises(UsageError, "closed"):
        transport.open()


def test_device_is_refused_after_a_fork(make_node: MakeNode) -> None:
    """A child process would read responses to its parent; closing there leaves the node open."""
    node = make_node(lambda _: RESPONSE)
    transport = device(node)
    assert transport.exchange(COMMAND, LONG) == RESPONSE
    with transport.lock:  # a thread of the parent may have it
        transport._process = os.getpid() + 1
        uses = transport.open, lambda: transport.exchange(COMMAND, LONG), lambda: transport.lock
        for use in uses:
            with raises(UsageError, "wrong_process"):
                use()
        transport.close()
        transport._process = os.getpid()
    assert transport.exchange(COMMAND, LONG) == RESPONSE
    assert len(node.opened) == 1
    transport.close()


def test_threads_take_turns(make_node: MakeNode) -> None:
    """Commands of several threads never overlap, which the node would answer with EBUSY."""
    node = make_node(lambda command: TpmResponse(0, None, command[10:]).encode())
    transport = device(node)
    wrong: list[object] = []

    def work(number: int) -> None:
        command = TpmCommand(0x144, (), bytes([number])).encode()
        for _ in range(50):
            try:
                response = transport.exchange(command, LONG)
            except BackendError as error:
                wrong.append(error)
            else:
                wrong.extend([response] * (response[10:] != bytes([number])))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(node.commands) == 200
    transport.close()


def test_tpm_12_is_named_by_its_response(make_node: MakeNode, tmp_path: Path) -> None:
    """A TPM 1.2 is recognised by its first response if the kernel does not tell the version."""
    node = make_node(lambda _: b"\x00\xc4\x00\x00\x00\x0a\x00\x00\x00\x1e")
    tpm = open_tpm(tmp_path / "tpm0", calls=node.calls)
    with raises(BackendUnavailableError, "wrong_platform", part="TPM 1.2"):
        tpm.startup()
    tpm.close()


def test_refusal_of_the_resource_manager_is_named(make_node: MakeNode, tmp_path: Path) -> None:
    """The kernel's response to an unknown command is distinguished from the TPM's."""
    node = make_node(lambda _: TpmResponse(RC_RESMGR_COMMAND_CODE).encode())
    tpm = open_tpm(tmp_path / "tpmrm0", calls=node.calls)
    with raises(TpmError, "tpm_error", part="resource manager") as caught:
        tpm.execute(0x20000001)
    assert caught.value.is_unknown_command
    assert caught.value.code == RC_RESMGR_COMMAND_CODE
    tpm.close()


@needs_swtpm
def test_device_in_front_of_swtpm(
    make_node: MakeNode, software_tpm: TpmClient, tmp_path: Path
) -> None:
    """Evidence is collected through a device node as through a stream."""
    node = make_node(lambda command: software_tpm.transport.exchange(command, LONG))
    with open_tpm(tmp_path / "tpmrm0", calls=node.calls).lock:
        pass
    tpm = open_tpm(tmp_path / "tpmrm0", calls=node.calls)
    assert tpm.pcr_read(SHA256) == software_tpm.pcr_read(SHA256)
    backend = TpmBackend(client=tpm)
    assert backend.collect_evidence(bytes(64)).vtpm_quote.pcr_values
    backend.close()


# -- a stream --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [RESPONSE, [RESPONSE[:1], RESPONSE[1:]], [bytes([byte]) for byte in RESPONSE]],
    ids=["whole", "two pieces", "bytes"],
)
def test_stream_joins_pieces(answer: bytes | list[bytes]) -> None:
    """A response may come in any pieces."""
    with AnsweringTpm([answer, RESPONSE]) as peer:
        for _ in range(2):
            assert peer.transport.exchange(COMMAND, LONG) == RESPONSE
    assert peer.commands == [COMMAND] * 2


@every_case("size", [0, 1, 9, 10, len(RESPONSE) - 1])
def test_stream_that_ends_early_is_lost(size: int) -> None:
    """A connection that ends inside a response is an error, and stays closed."""
    ours, theirs = socket.socketpair()
    transport = StreamTransport(ours, "peer")
    with theirs:

        def answer() -> None:
            theirs.recv(99)
            theirs.send(RESPONSE[:size])
            theirs.shutdown(socket.SHUT_RDWR)

        peer = threading.Thread(target=answer)
        peer.start()
        with raises(BackendError, "connection_lost", path="peer"):
            transport.exchange(COMMAND, LONG)
        peer.join()
    with raises(UsageError, "closed"):
        transport.exchange(COMMAND, LONG)


def test_stream_closed_before_a_command_is_lost() -> None:
    """A peer that has gone is an error of the connection."""
    with AnsweringTpm([RESPONSE, CLOSE]) as peer:
        peer.transport.exchange(COMMAND, LONG)
        with raises(BackendError, "connection_lost"):
            peer.transport.exchange(COMMAND, LONG)


def test_stream_without_answer_is_busy() -> None:
    """The time limit covers the whole response, and a late one is never taken."""
    with AnsweringTpm([[], RESPONSE]) as peer:
        with raises(BackendBusyError, "timed_out", path="peer"):
            peer.transport.exchange(COMMAND, 0.01)
        with raises(UsageError, "closed"):
            peer.transport.exchange(COMMAND, LONG)


@every_case("size", [b"\0\0\0\x09", b"\0\0\0\0", b"\0\0\x10\x01", b"\xff\xff\xff\xff"])
def test_stream_response_of_impossible_size_is_refused(size: bytes) -> None:
    """The size in a header is 10 to 4096; nothing is received beyond the header."""
    with (
        AnsweringTpm([RESPONSE[:2] + size + RESPONSE[6:]]) as peer,
        raises(BackendError, "malformed_response"),
    ):
        peer.transport.exchange(COMMAND, LONG)


def test_stream_with_bytes_after_a_response_is_refused() -> None:
    """Bytes that no command asked for are not taken for the next response."""
    with AnsweringTpm([RESPONSE + RESPONSE, RESPONSE]) as peer:
        assert peer.transport.exchange(COMMAND, LONG) == RESPONSE
        with raises(BackendError, "malformed_response", part="bytes without a command"):
            peer.transport.exchange(COMMAND, LONG)
    assert peer.commands == [COMMAND]
