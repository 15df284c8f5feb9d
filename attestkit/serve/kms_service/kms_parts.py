"""Parts of a simulated KMS besides its keys, and the conditions of a release."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from attestkit.backends.simulator.faults.kms_faults import KmsFaults
from attestkit.kms.release.authorization import KmsAuthorization

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.kms.root import KmsRoot
    from attestkit.verifier import Verifier


class KmsParts(NamedTuple):
    """Parts of a KMS besides its keys, and the conditions of a release.

    Attributes:
        verifier: Verifies the evidence of clients.
        authorization: Decides about clients whose evidence was verified.
        attester: Attests the KMS itself; None: its certificate has no evidence.
        faults: Faults to inject.
        now: Returns the time in seconds since 1970.
        on_keys: Called with the root keys before HTTPS is served.
        allow_any_upgrade: Reported by GetMeta, without effect.
        use_claimed_image: Accept a hash of an OS image that was not verified.
        enforce_self_authorization: Request an authorization of the KMS itself.
        released_platforms: Those that get keys, of the platforms that need to be enabled.
    """

    verifier: "Verifier"
    authorization: KmsAuthorization
    attester: "Attester | None"
    faults: KmsFaults
    now: Callable[[], float]
    on_keys: "Callable[[KmsRoot], object] | None" = None
    allow_any_upgrade: bool = False
    use_claimed_image: bool = False
    enforce_self_authorization: bool = False
    released_platforms: frozenset[str] = frozenset()
