"""Faults of a simulated KMS by name (kms.md, section 8.4), armed as those of a simulated TEE.

The server calls `strike` with an operation where the fault can occur:

* `connection`: a TLS handshake, which chooses the server's certificate.
* `request`: a request of any method, before its answer. `delay`: the same, for a delay.
* `temp_ca`: an answer of GetTempCaCert.
* `decision`: an authorization, of GetAppKey or SignCert.
* `keys`: an answer of GetAppKey. `certificate`: an answer of SignCert.
* `roots`: an answer or a handshake that shows the roots. `rollover`: a request of any method,
  before which the roots are replaced for good.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar, Final

from attestkit.backends.simulator.faults.fault_specs import Faults, FaultType, describe_faults

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
"""Reason of the refusals of `kms_refuses`."""

KMS_FAULTS: Final[Mapping[str, FaultType]] = {
    "kms_refuses": FaultType(DECISION, "GetAppKey or SignCert answers 400, Boot denied"),
    "kms_fails": FaultType(REQUEST, "a request is answered with 500, without detail"),
    "kms_slow": FaultType(
        DELAY, "a request is answered after this time (kms_slow:2s)", argument="seconds"
    ),
    "kms_closes": FaultType(REQUEST, "the connection is closed after a request"),
    "kms_truncates": FaultType(REQUEST, "the connection is closed after half of a body"),
    "kms_wrong_root": FaultType(
        TEMP_CA, "GetTempCaCert has another root than that of the server's certificate"
    ),
    "kms_other_kms": FaultType(ROOTS, "everything is consistent, and of another KMS"),
    "kms_temp_ca_expired": FaultType(TEMP_CA, "the temporary CA has expired"),
    "kms_app_cert": FaultType(
        CONNECTION, "the server presents a certificate of an app (app:custom), under its root"
    ),
    "kms_no_usage": FaultType(CONNECTION, "the server's certificate has no usage"),
    "kms_unattested": FaultType(CONNECTION, "the server's certificate has no evidence"),
    "kms_bad_signature": FaultType(KEYS, "GetAppKey has the k256_signature of another app"),
    "kms_short_key": FaultType(
        KEYS, "GetAppKey has an empty disk key, and an environment key of 31 bytes"
    ),
    "kms_other_image": FaultType(KEYS, "GetAppKey has the os_image_hash of another image"),
    "kms_signs_other": FaultType(
        CERTIFICATE, "SignCert has a leaf for another key, under the CA of another app"
    ),
    "kms_rollover": FaultType(ROLLOVER, "the roots are replaced while the KMS runs"),
}
"""The faults in the order of the help, with the operation that each affects."""


class KmsFaults(Faults):
    """Faults of a simulated KMS that will be injected. Thread-safe."""

    named: ClassVar[Mapping[str, FaultType]] = KMS_FAULTS
    operations: ClassVar[Collection[str]] = ()


def describe_kms_faults() -> tuple[str, ...]:
    """Return help: a line for each fault of a simulated KMS."""
    return describe_faults(KMS_FAULTS)
