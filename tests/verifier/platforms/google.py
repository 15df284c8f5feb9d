"""Composed evidence of a Google VM on TDX, and its verification."""

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.pem import split_pem
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import GcpTdx
from attestkit.errors import AttestKitError
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.gcp import GcpAuthenticator
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from tests.vectors import HAVE_SHARED, data

NOW = datetime(2026, 6, 29, 12, tzinfo=timezone.utc)  # the collateral's and the certificates'
COMPOSED = "vtpm/composed/gcp-tdx/"
EXPECTED: Any = json.loads(data("vtpm/expected.json"))[COMPOSED[5:-1]] if HAVE_SHARED else {}
CASES = EXPECTED.get("cases", {})
FACTS = EXPECTED.get("facts", {})
HARDWARE = Authenticated(bytes(64))


def chains() -> AkChains:
    """Return the certificates of the composed evidence."""
    [root] = split_pem(data(COMPOSED + "root.pem").decode())
    files = [data(COMPOSED + name) for name in ("intermediate.pem", "root.crl")]
    return AkChains(root, certificates=files)


def composed(name: str = "good.v1.bin") -> Attestation:
    """Return composed evidence."""
    return Attestation.from_bytes(data(COMPOSED + name))


def platform_of(attestation: Attestation) -> GcpTdx:
    """Return the platform's part of evidence."""
    platform = attestation.evidence.platform
    assert isinstance(platform, GcpTdx)
    return platform


def altered(**changes: Any) -> Attestation:
    """Return the good evidence with other fields in its TPM quote."""
    evidence = composed().evidence
    platform = platform_of(composed())
    tpm_quote = platform.tpm_quote._replace(**changes)
    return Attestation(evidence._replace(platform=platform._replace(tpm_quote=tpm_quote)))


def authenticate(attestation: Attestation) -> Authenticated:
    """Verify the TPM's part of evidence, as if the hardware's part were authentic."""
    return GcpAuthenticator(chains()).authenticate(attestation, HARDWARE, NOW)


def refused(attestation: Attestation) -> tuple[type[AttestKitError], str]:
    """Return type and reason of the error."""
    with pytest.raises(AttestKitError) as caught:
        authenticate(attestation)
    return type(caught.value), caught.value.reason
