"""Certificate chains of devices, and DICE extensions of their leaves.

The DICE extension of Hopper and LS10 contains the key of the layer below (the boot ROM) and one
FWID, the digest of a firmware. That of Blackwell is a DiceTcbInfo of TCG (DICE Attestation
Architecture 1.1, section 6.1.1).

A chain has the leaf, whose key signs reports; the certificate of the device's boot ROM (BROM), a
provisioner's CA, the CA of the product, and the root, which may be left out. None of the CA
certificates limits the length of the path below it, so the number of certificates is checked: the
key of one BROM could otherwise certify another device.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Final, NamedTuple, TypeVar

from attestkit._crypto.der import OCTET_STRING, OID, SEQUENCE, DerReader, context, dotted_oid
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, check_times
from attestkit._crypto.x509.names import COMMON_NAME, read_name
from attestkit._crypto.x509.path_rules import check_trusted_root, p384_rules, read_kept_certificate
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, SignatureError
from attestkit.gpu.architectures import PDI_SIZE, Chip, chip_of

COMPOSITE_OID: Final = "2.23.133.5.4.1"
"""OID of the DICE extension in leaves of Hopper and LS10."""
TCB_INFO_OID: Final = "2.23.133.5.4.1.1"
"""OID of the DICE extension in leaves of Blackwell."""
FWID_SIZE: Final = 48
"""Bytes of a FWID: SHA-384."""
_SHA384: Final = "2.16.840.1.101.3.4.2.2"
_DICE_VERSION: Final = 1
_MAX_FWIDS: Final = 8
_FWIDS: Final = 6  # tag number
# Implicit tags of a DiceTcbInfo in their order; all are optional.
_TCB_INFO: Final = (
    *(0x80 | number for number in range(_FWIDS)),
    context(_FWIDS),
    *(0x80 | number for number in range(_FWIDS + 1, 10)),
)
_T = TypeVar("_T")
MAX_CERTIFICATES: Final = 6
"""Maximum number of certificates that are parsed."""
_NAMES: Final = (
    "the device's leaf certificate",
    "the device's BROM certificate",
    "the provisioner's CA",
    "the product's CA",
    "the device root",
)
_BELOW_ROOT: Final = len(_NAMES) - 1
_RULES: Final = p384_rules(1024)


class Dice(NamedTuple):
    """Content of a DICE extension: FWIDs (48 bytes each), and a key in DER, None on Blackwell."""

    fwids: tuple[bytes, ...]  # 48 bytes each, at least one
    key: bytes | None  # SubjectPublicKeyInfo in DER; None on Blackwell


def read_dice(extensions: Mapping[str, bytes]) -> Dice:
    """Read the DICE extension of a leaf.

    Args:
        extensions: Contents of the extensions' OCTET STRINGs, by dotted OID.

    Raises:
        FormatError: If the leaf does not have exactly one of both extensions, or it is malformed.
    """
    found = [oid for oid in (COMPOSITE_OID, TCB_INFO_OID) if oid in extensions]
    if len(found) != 1:
        problem = f"the leaf certificate must have exactly one, not {len(found)}"
        raise _bad_dice(problem, "duplicate" if found else "missing")
    value = extensions[found[0]]
    return _composite(value) if found == [COMPOSITE_OID] else _tcb_info(value)


def _composite(value: bytes) -> Dice:
    fields = DerReader(value).enter_only(SEQUENCE)
    at = fields.at
    version = fields.integer()
    if version != _DICE_VERSION:
        problem = f"version must be 1, not {version}; update attestkit"
        raise _bad_dice(problem, "unsupported_version", at)
    key = fields.whole(SEQUENCE)
    fwid = _fwid(fields)
    fields.finish()
    return Dice((fwid,), key)


def _tcb_info(value: bytes) -> Dice:
    fields = DerReader(value).enter_only(SEQUENCE)
    fwids: list[bytes] = []
    for tag in _TCB_INFO:
        if fields.tag() != tag:
            continue
        if tag != context(_FWIDS):
            fields.content(tag)
            continue
        entries = fields.enter(tag)
        while entries.tag() is not None:
            if len(fwids) == _MAX_FWIDS:
                raise _bad_dice(f"more than {_MAX_FWIDS} FWIDs", "too_many", entries.at)
            fwids.append(_fwid(entries))
    fields.finish()
    if not fwids:
        raise _bad_dice("must have a FWID", "missing")
    return Dice(tuple(fwids), None)


def _fwid(reader: DerReader) -> bytes:
    """Read a FWID (a SEQUENCE of hash algorithm and digest), and return the digest."""
    at = reader.at
    fields = reader.enter(SEQUENCE)
    algorithm = dotted_oid(fields.content(OID))
    digest = fields.content(OCTET_STRING)
    fields.finish()
    if algorithm != _SHA384:
        raise _bad_dice("FWID must be SHA-384", "unsupported_algorithm", at)
    if len(digest) != FWID_SIZE:
        raise _bad_dice(f"FWID must have {FWID_SIZE} bytes, not {len(digest)}", "wrong_size", at)
    return digest


def _bad_dice(problem: str, reason: FormatReason, offset: int | None = None) -> FormatError:
    return FormatError(f"DICE extension: {problem}", reason=reason, offset=offset)


class DeviceChain(NamedTuple):
    """A device's parsed certificate chain; verified only if `verify_device_chain` returned it."""

    path: tuple[PathCertificate, ...]  # leaf first; with the root, if verified
    chip: Chip
    hardware_model: str  # common name of the BROM's certificate, such as GH100 A01 GSP BROM
    leaf_spki: bytes  # the key that signs reports: SubjectPublicKeyInfo in DER
    brom_spki: bytes  # SubjectPublicKeyInfo in DER
    fwids: tuple[bytes, ...]  # 48 bytes each; the first one is that of reports
    dice_key: bytes | None  # SubjectPublicKeyInfo in the DICE extension of Hopper and LS10
    pdi: bytes  # 8 bytes: lasting identifier of the device
    ueid: str  # serial number of the leaf, decimal; changes with the firmware
    device_serial: str  # serial number of the BROM's certificate, lower-case hex

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """The certificates in DER, leaf first."""
        return tuple([certificate.der for certificate in self.path])

    @property
    def fwid(self) -> bytes:
        """The FWID that the report must have: 48 bytes."""
        return self.fwids[0]

    @property
    def has_device_key(self) -> bool:
        """Whether the DICE extension's key is that of the device's BROM certificate.

        Also true if the extension has no key, as on Blackwell.
        """
        return self.dice_key is None or self.dice_key == self.brom_spki


