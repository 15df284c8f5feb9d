"""Commands that swtpm and the model must answer alike: by name, one or several in order.

Features that the model lacks on purpose are in `test_against_swtpm.LEFT_OUT`.
"""

from typing import Final

from tests.backends.simulator.software_tpm.command_frames import (
    ABSENT,
    ENDORSEMENT,
    INDEX,
    NULL,
    OWNER,
    PERSISTENT,
    PLATFORM,
    Cases,
    area,
    authorized,
    create,
    digests,
    ecc,
    frame,
    handles,
    nv_define,
    nv_public,
    quote,
    rsa,
    selection,
    sized,
    start_session,
)
from tests.backends.simulator.software_tpm.nv_cases import KEY, NV, ZERO


def capability(what: int, first: int, count: int = 100) -> bytes:
    """Return GetCapability."""
    return frame(0x17A, handles(what, first, count))


GENERAL: Final[Cases] = {
    "startup-again": (frame(0x144, b"\0\0"),),
    "startup-again-cut": (frame(0x144),),
    "startup-again-session": (frame(0x144, area() + b"\0\0", 0x8002),),
    "startup-session": (frame(0x144, area(), 0x8002),),
    "flush-session": (frame(0x165, area() + handles(0x80000000), 0x8002),),
    "context-load-session": (frame(0x161, area(), 0x8002),),
    "tag": (frame(0x143, b"\1", 0x1234),),
    "tag-1.2": (frame(0x143, b"\1", 0x00C1),),
    "tag-response": (frame(0x143, b"\1", 0x00C4),),
    "tag-attest": (frame(0x143, b"\1", 0x8018),),
    "unknown": (frame(0x1FF),),
    "unknown-vendor": (frame(0x20000001, handles(INDEX, INDEX)),),
    "unknown-high": (frame(0xFFFFFFFF),),
    "self-test": (frame(0x143, b"\1"),),
    "self-test-part": (frame(0x143, b"\0"),),
    "self-test-value": (frame(0x143, b"\2"),),
    "self-test-cut": (frame(0x143),),
    "self-test-long": (frame(0x143, b"\1\1"),),
    "shutdown": (frame(0x145, b"\0\0"),),
    "shutdown-value": (frame(0x145, b"\0\2"),),
    "random": (frame(0x17B, b"\0\x20"),),
    "random-much": (frame(0x17B, b"\xff\xff"),),
    "random-none": (frame(0x17B, b"\0\0"),),
    "clock": (frame(0x181),),
    "clock-long": (frame(0x181, b"x"),),
    "capability-cut": (frame(0x17A, handles(1, 0)),),
    "capability-value": (capability(0x100, 0),),
    "capability-far": (capability(0xFFFFFFFF, 0),),
    "capability-policies": (capability(9, 0),),
    "capability-timeouts": (capability(10, 0),),
    "capability-11": (capability(11, 0),),
    "capability-session": (frame(0x17A, area() + handles(1, 0, 1), 0x8002),),
    "capability-no-area": (frame(0x17A, handles(1, 0, 1), 0x8002),),
    "handles-pcr": (capability(1, 0),),
    "handles-pcr-some": (capability(1, 5, 3),),
    "handles-pcr-none": (capability(1, 5, 0),),
    "handles-index": (nv_define(nv_public()), capability(1, 0x01000000)),
    "handles-session": (start_session(), capability(1, 0x02000000)),
    "handles-saved": (capability(1, 0x03000000),),
    "handles-transient": (create(ecc()), capability(1, 0x80000000)),
    "handles-persistent": (
        create(ecc()),
        authorized(0x120, handles(OWNER, KEY), handles(PERSISTENT)),
        capability(1, 0x81000000),
    ),
    "handles-type": (capability(1, 0x90000000),),
    "handles-type-4": (capability(1, 0x04000000),),
    "banks": (capability(5, 0),),
    "banks-first": (capability(5, 1),),
    "pcr-properties": (capability(7, 0),),
    "nv-buffer": (capability(6, 0x12C, 1),),
}

