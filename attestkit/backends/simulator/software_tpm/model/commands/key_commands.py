"""Commands about keys, sessions and contexts, such as CreatePrimary, Quote and StartAuthSession.

Each function runs one command; it raises TpmResponseError with the response code of a failure.
"""

import hmac
import struct
from typing import Final

from attestkit.backends.simulator.software_tpm.model import sessions
from attestkit.backends.simulator.software_tpm.model.command_call import CommandCall, CommandReply
from attestkit.backends.simulator.software_tpm.model.command_reader import (
    LARGEST_DATA,
    CommandReader,
    Selection,
    TpmResponseError,
    encode_pcr_selections,
    handle_error,
    parameter_error,
    u16,
    u32,
    u64,
)
from attestkit.backends.simulator.software_tpm.model.commands.tpm_commands import encode_clock
from attestkit.backends.simulator.software_tpm.model.key_objects import (
    PERSISTENT_SLOTS,
    ST_CLEAR,
    PrimaryKey,
    check_template,
    read_template,
)
from attestkit.backends.simulator.software_tpm.model.tpm_state import Entity, TpmState
from attestkit.errors import SignatureError
from attestkit.tpm import TpmtSignature, handles
from attestkit.tpm import algorithms as alg
from attestkit.tpm import response_codes as codes
from attestkit.tpm.public_area import DECRYPT, SIGN
from attestkit.tpm.reader import encode_sized

_LARGEST_SENSITIVE: Final = 128  # MAX_SYM_DATA
_CREATION_TICKET: Final = 0x8021
_QUOTE: Final = 0xFF544347_8018  # magic and type of TPMS_ATTEST
_ALG_ECDAA: Final = 0x001A
_SCHEMES: Final = {alg.ALG_RSASSA: "rsassa", alg.ALG_RSAPSS: "rsapss", alg.ALG_ECDSA: "ecdsa"}
_OTHER_SCHEMES: Final = (
    alg.ALG_HMAC,
    _ALG_ECDAA,
    0x001B,
    0x001C,
)  # with a hash; no key here has them
_LOCALITY_0: Final = b"\1"


def run_create_primary(call: CommandCall) -> CommandReply:
    """Run TPM2_CreatePrimary: derive the key of a template from the seed, and load it."""
    reader = call.reader
    auth, data = reader.next().sized_structure(_read_sensitive)
    found = reader.next().sized_structure(read_template)
    outside = reader.next().sized(LARGEST_DATA)
    creation_pcrs = reader.next().selections()
    reader.finish()
    keys = call.state.keys
    keys.require_slot()
    check_template(found)
    template = found.public
    auth = auth.rstrip(b"\0")
    if len(auth) > alg.hash_size(template.name_alg):
        raise parameter_error(codes.RC_SIZE, 1)
    hierarchy = call.entities[0].handle
    key = keys.create(hierarchy, template, data, auth)
    creation = _encode_creation(call.state, key, creation_pcrs, outside)
    digest = alg.compute_digest(template.name_alg, creation)
    ticket = keys.mac(hierarchy, u16(_CREATION_TICKET) + key.public.name + digest)
    parts = (
        encode_sized(key.public.encode()),
        encode_sized(creation),
        encode_sized(digest),
        u16(_CREATION_TICKET) + u32(hierarchy) + encode_sized(ticket),
        encode_sized(key.public.name),
    )
    return CommandReply(b"".join(parts), keys.load(key))


def _read_sensitive(reader: CommandReader) -> tuple[bytes, bytes]:
    return reader.sized(alg.LARGEST_DIGEST), reader.sized(_LARGEST_SENSITIVE)


