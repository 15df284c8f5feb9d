"""Commands about sessions and contexts."""

import hmac
from typing import Final

from attestkit.backends.simulator.software_tpm.model import sessions
from attestkit.backends.simulator.software_tpm.model.command_call import CommandCall, CommandReply
from attestkit.backends.simulator.software_tpm.model.command_reader import (
    CommandReader,
    TpmResponseError,
    handle_error,
    parameter_error,
    sized,
    u32,
    u64,
)
from attestkit.backends.simulator.software_tpm.model.key_objects import (
    ST_CLEAR,
    PrimaryKey,
    read_template,
)
from attestkit.backends.simulator.software_tpm.model.tpm_state import TpmState
from attestkit.errors import SignatureError
from attestkit.tpm import response_codes as codes
from attestkit.tpm.algorithms import ALG_AES, ALG_CFB, ALG_NULL, LARGEST_DIGEST, hash_size
from attestkit.tpm.handles import FIRST_TRANSIENT, HIERARCHIES, NULL
from attestkit.tpm.public_area import DECRYPT

_HMAC_SESSION: Final = 0
_SESSION_TYPES: Final = (0, 1, 3)
_ALG_XOR: Final = 0x000A
_LARGEST_SECRET: Final = 388  # TPM2B_ENCRYPTED_SECRET: RSA-3072 and a hash
_LARGEST_CONTEXT: Final = 2048
_MAC_SIZE: Final = 64


def run_start_auth_session(call: CommandCall) -> CommandReply:
    """TPM2_StartAuthSession of an HMAC session."""
    reader = call.reader
    nonce = reader.next().sized(LARGEST_DIGEST)
    salt = reader.next().sized(_LARGEST_SECRET)
    if (kind := reader.next().u8()) not in _SESSION_TYPES:
        raise reader.error(codes.RC_VALUE)
    _read_symmetric(reader.next())
    hash_name = reader.next().hash_name()
    reader.finish()
    size = hash_size(hash_name)
    if not sessions.SMALLEST_NONCE <= len(nonce) <= size:
        raise parameter_error(codes.RC_SIZE, 1)
    salt_key, bind = call.entities
    secret = _decrypt_salt(call.state, salt_key.key, salt)
    if kind != _HMAC_SESSION:  # policy and trial sessions are not simulated
        raise parameter_error(codes.RC_VALUE, 3)
    bound = None if bind.handle == NULL else bind.name + bind.auth
    nonce_tpm = call.state.random(len(nonce))
    start = sessions.SessionStart(hash_name, bind.auth + secret, nonce_tpm, nonce)
    session = sessions.SimulatedSession(hash_name, start.derive_key(), nonce_tpm, bound)
    return CommandReply(sized(nonce_tpm), call.state.sessions.start(session))


def _read_symmetric(reader: CommandReader) -> None:
    """Read TPMT_SYM_DEF; encryption of parameters is not simulated, so it is not kept."""
    algorithm = reader.u16()
    if algorithm == _ALG_XOR:
        reader.hash_name()
    elif algorithm == ALG_AES:
        if reader.u16() not in (128, 256):
            raise reader.error(codes.RC_VALUE)
        if reader.u16() != ALG_CFB:
            raise reader.error(codes.RC_MODE)
    elif algorithm != ALG_NULL:
        raise reader.error(codes.RC_SYMMETRIC)


def _decrypt_salt(state: TpmState, key: PrimaryKey | None, salt: bytes) -> bytes:
    """Return the salt of a session (Part 1, B.10.2 and C.6.1); empty without a key."""
    if key is None:
        if salt:
            raise parameter_error(codes.RC_VALUE, 2)
        return b""
    if not salt:
        raise parameter_error(codes.RC_VALUE, 2)
    if not key.public.attributes & DECRYPT:
        raise handle_error(codes.RC_ATTRIBUTES, 1)
    hash_name = key.public.name_alg
    try:
        if key.public.type == "rsa":
            secret = state.keys.rsa_pair(key).decrypt_oaep(salt, hash_name, b"SECRET\0")
        else:
            secret = _exchange(state, key, salt)
    except (SignatureError, TpmResponseError) as error:
        raise parameter_error(codes.RC_VALUE, 2) from error
    if len(secret) > hash_size(hash_name):
        raise parameter_error(codes.RC_VALUE, 2)
    return secret


