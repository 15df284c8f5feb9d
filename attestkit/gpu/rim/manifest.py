"""Reference integrity manifest (RIM): content and identity."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from attestkit._crypto.x509.path_rules import read_kept_certificate
from attestkit._formats.strict_json import from_hex
from attestkit._outcomes.reasons import FormatReason
from attestkit._outcomes.steps import GpuReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, GpuEvidenceError
from attestkit.gpu.rim.document import WHITE_SPACE, XmlElement, read_document
from attestkit.gpu.rim.xml_signature import XMLDSIG, XmlSignature, read_signature

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
"""Namespace of the elements (ISO/IEC 19770-2)."""
TCG_RIM: Final = (
    "https://trustedcomputinggroup.org/resource/"
    "tcg-reference-integrity-manifest-rim-information-model/"
)
"""Namespace of attributes of the element Meta."""
SHA384_HASH: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
"""Namespace of the attributes Hash0, Hash1, ..."""
MAX_MEASUREMENTS: Final = 254
"""Maximum number of measurements; index i is that of SPDM's block i + 1, and 255 is no block."""
MAX_ALTERNATIVES: Final = 16
"""Maximum number of accepted hashes of a measurement; NVIDIA's RIMs have up to 4."""
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Pattern of the identifier of a RIM."""
_HASH_SIZE: Final = 48  # bytes of SHA-384
_TEXT: Final = re.compile(r"[\x20-\x7e]{1,128}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,3}")
_ACTIVE: Final = {"True": True, "False": False}
_RESOURCE: Final = ("type", "index", "active", "alternatives", "name", "size")
RimSource: TypeAlias = Literal["driver", "vbios"]
"""Which of a device's two manifests: of the driver, or of the VBIOS; a switch has only `vbios`."""
_Check: TypeAlias = Literal["format", "chain", "signature", "identity", "ocsp"]


class RimMeasurement(NamedTuple):
    """Expected values of one measurement (48 bytes each), and whether it is compared."""

    active: bool  # whether it is compared
    alternatives: tuple[bytes, ...]  # accepted values, 48 bytes each
    name: str


@dataclass(frozen=True, slots=True)
class Rim:
    """A parsed manifest; verified only as the `rim` of a `VerifiedRim`."""

    name: str
    tag_id: str  # 96 hex digits
    version: str  # of the driver or VBIOS (colloquialVersion)
    product: str  # chip, such as GH100
    edition: str  # GPU or SWITCH
    manufacturer_id: str
    measurements: Mapping[int, RimMeasurement]  # by index, from 0
    certificates: tuple[bytes, ...]  # DER: of the signer, CAs and the root

    @classmethod
    def parse(cls, xml: bytes) -> "Rim":
        """Parse a signed manifest; neither its signature nor its certificates are verified.

        Args:
            xml: The document in UTF-8, at most 512 KiB.

        Raises:
            FormatError: If the document is malformed, or not structured as NVIDIA's RIMs.
        """
        return read_signed_manifest(xml).rim

    def __hash__(self) -> int:
        return hash((self.tag_id, self.version))

    @property
    def active(self) -> frozenset[int]:
        """The indexes of the measurements that are compared."""
        return frozenset(index for index, one in self.measurements.items() if one.active)


class SignedManifest(NamedTuple):
    """A parsed manifest with its signature, not verified."""

    document: XmlElement  # root element, which the signature covers
    signature: XmlSignature
    rim: Rim  # content of the document


def read_signed_manifest(xml: bytes) -> SignedManifest:
    """Parse a manifest (XML in UTF-8) with its signature, not verified; errors as `Rim.parse`."""
    document = read_document(xml)
    signature = read_signature(document)
    for at, der in enumerate(signature.certificates):
        try:
            read_kept_certificate(der)
        except FormatError as error:
            problem = f"RIM: certificate {at}: {error.message}"
            raise FormatError(problem, reason=error.reason) from error
    return SignedManifest(document, signature, read_manifest(document, signature.certificates))


def read_manifest(root: XmlElement, certificates: tuple[bytes, ...]) -> Rim:
    """Return the content of a manifest; `certificates` (DER) are those of its signature.

    Raises:
        FormatError: If an element or attribute is missing, unknown, or has an invalid value.
    """
    if (root.namespace, root.local) != (SWID, "SoftwareIdentity"):
        raise _error(root, "must be a SoftwareIdentity of ISO/IEC 19770-2", "unrecognized")
    _check_text(root)
    meta, payload = _find_parts(root)
    tag_id = _text(root, "tagId")
    from_hex(tag_id, "RIM: tagId", _HASH_SIZE)
    return Rim(
        name=_text(root, "name"),
        tag_id=tag_id,
        version=_text(meta, "colloquialVersion"),
        product=_text(meta, "product"),
        edition=_text(meta, "edition"),
        manufacturer_id=_text(meta, "FirmwareManufacturerId", TCG_RIM),
        measurements=read_measurements(payload),
        certificates=certificates,
    )


