"""Authorization areas of commands and responses: passwords and HMAC sessions.

TPM 2.0 Library, Part 1, sections 18 and 19; the order of checks is that of Part 4's
SessionProcess.
"""

import hmac
from typing import Final, NamedTuple

from attestkit.backends.simulator.software_tpm.model.command_reader import (
    CommandReader,
    TpmResponseError,
    session_error,
    u32,
)
from attestkit.backends.simulator.software_tpm.model.sessions import CONTINUE, SimulatedSession
from attestkit.backends.simulator.software_tpm.model.tpm_state import Entity, TpmState
from attestkit.tpm import response_codes as codes
from attestkit.tpm.algorithms import LARGEST_DIGEST, compute_digest
from attestkit.tpm.handles import PASSWORD_SESSION
from attestkit.tpm.reader import encode_sized

_MOST_SESSIONS: Final = 3
_SMALLEST_AREA: Final = 9
_RESERVED: Final = 0x18
_OTHER_USES: Final = 0xE6  # audit, and encryption of parameters


class GivenAuthorization(NamedTuple):
    """One entry of the authorization area of a command, as received.

    `handle` is of a session or TPM_RS_PW, `nonce` the caller's, `attributes` TPMA_SESSION.
    """

    handle: int
    nonce: bytes
    attributes: int
    hmac: bytes  # or the password
    session: SimulatedSession | None  # None: a password
    auth: bytes = b""  # the entity's password as it enters the HMAC


class AuthorizedCommand(NamedTuple):
    """The parts of a command that its authorizations are checked against.

    `code` is the command code, `entities` are the objects of its handles.
    """

    code: int
    entities: tuple[Entity, ...]
    authorized: int  # number of entities, from the first, that need an authorization
    role: int  # use for which their passwords must be valid: READ, WRITE or both


def read_authorizations(
    reader: CommandReader, state: TpmState, *, allowed: bool
) -> list[GivenAuthorization]:
    """Read the authorization area, and leave the reader at the parameters.

    Args:
        reader: The command, at the size of the area.
        state: State of the TPM.
        allowed: Whether the command may have an authorization area.

    Raises:
        TpmResponseError: If the area is malformed or not allowed, or names a session that is not
            loaded.
    """
    size = reader.u32()
    end = reader.at + size
    if size < _SMALLEST_AREA or end > len(reader.data):
        raise TpmResponseError(codes.RC_SIZE)
    if not allowed:
        raise TpmResponseError(codes.RC_AUTH_CONTEXT)
    area = CommandReader(reader.data[reader.at : end])
    reader.at = end
    found: list[GivenAuthorization] = []
    while area.at < len(area.data):
        number = len(found) + 1
        if number > _MOST_SESSIONS:
            raise session_error(codes.RC_SIZE, number)
        try:
            found.append(_read_entry(area, state, number))
        except TpmResponseError as error:
            if error.code in (codes.RC_INSUFFICIENT, codes.RC_SIZE):
                raise session_error(error.code, number) from error
            raise
    return found


def _read_entry(area: CommandReader, state: TpmState, number: int) -> GivenAuthorization:
    handle = area.u32()
    is_session = state.sessions.is_session(handle)
    if handle != PASSWORD_SESSION and not is_session:
        raise session_error(codes.RC_VALUE, number)
    nonce = area.sized(LARGEST_DIGEST)
    attributes = area.u8()
    if attributes & _RESERVED:
        raise session_error(codes.RC_RESERVED_BITS, number)
    proof = area.sized(LARGEST_DIGEST)
    session = state.sessions.loaded.get(handle)
    if is_session and session is None:
        raise TpmResponseError(codes.RC_REFERENCE_S0 + number - 1)
    if attributes & _OTHER_USES:
        raise session_error(codes.RC_ATTRIBUTES, number)
    if not is_session and nonce:
        raise session_error(codes.RC_NONCE, number)
    return GivenAuthorization(handle, nonce, attributes, proof, session)