def read_device_chain(certificates: Sequence[bytes]) -> DeviceChain:
    """Parse a chain; nothing is verified.

    Args:
        certificates: DER, leaf first, with or without the root.

    Raises:
        FormatError: If a certificate is malformed, there are fewer than 2 or more than 6, the chip
            is unknown, or the leaf does not have exactly one DICE extension.
    """
    return _read_cached(tuple(certificates))


def verify_device_chain(chain: DeviceChain, root: bytes, now: datetime) -> DeviceChain:
    """Verify a chain up to a root, and return it with this root at its end.

    Revocation is not checked.

    Args:
        chain: As `read_device_chain` returns it.
        root: The trusted root in DER. A root in the chain must have its name and key.
        now: An aware datetime.

    Raises:
        FormatError: If `root` is malformed.
        SignatureError: If the path is not valid: `chain_length`, `untrusted_root`,
            `cert_bad_signature`, `cert_not_authority` or `cert_unknown_extension`.
        CollateralExpiredError: If a certificate is not valid at `now`.
    """
    path, first, last = _verify_path(chain.certificates, root)
    if not first <= now <= last:
        check_times(tuple(zip(_NAMES, path, strict=True)), now)
    return chain._replace(path=path)


class _VerifiedPath(NamedTuple):
    """A verified path, and the period in which all its certificates are valid."""

    path: tuple[PathCertificate, ...]  # with the root
    valid_from: datetime  # the first time at which all certificates are valid
    valid_until: datetime  # the last one


