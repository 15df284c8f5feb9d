"""Target: commands to the simulated TPM, to the proxy, and through the resource manager."""

import socket
from contextlib import suppress
from typing import Final

from attestkit.backends.simulator.software_tpm import TpmHooks, TpmModel, VirtualIndex
from attestkit.backends.simulator.software_tpm.in_process import CommandExecutor
from attestkit.backends.simulator.software_tpm.model.tpm_model import LARGEST_FRAME, encode_error
from attestkit.backends.simulator.software_tpm.resource_manager import ResourceManager
from attestkit.backends.simulator.software_tpm.swtpm import TpmProxy
from attestkit.errors import FormatError
from attestkit.tpm.command_codes import NITRO_ATTEST
from fuzz.parsers.contract import ParserTarget, check, obeys
from tests.backends.simulator.software_tpm.command_frames import create, start_session
from tests.backends.simulator.software_tpm.nv_cases import NV
from tests.backends.simulator.software_tpm.swtpm_cases import AUTHORIZATIONS, KEYS, SESSIONS
from tests.backends.simulator.software_tpm.tpm_connection import serve_connection
from tests.backends.tpm.templates import EK

_INDEX: Final = 0x01400001
_OWNER_READS: Final = 0x00020002
_LONGEST: Final = 1024  # of an input, so that all answers fit in a socket's buffer
_STEP: Final = 4  # each fourth case is a seed

_LARGEST_INPUT = 1 << 16


class _Managed:
    """The TPM as one opener of the resource manager sees it."""

    def __init__(self, tpm: CommandExecutor) -> None:
        self._file = ResourceManager(tpm).open()

    def execute(self, command: bytes) -> bytes:
        """Write a command and read its response; an error becomes a code."""
        try:
            self._file.write(command)
            return self._file.read(LARGEST_FRAME)
        except OSError as error:
            return encode_error(error.errno or 1)


def _make(kind: int) -> CommandExecutor:
    """Return a TPM with hooks that gives the same answers each time."""
    hooks = TpmHooks(
        virtual_indices={_INDEX: VirtualIndex(lambda: b"virtual", clock=lambda: 0.0)},
        vendor_commands={NITRO_ATTEST: lambda request: request[:8]},
    )
    model = TpmModel(bytes(32), hooks=hooks, clock=lambda: 0.0, random=bytes)
    if kind != 1:
        return _Managed(model) if kind == 2 else model
    behind = TpmModel(bytes(32), largest_index=2048, clock=lambda: 0.0, random=bytes)
    proxy = TpmProxy(behind, bytes(32), hooks=hooks, sleep=lambda _: None, random=bytes)
    proxy.provision_index(_INDEX, bytes(4096), _OWNER_READS)
    return proxy


def _run(raw: bytes) -> list[int]:
    """Send commands after a byte that chooses the TPM; return the codes of the responses."""
    if len(raw) > _LARGEST_INPUT:  # all of it must fit into the buffers of the socket
        raise FormatError("TPM commands: too many bytes", reason="too_large", offset=0)
    tpm = _make(raw[0] % 3 if raw else 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(raw[1:])
        ours.shutdown(socket.SHUT_WR)
        serve_connection(tpm, theirs)
        theirs.close()
        answer = b""
        with suppress(ConnectionResetError):  # the end after a frame that is too large
            while piece := ours.recv(1 << 16):
                answer += piece
    codes = []
    while answer:
        size = int.from_bytes(answer[2:6], "big")
        check("a size of 10 to 4096", 10 <= size <= min(LARGEST_FRAME, len(answer)))
        codes.append(int.from_bytes(answer[6:10], "big"))
        answer = answer[size:]
    if all(codes):
        raise FormatError("TPM: every command was refused", reason="wrong_value", offset=0)
    return codes


def _commands() -> list[bytes]:
    """Return sequences of commands for each of the three."""
    groups = (NV, KEYS, SESSIONS, AUTHORIZATIONS)
    every = [b"".join(case) for cases in groups for case in cases.values()]
    salted = start_session(key=0x80000000, salt=bytes(256))
    every.insert(0, create(EK.encode()) + salted)
    short = [case for case in every if len(case) < _LONGEST][::_STEP]
    return [bytes([number % 3]) + case for number, case in enumerate(short)]


def targets() -> list[ParserTarget]:
    """Return the target of this file."""
    return [ParserTarget("software_tpm", obeys(_run, FormatError), _commands, max_len=_LONGEST)]