PCRS: Final[Cases] = {
    "read-all": (frame(0x17E, selection((0x0B, "ffffff"))),),
    "read-high": (frame(0x17E, selection((0x0B, "0000ff"))),),
    "read-two-banks": (frame(0x17E, selection((0x0B, "070000"), (0x04, "7f0000"))),),
    "read-same-bank": (frame(0x17E, selection((0x0B, "010000"), (0x0B, "020000"))),),
    "read-none": (frame(0x17E, selection()),),
    "read-no-pcr": (frame(0x17E, selection((0x0C, "000000"))),),
    "read-5-banks": (frame(0x17E, selection(*[(0x0B, "010000")] * 5)),),
    "read-17-banks": (frame(0x17E, handles(17)),),
    "read-hash": (frame(0x17E, selection((0x12, "010000"))),),
    "read-null": (frame(0x17E, selection((0x10, "010000"))),),
    "read-16-pcrs": (frame(0x17E, selection((0x0B, "0100"))),),
    "read-32-pcrs": (frame(0x17E, selection((0x0B, "01000000"))),),
    "read-cut": (frame(0x17E, selection((0x0B, "010000"))[:-1]),),
    "read-long": (frame(0x17E, selection((0x0B, "010000")) + b"x"),),
    **{
        f"extend-{pcr}": (
            authorized(0x182, handles(pcr), digests((0x0B, ZERO), (0x0C, bytes(48)))),
            frame(0x17E, selection((0x0B, f"{1 << pcr:06x}"), (0x0C, "ffffff"))),
        )
        for pcr in range(24)
    },
    "extend-24": (authorized(0x182, handles(24), digests((0x0B, ZERO))),),
    "extend-null": (authorized(0x182, handles(NULL), digests((0x0B, ZERO))),),
    "extend-nothing": (authorized(0x182, handles(8), digests()),),
    "extend-same-bank": (
        authorized(0x182, handles(8), digests((0x0B, ZERO), (0x0B, ZERO))),
        frame(0x17E, selection((0x0B, "000100"))),
    ),
    "extend-5": (authorized(0x182, handles(8), digests(*[(0x0B, ZERO)] * 5)),),
    "extend-short": (authorized(0x182, handles(8), digests((0x0B, ZERO[1:]))),),
    "extend-long": (authorized(0x182, handles(8), digests((0x0B, ZERO + b"x"))),),
    "extend-hash": (authorized(0x182, handles(8), digests((0x12, ZERO))),),
    "extend-index": (authorized(0x182, handles(INDEX), digests((0x0B, ZERO))),),
    "reset-16": (authorized(0x13D, handles(16)), frame(0x17E, selection((0x0B, "000001")))),
    "reset-8": (authorized(0x13D, handles(8)),),
    "reset-17": (authorized(0x13D, handles(17)),),
}

_EXTEND: Final = digests((0x0B, ZERO))


def _with(auth: bytes) -> tuple[bytes, ...]:
    """Return PCR_Extend with an authorization area."""
    return (authorized(0x182, handles(8), _EXTEND, auth),)


_ENTRY: Final = area()[4:]

AUTHORIZATIONS: Final[Cases] = {
    "no-sessions": (frame(0x182, handles(8) + _EXTEND),),
    "no-handle": (frame(0x182),),
    "cut-handle": (frame(0x182, b"\0\0", 0x8002),),
    "no-area": (frame(0x182, handles(8), 0x8002),),
    "area-8": _with(handles(8) + bytes(8)),
    "area-beyond": (frame(0x182, handles(8, 9) + bytes(8), 0x8002),),
    "area-0": _with(handles(0)),
    "area-large": _with(handles(0xFFFFFFFF) + _ENTRY),
    "password-zeros": _with(area(bytes(4))),
    "password-wrong": _with(area(b"x")),
    "password-long": _with(area(bytes(65))),
    "password-cut": _with(handles(9) + _ENTRY[:-1] + b"\5"),
    "handle-owner": _with(area(session=OWNER)),
    "handle-absent": _with(area(session=0x02000000)),
    "handle-far": _with(area(session=0x02000100)),
    "handle-policy": _with(area(session=0x03000000)),
    "nonce": _with(handles(10) + _ENTRY[:4] + sized(b"a") + bytes(3)),
    "nonce-long": _with(handles(74) + _ENTRY[:4] + sized(bytes(65)) + bytes(3)),
    **{f"attribute-{bit}": _with(area(attributes=1 << bit)) for bit in range(8)},
    "two": _with(handles(18) + _ENTRY * 2),
    "three": _with(handles(27) + _ENTRY * 3),
    "four": _with(handles(36) + _ENTRY * 4),
    "two-cut": _with(handles(12) + _ENTRY + _ENTRY[:3]),
    "wrong-and-bad-parameter": (authorized(0x182, handles(8), b"", area(b"x")),),
    "session-unneeded": (start_session(), frame(0x181, area(session=0x02000000), 0x8002)),
    "session-wrong-hmac": (
        start_session(),
        *_with(area(b"x" * 32, session=0x02000000, attributes=1)),
    ),
    # A session without any secret needs no HMAC.
    "session-no-hmac": (
        start_session(),
        *_with(area(session=0x02000000, attributes=1)),
        *_with(area(session=0x02000000)),
        *_with(area(session=0x02000000)),
    ),
}

