"""Identity of a guest's launch: its measurement, and the provider whose key signed it."""

from attestkit.verifier.claims import Claims
from attestkit.verifier.policy.platforms import is_td


def is_signed_by_vlek(claims: Claims) -> bool:
    """Return whether an SEV-SNP report is signed with the key of a cloud provider."""
    return bool(int.from_bytes(claims.get("key_info") or b"", "little") >> 2 & 7)


def launch_measurement(claims: Claims) -> tuple[str, bytes | None]:
    """Return the name and value of the register that measures what the host launched."""
    if is_td(claims):
        return "MRTD", claims.get("mrtd")
    return "MEASUREMENT", claims.get("measurement")


def vlek_provider(claims: Claims) -> str:
    """Return the provider that the verified certificate of a VLEK names; else an empty string."""
    return (claims.get("vlek_provider") or b"").decode("ascii")
