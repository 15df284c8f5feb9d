"""Verification of a saved proof without network: `verify_proof`.

```python
bundle = ProofBundle.load("proof.json")
print(verify_proof(bundle, policy="policy.toml"))
```
"""

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import require_time_zone, wrong_type
from attestkit._sanitize import shown
from attestkit.client.origin import Origin
from attestkit.client.proofs.appraisal import REQUIRE_ALL, Appraiser, Require
from attestkit.client.proofs.proof import Proof, ProofBundle
from attestkit.client.proofs.trust import FIRST_USE, Policy, Trust
from attestkit.client.service_choice import open_service
from attestkit.client.services.service import Service
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from attestkit.verifier.verifier_options import VerifierSettings

_MAX_AGE: Final = timedelta(hours=1)  # of no effect: nothing is sent under this proof
_SAVED: Final = "that nonce, name and TLS key were those of a connection: the file is not signed"
_ITS_TIME: Final = "the time of the proof: the saved file names it"


def verify_proof(
    bundle: ProofBundle,
    *,
    policy: Policy,
    service: Service | None = None,
    require: Require = REQUIRE_ALL,
    now: datetime | None = None,
    use_bundle_time: bool = False,
    **verifier: "Unpack[VerifierSettings]",
) -> Proof:
    """Verify a saved proof again, and return it.

    Nothing is fetched, unless `policy` has a Verifier with `pccs_url`.

    Evidence and collateral are signed, the file itself is not: that the nonce was fresh and the
    certificate was observed in a handshake is an unverified statement of the file. Keys of NVIDIA's
    attestation service in it are not used.

    Args:
        bundle: The saved proof.
        policy: What is accepted: a policy, Verifier or path of a policy's file, a mapping of these
            by role of the machine, or "hardware-only". A Verifier with `pccs_url` fetches
            collateral that the bundle lacks.
        service: The service that was used, if it is none of `service_names()`; None: the one that
            the bundle names.
        require: Requirements beside the policy.
        now: Time of the verification, with a time zone; None: the current time.
        use_bundle_time: Verify at `bundle.at`: what has expired or was revoked since is accepted.
        verifier: Arguments of `Verifier`, such as `trust_anchor`. The collateral is the bundle's,
            and without `gpu_endorsements` so are the endorsements of GPUs.

    Raises:
        ServiceError: If a requirement is not met, or the evidence does not name the TLS key of the
            certificate in the bundle.
        VerificationError: If evidence is not valid, not accepted, or has expired.
        CollateralError: If the bundle lacks collateral or endorsements of its evidence.
        FormatError: If the bundle, an answer or a certificate in it is malformed or inconsistent.
        UsageError: If an argument is not valid, or the service is unknown.
        ConfigError: If a policy's file cannot be read or is malformed.
    """
    if not isinstance(bundle, ProofBundle):
        raise wrong_type("bundle", "a ProofBundle", bundle)
    if policy == FIRST_USE:
        message = f'policy: must not be "{FIRST_USE}", which is for connections; pass a policy'
        raise UsageError(message, reason="conflict")
    if use_bundle_time and now is not None:
        raise UsageError("now and use_bundle_time: give at most one", reason="conflict")
    if now is not None:
        require_time_zone("now", now)
    at = bundle.at if use_bundle_time else now or datetime.now(timezone.utc)
    service = service or open_service(bundle.service)
    _check_complete(bundle, service)
    origin = _origin(bundle)
    appraiser = Appraiser(
        origin,
        service,
        Trust(policy, verifier, lambda: at, fetches=False),
        require,
        model=bundle.model,
        encrypt=bundle.sealed,
        max_age=_MAX_AGE,
        not_proven=(_SAVED, *([_ITS_TIME] if use_bundle_time else [])),
    )
    proof = appraiser.appraise(
        bundle.answers,
        bundle.nonce,
        bundle.seen,
        at,
        bundle.collateral,
        gpu_endorsements=bundle.gpu_endorsements,
    )
    count = len(proof.machines)
    for name, items in (
        ("collateral", bundle.collateral),
        ("gpu_endorsements", bundle.gpu_endorsements or bundle.collateral),  # optional
    ):
        if len(items) != count:
            message = f"proof bundle: {name}: must be {count} items, one per machine"
            raise FormatError(message, reason="inconsistent")
    return proof


def _origin(bundle: ProofBundle) -> Origin:
    host = f"[{bundle.host}]" if ":" in bundle.host else bundle.host
    try:
        found = Origin.of(f"https://{host}:{bundle.port}")
        if found == Origin(bundle.host.lower(), bundle.port):  # false for a host with a slash
            return found
    except UsageError:
        pass
    message = f"proof bundle: host: must be a host name or IP address, not {shown(bundle.host)}"
    raise FormatError(message, reason="wrong_value")


def _check_complete(bundle: ProofBundle, service: Service) -> None:
    """Check that a bundle has the certificate and the number of answers that a service needs.

    Raises:
        FormatError: If the certificate is missing or superfluous, or the number is a different one.
        UsageError: If the bundle names a service other than `service`.
    """
    if service.name != bundle.service:
        other = shown(bundle.service)
        message = (
            f"service: {service.name} was given, but the bundle is of {other}; give that service"
        )
        raise UsageError(message, reason="conflict")
    if (bundle.certificate is None) != (service.where == "apart"):
        message = (
            'proof bundle: certificate: must be null for a service whose `where` is "apart", and '
            "present for others"
        )
        raise FormatError(message, reason="inconsistent")
    if len(bundle.answers) != len(service.questions(bundle.nonce, bundle.model)):
        message = (
            f"proof bundle: answers: {len(bundle.answers)} are not as many as service "
            f"{service.name} sends"
        )
        raise FormatError(message, reason="inconsistent")
