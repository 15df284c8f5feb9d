"""Commands of a TPM as bytes, also malformed ones, and two TPMs side by side."""

from collections.abc import Callable
from pathlib import Path
from struct import pack

from attestkit.backends.simulator.software_tpm import TpmHooks, TpmModel
from attestkit.backends.simulator.software_tpm.swtpm import SwtpmProcess

OWNER, NULL, ENDORSEMENT, PLATFORM = 0x40000001, 0x40000007, 0x4000000B, 0x4000000C
INDEX = 0x01400001
ABSENT = 0x01499999
PERSISTENT = 0x81010001
BANKS = ("sha1", "sha256", "sha384", "sha512")
SEED = bytes(range(32))
_BUSY = {0x922, 0x90A, 0x908}

Cases = dict[str, tuple[bytes, ...]]
"""Commands by name, one or several in order."""


def handles(*values: int) -> bytes:
    """Return integers of four bytes."""
    return b"".join(pack(">I", value) for value in values)


def sized(data: bytes) -> bytes:
    """Return a TPM2B."""
    return pack(">H", len(data)) + data


def frame(code: int, body: bytes = b"", tag: int = 0x8001) -> bytes:
    """Return a command without authorizations, or with those in the body."""
    return pack(">HII", tag, 10 + len(body), code) + body


def area(secret: bytes = b"", *, session: int = 0x40000009, attributes: int = 0) -> bytes:
    """Return an authorization area with one entry without a nonce."""
    entry = handles(session) + sized(b"") + bytes([attributes]) + sized(secret)
    return handles(len(entry)) + entry


def authorized(code: int, names: bytes, body: bytes = b"", auth: bytes | None = None) -> bytes:
    """Return a command with an authorization area, by default an empty password."""
    return frame(code, names + (area() if auth is None else auth) + body, 0x8002)


def selection(*banks: tuple[int, str]) -> bytes:
    """Return TPML_PCR_SELECTION of banks and bitmaps in hexadecimal."""
    parts = [pack(">HB", bank, len(bitmap) // 2) + bytes.fromhex(bitmap) for bank, bitmap in banks]
    return handles(len(parts)) + b"".join(parts)


def digests(*values: tuple[int, bytes]) -> bytes:
    """Return TPML_DIGEST_VALUES."""
    return handles(len(values)) + b"".join(pack(">H", bank) + value for bank, value in values)


def nv_public(
    index: int = INDEX,
    size: int = 8,
    attributes: int = 0x00020002,
    name_alg: int = 0x000B,
    policy: bytes = b"",
) -> bytes:
    """Return TPMS_NV_PUBLIC."""
    return pack(">IHI", index, name_alg, attributes) + sized(policy) + pack(">H", size)


def nv_define(public: bytes, *, secret: bytes = b"", owner: int = OWNER) -> bytes:
    """Return NV_DefineSpace."""
    return authorized(0x12A, handles(owner), sized(secret) + sized(public))


def nv_read(
    size: int, offset: int, *, by: int = OWNER, index: int = INDEX, secret: bytes = b""
) -> bytes:
    """Return NV_Read."""
    return authorized(0x14E, handles(by, index), pack(">HH", size, offset), area(secret))


def nv_write(
    data: bytes, offset: int, *, by: int = OWNER, index: int = INDEX, secret: bytes = b""
) -> bytes:
    """Return NV_Write."""
    return authorized(0x137, handles(by, index), sized(data) + pack(">H", offset), area(secret))


def create(
    template: bytes,
    *,
    hierarchy: int = ENDORSEMENT,
    sensitive: bytes = bytes(4),
    outside: bytes = b"",
    pcrs: bytes = bytes(4),
) -> bytes:
    """Return CreatePrimary."""
    body = sized(sensitive) + sized(template) + sized(outside) + pcrs
    return authorized(0x131, handles(hierarchy), body)


def ecc(
    *,
    name_alg: int = 0x000B,
    attributes: int = 0x00050072,
    policy: bytes = b"",
    symmetric: str = "0010",
    scheme: str = "0018000b",
    curve: int = 3,
    kdf: str = "0010",
    x: bytes = b"",
    y: bytes = b"",
    kind: int = 0x0023,
) -> bytes:
    """Return an ECC template; by default of an attestation key."""
    head = pack(">HHI", kind, name_alg, attributes) + sized(policy)
    body = bytes.fromhex(symmetric + scheme) + pack(">H", curve) + bytes.fromhex(kdf)
    return head + body + sized(x) + sized(y)


def rsa(
    *,
    attributes: int = 0x00050072,
    policy: bytes = b"",
    symmetric: str = "0010",
    scheme: str = "0014000b",
    bits: int = 2048,
    exponent: int = 0,
    modulus: bytes = b"",
) -> bytes:
    """Return an RSA template; by default of an attestation key."""
    head = pack(">HHI", 1, 0x000B, attributes) + sized(policy)
    body = bytes.fromhex(symmetric + scheme) + pack(">HI", bits, exponent)
    return head + body + sized(modulus)


def quote(
    key: int = 0x80000000,
    extra: bytes = b"",
    scheme: str = "0010",
    pcrs: bytes | None = None,
    secret: bytes = b"",
) -> bytes:
    """Return Quote, by default of SHA-256 PCRs 0, 7 and 8."""
    chosen = selection((0x0B, "810100")) if pcrs is None else pcrs
    return authorized(
        0x158, handles(key), sized(extra) + bytes.fromhex(scheme) + chosen, area(secret)
    )


def start_session(
    *,
    key: int = NULL,
    bind: int = NULL,
    nonce: bytes = bytes(32),
    salt: bytes = b"",
    kind: int = 0,
    symmetric: str = "0010",
    hash_alg: int = 0x000B,
) -> bytes:
    """Return StartAuthSession."""
    body = sized(nonce) + sized(salt) + bytes([kind]) + bytes.fromhex(symmetric)
    return frame(0x176, handles(key, bind) + body + pack(">H", hash_alg))


def code_of(response: bytes) -> int:
    """Return the response code."""
    return int.from_bytes(response[6:10], "big")


def handle_of(response: bytes) -> int:
    """Return the handle of a response."""
    assert code_of(response) == 0
    return int.from_bytes(response[10:14], "big")


def new_model(
    *,
    started: bool = True,
    hooks: TpmHooks | None = None,
    largest_index: int = 2048,
    clock: Callable[[], float] = lambda: 0.0,
) -> TpmModel:
    """Return a model with the banks and limits of swtpm, and a clock that stands still."""
    return TpmModel(
        SEED, banks=BANKS, started=started, hooks=hooks, largest_index=largest_index, clock=clock
    )


class TpmPair:
    """swtpm and the model, which get the same commands."""

    def __init__(self, folder: Path) -> None:
        self.swtpm = SwtpmProcess(folder)
        self.model = new_model()

    def run(self, command: bytes) -> tuple[bytes, bytes]:
        """Return the response of swtpm, repeated while it is busy, and that of the model."""
        for _ in range(1000):
            theirs = self.swtpm.execute(command)
            if code_of(theirs) not in _BUSY:
                break
        return theirs, self.model.execute(command)
