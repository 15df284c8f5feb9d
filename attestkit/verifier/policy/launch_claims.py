"""Identity of a guest's launch: its measurement, and the provider whose key signed it."""

from attestkit._crypto.x509.amd_extension import read_amd_extension
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.errors import FormatError
from attestkit.verifier.policy.platforms import is_td
from attestkit.verifier.result import Claims


def is_signed_by_vlek(claims: Claims) -> bool:
    """Return whether an SEV-SNP report is signed with the key of a cloud provider."""
    return bool(int.from_bytes(claims.get("key_info") or b"", "little") >> 2 & 7)


def launch_measurement(claims: Claims) -> tuple[str, bytes | None]:
    """Return the name and value of the register that measures what the host launched."""
    if is_td(claims):
        return "MRTD", claims.get("mrtd")
    return "MEASUREMENT", claims.get("measurement")


def vlek_provider(chain: tuple[bytes, ...]) -> str:
    """Return the provider of the VLEK that a verified certificate chain begins with; or empty."""
    if not chain:
        return ""
    try:
        extension = read_amd_extension(read_path_certificate(chain[0]).extensions)
    except FormatError:  # the chain is verified, so this is a caller's own
        return ""
    return "" if extension is None else extension.provider
