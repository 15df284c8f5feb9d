"""Faults of a simulated KMS by name, armed as those of a simulated TEE.

The server calls `strike` with an operation where the fault can occur:

* `connection`: a TLS handshake, which chooses the server's certificate.
* `request`: a request of any method, before its answer. `delay`: the same, for a delay.
* `temp_ca`: an answer of GetTempCaCert.
* `decision`: an authorization, of GetAppKey or SignCert.
* `keys`: an answer of GetAppKey. `certificate`: an answer of SignCert.
* `roots`: an answer or a handshake that shows the roots. `rollover`: a request of any method,
  before which the roots are replaced for good.
"""

from collections.abc import Collection
from typing import ClassVar, Final, Literal

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.scenarios.named_case import Cases, NamedCase

CONNECTION: Final = "connection"
REQUEST: Final = "request"
DELAY: Final = "delay"
TEMP_CA: Final = "temp_ca"
DECISION: Final = "decision"
KEYS: Final = "keys"
CERTIFICATE: Final = "certificate"
ROOTS: Final = "roots"
ROLLOVER: Final = "rollover"

REFUSAL: Final = "simulated fault kms_refuses"
"""Reason with which the KMS refuses under the fault `kms_refuses`."""


def _fault(
    operation: str, text: str, outcome: str, argument: Literal["", "seconds"] = ""
) -> NamedCase:
    return NamedCase("kms", outcome, text, operation=operation, argument=argument)


KMS_FAULTS: Final[Cases] = {
    "kms_refuses": _fault(
        DECISION,
        "GetAppKey or SignCert answers 400, Boot denied",
        "reports the reason, tries the next URL, extends no register",
    ),
    "kms_fails": _fault(
        REQUEST,
        "a request is answered with 500, without detail",
        "tries the next URL, as after a broken connection",
    ),
    "kms_slow": _fault(
        DELAY,
        "a request is answered after this time (kms_slow:2s)",
        "gives up after its limit, tries the next URL",
        "seconds",
    ),
    "kms_closes": _fault(REQUEST, "the connection is closed after a request", "tries the next URL"),
    "kms_truncates": _fault(
        REQUEST,
        "the connection is closed after half of a body",
        "tries the next URL, and uses no part",
    ),
    "kms_wrong_root": _fault(
        TEMP_CA,
        "GetTempCaCert has another root than that of the server's certificate",
        "fails in the second handshake",
    ),
    "kms_other_kms": _fault(
        ROOTS, "everything is consistent, and of another KMS", "fails at the pin, before GetAppKey"
    ),
    "kms_temp_ca_expired": _fault(
        TEMP_CA, "the temporary CA has expired", "reports it, and does not retry"
    ),
    "kms_app_cert": _fault(
        CONNECTION,
        "the server presents a certificate of an app (app:custom), under its root",
        "refuses the usage",
    ),
    "kms_no_usage": _fault(CONNECTION, "the server's certificate has no usage", "refuses it"),
    "kms_unattested": _fault(
        CONNECTION, "the server's certificate has no evidence", "refuses it if it verifies evidence"
    ),
    "kms_bad_signature": _fault(
        KEYS,
        "GetAppKey has the k256_signature of another app",
        "refuses the keys, extends no register",
    ),
    "kms_short_key": _fault(
        KEYS,
        "GetAppKey has an empty disk key, and an environment key of 31 bytes",
        "refuses the keys",
    ),
    "kms_other_image": _fault(
        KEYS,
        "GetAppKey has the os_image_hash of another image",
        "refuses the keys, extends no register",
    ),
    "kms_signs_other": _fault(
        CERTIFICATE,
        "SignCert has a leaf for another key, under the CA of another app",
        "refuses the certificate",
    ),
    "kms_rollover": _fault(
        ROLLOVER,
        "the roots are replaced while the KMS runs",
        "keeps its keys; a new fetch fails at the pin",
    ),
}
"""The faults in the order of the help; the outcome is what a client must do."""


class KmsFaults(Faults):
    """Faults of a simulated KMS that will be injected. Thread-safe."""

    named: ClassVar[Cases] = KMS_FAULTS
    operations: ClassVar[Collection[str]] = ()
