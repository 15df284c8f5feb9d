"""Commands and responses of a TPM 2.0 (TPM 2.0 Library, Part 1, section 18; Part 3, section 4)."""

from typing import Final, NamedTuple

from attestkit.errors import UsageError
from attestkit.tpm.handles import PASSWORD_SESSION
from attestkit.tpm.reader import TpmReader, encode_number, encode_sized

NO_SESSIONS: Final = 0x8001
SESSIONS: Final = 0x8002
TPM12_RESPONSE: Final = 0x00C4  # TPM_TAG_RSP_COMMAND of TPM 1.2

HEADER_SIZE: Final = 10
MAX_FRAME: Final = 4096  # bytes of a command or a response
CONTINUE_SESSION: Final = 1
_LARGEST_NONCE: Final = 64
_MAX_AUTHORIZATIONS: Final = 3


class Authorization(NamedTuple):
    """One entry of the authorization area of a command: a password, or an HMAC of a session.

    `session` is a handle, `nonce` the caller's nonce, `attributes` TPMA_SESSION.
    """

    session: int = PASSWORD_SESSION
    nonce: bytes = b""
    attributes: int = 0
    secret: bytes = b""  # the password, or the HMAC

    def encode(self) -> bytes:
        """Return the TPMS_AUTH_COMMAND."""
        head = encode_number(self.session, 4) + encode_sized(self.nonce)
        return head + encode_number(self.attributes, 1) + encode_sized(self.secret)


class ResponseAuthorization(NamedTuple):
    """One entry of the authorization area of a response; for a password all fields are empty."""

    nonce: bytes  # new nonce of the TPM (nonceTPM)
    attributes: int  # TPMA_SESSION, 8 bits
    hmac: bytes  # HMAC over the response's parameters


class TpmCommand(NamedTuple):
    """A command, as sent or as received by a simulated TPM; its parameters are encoded."""

    code: int  # TPM_CC
    handles: tuple[int, ...] = ()  # 32 bits each
    parameters: bytes = b""
    authorizations: tuple[Authorization, ...] = ()  # one for each handle that needs it

    def encode(self) -> bytes:
        """Return the frame: header of 10 bytes, handles, any authorizations, and parameters.

        Raises:
            UsageError: If a field does not fit, or the frame has more than 4096 bytes.
        """
        body = b"".join(encode_number(handle, 4) for handle in self.handles)
        if self.authorizations:
            area = b"".join(one.encode() for one in self.authorizations)
            body += encode_number(len(area), 4) + area
        tag = SESSIONS if self.authorizations else NO_SESSIONS
        return _encode_frame(tag, self.code, body + self.parameters)

    @classmethod
    def parse(cls, data: bytes, handle_count: int) -> "TpmCommand":
        """Parse the frame `data`; `handle_count` is the number of its command's handles, 0 to 3.

        Raises:
            FormatError: If the frame is malformed.
        """
        reader = TpmReader(data, "TPM command")
        tag, code = _read_header(reader)
        if tag not in (NO_SESSIONS, SESSIONS):
            raise reader.error(f"tag must be 0x8001 or 0x8002, not 0x{tag:04x}", "wrong_value", 0)
        handles = tuple([reader.u32() for _ in range(handle_count)])
        authorizations: tuple[Authorization, ...] = ()
        if tag == SESSIONS:
            authorizations = _read_authorizations(reader)
        return cls(code, handles, reader.take(reader.remaining), authorizations)