def check_authorizations(
    state: TpmState, command: AuthorizedCommand, given: list[GivenAuthorization], parameters: bytes
) -> list[GivenAuthorization]:
    """Check the passwords and HMACs of a command; TpmResponseError if one is wrong or missing.

    Args:
        state: The TPM, whose count of failures may change.
        command: The command without its parameters.
        given: Its authorizations, as received.
        parameters: Its parameters, encoded, which the HMACs cover.

    Returns:
        The authorizations with the passwords of their entities, for `encode_response_area`.
    """
    if len(given) < command.authorized:
        raise TpmResponseError(codes.RC_AUTH_MISSING)
    checked = []
    for number, one in enumerate(given, 1):
        if number > command.authorized:
            # Only sessions for audit and encryption may follow, which this model does not have.
            raise session_error(
                codes.RC_HANDLE if one.session is None else codes.RC_ATTRIBUTES, number
            )
        entity = command.entities[number - 1]
        if command.role & ~entity.auth_roles:
            raise TpmResponseError(codes.RC_AUTH_UNAVAILABLE)
        if entity.dictionary and state.locked_out:
            raise TpmResponseError(codes.RC_LOCKOUT)
        auth = _auth_of(entity, one.session)
        if not hmac.compare_digest(_expected(one, auth, command, parameters), _given(one)):
            if entity.dictionary:
                state.count_failure()
            raise session_error(
                codes.RC_AUTH_FAIL if entity.dictionary else codes.RC_BAD_AUTH, number
            )
        checked.append(one._replace(auth=auth))
    return checked


def _auth_of(entity: Entity, session: SimulatedSession | None) -> bytes:
    """Return the entity's password for the HMAC key; empty if the session is bound to it."""
    if session is None or session.bound is None:
        return entity.auth
    bound_here = hmac.compare_digest(session.bound, entity.name + entity.auth)
    return b"" if bound_here else entity.auth


def _given(one: GivenAuthorization) -> bytes:
    return one.hmac.rstrip(b"\0") if one.session is None else one.hmac


def _expected(
    one: GivenAuthorization, auth: bytes, command: AuthorizedCommand, parameters: bytes
) -> bytes:
    """Return the value that is required in `one`: password, or HMAC (Part 1, 19.6.5).

    `auth` is the entity's password as it enters the HMAC, `parameters` those of the command.
    """
    session = one.session
    if session is None:
        return auth
    if not session.key and not auth and not one.hmac:
        return b""  # a session without a secret needs no HMAC
    names = b"".join(entity.name for entity in command.entities)
    cp_hash = compute_digest(session.hash_name, u32(command.code) + names + parameters)
    return session.mac(auth, (cp_hash, one.nonce, session.nonce_tpm, bytes([one.attributes])))


def encode_response_area(
    state: TpmState, code: int, checked: list[GivenAuthorization], parameters: bytes
) -> bytes:
    """Return the authorization area of a successful response; end sessions that do not continue.

    Args:
        state: The TPM, whose sessions get new nonces.
        code: Code of the command.
        checked: Result of `check_authorizations`.
        parameters: Parameters of the response, encoded, which the HMACs cover.
    """
    parts = []
    for one in checked:
        session = one.session
        if session is None:
            parts.append(encode_sized(b"") + bytes([CONTINUE]) + encode_sized(b""))
            continue
        session.nonce_tpm = state.random(len(session.nonce_tpm))
        rp_hash = compute_digest(session.hash_name, bytes(4) + u32(code) + parameters)
        attributes = bytes([one.attributes])
        proof = b""
        if session.key or one.auth or one.hmac:
            proof = session.mac(one.auth, (rp_hash, session.nonce_tpm, one.nonce, attributes))
        parts.append(encode_sized(session.nonce_tpm) + attributes + encode_sized(proof))
        if not one.attributes & CONTINUE:
            state.sessions.loaded.pop(one.handle, None)
    return b"".join(parts)