def _find_parts(root: XmlElement) -> tuple[XmlElement, XmlElement]:
    """Return the only Meta and Payload; besides them only Entity and Signature are allowed."""
    parts: dict[str, list[XmlElement]] = {"Entity": [], "Meta": [], "Payload": []}
    for child in root.elements():
        if child.namespace == SWID and child.local in parts:
            parts[child.local].append(child)
        elif (child.namespace, child.local) != (XMLDSIG, "Signature"):
            raise _error(child, "is an unknown element", "unknown_field")
    for name in ("Meta", "Payload"):
        if (count := len(parts[name])) != 1:
            problem = f"must have one {name}, not {count}"
            raise _error(root, problem, "duplicate" if count else "missing")
    for empty in (*parts["Entity"], *parts["Meta"]):
        if empty.children:
            raise _error(empty, "must be empty", "unknown_field")
    return parts["Meta"][0], parts["Payload"][0]


def read_measurements(payload: XmlElement) -> Mapping[int, RimMeasurement]:
    """Return the measurements of a Payload by their indexes.

    Raises:
        FormatError: If there is no measurement, two have the same index, or one is malformed.
    """
    _check_text(payload)
    found: dict[int, RimMeasurement] = {}
    for resource in payload.elements():
        if (resource.namespace, resource.local) != (SWID, "Resource"):
            raise _error(resource, "is an unknown element", "unknown_field")
        index, measurement = _read_resource(resource)
        if index in found:
            raise _error(resource, f"index {index} occurs twice", "duplicate")
        found[index] = measurement
    if not found:
        raise _error(payload, "must have measurements", "missing")
    return found


def _read_resource(resource: XmlElement) -> tuple[int, RimMeasurement]:
    if resource.children:
        raise _error(resource, "must be empty", "unknown_field")
    plain = resource.plain_attributes()
    if unknown := plain.keys() - set(_RESOURCE):
        raise _error(resource, f"unknown attribute: {shown(min(unknown))}", "unknown_field")
    if _text(resource, "type") != "Measurement":
        raise _error(resource, "type must be Measurement", "wrong_value")
    if _text(resource, "size") != str(_HASH_SIZE):
        raise _error(resource, f"size must be {_HASH_SIZE}", "wrong_size")
    active = _ACTIVE.get(_text(resource, "active"))
    if active is None:
        raise _error(resource, "active must be True or False", "wrong_value")
    index = _number(resource, "index", 0, MAX_MEASUREMENTS - 1)
    alternatives = _number(resource, "alternatives", 1, MAX_ALTERNATIVES)
    return index, RimMeasurement(active, _hashes(resource, alternatives), _text(resource, "name"))


def _hashes(resource: XmlElement, count: int) -> tuple[bytes, ...]:
    """Return the attributes Hash0, Hash1, ..., of which there must be `count`, from hex."""
    foreign = {(one.namespace, one.local): one.value for one in resource.attributes}
    foreign = {name: value for name, value in foreign.items() if name[0]}
    names = [(SHA384_HASH, f"Hash{number}") for number in range(count)]
    if foreign.keys() != set(names):
        problem = f"must have exactly the hashes Hash0 to Hash{count - 1}"
        raise _error(resource, problem, "wrong_size")
    return tuple(from_hex(foreign[name], f"RIM: {name[1]}", _HASH_SIZE) for name in names)


def _number(element: XmlElement, name: str, least: int, most: int) -> int:
    text = _text(element, name)
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        problem = f"{name} must be {least} to {most}, not {shown(text)}"
        raise _error(element, problem, "wrong_value")
    return int(text)


def _text(element: XmlElement, name: str, namespace: str = "") -> str:
    """Return the required attribute `name`: 1 to 128 printable ASCII characters.

    `namespace` is the URI of its namespace; empty for an attribute without a prefix.
    """
    for attribute in element.attributes:
        if (attribute.namespace, attribute.local) == (namespace, name):
            if not _TEXT.fullmatch(attribute.value):
                problem = f"{name} must be 1 to 128 printable ASCII characters"
                raise _error(element, problem, "wrong_value")
            return attribute.value
    raise _error(element, f"{name} is missing", "missing")


def _check_text(element: XmlElement) -> None:
    if element.text().strip(WHITE_SPACE):
        raise _error(element, "must have no text", "unknown_field")


def _error(element: XmlElement, problem: str, reason: FormatReason) -> FormatError:
    message = f"RIM: {shown(element.local)} {problem}"
    return FormatError(message, reason=reason, offset=element.offset)


def rim_reason(source: RimSource, check: _Check) -> GpuReason:
    """Return the reason of an error about a manifest, such as `driver_rim_chain`."""
    return cast("GpuReason", f"{source}_rim_{check}")


def check_rim_identity(rim: Rim, source: RimSource, *, version: str, product: str) -> None:
    """Check that a manifest is for this version and chip, regardless of case.

    For some identifiers the service returns a valid manifest of a different product, and NVIDIA's
    own verifiers do not compare the product.

    Args:
        rim: The verified manifest.
        source: Which manifest it is, for the error.
        version: Version of the driver or VBIOS in the signed report.
        product: The chip in the device's certificate, such as GH100.

    Raises:
        GpuEvidenceError: If the manifest's version or product differs (`driver_rim_identity` or
            `vbios_rim_identity`).
    """
    pairs = (("version", rim.version, version), ("product", rim.product, product))
    for what, found, expected in pairs:
        if found.lower() != expected.lower():
            raise GpuEvidenceError(
                f"{source} RIM: {what} must be the device's {shown(expected)}, not {shown(found)}",
                reason=rim_reason(source, "identity"),
            )