class TpmResponse(NamedTuple):
    """A response; an error has only a code. The parameters are encoded."""

    code: int  # 0: success
    handle: int | None = None
    parameters: bytes = b""
    authorizations: tuple[ResponseAuthorization, ...] = ()

    def encode(self) -> bytes:
        """Return the frame, as a simulated TPM sends it.

        Raises:
            UsageError: If a field does not fit, or the frame has more than 4096 bytes.
        """
        if self.code:
            return _encode_frame(NO_SESSIONS, self.code, b"")
        body = b"" if self.handle is None else encode_number(self.handle, 4)
        if not self.authorizations:
            return _encode_frame(NO_SESSIONS, 0, body + self.parameters)
        area = b"".join(
            encode_sized(one.nonce) + encode_number(one.attributes, 1) + encode_sized(one.hmac)
            for one in self.authorizations
        )
        body += encode_number(len(self.parameters), 4) + self.parameters + area
        return _encode_frame(SESSIONS, 0, body)

    @classmethod
    def parse(cls, data: bytes, *, returns_handle: bool = False) -> "TpmResponse":
        """Parse a frame.

        Args:
            data: The whole frame.
            returns_handle: Whether the command returns a handle.

        Raises:
            FormatError: If the frame is malformed; `unsupported_version` if it is of a TPM 1.2.
        """
        reader = TpmReader(data, "TPM response")
        tag, code = _read_header(reader)
        if tag == TPM12_RESPONSE:
            raise reader.error("must be of a TPM 2.0, not of a 1.2", "unsupported_version", 0)
        if tag not in (NO_SESSIONS, SESSIONS):
            raise reader.error(f"tag must be 0x8001 or 0x8002, not 0x{tag:04x}", "wrong_value", 0)
        if code:
            if tag != NO_SESSIONS:
                raise reader.error("an error must have no sessions (tag 0x8002)", "wrong_value", 0)
            reader.end()
            return cls(code)
        handle = reader.u32() if returns_handle else None
        if tag == NO_SESSIONS:
            return cls(0, handle, reader.take(reader.remaining))
        parameters = reader.take(reader.u32())
        return cls(0, handle, parameters, _read_response_authorizations(reader))


def frame_size(header: bytes) -> int:
    """Return the size of the frame that begins with a header of 10 bytes.

    Raises:
        FormatError: If the header is truncated, or the size is not 10 to 4096.
    """
    reader = TpmReader(header, "TPM response")
    reader.u16()
    size = reader.u32()
    reader.u32()
    if not HEADER_SIZE <= size <= MAX_FRAME:
        problem = f"size must be {HEADER_SIZE} to {MAX_FRAME} bytes, not {size}"
        raise reader.error(problem, "too_large" if size > MAX_FRAME else "wrong_size", 2)
    return size


def password(secret: bytes = b"") -> Authorization:
    """Return the authorization by the password `secret`, which may be empty."""
    return Authorization(secret=secret)


def _encode_frame(tag: int, code: int, body: bytes) -> bytes:
    size = HEADER_SIZE + len(body)
    if size > MAX_FRAME:
        message = f"TPM frame: must have at most {MAX_FRAME} bytes, not {size}"
        raise UsageError(message, reason="too_large")
    return encode_number(tag, 2) + encode_number(size, 4) + encode_number(code, 4) + body


def _read_header(reader: TpmReader) -> tuple[int, int]:
    """Read the header, whose size must be that of the frame; return tag and code."""
    tag, size, code = reader.u16(), reader.u32(), reader.u32()
    if size > MAX_FRAME:
        raise reader.error(f"must have at most {MAX_FRAME} bytes, not {size}", "too_large", 2)
    found = len(reader.data)
    if size > found:
        raise reader.error(f"truncated: {size} bytes expected, {found} found", "truncated", 2)
    if size < found:
        problem = f"{found - size} bytes after its end"
        raise reader.error(problem, "trailing_data", max(size, HEADER_SIZE))
    return tag, code


def _read_authorizations(reader: TpmReader) -> tuple[Authorization, ...]:
    start = reader.at
    size = reader.u32()
    if size > reader.remaining:
        problem = f"truncated: authorizations of {size} bytes, {reader.remaining} left"
        raise reader.error(problem, "truncated", start)
    end = reader.at + size
    found: list[Authorization] = []
    while reader.at < end:
        start = reader.at
        if len(found) == _MAX_AUTHORIZATIONS:
            raise reader.error(f"more than {_MAX_AUTHORIZATIONS} authorizations", "too_many", start)
        session, nonce = reader.u32(), reader.sized("nonce", _LARGEST_NONCE)
        attributes, secret = reader.u8(), reader.sized("authorization", _LARGEST_NONCE)
        if reader.at > end:
            raise reader.error("authorization ends after its area", "inconsistent", start)
        found.append(Authorization(session, nonce, attributes, secret))
    return tuple(found)


def _read_response_authorizations(reader: TpmReader) -> tuple[ResponseAuthorization, ...]:
    found: list[ResponseAuthorization] = []
    while reader.remaining:
        if len(found) == _MAX_AUTHORIZATIONS:
            problem = f"more than {_MAX_AUTHORIZATIONS} authorizations"
            raise reader.error(problem, "too_many", reader.at)
        nonce = reader.sized("nonce", _LARGEST_NONCE)
        attributes = reader.u8()
        found.append(ResponseAuthorization(nonce, attributes, reader.sized("HMAC", _LARGEST_NONCE)))
    return tuple(found)
