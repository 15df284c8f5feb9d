"""Attempts of guests to get keys that a KMS must not release."""

import json
from functools import cache
from typing import Any, Final

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v2
from attestkit.errors import (
    FormatError,
    PolicyError,
    UsageError,
    VerificationError,
)
from attestkit.kms.release.authorization import (
    Decision,
    DevAuthorization,
    FunctionAuthorization,
    KmsAuthorization,
    PolicyAuthorization,
    Role,
    authorize_guest,
)
from attestkit.kms.release.roots import KmsRoots, release_app_keys
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy
from tests.attacks.attempts import Surfaces, bound
from tests.kms.release.boot_infos import APP
from tests.kms.replayed_kms import VM_CONFIG
from tests.serve.kms_service.kms_clients import KEY, evidence_of
from tests.untyped import untyped
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import APP_ID, BOOT, COMPOSE_HASH, NONCE

attacks = Surfaces("kms")
KMS: Final = KmsRoots.from_seed(bytes(range(32)))
OTHER: Final = KmsRoots.from_seed(bytes(32))


# -- evidence of a guest -----------------------------------------------------------------------


def authorize(
    evidence: Attestation | None = None,
    authorization: KmsAuthorization | None = None,
    role: Role = "app",
    verifier: Any = None,
    **options: Any,
) -> Decision:
    """Return the decision about a genuine guest that boots."""
    given = {"report_data": NONCE.ljust(64, b"\0"), "ca_spki": KMS.ca_spki, **options}
    found = authorize_guest(
        verifier or intel.verifier(),
        authorization or DevAuthorization(),
        role,
        evidence or intel.evidence(BOOT[:5]),
        **given,
    )[1]
    assert found.is_allowed, found.reason
    return found


def decided(*args: Any, **options: Any) -> str:
    """Return the reason of a refusal by the authorization."""
    try:
        authorize(*args, **options)
    except AssertionError as error:
        return str(error)
    raise AssertionError("allowed")


assert authorize() == Decision.allow("any")


@attacks.attempt("replay", PolicyError, "report_data")
def evidence_of_an_older_connection() -> Decision:
    """Evidence is over the key of the certificate of this connection."""
    return authorize(report_data=b"\1" * 64)


@attacks.attempt("relay", PolicyError, "report_data")
def evidence_whose_report_data_begin_like_those() -> Decision:
    """All 64 bytes are compared."""
    return authorize(report_data=NONCE.ljust(63, b"\0") + b"\1")


@attacks.attempt("confuse", VerificationError, "mr_config")
def launch_for_another_kms() -> Decision:
    """The configuration sealed at launch names the CA of another KMS."""
    config = config_id_v2(COMPOSE_HASH, APP_ID, "kms", OTHER.ca_spki)
    return authorize(intel.evidence(BOOT[:5], mr_config_id=config))


@attacks.attempt("confuse", VerificationError, "mr_config")
def launch_for_a_local_provider() -> Decision:
    """The configuration sealed at launch names another kind of provider with the same id."""
    config = config_id_v2(COMPOSE_HASH, APP_ID, "local", KMS.ca_spki)
    return authorize(intel.evidence(BOOT[:5], mr_config_id=config))


@attacks.attempt("confuse", VerificationError, "mr_config")
def launch_of_another_app() -> Decision:
    """The log names an app that the sealed configuration does not."""
    config = config_id_v2(COMPOSE_HASH, bytes(20), "kms", KMS.ca_spki)
    return authorize(intel.evidence(BOOT[:5], mr_config_id=config))


@attacks.attempt("confuse", UsageError, "conflict")
def claimed_image_for_a_strict_policy() -> Decision:
    """The image that a guest claims is accepted in simulations only."""
    policy = AppraisalPolicy.default().replace(refuse_simulated=True)
    return authorize(verifier=intel.verifier(policy=policy), use_claimed_image=True)


