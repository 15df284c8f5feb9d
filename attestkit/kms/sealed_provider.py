"""The key provider in the configuration that was sealed at a guest's launch (kms.md, 1.4.1, 9)."""

import hmac
import json

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v2, nitro_tpm_pcr8
from attestkit.attestation.wire.evidence_parts import NitroTpm
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.kms.server_checks import SEALED_CONFIGURATION
from attestkit.quote import TdQuoteBody
from attestkit.verifier.config_id import sealed_for_kms

_CONFIG_PCR = 8  # attestation-format.md, section 11


def check_sealed_provider(evidence: Attestation, ca_spki: bytes, document: str = "") -> None:
    """Check that the guest was launched for this app, and for this KMS or any.

    It is MR_CONFIG_ID of a TD, and PCR 8 of a NitroTPM. Zero seals nothing, and passes.

    Args:
        evidence: Fresh evidence of this guest, whose log has `boot-mr-done`.
        ca_spki: SubjectPublicKeyInfo of the KMS's root CA in DER.
        document: The mr_config document of the host; if empty, the one in the evidence.

    Raises:
        KmsError: If the guest was launched for another app or key provider, or this cannot be
            decided (`wrong_provider`).
        FormatError: If the configuration in the evidence is malformed.
    """
    if isinstance(evidence.evidence.platform, NitroTpm):
        _check_pcr(evidence, ca_spki)
        return
    quote = evidence.quote
    if quote is None or not isinstance(quote.body, TdQuoteBody):
        return
    config = json.dumps({"mr_config": document}) if document else evidence.config
    info = evidence.read_app_info(key_time=True)
    try:
        step = sealed_for_kms(quote.body.mr_config_id, info, config, ca_spki)
    except (FormatError, VerificationError) as error:
        raise SEALED_CONFIGURATION.failed(error) from error
    if step is not None and step.outcome != "passed":
        raise SEALED_CONFIGURATION.failed(step.text)


def _check_pcr(evidence: Attestation, ca_spki: bytes) -> None:
    document = evidence.nitro_document
    found = b"" if document is None else document.pcr(_CONFIG_PCR)
    if not any(found):
        return
    info = evidence.read_app_info(key_time=True)
    for provider_id in (ca_spki, b""):
        try:
            config_id = config_id_v2(info.compose_hash, info.app_id, "kms", provider_id)
        except UsageError as error:
            raise SEALED_CONFIGURATION.failed(error) from error
        if hmac.compare_digest(found, nitro_tpm_pcr8(config_id)):
            return
    raise SEALED_CONFIGURATION.failed(
        f"PCR {_CONFIG_PCR} is {found.hex()}, which is not of this app and this KMS"
    )
