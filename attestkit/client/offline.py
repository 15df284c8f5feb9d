"""Verify a saved proof again, without the server: `verify_proof`.

```python
proof = attestkit.client.verify_proof(ProofBundle.load("proof.json"), policy="policy.toml")
```
"""

from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import require_time_zone, wrong_type
from attestkit._sanitize import shown
from attestkit.client.origin import Origin
from attestkit.client.proofs.appraisal import Appraiser
from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.proof_bundle import ProofBundle
from attestkit.client.proofs.require import REQUIRE_ALL, Require
from attestkit.client.proofs.trust import FIRST_USE, Policy, Trust
from attestkit.client.services.registry import open_service
from attestkit.client.services.service import Service
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from attestkit.verifier.verifier_options import VerifierSettings

_MAX_AGE: Final = timedelta(hours=1)  # of no effect: nothing is sent under this proof
_SAVED: Final = "that nonce, name and TLS key were those of a connection: the saved file says so"
_ITS_TIME: Final = "the time of the proof: the saved file names it"


def verify_proof(
    bundle: ProofBundle,
    *,
    policy: Policy,
    service: Service | None = None,
    require: Require = REQUIRE_ALL,
    now: datetime | None = None,
    as_recorded: bool = False,
    **verifier: "Unpack[VerifierSettings]",
) -> Proof:
    """Verify a saved proof again, without network access, and return it.

    Evidence and collateral are signed, the file itself is not: that the nonce was fresh and the
    certificate was observed in a handshake is an unverified statement of the file.

    Args:
        bundle: Of a proof that was saved.
        policy: As of `connect`, but not "first-use".
        service: The service, if it is the caller's own; None: that of the bundle's name.
        require: As of `connect`.
        now: Time of the verification, aware; None: the current time.
        as_recorded: Verify for the time that the bundle names, which its maker chose.
        verifier: Arguments of `Verifier`, such as `trust_anchor`. A Verifier given as `policy`
            fetches as it is made to, where the bundle has no collateral.

    Raises:
        FormatError: If the bundle is malformed, or its parts do not belong together.
        ServiceError: If a requirement is not met, or the evidence is about another key or nonce.
        VerificationError: If evidence is not valid or not accepted.
        CollateralError: If collateral is missing, or its time is over.
        UsageError: If an argument is not valid.
    """
    if not isinstance(bundle, ProofBundle):
        raise wrong_type("bundle", "a ProofBundle", bundle)
    if as_recorded and now is not None:
        raise UsageError("now: not with as_recorded", reason="conflict")
    moment = bundle.at if as_recorded else now or datetime.now(timezone.utc)
    require_time_zone("now", moment)
    appraiser = Appraiser(
        _origin(bundle),
        _service(bundle, service),
        _trust(policy, verifier, moment),
        require,
        model=bundle.model,
        encrypt=bundle.sealed,
        max_age=MAX_AGE,
    )
    _check_parts(bundle, appraiser.service)
    proof = appraiser.appraise(bundle.answers, bundle.nonce, bundle.seen, moment, bundle.collateral)
    if len(proof.machines) != len(bundle.collateral):
        raise _inconsistent("collateral", "must be one for each machine")
    unknown = (_OBSERVED, _TIME) if as_recorded else (_OBSERVED,)
    return replace(proof, not_proven=(*unknown, *proof.not_proven))


def _trust(policy: Policy, verifier: "VerifierSettings", moment: datetime) -> Trust:
    if isinstance(policy, str) and policy == FIRST_USE:
        message = f'policy: "{FIRST_USE}" is about servers, not about what was saved of them'
        raise UsageError(message, reason="not_applicable")
    options: Any = dict(verifier)
    if isinstance(policy, str) or hasattr(policy, "reference_values"):
        options.setdefault("pccs_url", None)  # else Trust has collateral fetched
        options.setdefault("gpu_endorsements", None)  # and these
    return Trust(policy, options, lambda: moment)


def _origin(bundle: ProofBundle) -> Origin:
    host = f"[{bundle.host}]" if ":" in bundle.host else bundle.host
    try:
        return Origin.of(f"https://{host}:{bundle.port}")
    except UsageError as error:
        message = f"proof bundle: host: {shown(bundle.host)}: is not the name of a server"
        raise FormatError(message, reason="wrong_value") from error


def _service(bundle: ProofBundle, service: Service | None) -> Service:
    found = service
    if found is None:
        try:
            found = open_service(bundle.service)
        except UsageError as error:
            message = f"proof bundle: service: {error}; pass service= if it is your own"
            raise FormatError(message, reason="unrecognized") from error
    if found.name != bundle.service:
        message = f"service: {found.name}, and the bundle is of {shown(bundle.service)}"
        raise UsageError(message, reason="conflict")
    return found


def _check_parts(bundle: ProofBundle, service: Service) -> None:
    """Check that there is what the service was asked, and what it is compared with."""
    try:
        questions = service.questions(bundle.nonce, bundle.model)
    except UsageError as error:
        message = f"proof bundle: model: {error}"
        raise FormatError(message, reason="wrong_value") from error
    if len(bundle.answers) != len(questions):
        raise _inconsistent("answers", f"must be {len(questions)}")
    if (bundle.certificate is None) != (service.where == "apart"):
        raise _inconsistent("certificate", "missing, or not of such a service")


def _inconsistent(name: str, problem: str) -> FormatError:
    return FormatError(f"proof bundle: {name}: {problem}", reason="inconsistent")
