"""Keys from a dstack KMS or a local key provider, and environment variables encrypted to an app.

A `KmsRoot` has the public keys of a KMS that is trusted. `SimulatedKms` is a server for tests,
which needs attestkit[serve]. Names are loaded when they are used.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.kms.answers import FetchedKeys, KmsMeta
    from attestkit.kms.boot import KmsBoot, boot_with_kms
    from attestkit.kms.cert_request import CertRequest
    from attestkit.kms.client import KmsClient
    from attestkit.kms.https_call import TimeLimits
    from attestkit.kms.root import KmsRoot
    from attestkit.kms.sealed_env import Epochs, open_env, seal_env
    from attestkit.kms.tls_chain import AppCertificate, verify_app_certificate
    from attestkit.kms.url import kms_base_url
    from attestkit.serve.kms_service.simulated_kms import SimulatedKms
else:
    # Lazy: most programs have no KMS.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "answers": ["FetchedKeys", "KmsMeta"],
            "boot": ["KmsBoot", "boot_with_kms"],
            "cert_request": ["CertRequest"],
            "client": ["KmsClient"],
            "https_call": ["TimeLimits"],
            "root": ["KmsRoot"],
            "sealed_env": ["Epochs", "open_env", "seal_env"],
            "tls_chain": ["AppCertificate", "verify_app_certificate"],
            "url": ["kms_base_url"],
            # A server, which no other module of this package knows.
            "attestkit.serve.kms_service.simulated_kms": ["SimulatedKms"],
        },
    )

__all__ = [
    "AppCertificate",
    "CertRequest",
    "Epochs",
    "FetchedKeys",
    "KmsBoot",
    "KmsClient",
    "KmsMeta",
    "KmsRoot",
    "SimulatedKms",
    "TimeLimits",
    "boot_with_kms",
    "kms_base_url",
    "open_env",
    "seal_env",
    "verify_app_certificate",
]