def _encode_creation(
    state: TpmState, key: PrimaryKey, pcrs: list[Selection], outside: bytes
) -> bytes:
    """Return TPMS_CREATION_DATA of a primary key (Part 2, section 15.1).

    `pcrs` are the selected PCRs, `outside` is the caller's outsideInfo.
    """
    parent = encode_sized(u32(key.hierarchy))  # name, and qualified name
    parts = (
        encode_pcr_selections(state.pcrs.filter(pcrs)),
        encode_sized(state.pcrs.digest(pcrs, key.public.name_alg)),
        _LOCALITY_0 + u16(alg.ALG_NULL),
        parent + parent + encode_sized(outside),
    )
    return b"".join(parts)


def _key_of(entity: Entity) -> PrimaryKey:
    assert entity.key is not None  # the command's table says that it is a key
    return entity.key


def run_read_public(call: CommandCall) -> CommandReply:
    """Run TPM2_ReadPublic."""
    call.reader.finish()
    key = _key_of(call.entities[0])
    names = encode_sized(key.public.name) + encode_sized(key.qualified_name)
    return CommandReply(encode_sized(key.public.encode()) + names)


def run_evict_control(call: CommandCall) -> CommandReply:
    """Run TPM2_EvictControl: make a key persistent, or remove a persistent one."""
    handle = call.reader.next().u32()
    if not handles.FIRST_PERSISTENT <= handle <= handles.LAST_PERSISTENT:
        raise call.reader.error(codes.RC_VALUE)
    call.reader.finish()
    by_platform = call.entities[0].handle == handles.PLATFORM
    subject = call.entities[1]
    key = _key_of(subject)
    persistent = call.state.keys.persistent
    if key.hierarchy == handles.NULL or key.public.attributes & ST_CLEAR:
        raise handle_error(codes.RC_ATTRIBUTES, 2)
    if subject.handle >= handles.FIRST_PERSISTENT:
        if subject.handle != handle:
            raise handle_error(codes.RC_HANDLE, 2)
        if key.hierarchy == handles.PLATFORM and not by_platform:
            raise handle_error(codes.RC_HIERARCHY, 2)
        del persistent[handle]
        return CommandReply()
    if by_platform != (key.hierarchy == handles.PLATFORM):
        raise handle_error(codes.RC_HIERARCHY, 2)
    if by_platform != (handle >= handles.FIRST_PLATFORM_PERSISTENT):
        raise parameter_error(codes.RC_RANGE, 1)
    if handle in persistent:
        raise TpmResponseError(codes.RC_NV_DEFINED)
    if len(persistent) >= PERSISTENT_SLOTS:
        raise TpmResponseError(codes.RC_NV_SPACE)
    persistent[handle] = key
    return CommandReply()


def run_quote(call: CommandCall) -> CommandReply:
    """Run TPM2_Quote: sign PCR digest and qualifying data with a signing key."""
    reader = call.reader
    extra_data = reader.next().sized(LARGEST_DATA)
    wanted = _read_scheme(reader.next())
    selections = reader.next().selections()
    reader.finish()
    if call.entities[0].key is None:  # the null handle
        raise parameter_error(codes.RC_SCHEME, 2)
    key = call.entities[0].key
    if not key.public.attributes & SIGN:
        raise handle_error(codes.RC_KEY, 1)
    scheme, hash_name = _choose_scheme(key, wanted)
    message = _encode_attest(call.state, key, extra_data, selections, hash_name)
    signature = _sign(call.state, key, scheme, hash_name, alg.compute_digest(hash_name, message))
    return CommandReply(encode_sized(message) + signature.encode())


def _read_scheme(reader: CommandReader) -> tuple[str, str] | None:
    """Read TPMT_SIG_SCHEME; return scheme and hash, or None for the key's own scheme.

    A scheme that no key of this model supports has an empty name.
    """
    scheme = reader.u16()
    if scheme == alg.ALG_NULL:
        return None
    if scheme not in _SCHEMES and scheme not in _OTHER_SCHEMES:
        raise reader.error(codes.RC_SCHEME)
    hash_name = reader.hash_name()
    if scheme == _ALG_ECDAA:
        reader.u16()
    return _SCHEMES.get(scheme, ""), hash_name


