"""Certificate chains of apps of a KMS, and checks of its server certificate.

The server is checked after the handshake and before a request.
"""

import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._argument_checks import require_bytes, require_time_zone, wrong_type
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import read_extension_content
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.path_rules import P256_RULES, require_p256_spki
from attestkit._sanitize import one_line
from attestkit.errors import (
    AttestKitError,
    FormatError,
    KmsError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.kms.root import KmsRoot, find_root, require_roots
from attestkit.ra_tls.certificate import OID_APP_ID, OID_CERT_USAGE

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import KmsReason
    from attestkit.simulated_roots import SimulatedRoots
    from attestkit.verifier import AttestationResult, Verifier

MAX_LEAF: Final = 1 << 20
"""Maximum size of an end-entity certificate in bytes (1 MiB); one with evidence has about 5,600."""
USAGE_APP_CA: Final = b"app:ca"
USAGE_APP_CUSTOM: Final = b"app:custom"
USAGE_KMS_RPC: Final = b"kms:rpc"
_NAMES: Final = ("app certificate", "app CA", "KMS root")
_MAX_TEXT: Final = 2 << 20  # characters of a chain in PEM, of which base64 is 4/3 of the leaf
_MAX_SHOWN: Final = 600  # characters of an error


class AppCertificate(NamedTuple):
    """An app's certificate that a pinned KMS has issued, and its verified app id and key."""

    app_id: bytes  # 20 bytes
    spki: bytes  # key of the certificate, SubjectPublicKeyInfo in DER
    der: bytes  # the certificate, for `ra_tls.verify`, which verifies evidence in it
    root: KmsRoot  # the pinned root
    names_app: bool  # whether the certificate itself has the app id, as that of a KMS has


def verify_app_certificate(
    chain: str | Sequence[str],
    *,
    app_id: bytes,
    kms_roots: "Iterable[KmsRoot] | SimulatedRoots",
    now: datetime | float,
) -> AppCertificate:
    """Verify that a KMS issued a certificate for an app.

    The chain shows that the holder of the certificate's key was this app when the KMS verified it
    and signed. An app can have a certificate for any host name, so names are not verified. Evidence
    in the certificate is not verified; pass `AppCertificate.der` to `ra_tls.verify` for that.

    Args:
        chain: The certificate, that of the app's CA and that of the root, in PEM.
        app_id: Id of the expected app, 20 bytes, from the verifier's own records.
        kms_roots: Roots of trusted KMSs, whose CA keys are compared; or `SimulatedRoots`.
        now: Time of the verification: a datetime with a time zone, or seconds since 1970.

    Raises:
        FormatError: If a certificate is malformed or too large, or the chain does not have three.
        SignatureError: If the root is not a pinned one (reason `untrusted_root`), or the path is
            not valid.
        VerificationError: If a certificate is not valid now (`cert_expired`), has a usage other
            than `app:custom` and `app:ca` (`cert_usage`), or is not of this app (`identity`).
        UsageError: If an argument is malformed, or there are no roots.
    """
    require_bytes("app_id", app_id, 20)
    roots, moment = require_roots(kms_roots), _moment(now)
    leaf, app_ca, root = _read_chain(chain)
    pinned = find_root(roots, root.spki)
    if not pinned:
        message = f"{_NAMES[2]}: its key must be that of a pinned KMS"
        raise SignatureError(message, reason="untrusted_root")
    require_p256_spki(leaf.spki)
    check_path(list(zip(_NAMES, (leaf, app_ca, root), strict=True)), moment, P256_RULES)
    _require_usage(_NAMES[1], app_ca, USAGE_APP_CA)
    _require_usage(_NAMES[0], leaf, USAGE_APP_CUSTOM)
    _require_app(_NAMES[1], _extension(_NAMES[1], app_ca, OID_APP_ID) or b"", app_id)
    named = _extension(_NAMES[0], leaf, OID_APP_ID)
    if named is not None:
        _require_app(_NAMES[0], named, app_id)
    return AppCertificate(app_id, leaf.spki, leaf.der, pinned[0], named is not None)


def require_kms_usage(certificate: bytes) -> None:
    """Check that a server's certificate is for a KMS (usage `kms:rpc`); TLS verified its chain.

    Any app of a KMS can have a certificate under the same root, so the usage distinguishes them.

    Args:
        certificate: DER.

    Raises:
        FormatError: If the certificate is malformed or too large.
        VerificationError: If its usage is missing or not `kms:rpc` (reason `cert_usage`).
    """
    found = read_path_certificate(certificate, largest=MAX_LEAF)
    _require_usage("server certificate", found, USAGE_KMS_RPC)


def _read_chain(chain: object) -> tuple[PathCertificate, ...]:
    texts = [chain] if isinstance(chain, str) else chain
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise wrong_type("chain", "PEM text or a sequence of PEM texts", chain)
    if len(texts) > len(_NAMES):
        raise _wrong_length(len(texts))
    if sum(map(len, texts)) > _MAX_TEXT:
        message = f"app certificate chain: over {_MAX_TEXT} characters"
        raise FormatError(message, reason="too_large")
    found = split_pem("\n".join(texts))
    if len(found) != len(_NAMES):
        raise _wrong_length(len(found))
    return tuple([read_path_certificate(der, largest=MAX_LEAF) for der in found])


def _wrong_length(size: int) -> FormatError:
    message = f"app certificate chain: must have {len(_NAMES)} certificates, not {size}"
    return FormatError(message, reason="wrong_size")


def _moment(now: object) -> datetime:
    if isinstance(now, datetime):
        require_time_zone("now", now)
        return now
    if isinstance(now, bool) or not isinstance(now, (int, float)):
        raise wrong_type("now", "a datetime or seconds since 1970", now)
    try:
        return datetime.fromtimestamp(now, timezone.utc)
    except (OverflowError, ValueError, OSError) as error:
        message = f"now: must be a time in the years 1 to 9999, not {now!r}"
        raise UsageError(message, reason="out_of_range") from error


def _require_usage(name: str, certificate: PathCertificate, usage: bytes) -> None:
    found = _extension(name, certificate, OID_CERT_USAGE)
    if found != usage:
        shown = "missing" if found is None else repr(found[:16].decode("ascii", "backslashreplace"))
        message = f"{name}: usage must be {usage.decode()}, not {shown}"
        raise VerificationError(message, reason="cert_usage")


def _require_app(name: str, found: bytes, app_id: bytes) -> None:
    if not hmac.compare_digest(found, app_id):
        message = f"{name}: app id must be {app_id.hex()}, not {found[:32].hex() or 'missing'}"
        raise VerificationError(message, reason="identity")


def _extension(name: str, certificate: PathCertificate, oid: str) -> bytes | None:
    """Return the content of the OCTET STRING inside extension `oid` (dotted); None without it.

    `name` is the certificate's, with which errors begin.
    """
    try:
        return read_extension_content(certificate.extensions, oid)
    except FormatError as error:
        raise FormatError(f"{name}: {error}", reason="syntax") from error


class KmsCheck(NamedTuple):
    """Name of a check, and how the reasons of its errors become those of a KmsError."""

    subject: str  # name of the check, with which the text begins; may be empty
    reason: "KmsReason"
    others: "tuple[tuple[str, KmsReason], ...]" = ()  # for errors with the first reason, the second

    def failed(self, problem: Exception | str) -> KmsError:
        """Return the KmsError for `problem`, an error or a text about a failed check."""
        reason = dict(self.others).get(getattr(problem, "reason", ""), self.reason)
        start = f"{self.subject}: " if self.subject else ""
        return KmsError(f"{start}{one_line(str(problem), _MAX_SHOWN)}", reason=reason)


APP_CHAIN: Final = KmsCheck(
    "SignCert",
    "wrong_certificate",
    (("untrusted_root", "wrong_root"), ("cert_expired", "expired")),
)
"""Check of the chain in the answer to SignCert."""
SERVER_USAGE: Final = KmsCheck("", "wrong_usage")
"""Check of the usage of the server's certificate."""
SERVER_EVIDENCE: Final = KmsCheck(
    "evidence of the KMS", "evidence_refused", (("no_evidence", "no_evidence"),)
)
"""Check of the evidence in the server's certificate."""
SEALED_CONFIGURATION: Final = KmsCheck("configuration sealed at launch", "wrong_provider")
"""Check of the app and key provider for which a guest was launched."""


def check_usage(certificate: bytes) -> None:
    """Check that a certificate (DER) has the usage of a KMS, `kms:rpc`.

    Raises:
        KmsError: If its usage is missing or not `kms:rpc` (reason `wrong_usage`).
        FormatError: If the certificate is malformed.
    """
    try:
        require_kms_usage(certificate)
    except VerificationError as error:
        raise SERVER_USAGE.failed(error) from error


def verify_evidence(certificate: bytes, verifier: "Verifier") -> "AttestationResult":
    """Verify the evidence in a certificate (DER), and that it is over the certificate's key.

    Raises:
        KmsError: If the certificate has no evidence (reason `no_evidence`), or the evidence is not
            accepted (`evidence_refused`).
    """
    from attestkit.ra_tls import verify  # lazy: not every client verifies

    try:
        # No date limits the age of this evidence: the KMS makes its certificate at each start.
        return verify(certificate, verifier, max_lifetime=None)
    except AttestKitError as error:
        raise SERVER_EVIDENCE.failed(error) from error