_FLUSH: Final = frame(0x165, handles(KEY))
_STORAGE: Final = ecc(attributes=0x00030072, symmetric="000600800043", scheme="0010")


def evict(key: int, handle: int = PERSISTENT, by: int = OWNER) -> bytes:
    """Return EvictControl."""
    return authorized(0x120, handles(by, key), handles(handle))


_TEMPLATES: Final = {
    "name-null": ecc(name_alg=0x10),
    "name-unknown": ecc(name_alg=0x12),
    "type-unknown": ecc(kind=0x99),
    "type-null": ecc(kind=0x10),
    "reserved-0": ecc(attributes=0x00050073),
    "reserved-31": ecc(attributes=0x80050072),
    "policy-short": ecc(policy=b"x"),
    "policy-long": ecc(policy=bytes(65)),
    "policy": ecc(policy=ZERO),
    "symmetric-of-signing": ecc(symmetric="000600800043"),
    "symmetric-unknown": ecc(symmetric="0099"),
    "symmetric-bits": ecc(symmetric="000600810043"),
    "symmetric-192": ecc(symmetric="000600c00043"),
    "symmetric-mode": ecc(symmetric="000600800001"),
    "symmetric-256": ecc(attributes=0x00030072, symmetric="000601000043", scheme="0010"),
    "scheme-null": ecc(scheme="0010"),
    "scheme-rsassa": ecc(scheme="0014000b"),
    "scheme-unknown": ecc(scheme="0099"),
    "scheme-hash": ecc(scheme="00180012"),
    "scheme-sha1": ecc(scheme="00180004"),
    "scheme-sha384": ecc(scheme="0018000c"),
    "scheme-sha512": ecc(scheme="0018000d"),
    "curve-unknown": ecc(curve=9),
    "p384": ecc(curve=4),
    "kdf": ecc(kdf="0020000b"),
    "kdf-unknown": ecc(kdf="0099"),
    "x-long": ecc(x=bytes(129)),
    "x-33": ecc(x=bytes(33)),
    "x-and-y": ecc(x=b"abc", y=b"def"),
    "no-fixed-parent": ecc(attributes=0x00050062),
    "no-fixed-tpm": ecc(attributes=0x00050070),
    "not-fixed": ecc(attributes=0x00050060),
    "no-origin": ecc(attributes=0x00050052),
    "unrestricted": ecc(attributes=0x00040072),
    "unrestricted-null": ecc(attributes=0x00040072, scheme="0010"),
    "sign-and-decrypt": ecc(attributes=0x00060072),
    "sign-and-decrypt-null": ecc(attributes=0x00060072, scheme="0010"),
    "restricted-both": ecc(attributes=0x00070072),
    "restricted-neither": ecc(attributes=0x00010072),
    "neither": ecc(attributes=0x00000072),
    "storage": _STORAGE,
    "storage-no-symmetric": ecc(attributes=0x00030072, scheme="0010"),
    "storage-scheme": ecc(attributes=0x00030072, symmetric="000600800043"),
    "decrypt": ecc(attributes=0x00020072, scheme="0010"),
    "decrypt-ecdsa": ecc(attributes=0x00020072),
    "duplication": ecc(attributes=0x00050872),
    "no-da": ecc(attributes=0x00050472),
    "x509": ecc(attributes=0x000D0072),
    "long": ecc() + b"x",
    "cut": ecc()[:-1],
    "empty": b"",
    "rsa-bits": rsa(bits=2047),
    "rsa-bits-0": rsa(bits=0),
    "rsa-exponent-3": rsa(exponent=3),
    "rsa-exponent-even": rsa(exponent=65536),
    "rsa-modulus-long": rsa(modulus=bytes(385)),
    "rsa-ecdsa": rsa(scheme="0018000b"),
    "rsa-oaep": rsa(scheme="0017000b"),
    "rsa-rsaes": rsa(scheme="0015"),
    "rsa-decrypt-rsassa": rsa(attributes=0x00020072),
    "rsa-scheme-unknown": rsa(scheme="0099"),
    "rsa-storage-no-symmetric": rsa(attributes=0x00030072, scheme="0010"),
}