def _choose_scheme(key: PrimaryKey, wanted: tuple[str, str] | None) -> tuple[str, str]:
    """Return the scheme and hash of a signature by `key` (Part 4, CryptSelectSignScheme).

    `wanted` is the scheme and hash of the command, such as ("ecdsa", "sha256"); None: the key's.
    """
    own = (key.public.scheme, key.public.scheme_hash) if key.public.scheme else None
    chosen = wanted or own
    fits = ("ecdsa",) if key.public.type == "ecc" else ("rsassa", "rsapss")
    if chosen is None or own not in (None, chosen) or chosen[0] not in fits:
        raise parameter_error(codes.RC_SCHEME, 2)
    return chosen


def _encode_attest(
    state: TpmState, key: PrimaryKey, extra: bytes, selections: list[Selection], hash_name: str
) -> bytes:
    """Return TPMS_ATTEST of a quote with the qualifying data `extra`; `hash_name` is of pcrDigest.

    Counters and version are obfuscated for keys of the owner and null hierarchies (Part 1, 36.7).
    """
    clock = encode_clock(state)
    firmware = state.identity.firmware_version
    if key.hierarchy in (handles.OWNER, handles.NULL):
        content = b"OBFUSCATE\0" + key.qualified_name
        mask = hmac.digest(state.keys.proof(handles.OWNER), content, "sha512")
        version, resets, restarts = struct.unpack(">QII", mask[:16])
        firmware = (firmware + version) & (1 << 64) - 1
        head = u64(state.clock_ms), state.reset_count + resets, state.restart_count + restarts
        clock = head[0] + b"".join(u32(n & 0xFFFFFFFF) for n in head[1:]) + clock[-1:]
    parts = (
        _QUOTE.to_bytes(6, "big"),
        encode_sized(key.qualified_name),
        encode_sized(extra),
        clock,
        u64(firmware),
        encode_pcr_selections(state.pcrs.filter(selections)),
        encode_sized(state.pcrs.digest(selections, hash_name)),
    )
    return b"".join(parts)


def _sign(
    state: TpmState, key: PrimaryKey, scheme: str, hash_name: str, digest: bytes
) -> TpmtSignature:
    if scheme == "ecdsa":
        r, s = state.keys.ec_pair(key).sign(digest, hash_name)
        return TpmtSignature(scheme, hash_name, r=r, s=s)
    pair = state.keys.rsa_pair(key)
    sign = pair.sign_pkcs1 if scheme == "rsassa" else pair.sign_pss
    return TpmtSignature(scheme, hash_name, sign(digest, hash_name))


_HMAC_SESSION: Final = 0
_SESSION_TYPES: Final = (0, 1, 3)
_ALG_XOR: Final = 0x000A
_LARGEST_SECRET: Final = 388  # TPM2B_ENCRYPTED_SECRET: RSA-3072 and a hash
_LARGEST_CONTEXT: Final = 2048
_MAC_SIZE: Final = 64


def run_start_auth_session(call: CommandCall) -> CommandReply:
    """Run TPM2_StartAuthSession of an HMAC session; policy and trial sessions are refused."""
    reader = call.reader
    nonce = reader.next().sized(alg.LARGEST_DIGEST)
    salt = reader.next().sized(_LARGEST_SECRET)
    if (kind := reader.next().u8()) not in _SESSION_TYPES:
        raise reader.error(codes.RC_VALUE)
    _read_symmetric(reader.next())
    hash_name = reader.next().hash_name()
    reader.finish()
    size = alg.hash_size(hash_name)
    if not sessions.SMALLEST_NONCE <= len(nonce) <= size:
        raise parameter_error(codes.RC_SIZE, 1)
    salt_key, bind = call.entities
    secret = _decrypt_salt(call.state, salt_key.key, salt)
    if kind != _HMAC_SESSION:  # policy and trial sessions are not simulated
        raise parameter_error(codes.RC_VALUE, 3)
    bound = None if bind.handle == handles.NULL else bind.name + bind.auth
    nonce_tpm = call.state.random(len(nonce))
    start = sessions.SessionStart(hash_name, bind.auth + secret, nonce_tpm, nonce)
    session = sessions.SimulatedSession(hash_name, start.derive_key(), nonce_tpm, bound)
    return CommandReply(encode_sized(nonce_tpm), call.state.sessions.start(session))


