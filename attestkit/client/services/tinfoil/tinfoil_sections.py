"""Sections of a Tinfoil document of August 2026: keys, devices, and collateral."""

from typing import Any, Final, NamedTuple

from attestkit._crypto.pem import split_pem
from attestkit.client.services.strict_answer import (
    base64_member,
    check_members,
    constant_member,
    list_member,
    lower_hex,
    object_member,
    read_answer_object,
    text_of,
)
from attestkit.errors import FormatError

MAX_ITEMS: Final = 256
"""Maximum number of items of a section, and of entries of the collateral."""

_WHAT: Final = "Tinfoil document"
_SECTIONS: Final = {
    "crypto_material": ("https://tinfoil.sh/crypto-material/v1", ("id", "format", "data")),
    "device_evidence": (
        "https://tinfoil.sh/device-evidence/v1",
        ("id", "kind", "vendor", "format", "evidence"),
    ),
}
# Formats of the keys that are used, by their id; both have 32 bytes.
_KEY_FORMATS: Final = {
    "tls": "https://tinfoil.sh/key/spki-fp-sha256/v1",
    "hpke": "https://tinfoil.sh/key/x25519-hpke/v1",
}
_VCEK: Final = "https://tinfoil.sh/collateral/amd-vcek/v1"
_CPU: Final = "cpu"  # subject of collateral


class DocumentKeys(NamedTuple):
    """Keys of the section `crypto_material`."""

    tls: bytes | None  # SHA-256 of the SPKI
    hpke: bytes | None  # X25519 public key
    others: tuple[tuple[str, bytes], ...]  # by their id


def read_section(section: bytes, name: str) -> list[dict[str, Any]]:
    """Return the items of a decoded section, whose ids are unique.

    Args:
        section: JSON, exactly as it is hashed.
        name: crypto_material or device_evidence.

    Raises:
        FormatError: If the section is malformed, or an item has other members than its kind.
    """
    where = f"{_WHAT}: {name}"
    wanted, names = _SECTIONS[name]
    members = read_answer_object(section, where)
    check_members(members, where, ("format", "items"))
    constant_member(members, "format", where, wanted)
    return _unique_items(members, "items", where, names)


def read_keys(section: bytes) -> DocumentKeys:
    """Return the keys of the decoded section `crypto_material`.

    Raises:
        FormatError: If it is malformed, or the TLS or HPKE key has another format or size.
    """
    where = f"{_WHAT}: crypto_material"
    found: dict[str, bytes] = {}
    for item in read_section(section, "crypto_material"):
        name, form = text_of(item, "id", where), text_of(item, "format", where)
        if name in _KEY_FORMATS:
            constant_member(item, "format", where, _KEY_FORMATS[name])
        size = 32 if form in _KEY_FORMATS.values() else None
        found[name] = lower_hex(item, "data", where, size)
    tls, hpke = found.pop("tls", None), found.pop("hpke", None)
    return DocumentKeys(tls, hpke, tuple(found.items()))


def read_collateral(members: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the certificates of SEV-SNP in a document's collateral in DER, VCEK first.

    Collateral is not covered by the report data; each certificate is verified by its issuer.
    Entries of other formats are not used.

    Raises:
        FormatError: If the collateral is malformed.
    """
    if "collateral" not in members:
        return ()
    where = f"{_WHAT}: collateral"
    names = ("id", "role", "format", "data")
    found: tuple[bytes, ...] = ()
    for entry in _unique_items(members, "collateral", where, names, ("subjects",)):
        subjects = entry.get("subjects", [_CPU])
        if text_of(entry, "format", where) != _VCEK or subjects != [_CPU]:
            continue
        if found:
            raise FormatError(f"{where}: two entries have a VCEK", reason="duplicate")
        data = object_member(entry, "data", where)
        check_members(data, where, ("vcek_der_base64",), ("cert_chain_pem",))
        found = (base64_member(data, "vcek_der_base64", where),)
        if "cert_chain_pem" in data:
            found += tuple(split_pem(text_of(data, "cert_chain_pem", where)))
    return found


def _unique_items(
    members: dict[str, Any],
    name: str,
    where: str,
    required: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """Return the objects of a list, with exact members and unique ids."""
    items = list_member(members, name, where, MAX_ITEMS)
    seen: set[str] = set()
    for item in items:
        if not isinstance(item, dict):
            raise FormatError(f"{where}: an item is not an object", reason="wrong_type")
        check_members(item, where, required, optional)
        key = text_of(item, "id", where)
        if not key:
            raise FormatError(f"{where}: an id is empty", reason="missing")
        if key in seen:
            raise FormatError(f"{where}: two items have the same id", reason="duplicate")
        seen.add(key)
    return items