BOUND: Final = ReportData.bind(ReportData.RATLS_CERT, KEY.spki_der)
assert authorize(evidence_of(KEY), vm_config=VM_CONFIG, report_data=BOUND)
CONFIGS: Final = {
    "that is another one": ('{"cpu_count": 99}', "inconsistent"),
    "with a member twice": ('{"os_image_hash": "aa", "os_image_hash": "bb"}', "duplicate"),
    "as an array": ("[]", "wrong_type"),
    "with a hash beside an inner one": (
        json.dumps(
            {"vm_config": json.dumps({"os_image_hash": "bb" * 32}), "os_image_hash": "aa" * 32}
        ),
        "inconsistent",
    ),
}
for _name, (_config, _reason) in CONFIGS.items():
    attacks.add(
        "confuse",
        f"configuration of a machine {_name}",
        bound(authorize, evidence_of(KEY), vm_config=_config, report_data=BOUND),
        FormatError,
        _reason,
    )


@cache
def policies(**rules: Any) -> PolicyAuthorization:
    """Return an authorization by one policy for the app."""
    return PolicyAuthorization([AppraisalPolicy.default().replace(app_id=[APP_ID], **rules)])


assert authorize(authorization=policies())


@attacks.attempt("forge", PolicyError, "compose_hash")
def build_that_the_policy_does_not_name() -> Decision:
    """The app is the right one, its build is not."""
    return authorize(authorization=policies(compose_hash=(bytes(32),)))


@attacks.attempt("confuse")
def app_without_a_policy() -> None:
    """No policy of another app, and not that of the verifier, releases keys."""
    other = PolicyAuthorization([AppraisalPolicy.default().replace(app_id=[APP])])
    assert decided(authorization=other) == "app not registered"
    assert decided(authorization=PolicyAuthorization([])) == "app not registered"


@attacks.attempt("confuse")
def guest_that_poses_as_another_kms() -> None:
    """An app that is allowed to have its keys does not get the roots."""
    allow = FunctionAuthorization(lambda _: Decision.allow())
    for one in (policies(), allow, DevAuthorization()):
        assert decided(authorization=one, role="kms")


@attacks.attempt("confuse", UsageError, "conflict")
def two_policies_for_one_app() -> object:
    """The second one would be looser, or the first."""
    policy = AppraisalPolicy.default().replace(app_id=[APP_ID])
    return PolicyAuthorization([policy, policy.replace(accepted_advisories=None)])


@attacks.attempt("confuse", UsageError, "missing")
def policy_for_any_app() -> object:
    """A policy that names no app accepts every guest."""
    return PolicyAuthorization([AppraisalPolicy.default()])


@attacks.attempt("confuse", UsageError, "missing")
def policy_for_any_kms() -> object:
    """A policy for another KMS that names no measurement accepts every guest."""
    return PolicyAuthorization([], kms_policy=AppraisalPolicy.default())


ANSWERS: Final[dict[str, object]] = {
    "true": True,
    "a text": "yes",
    "a pair": (True, ""),
    "a decision with a number": Decision(untyped(1)),
    "a decision with a text": Decision(untyped("False")),
    "nothing": None,
}
for _name, _answer in ANSWERS.items():
    attacks.add(
        "confuse",
        f"function that decides with {_name}",
        bound(authorize, authorization=FunctionAuthorization(untyped(lambda _, a=_answer: a))),
        UsageError,
        "wrong_type",
    )


# -- derivation --------------------------------------------------------------------------------


@attacks.attempt("confuse")
def bytes_moved_from_the_app_id_to_the_instance_id() -> None:
    """Parts of a derivation are joined without lengths, so that only two sizes are accepted."""
    app, instance = bytes(range(20)), bytes(range(20, 40))
    whole = release_app_keys(KMS, app, instance).disk_crypt_key
    assert whole != release_app_keys(KMS, app, b"").disk_crypt_key
    for first, second in ((app + instance[:1], instance[1:]), (app[:19], app[19:] + instance)):
        try:
            release_app_keys(KMS, first, second)
        except UsageError:
            continue
        raise AssertionError("accepted")


@attacks.attempt("confuse")
def keys_of_two_kinds_of_one_app() -> None:
    """Disk, environment and root key of an app are three keys, also without an instance."""
    keys = release_app_keys(KMS, APP, b"")
    assert len({keys.disk_crypt_key, keys.env_crypt_key, keys.k256_key}) == 3
    other = release_app_keys(OTHER, APP, b"")
    assert keys.k256_key != other.k256_key
