"""A NitroTPM in tests: swtpm behind a proxy that adds the vendor command and its NV index.

swtpm has no index of 8,192 bytes and no vendor command. The proxy checks the session of the
command, and computes by itself what it must contain.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from typing import Any, Final

import cbor2

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.frames import (
    Authorization,
    ResponseAuthorization,
    TpmCommand,
    TpmResponse,
)
from attestkit.backends.tpm.transports import TpmTransport
from attestkit.tpm.pcr_selection import PcrSelection

GET_CAPABILITY, START_AUTH_SESSION = 0x017A, 0x0176
NV_DEFINE, NV_UNDEFINE, NV_WRITE, NV_READ, NV_READ_PUBLIC = 0x012A, 0x0122, 0x0137, 0x014E, 0x0169
ATTEST: Final = 0x20000001
AUTH_FAIL: Final = 0x98E
UNKNOWN_COMMAND: Final = 0x143
HANDLES: Final = {NV_DEFINE: 1, NV_UNDEFINE: 2, NV_WRITE: 2, NV_READ: 2, NV_READ_PUBLIC: 1}
WRITTEN: Final = 1 << 29

Answer = Callable[[dict[str, Any]], bytes]
"""Function from the request's fields to the content of the index."""


class Index:
    """The NV index of a request."""

    def __init__(self, secret: bytes, public: bytes) -> None:
        self.secret, self.public = secret, public
        (self.number,) = struct.unpack_from(">I", public)
        (size,) = struct.unpack(">H", public[-2:])
        self.data = bytearray(size)

    @property
    def name(self) -> bytes:
        """Return nameAlg and the hash of the public area."""
        return b"\0\x0d" + hashlib.sha512(self.public).digest()

    def mark_written(self) -> None:
        """Set the attribute that the first write sets."""
        (attributes,) = struct.unpack_from(">I", self.public, 6)
        flags = struct.pack(">I", attributes | WRITTEN)
        self.public = self.public[:6] + flags + self.public[10:]


class NitroProxy:
    """A transport to a NitroTPM.

    Args:
        inner: The TPM, which has all but the index and the command.
        answer: Makes the response.
    """

    path = "proxy"

    def __init__(self, inner: TpmTransport, answer: Answer) -> None:
        self.lock = FifoLock()
        self.answer = answer
        self.inner = inner
        self.index: Index | None = None
        self.randoms: list[bytes] = []
        self.codes: list[int] = []  # of the commands so far
        self.refusals: dict[int, int] = {}  # response codes by command code
        self.has_command = True
        self._nonce_tpm = b""
        self.client = TpmClient(inner)

    def random(self, size: int) -> bytes:
        """Return random bytes, and keep them: the session's salt is encrypted for the TPM."""
        self.randoms.append(os.urandom(size - 1) + b"\x7f")
        return self.randoms[-1]

    def pcrs(self) -> dict[int, bytes]:
        """Return the PCRs of the SHA-384 bank."""
        found = self.client.pcr_read((PcrSelection("sha384", tuple(range(24))),))
        return {index: value for (_, index), value in found.items()}

    def close(self) -> None:
        """Close the TPM."""
        self.inner.close()

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Answer a command, or pass it on."""
        (code,) = struct.unpack_from(">I", command, 6)
        self.codes.append(code)
        if refusal := self.refusals.get(code):
            return TpmResponse(refusal).encode()
        if code == ATTEST:
            return self._attest(TpmCommand.parse(command, 2)).encode()
        if code in HANDLES:
            parsed = TpmCommand.parse(command, HANDLES[code])
            if code == NV_DEFINE or (self.index and self.index.number == parsed.handles[-1]):
                return self._nv(parsed).encode()
        response = self.inner.exchange(command, seconds)
        if code == START_AUTH_SESSION and not struct.unpack_from(">I", response, 6)[0]:
            (size,) = struct.unpack_from(">H", response, 14)
            self._nonce_tpm = response[16 : 16 + size]
        if code == GET_CAPABILITY:
            return self._with_own(command, response)
        return response

    def _with_own(self, command: bytes, response: bytes) -> bytes:
        """Add the command and the index to lists that are complete."""
        kind, first = struct.unpack_from(">II", command, 10)
        own = ATTEST if kind == 2 else self.index.number if kind == 1 and self.index else None
        if kind == 2 and not self.has_command:
            own = None
        if own is None or own < first or response[10]:
            return response
        (count,) = struct.unpack_from(">I", response, 15)
        parameters = response[10:15] + struct.pack(">I", count + 1) + response[19:]
        return TpmResponse(0, None, parameters + struct.pack(">I", own)).encode()

    # -- the index -----------------------------------------------------------------------------

    def _nv(self, command: TpmCommand) -> TpmResponse:
        code, parameters = command.code, command.parameters
        if code == NV_DEFINE:
            (size,) = struct.unpack_from(">H", parameters)
            secret, public = parameters[2 : 2 + size], parameters[4 + size :]
            self.index = Index(secret, public)
            return _done()
        assert self.index is not None
        if code == NV_READ_PUBLIC:
            return TpmResponse(0, None, _sized(self.index.public) + _sized(self.index.name))
        if code == NV_UNDEFINE:
            self.index = None
            return _done()
        if command.authorizations[0].secret != self.index.secret:
            return TpmResponse(AUTH_FAIL)
        if code == NV_WRITE:
            (size,) = struct.unpack_from(">H", parameters)
            (offset,) = struct.unpack_from(">H", parameters, 2 + size)
            self.index.data[offset : offset + size] = parameters[2 : 2 + size]
            self.index.mark_written()
            return _done()
        size, offset = struct.unpack(">HH", parameters)
        return _done(_sized(bytes(self.index.data[offset : offset + size])))

    # -- the command ---------------------------------------------------------------------------

    def _attest(self, command: TpmCommand) -> TpmResponse:
        index = self.index
        if not self.has_command:
            return TpmResponse(UNKNOWN_COMMAND)
        assert index is not None
        assert command.handles == (index.number, index.number)
        assert command.parameters == b""
        (given,) = command.authorizations
        if not hmac.compare_digest(given.secret, self._expected(index, given)):
            return TpmResponse(AUTH_FAIL)
        request = cbor2.loads(bytes(index.data))
        content = self.answer(request["Attestation"])
        index.data[:] = content.ljust(len(index.data), b"\0")
        return TpmResponse(0)  # without authorization, as some programs in between answer

    def _expected(self, index: Index, given: Authorization) -> bytes:
        """Return the HMAC of the command (TPM 2.0 Library, Part 1, section 19.6)."""
        if not self.randoms:  # the caller's random bytes are not known here
            return given.secret
        secret, salt, nonce_caller, _ = self.randoms[-4:]
        assert secret == index.secret
        content = b"\0\0\0\1ATH\0" + self._nonce_tpm + nonce_caller + struct.pack(">I", 512)
        key = hmac.digest(salt, content, "sha512")
        cp_hash = hashlib.sha512(struct.pack(">I", ATTEST) + 2 * index.name).digest()
        assert given.attributes == 1
        signed = cp_hash + given.nonce + self._nonce_tpm + b"\1"
        return hmac.digest(key + secret, signed, "sha512")


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _done(parameters: bytes = b"") -> TpmResponse:
    return TpmResponse(0, None, parameters, (ResponseAuthorization(b"", 0, b""),))