# Errors are not kept, so untrusted chains cannot fill the cache.
@lru_cache(maxsize=128)
def _verify_path(certificates: tuple[bytes, ...], root: bytes) -> _VerifiedPath:
    """Verify a chain up to `root`, but not whether certificates are valid now; cache the result.

    `certificates` are in DER, leaf first, and `root` is the trusted root in DER.
    """
    anchor, chain = read_kept_certificate(root), _read_cached(certificates)
    below, last = chain.path, chain.path[-1]
    if last.issuer == last.subject:
        named = ("device chain: its root", last)
        check_trusted_root(named, ("the trusted device root", anchor), _RULES)
        below = below[:-1]
    if len(below) != _BELOW_ROOT:
        message = (
            f"device chain: must have {_BELOW_ROOT} certificates below the root, not {len(below)}"
        )
        raise SignatureError(message, reason="chain_length")
    path = (*below, anchor)
    check_path(tuple(zip(_NAMES, path, strict=True)), None, _RULES)
    valid_from = max(one.valid_from for one in path)
    return _VerifiedPath(path, valid_from, min(one.valid_until for one in path))


def parse_device_chain(certificates: tuple[bytes, ...]) -> DeviceChain:
    """Parse a chain (DER, leaf first) as `read_device_chain`, but without its cache."""
    count = len(certificates)
    if count < 2:
        problem = f"{count} certificates, must be at least 2: the leaf and those above it"
        raise _bad(problem, "missing")
    if count > MAX_CERTIFICATES:
        raise _bad(f"{count} certificates, at most {MAX_CERTIFICATES}", "too_many")
    path = tuple(
        _in_certificate(at, partial(read_kept_certificate, der))
        for at, der in enumerate(certificates)
    )
    leaf, brom = path[:2]
    dice = _in_certificate(0, partial(read_dice, leaf.extensions))
    chip, model = _read_chip(leaf, brom)
    serial = _hex_serial(brom)
    return DeviceChain(
        path=path,
        chip=chip,
        hardware_model=model,
        leaf_spki=leaf.spki,
        brom_spki=brom.spki,
        fwids=dice.fwids,
        dice_key=dice.key,
        pdi=bytes.fromhex(serial)[-PDI_SIZE:],
        ueid=str(leaf.serial),
        device_serial=serial,
    )


# The chain of a device is the same in all its evidence.
_read_cached = lru_cache(maxsize=128)(parse_device_chain)


def _in_certificate(at: int, read: Callable[[], _T]) -> _T:
    """Return the result of `read`; its FormatError begins with the certificate's index, `at`."""
    try:
        return read()
    except FormatError as error:
        raise _bad(f"certificate {at}: {error.message}", error.reason, error.offset) from error


def _read_chip(leaf: PathCertificate, brom: PathCertificate) -> tuple[Chip, str]:
    """Return the chip of leaf and BROM, and the common name of the latter."""
    names = [_common_name(at, certificate) for at, certificate in enumerate((leaf, brom))]
    chip, other = map(chip_of, names)
    if chip is None:
        raise _bad(f"unknown chip: {shown(names[0])}; update attestkit", "unsupported")
    if chip != other:
        problem = f"leaf of a {chip.name}, but the BROM certificate is of {shown(names[1])}"
        raise _bad(problem, "inconsistent")
    return chip, names[1]


def _common_name(at: int, certificate: PathCertificate) -> str:
    name = _in_certificate(at, partial(read_name, certificate.subject)).get(COMMON_NAME)
    if name is None:
        raise _bad(f"certificate {at}: the subject has no common name", "missing")
    return name


def _hex_serial(brom: PathCertificate) -> str:
    serial = brom.serial
    size = (serial.bit_length() + 7) // 8
    if serial < 0 or size < PDI_SIZE:
        problem = f"certificate 1: the serial number must have at least {PDI_SIZE} bytes"
        raise _bad(problem, "wrong_size")
    return serial.to_bytes(size, "big").hex()


def _bad(problem: str, reason: FormatReason, offset: int | None = None) -> FormatError:
    return FormatError(f"device chain: {problem}", reason=reason, offset=offset)