def _exchange(state: TpmState, key: PrimaryKey, point: bytes) -> bytes:
    pair = state.keys.ec_pair(key)
    reader = CommandReader(point)
    x, y = reader.sized(pair.size), reader.sized(pair.size)
    reader.finish()
    shared = pair.exchange(x, y)
    return sessions.kdf_e(key.public.name_alg, shared, x.rjust(pair.size, b"\0") + pair.x)


def run_flush_context(call: CommandCall) -> CommandReply:
    """TPM2_FlushContext; the handle is a parameter."""
    handle = call.reader.next().u32()
    if not call.state.is_context(handle):
        raise call.reader.error(codes.RC_VALUE)
    call.reader.finish()
    if handle < FIRST_TRANSIENT:
        call.state.sessions.flush(handle)
    elif call.state.keys.transient.pop(handle, None) is None:
        raise parameter_error(codes.RC_HANDLE, 1)
    return CommandReply()


def run_context_save(call: CommandCall) -> CommandReply:
    """TPM2_ContextSave: a session is unloaded, a key stays."""
    call.reader.finish()
    state = call.state
    entity = call.entities[0]
    key = entity.key
    state.contexts += 1
    if key is None:
        state.sessions.save(entity.handle, state.contexts)
        head = u64(state.contexts) + u32(entity.handle) + u32(NULL)
        content = b""
    else:
        # The last of three kinds of handles is for keys with stClear (Part 2, section 14.5).
        saved = state.keys.slots[2 if key.public.attributes & ST_CLEAR else 0]
        head = u64(state.contexts) + u32(saved) + u32(key.hierarchy)
        content = sized(key.origin) + sized(key.public.encode()) + sized(key.auth)
    mac = _context_mac(state, head, content)
    return CommandReply(head + sized(sized(mac) + content))


def _context_mac(state: TpmState, head: bytes, content: bytes) -> bytes:
    """Return the integrity value of a context, which is valid until the next reset."""
    hierarchy = int.from_bytes(head[12:16], "big")
    return state.keys.mac(hierarchy, b"context" + u32(state.reset_count) + head + content)


def run_context_load(call: CommandCall) -> CommandReply:
    """TPM2_ContextLoad."""
    reader = call.reader.next()
    start = reader.at
    number, handle = reader.u64(), reader.u32()
    if not call.state.is_context(handle):
        raise reader.error(codes.RC_VALUE)
    if (hierarchy := reader.u32()) not in HIERARCHIES:
        raise reader.error(codes.RC_VALUE)
    head = reader.data[start : reader.at]
    blob = reader.sized(_LARGEST_CONTEXT)
    reader.finish()
    parts = CommandReader(blob)
    mac = parts.sized(_MAC_SIZE)
    if len(mac) != _MAC_SIZE:
        raise parameter_error(codes.RC_SIZE, 1)
    content = blob[parts.at :]
    if not hmac.compare_digest(mac, _context_mac(call.state, head, content)):
        raise parameter_error(codes.RC_INTEGRITY, 1)
    if handle < FIRST_TRANSIENT:
        call.state.sessions.load(handle, number)
        return CommandReply(handle=handle)
    keys = call.state.keys
    keys.require_slot()
    origin, found = parts.sized(2 * LARGEST_DIGEST), parts.sized_structure(read_template)
    key = keys.restore(hierarchy, found.public, origin, parts.sized(LARGEST_DIGEST))
    return CommandReply(handle=keys.load(key))