def _read_symmetric(reader: CommandReader) -> None:
    """Read TPMT_SYM_DEF and drop it: encryption of parameters is not simulated."""
    algorithm = reader.u16()
    if algorithm == _ALG_XOR:
        reader.hash_name()
    elif algorithm == alg.ALG_AES:
        if reader.u16() not in (128, 256):
            raise reader.error(codes.RC_VALUE)
        if reader.u16() != alg.ALG_CFB:
            raise reader.error(codes.RC_MODE)
    elif algorithm != alg.ALG_NULL:
        raise reader.error(codes.RC_SYMMETRIC)


def _decrypt_salt(state: TpmState, key: PrimaryKey | None, salt: bytes) -> bytes:
    """Decrypt the salt of a session by `key` (Part 1, B.10.2 and C.6.1); empty without a key."""
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
    if len(secret) > alg.hash_size(hash_name):
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
    """Run TPM2_FlushContext; the handle is in the parameters, not in the handle area."""
    handle = call.reader.next().u32()
    if not call.state.is_context(handle):
        raise call.reader.error(codes.RC_VALUE)
    call.reader.finish()
    if handle < handles.FIRST_TRANSIENT:
        call.state.sessions.flush(handle)
    elif call.state.keys.transient.pop(handle, None) is None:
        raise parameter_error(codes.RC_HANDLE, 1)
    return CommandReply()


def run_context_save(call: CommandCall) -> CommandReply:
    """Run TPM2_ContextSave: a session is unloaded, a key stays loaded."""
    call.reader.finish()
    state = call.state
    entity = call.entities[0]
    key = entity.key
    state.contexts += 1
    if key is None:
        state.sessions.save(entity.handle, state.contexts)
        head = u64(state.contexts) + u32(entity.handle) + u32(handles.NULL)
        content = b""
    else:
        # The last of three kinds of handles is for keys with stClear (Part 2, section 14.5).
        saved = state.keys.slots[2 if key.public.attributes & ST_CLEAR else 0]
        head = u64(state.contexts) + u32(saved) + u32(key.hierarchy)
        content = (
            encode_sized(key.origin) + encode_sized(key.public.encode()) + encode_sized(key.auth)
        )
    mac = _context_mac(state, head, content)
    return CommandReply(head + encode_sized(encode_sized(mac) + content))


def _context_mac(state: TpmState, head: bytes, content: bytes) -> bytes:
    """Return the integrity value, 64 bytes, of a context: it is valid until the next reset.

    `head` has the context's number, handle and hierarchy, `content` the encoded key, if any.
    """
    hierarchy = int.from_bytes(head[12:16], "big")
    return state.keys.mac(hierarchy, b"context" + u32(state.reset_count) + head + content)


def run_context_load(call: CommandCall) -> CommandReply:
    """Run TPM2_ContextLoad: load the key or session of a context that was saved since the reset."""
    reader = call.reader.next()
    start = reader.at
    number, handle = reader.u64(), reader.u32()
    if not call.state.is_context(handle):
        raise reader.error(codes.RC_VALUE)
    if (hierarchy := reader.u32()) not in handles.HIERARCHIES:
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
    if handle < handles.FIRST_TRANSIENT:
        call.state.sessions.load(handle, number)
        return CommandReply(handle=handle)
    keys = call.state.keys
    keys.require_slot()
    origin, found = parts.sized(2 * alg.LARGEST_DIGEST), parts.sized_structure(read_template)
    key = keys.restore(hierarchy, found.public, origin, parts.sized(alg.LARGEST_DIGEST))
    return CommandReply(handle=keys.load(key))