KEYS: Final[Cases] = {
    **{f"template-{name}": (create(template),) for name, template in _TEMPLATES.items()},
    **{
        f"hierarchy-{hierarchy:08x}": (create(ecc(), hierarchy=hierarchy),)
        for hierarchy in (OWNER, PLATFORM, NULL, 0x4000000A, 1, INDEX)
    },
    "create-sensitive": tuple(
        create(template, sensitive=sensitive)
        for template in (ecc(attributes=0x72),)
        for sensitive in (
            *(b"", bytes(5), bytes(3), sized(b"a" * 33) + sized(b""), sized(b"a" * 65) + bytes(2)),
            *(sized(b"a" * 32) + bytes(2), bytes(2) + sized(b"x" * 129)),
        )
    ),
    "create-password-long": (create(ecc(), sensitive=sized(b"a" * 33) + sized(b"")),),
    "create-password": (create(ecc(), sensitive=sized(b"a" * 32) + sized(b"")),),
    "create-data": (create(ecc(), sensitive=sized(b"") + sized(b"x" * 128)),),
    "create-outside": (create(ecc(), outside=bytes(66)), create(ecc(), outside=bytes(67))),
    "create-pcrs": (
        create(ecc(), pcrs=selection((0x0B, "030000"), (0x0C, "ffffff"))),
        create(ecc(), pcrs=selection((0x12, "030000"))),
        create(ecc(), pcrs=selection(*[(0x0B, "010000")] * 5)),
    ),
    "create-long": (create(ecc()) + b"",),
    "slots-full": (
        *([create(ecc())] * 4),
        *(create(ecc(attributes=0x72)), create(ecc(kind=0x99))),
        *(evict(KEY), frame(0x173, handles(PERSISTENT)), frame(0x173, handles(PERSISTENT + 1))),
        *(frame(0x173, handles(KEY)), evict(PERSISTENT), _FLUSH, frame(0x173, handles(PERSISTENT))),
    ),
    "flush": (
        *(create(ecc()), _FLUSH, _FLUSH, frame(0x165, handles(PERSISTENT))),
        *(frame(0x165, handles(KEY) + b"x"), frame(0x165, b"\0\0")),
        *(frame(0x165, handles(0x02000000)), frame(0x165, handles(OWNER))),
        *(frame(0x165, handles(KEY + 3)), frame(0x165, handles(0x03000000))),
    ),
    "read-public": tuple(
        [create(ecc())]
        + [
            frame(0x173, handles(handle))
            for handle in (KEY, KEY + 1, KEY + 9, PERSISTENT, NULL, INDEX, 1)
        ]
        + [frame(0x173, handles(KEY) + b"x"), frame(0x173, handles(KEY) + area(), 0x8002)]
    ),
    "evict": (
        *(create(ecc()), evict(KEY), evict(KEY), evict(KEY, 0x81800000)),
        *(evict(KEY, 0x81000005, PLATFORM), evict(KEY, KEY), evict(KEY, 0x82000000)),
        *(evict(KEY, by=ENDORSEMENT), evict(KEY + 1), evict(KEY + 7), evict(NULL)),
        *(evict(PERSISTENT + 1, PERSISTENT + 1), evict(PERSISTENT, PERSISTENT + 1)),
        *(evict(PERSISTENT, by=PLATFORM), evict(PERSISTENT), evict(PERSISTENT)),
    ),
    "evict-platform": (
        *(create(ecc(), hierarchy=PLATFORM), evict(KEY), evict(KEY, by=PLATFORM)),
        *(evict(KEY, 0x81800006, PLATFORM), evict(0x81800006, 0x81800006)),
        evict(0x81800006, 0x81800006, PLATFORM),
    ),
    "evict-null": (create(ecc(), hierarchy=NULL), evict(KEY)),
    "evict-st-clear": (create(ecc(attributes=0x00050076)), evict(KEY)),
    "quote": (
        *(create(ecc(attributes=0x00050472)), quote(), quote(extra=bytes(66))),
        *(quote(extra=bytes(67)), quote(scheme="0018000b"), quote(scheme="0018000c")),
        *(quote(scheme="0014000b"), quote(scheme="0099"), quote(scheme="00180012")),
        *(quote(scheme="0005000b"), quote(scheme="001a000b0001"), quote(scheme="001c000b")),
        *(quote(pcrs=selection()), quote(pcrs=selection((0x0B, "000000")))),
        *(quote(pcrs=selection(*[(0x0B, "000000")] * 5)), quote(pcrs=selection((0x12, "000000")))),
        *(quote(pcrs=selection((0x0B, "850000"), (0x04, "010001"))), quote(pcrs=bytes(5))),
        *(quote(pcrs=selection((0x0B, "010000"), (0x0B, "020000"))), quote(secret=b"x")),
        *(quote(KEY + 1), quote(KEY + 8), quote(NULL), quote(PERSISTENT), quote(INDEX)),
        *(frame(0x158, handles(KEY) + sized(b"")), authorized(0x158, handles(KEY))),
    ),
    "quote-unrestricted": (
        create(ecc(attributes=0x00040472, scheme="0010")),
        *(quote(), quote(scheme="0018000b"), quote(scheme="0018000c"), quote(scheme="00180004")),
        *(quote(scheme="0014000b"), quote(scheme="0005000b")),
    ),
    "quote-storage": (create(_STORAGE), quote(), quote(scheme="0018000b")),
    "quote-no-auth": (create(ecc(attributes=0x00050432)), quote()),
}

