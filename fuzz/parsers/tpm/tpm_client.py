"""Targets: frames of a TPM, and a client's view of a TPM that answers anything."""

from collections.abc import Callable
from typing import Final

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.tpm.client import FAMILY, TpmClient
from attestkit.backends.tpm.frames import (
    Authorization,
    ResponseAuthorization,
    TpmCommand,
    TpmResponse,
    password,
)
from attestkit.backends.tpm.nv_commands import NvPublic
from attestkit.backends.tpm.transports import check_response
from attestkit.errors import BackendError, FormatError
from attestkit.tpm.command_codes import CAP_COMMANDS
from attestkit.tpm.handles import NULL
from fuzz.parsers.contract import ParserTarget, check_same, obeys
from tests.tpm.samples import MADE_ATTEST, MADE_PUBLICS


def responses() -> list[bytes]:
    """Return an error, and responses with a handle, with parameters, and with a session."""
    session = ResponseAuthorization(bytes(range(64)), 1, b"\1" * 64)
    frames = [
        TpmResponse(0x18B),
        TpmResponse(0, None, b"data"),
        TpmResponse(0, 0x80FFFFFF, b"data", (ResponseAuthorization(b"", 0, b""),)),
        TpmResponse(0, None, b"data", (session,)),
    ]
    return [bytes([frame.handle is not None]) + frame.encode() for frame in frames]


def _response(raw: bytes) -> TpmResponse:
    """Read a frame after a byte that says whether the command returns a handle."""
    return TpmResponse.parse(raw[1:], returns_handle=bool(raw[:1].strip(b"\0")))


def _accepted_response(raw: bytes, response: TpmResponse) -> None:
    if response.code or response.authorizations:
        check_same("the response encoded again", response.encode(), raw[1:])


def commands() -> list[bytes]:
    """Return commands of each count of handles, with a password and with a session."""
    session = Authorization(0x02000000, bytes(range(64)), 1, b"\1" * 64)
    frames = [
        TpmCommand(0x144, (), b"\0\0"),
        TpmCommand(0x158, (0x81000003,), b"data", (password(),)),
        TpmCommand(0x14E, (0x01500000,) * 2, b"\4\0\0\0", (session,)),
    ]
    return [bytes([len(frame.handles)]) + frame.encode() for frame in frames]


def _command(raw: bytes) -> TpmCommand:
    """Read a frame after a byte with the number of its handles."""
    return TpmCommand.parse(raw[1:], raw[0] % 4 if raw else 0)


def _accepted_command(raw: bytes, command: TpmCommand) -> None:
    if command.authorizations:
        check_same("the command encoded again", command.encode(), raw[1:])


def _nv_public(raw: bytes, found: NvPublic) -> None:
    check_same("the public area encoded again", found.encode(), raw)


class _AnyTpm:
    """A transport with a TPM at its end that answers each command with the same parameters."""

    path = "TPM"

    def __init__(self, parameters: bytes) -> None:
        self.lock = FifoLock()
        self._answer = TpmResponse(0, None, parameters).encode()

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Return the answer."""
        del command, seconds
        return check_response(self.path, self._answer)

    def close(self) -> None:
        """Do nothing."""


_CALLS: Final[tuple[Callable[[TpmClient], object], ...]] = (
    lambda tpm: tpm.list_handles(0, 0xFFFFFFFF),
    TpmClient.list_commands,
    lambda tpm: tpm.read_property(FAMILY),
    lambda tpm: tpm.get_capability(CAP_COMMANDS, 0, 1),
    lambda tpm: tpm.pcr_read(MADE_ATTEST.selections),
    lambda tpm: tpm.nv_read_public(0x01500000),
    lambda tpm: tpm.nv_read(0x01500000, 4),
    lambda tpm: tpm.read_public(0x81000003),
    lambda tpm: tpm.quote(0x81000003, b"", ()),
    lambda tpm: tpm.create_primary(NULL, b""),
)


def _ask(raw: bytes) -> object:
    """Call the method of the client that the first byte selects; the rest is the answer."""
    number = raw[0] if raw else 0
    return _CALLS[number % len(_CALLS)](TpmClient(_AnyTpm(raw[1:1025])))


def answers() -> list[bytes]:
    """Return an answer to each method of the client."""
    name = b"\0\x22\0\x0b" + bytes(32)
    area = NvPublic(0x01500000, "sha256", 0x60006, b"", 4).encode()
    key = MADE_PUBLICS[1].encode()
    sized = len(key).to_bytes(2, "big") + key
    pcrs = b"\0\0\0\1\0\0\0\1\0\x0b\3\1\0\0\0\0\0\1\0\x20" + bytes(32)
    return [
        bytes([0, 0, *b"\0\0\0\1\0\0\0\1\x81\0\0\3"]),
        bytes([1, 0, *b"\0\0\0\2\0\0\0\1\0\0\1\x58"]),
        bytes([2, 0, *b"\0\0\0\5\0\0\0\1\0\x0b\3\xff\xff\xff"]),
        bytes([3, 0, *b"\0\0\0\6\0\0\0\1\0\0\1\0002.0\0"]),
        bytes([4, 1, *b"\0\0\0\2\0\0\0\0"]),
        bytes([5]) + pcrs,
        bytes([6, 0, len(area)]) + area + name,
        bytes([7, 0, 4, *b"data"]),
        bytes([8]) + sized + 2 * name,
        bytes([9, 0, 4, *b"datasignature"]),
        bytes([10]) + bytes(4) + sized,
    ]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "tpm_response",
            obeys(_response, FormatError, accepted=_accepted_response),
            responses,
            max_len=512,
        ),
        ParserTarget(
            "tpm_command",
            obeys(_command, FormatError, accepted=_accepted_command),
            commands,
            max_len=512,
        ),
        ParserTarget(
            "tpm_nv_public",
            obeys(NvPublic.parse, FormatError, accepted=_nv_public),
            lambda: [NvPublic(0x01500000, "sha512", 0x60006, bytes(64), 2048).encode()],
            max_len=128,
        ),
        ParserTarget("tpm_client", obeys(_ask, BackendError), answers, max_len=1025),
    ]
