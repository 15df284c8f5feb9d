"""Boot of the app before it is served: with keys of a KMS, or measured without one."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.kms.client import KmsClient
    from attestkit.serve.config.kms_settings import KmsSettings

_logger = logging.getLogger("attestkit.serve")


def boot_with_keys(attester: "Attester", kms: "KmsSettings", app_id: bytes | None) -> "KmsClient":
    """Boot the app with keys of a KMS; return the client that has its certificates signed.

    The client pins the KMS that released the keys, whose URL it tries first.

    Raises:
        AttestKitError: As `attestkit.kms.boot_with_kms`.
    """
    from attestkit.kms.boot import boot_with_kms  # lazy: only with a KMS
    from attestkit.kms.client import KmsClient
    from attestkit.kms.connection import TimeLimits
    from attestkit.kms.url import kms_base_url
    from attestkit.serve.services.certificate_issuer import SIGN_SECONDS

    booted = boot_with_kms(attester, kms.urls, roots=kms.load_roots(), app_id=app_id)
    attester.not_proven = booted.not_proven
    origin = "kept keys of the KMS" if booted.is_kept else "keys released by the KMS"
    _logger.info("%s %s", origin, booted.url)
    if booted.not_proven:
        _logger.warning("KMS: not proven by a pin: %s", ", ".join(booted.not_proven))
    others = [url for url in kms.urls if kms_base_url(url) != booted.url]
    return KmsClient(
        [*([booted.url] if booted.url else []), *others],
        roots=[booted.root],
        limits=TimeLimits(call=SIGN_SECONDS),
    )