SESSIONS: Final[Cases] = {
    **{
        f"start-nonce-{size}": (start_session(nonce=bytes(size)),)
        for size in (0, 15, 16, 32, 33, 64, 65)
    },
    "start-salt": (start_session(salt=b"x"),),
    "start-kind": (start_session(kind=2), start_session(kind=4)),
    "start-symmetric": tuple(
        start_session(symmetric=symmetric) for symmetric in ("000600800043", "000a000b", "0099")
    ),
    "start-hash": tuple(start_session(hash_alg=one) for one in (0x10, 0x12, 0x04)),
    "start-sha1": (start_session(nonce=bytes(20), hash_alg=0x04),),
    "start-long": (start_session() + b"", frame(0x176, start_session()[10:] + b"x")),
    "start-bind": tuple(
        start_session(bind=bind) for bind in (OWNER, 1, 24, ABSENT, KEY + 1, KEY + 9, 0x40000009)
    ),
    "start-key": (
        *(create(ecc()), start_session(key=KEY), start_session(key=KEY, salt=b"x")),
        *(start_session(key=KEY + 1), start_session(key=KEY + 8), start_session(key=INDEX)),
        start_session(bind=KEY),
    ),
    "start-storage-key": (
        *(create(_STORAGE), start_session(key=KEY), start_session(key=KEY, salt=b"x")),
        start_session(key=KEY, salt=bytes(600)),
    ),
    "start-four": (
        *([start_session()] * 4),
        frame(0x165, handles(0x02000001)),
        start_session(),
        capability(1, 0x02000000),
    ),
    "save-session": (
        *(start_session(), frame(0x162, handles(0x02000000)), frame(0x162, handles(0x02000000))),
        *(capability(1, 0x02000000), capability(1, 0x03000000), start_session()),
        *(frame(0x165, handles(0x02000000)), frame(0x165, handles(0x02000000))),
    ),
    "save": tuple(
        frame(0x162, handles(handle)) for handle in (OWNER, KEY, KEY + 9, 0x02000009, PERSISTENT)
    ),
    "load": tuple(
        frame(0x161, body)
        for body in (
            *(b"", bytes(16), handles(0, 1, KEY, ENDORSEMENT), handles(0, 1, INDEX, ENDORSEMENT)),
            *(handles(0, 1, KEY, 5), handles(0, 1, KEY, ENDORSEMENT) + sized(b"")),
            handles(0, 1, KEY + 9, ENDORSEMENT) + sized(b""),
            handles(0, 1, KEY, ENDORSEMENT) + sized(bytes(3000)),
            handles(0, 1, KEY, ENDORSEMENT) + sized(bytes(100)) + b"x",
        )
    ),
}

EVERY: Final[dict[str, Cases]] = {
    "general": GENERAL,
    "pcrs": PCRS,
    "authorizations": AUTHORIZATIONS,
    "nv": NV,
    "keys": KEYS,
    "sessions": SESSIONS,
}
