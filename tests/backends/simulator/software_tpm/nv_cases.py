"""Commands of NV indices that swtpm and the model must answer alike."""

from struct import pack
from typing import Final

from tests.backends.simulator.software_tpm.command_frames import (
    ABSENT,
    ENDORSEMENT,
    INDEX,
    NULL,
    OWNER,
    PLATFORM,
    Cases,
    area,
    authorized,
    frame,
    handles,
    nv_define,
    nv_public,
    nv_read,
    nv_write,
    sized,
)

ZERO: Final = bytes(32)
KEY: Final = 0x80000000

_NV: Final = nv_define(nv_public(size=2048))
_FILL: Final = nv_write(bytes(range(256)) * 4, 0)
_OWN_PASSWORD: Final = nv_define(nv_public(attributes=0x02060006), secret=b"secret")


def _define(**fields: int | bytes) -> tuple[bytes, ...]:
    """Return NV_DefineSpace and NV_ReadPublic."""
    return nv_define(nv_public(**fields)), frame(0x169, handles(INDEX))  # type: ignore[arg-type]


NV: Final[Cases] = {
    "absent": (
        frame(0x169, handles(ABSENT)),
        frame(0x169, handles(ABSENT) + b"x"),
        nv_read(1, 0, index=ABSENT),
        nv_read(1, 0, by=ABSENT, index=ABSENT),
        nv_write(b"x", 0, index=ABSENT),
        authorized(0x122, handles(OWNER, ABSENT)),
    ),
    "handle-types": (
        frame(0x169, handles(0x81000001)),
        nv_read(1, 0, by=ENDORSEMENT),
        nv_read(1, 0, by=NULL),
        nv_read(1, 0, index=KEY),
        authorized(0x122, handles(NULL, INDEX)),
        nv_define(nv_public(), owner=ENDORSEMENT),
    ),
    "define": (_NV, _NV, frame(0x169, handles(INDEX)), frame(0x169, handles(INDEX) + b"x")),
    "public-session": (_NV, frame(0x169, handles(INDEX) + area(), 0x8002)),
    "unwritten": (
        *(_NV, nv_read(1, 0), nv_read(2000, 0), nv_read(1, 3000), nv_read(2000, 3000)),
        nv_read(1, 0, by=INDEX),
    ),
    "write": (
        *(_NV, _FILL, frame(0x169, handles(INDEX)), nv_write(b"x", 2048), nv_write(b"x", 2049)),
        *(nv_write(b"", 2048), nv_write(b"", 2049), nv_write(b"xyz", 2046), nv_write(b"xy", 2046)),
        *(nv_write(bytes(1025), 0), nv_write(b"x", 0, by=PLATFORM), nv_write(b"x", 0, by=INDEX)),
        *(nv_write(b"x", 0, secret=b"p"), nv_read(1024, 1024)),
    ),
    "read": (
        *(_NV, _FILL, nv_read(1024, 0), nv_read(1025, 0), nv_read(0, 2048), nv_read(0, 2049)),
        *(nv_read(1, 2048), nv_read(1025, 2049), nv_read(0, 0), nv_read(1, 0, by=PLATFORM)),
        *(nv_read(1, 0, by=INDEX), nv_read(1, 0, by=INDEX, secret=b"p"), nv_read(65535, 65535)),
        *(nv_read(1, 0, by=ABSENT), nv_read(1, 0, secret=b"p"), nv_read(7, 1030)),
        nv_read(1, 0, by=PLATFORM, secret=b"p"),
        frame(0x14E, handles(OWNER, INDEX) + pack(">HH", 1, 0)),
        authorized(0x14E, handles(OWNER, INDEX), b"\0\1\0"),
        authorized(0x14E, handles(OWNER, INDEX), b"\0\1\0\0\0"),
    ),
    "own-password": (
        *(_OWN_PASSWORD, nv_write(b"12345678", 0, by=INDEX, secret=b"secret")),
        *(nv_read(8, 0, by=INDEX, secret=b"secret"), nv_read(8, 0, by=INDEX, secret=b"secreT")),
        *(nv_read(8, 0, by=INDEX), nv_read(8, 0), nv_read(8, 0, by=INDEX, secret=b"secret\0")),
    ),
    "only-password": (
        nv_define(nv_public(attributes=0x02040004, name_alg=0x0D), secret=b"a" * 64),
        *(nv_read(1, 0), nv_write(b"x", 0), nv_write(b"x", 0, by=INDEX, secret=b"a" * 64)),
        *(nv_read(1, 0), nv_read(1, 0, by=INDEX, secret=b"a" * 64)),
        frame(0x169, handles(INDEX)),
    ),
    "passwords": tuple(
        nv_define(nv_public(attributes=0x02060006), secret=secret)
        for secret in (bytes(range(1, 34)), b"a" * 65, b"a" + bytes(64), b"a" + bytes(32))
    ),
    "write-all": (
        *_define(attributes=0x00021002),
        *(nv_write(b"1234567", 0), nv_write(b"12345678", 0), nv_write(b"", 0)),
    ),
    "size-0": (*_define(size=0), nv_write(b"", 0), nv_read(0, 0), nv_read(1, 0)),
    "size-2049": _define(size=2049),
    "policy": _define(policy=ZERO),
    "policy-short": _define(policy=b"abc"),
    "policy-long": _define(policy=bytes(65)),
    "hash": _define(name_alg=0x12),
    "hash-null": _define(name_alg=0x10),
    **{
        f"attributes-{attributes:08x}": _define(attributes=attributes)
        for attributes in (
            *(0, 0x00000002, 0x00020000, 0x20020002, 0x00020802, 0x10020002, 0x00020302),
            *(0x00020052, 0x40020002, 0x00020402, 0x00080008, 0x00010001, 0x02020002, 0x01020002),
        )
    },
    "order": (
        nv_define(nv_public(size=2049, attributes=0)),
        nv_define(nv_public(attributes=0), secret=b"a" * 33),
        nv_define(nv_public(size=2049, attributes=0x40020002)),
        nv_define(nv_public(attributes=0x20020002, policy=b"abc")),
        nv_define(nv_public(attributes=0x40020002, policy=b"abc")),
        nv_define(nv_public(attributes=0x40000002)),
        nv_define(nv_public()),
        nv_define(nv_public(attributes=0)),
        nv_define(nv_public(size=2049)),
        nv_define(nv_public(attributes=0x40020002)),
    ),
    "structure": tuple(
        authorized(0x12A, handles(OWNER), sized(b"") + body)
        for body in (
            *(sized(nv_public() + b"x"), sized(nv_public()[:-1]), sized(b"")),
            *(sized(nv_public()) + b"x", b"", b"\0", sized(nv_public(index=0x02000000))),
        )
    ),
    "platform": (
        nv_define(nv_public(), owner=PLATFORM),
        nv_define(nv_public(attributes=0x40030003), owner=PLATFORM),
        nv_write(b"x", 0, by=PLATFORM),
        nv_read(1, 0),
        authorized(0x122, handles(OWNER, INDEX)),
        authorized(0x122, handles(PLATFORM, INDEX), b"x"),
        authorized(0x122, handles(PLATFORM, INDEX)),
    ),
    "undefine-by-platform": (_NV, authorized(0x122, handles(PLATFORM, INDEX))),
}
