"""Roots of the KMS vectors, and test ids of their rows."""

from typing import Any

from attestkit._crypto.ecdsa import P256Key
from attestkit.kms.release.roots import KmsRoots
from tests.vectors import load

VECTORS = load("kms.json")


def rows(group: str) -> list[dict[str, Any]]:
    """Return the rows of a group; none without the vectors."""
    found: list[dict[str, Any]] = VECTORS.get("groups", {}).get(group, {}).get("rows", [])
    return found


def row_id(row: dict[str, Any]) -> str:
    """Return the id of a row."""
    return str(row["id"])


def roots_of(name: str) -> KmsRoots:
    """Return the roots that a row names; temporary CA and TLS key are synthetic."""
    if name == "sim0":
        return KmsRoots.from_seed(bytes(range(32)))
    root = VECTORS["roots"][name]
    return KmsRoots(
        ca_key=P256Key.from_scalar(bytes.fromhex(root["root_ca_scalar"])),
        k256_secret=bytes.fromhex(root["root_k256_key"]),
        temp_ca_key=P256Key.from_scalar(bytes(31) + b"\x01"),
        rpc_key=P256Key.from_scalar(bytes(31) + b"\x02"),
    )
