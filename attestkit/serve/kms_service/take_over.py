"""Onboarding: a KMS without keys takes over those of another one (kms.md, section 1.7).

Each side verifies the other's evidence, and its own authorization decides about it.
"""

import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._formats import strict_json
from attestkit.errors import AttestKitError, FormatError
from attestkit.keys.hkdf import derive_p256
from attestkit.kms.client_certificate import AttestedKey, ClientCa
from attestkit.kms.https_call import TimeLimits, anonymous_context, call_kms, rooted_context
from attestkit.kms.release.authorization import authorize_guest
from attestkit.kms.release.roots import KmsRoots
from attestkit.kms.server_checks import check_usage
from attestkit.kms.url import KmsUrl, parse_kms_url
from attestkit.serve.kms_service.client_evidence import read_client_evidence
from attestkit.serve.kms_service.errors import KmsRefusalError
from attestkit.serve.kms_service.kms_parts import KmsParts

if TYPE_CHECKING:
    from attestkit.attester import Attester

_K256_SIZE: Final = 32
_LIMITS: Final = TimeLimits(connect=5.0, call=30.0)  # seconds


def take_over_roots(
    source_url: str,
    attester: "Attester",
    parts: KmsParts,
    random: Callable[[int], bytes] = os.urandom,
) -> KmsRoots:
    """Return the keys of a running KMS, with a new TLS key.

    Args:
        source_url: URL of the running KMS.
        attester: Attests this KMS.
        parts: Verify and authorize the running KMS.
        random: Returns a number of random bytes.

    Raises:
        AttestKitError: If the URL is not valid, the running KMS is not accepted, refuses or fails,
            or its answer is malformed. The text has no key.
    """
    url = parse_kms_url(source_url)
    answer = call_kms(url, "GetTempCaCert", {}, anonymous_context(), limits=_LIMITS)
    temp_ca = ClientCa.from_json(answer)
    root = temp_ca.root.spki_der
    issued = AttestedKey(attester.attest, random).certify(temp_ca, parts.now())

    def check_source(certificate: bytes) -> None:
        check_usage(certificate)
        _check_evidence(url, certificate, root, parts)

    context = rooted_context(temp_ca.root, issued)
    arguments = {"vm_config": ""}
    received = call_kms(
        url, "GetKmsKey", arguments, context, limits=_LIMITS, check_server=check_source
    )
    return read_roots(received, root, derive_p256(random(32)))


def _check_evidence(url: KmsUrl, certificate: bytes, root: bytes, parts: KmsParts) -> None:
    """Verify and authorize the evidence in the certificate (DER) of a running KMS."""
    start = f"failed to validate the server attestation of {url.base}: "
    found = read_client_evidence(ssl.DER_cert_to_PEM_cert(certificate))
    if found is None:
        raise KmsRefusalError(f"{start}Source KMS certificate does not contain attestation")
    try:
        decision = authorize_guest(
            parts.verifier,
            parts.authorization,
            "kms",
            found.attestation,
            report_data=found.report_data,
            ca_spki=root,
            use_claimed_image=parts.use_claimed_image,
            now=parts.now(),
        )[1]
    except AttestKitError as error:
        raise KmsRefusalError(f"{start}{error}") from error
    if not decision.is_allowed:
        raise KmsRefusalError(f"{start}Boot denied: {decision.reason}")


def read_roots(data: bytes, root: bytes, rpc_key: P256Key) -> KmsRoots:
    """Decode the answer to GetKmsKey.

    Args:
        data: JSON.
        root: SubjectPublicKeyInfo (DER) of the root CA that the source has shown.
        rpc_key: TLS key of this KMS.

    Raises:
        FormatError: If the answer is malformed, has not exactly one entry of keys, or its root is
            another one. The text has no key.
        UsageError: If the secp256k1 key is not a scalar.
    """
    fields = strict_json.read_object(data, "GetKmsKey response")
    entries = fields.get("keys")
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        message = "GetKmsKey response: keys: must have exactly one entry"
        raise FormatError(message, reason="wrong_size")
    entry: dict[str, Any] = entries[0]
    ca_key = _read_key(entry, "ca_key")
    if ca_key.spki_der != root:
        message = "GetKmsKey response: ca_key: is not the key of the source's root CA"
        raise FormatError(message, reason="wrong_value")
    return KmsRoots(
        ca_key=ca_key,
        k256_secret=strict_json.from_hex(entry.get("k256_key"), "k256_key", _K256_SIZE),
        temp_ca_key=_read_key(fields, "temp_ca_key"),
        rpc_key=rpc_key,
    )


def _read_key(fields: dict[str, Any], name: str) -> P256Key:
    try:
        return P256Key.from_pem(strict_json.string(fields, name))
    except FormatError:
        message = f"GetKmsKey response: {name}: must be a P-256 key in PEM"
        raise FormatError(message, reason="syntax") from None  # the cause may contain the key
