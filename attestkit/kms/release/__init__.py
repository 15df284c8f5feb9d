"""Decisions and keys of a simulated KMS: roots, app keys, certificates, authorization.

Nothing here listens on a socket. A simulated KMS is for tests: it runs outside a TEE. Names are
loaded when they are used.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.backends.simulator.faults.kms_faults import KmsFaults
    from attestkit.kms.release.auth_simple import AuthSimpleConfig, AuthSimpleFile
    from attestkit.kms.release.authorization import (
        AuthorityInfo,
        BootInfo,
        Decision,
        DevAuthorization,
        FunctionAuthorization,
        KmsAuthorization,
        PolicyAuthorization,
        VerifiedGuest,
        authorize_guest,
        verify_guest,
    )
    from attestkit.kms.release.roots import KmsRoots
    from attestkit.kms.release.state_folder import KmsState, KmsStateFolder
    from attestkit.kms.release.webhook import AuthWebhook
else:
    # Lazy: a decision in Python needs neither the files nor the webhook.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "attestkit.backends.simulator.faults.kms_faults": ["KmsFaults"],
            "auth_simple": ["AuthSimpleConfig", "AuthSimpleFile"],
            "authorization": [
                *("AuthorityInfo", "KmsAuthorization", "Decision", "DevAuthorization"),
                *("FunctionAuthorization", "PolicyAuthorization", "authorize_guest"),
                *("BootInfo", "VerifiedGuest", "verify_guest"),
            ],
            "roots": ["KmsRoots"],
            "state_folder": ["KmsState", "KmsStateFolder"],
            "webhook": ["AuthWebhook"],
        },
    )

__all__ = [
    "AuthSimpleConfig",
    "AuthSimpleFile",
    "AuthWebhook",
    "AuthorityInfo",
    "BootInfo",
    "Decision",
    "DevAuthorization",
    "FunctionAuthorization",
    "KmsAuthorization",
    "KmsFaults",
    "KmsRoots",
    "KmsState",
    "KmsStateFolder",
    "PolicyAuthorization",
    "VerifiedGuest",
    "authorize_guest",
    "verify_guest",
]
