"""Authorization: the decision of a KMS about a guest whose evidence it has verified.

A decision is made for one of two roles: `app` for the keys of an app, `kms` for the roots, which
another KMS requests.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from attestkit._argument_checks import wrong_type
from attestkit.attestation import AppInfo, Attestation
from attestkit.errors import UsageError
from attestkit.kms.release.boot_info import BootInfo, VerifiedGuest, verify_guest
from attestkit.verifier import AppraisalPolicy, Verifier

if TYPE_CHECKING:
    from datetime import datetime

Role: TypeAlias = Literal["app", "kms"]
"""What a guest requests: the keys of its app, or the roots of the KMS."""

NOT_REGISTERED: Final = "app not registered"
_NO_ROOTS: Final = "this KMS does not release its roots"


class Decision(NamedTuple):
    """Whether a guest gets keys."""

    is_allowed: bool
    reason: str = ""  # of a refusal
    gateway_app_id: str = ""  # of the gateway that the app uses

    @classmethod
    def allow(cls, gateway_app_id: str = "") -> "Decision":
        """Return the decision to release keys."""
        return cls(is_allowed=True, gateway_app_id=gateway_app_id)

    @classmethod
    def refuse(cls, reason: str) -> "Decision":
        """Return the decision not to release keys."""
        return cls(is_allowed=False, reason=reason)

    def to_json(self) -> str:
        """Return the compact JSON of an authorization server, with members in its order."""
        fields = {
            "isAllowed": self.is_allowed,
            "reason": self.reason,
            "gatewayAppId": self.gateway_app_id,
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


class AuthorityInfo(NamedTuple):
    """Values of the authorization in GetMeta; None where it has no such value."""

    is_dev: bool = False
    gateway_app_id: str | None = None
    kms_contract_address: str | None = None
    chain_id: int | None = None
    app_auth_implementation: str | None = None


class KmsAuthorization(ABC):
    """Decides which guests get keys. Methods may block, and are called by several threads."""

    @property
    def releases_roots(self) -> bool:
        """Whether another KMS may request the roots (GetKmsKey); the decision is still needed."""
        return False

    @abstractmethod
    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Decide about a guest whose evidence was verified.

        Raises:
            KmsError: If an authorization server failed.
            ConfigError: If its file has an unknown key.
        """

    @abstractmethod
    def describe(self) -> AuthorityInfo:
        """Return what GetMeta reports; raises as `decide`."""

    def choose_policy(self, _role: Role, _info: AppInfo) -> AppraisalPolicy | None:
        """Return the policy for a guest's evidence; None for that of the verifier."""
        return None


class DevAuthorization(KmsAuthorization):
    """Allow every app whose evidence is verified. For development only."""

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:  # noqa: ARG002 - allows all
        """Allow every guest, also this KMS itself; it does not release its roots."""
        return Decision.allow("any")

    def describe(self) -> AuthorityInfo:
        """Return that this is a development KMS."""
        return AuthorityInfo(is_dev=True, gateway_app_id="any")


class FunctionAuthorization(KmsAuthorization):
    """Let a Python function decide.

    Args:
        decide: Returns the decision about an app.
        decide_kms: Returns the decision about another KMS; None: the roots are not released.
    """

    def __init__(
        self,
        decide: Callable[[BootInfo], Decision],
        decide_kms: Callable[[BootInfo], Decision] | None = None,
    ) -> None:
        self._functions = {"app": decide, "kms": decide_kms}

    @property
    def releases_roots(self) -> bool:
        """Whether there is a function that decides about another KMS."""
        return self._functions["kms"] is not None

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Call the function.

        Raises:
            UsageError: If it does not return a Decision.
        """
        function = self._functions[role]
        if function is None:
            return Decision.refuse(_NO_ROOTS)
        found: object = function(boot_info)
        # Not a bool: a truthy value by mistake would release keys.
        if not isinstance(found, Decision) or not isinstance(found.is_allowed, bool):
            raise wrong_type("decide", "a function that returns a Decision", found)
        return found

    def describe(self) -> AuthorityInfo:
        """Return an empty description."""
        return AuthorityInfo()


class PolicyAuthorization(KmsAuthorization):
    """Allow the apps for which there is an appraisal policy that accepts their evidence.

    Args:
        policies: One policy for each app, which its rule `app_id` names.
        kms_policy: Policy for another KMS, with the rule `mr_aggregated`; None: the roots are not
            released.
        gateway_app_id: App id of the gateway that all apps use.

    Raises:
        UsageError: If a policy names no app, or two name the same.
    """

    def __init__(
        self,
        policies: Iterable[AppraisalPolicy],
        *,
        kms_policy: AppraisalPolicy | None = None,
        gateway_app_id: str = "",
    ) -> None:
        self._policies: dict[bytes, AppraisalPolicy] = {}
        for policy in policies:
            for app_id in _named(policy, "app_id"):
                if app_id in self._policies:
                    message = f"policies: two name the app {app_id.hex()}; write one for each app"
                    raise UsageError(message, reason="conflict")
                self._policies[app_id] = policy
        if kms_policy is not None:
            _named(kms_policy, "mr_aggregated")
        self._kms_policy = kms_policy
        self._gateway_app_id = gateway_app_id

    @property
    def releases_roots(self) -> bool:
        """Whether there is a policy for another KMS."""
        return self._kms_policy is not None

    def choose_policy(self, role: Role, info: AppInfo) -> AppraisalPolicy | None:
        """Return the policy that names the app, or that for another KMS."""
        return self._kms_policy if role == "kms" else self._policies.get(info.app_id)

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Allow a guest for which there is a policy, by which its evidence was appraised."""
        if role == "kms":
            return Decision.allow() if self.releases_roots else Decision.refuse(_NO_ROOTS)
        if boot_info.app_id not in self._policies:
            return Decision.refuse(NOT_REGISTERED)
        return Decision.allow(self._gateway_app_id)

    def describe(self) -> AuthorityInfo:
        """Return the gateway."""
        return AuthorityInfo(gateway_app_id=self._gateway_app_id)


def authorize_guest(
    verifier: Verifier,
    authorization: KmsAuthorization,
    role: Role,
    attestation: Attestation,
    *,
    report_data: bytes,
    ca_spki: bytes,
    vm_config: str = "",
    boottime: bool = False,
    use_claimed_image: bool = False,
    is_self: bool = False,
    now: "datetime | float | None" = None,
) -> tuple[VerifiedGuest, Decision]:
    """Verify the evidence of a guest by the policy for it, and decide whether it gets keys.

    Arguments are those of `verify_guest`. `ca_spki` is not used for another KMS, whose key provider
    is not this one. `is_self`: the guest is this KMS, with the role `kms`, which is allowed to run
    even if it does not release its roots.

    Raises:
        AttestKitError: As `verify_guest` and `KmsAuthorization.decide`.
    """
    guest = verify_guest(
        verifier,
        attestation,
        report_data=report_data,
        ca_spki=ca_spki if role == "app" else None,
        vm_config=vm_config,
        boottime=boottime,
        use_claimed_image=use_claimed_image,
        choose_policy=partial(authorization.choose_policy, role),
        now=now,
    )
    if role == "kms" and not is_self and not authorization.releases_roots:
        return guest, Decision.refuse(_NO_ROOTS)
    return guest, authorization.decide(role, guest.boot_info)


def _named(policy: AppraisalPolicy, rule: str) -> Iterable[bytes]:
    """Return the values of a rule that a policy must have."""
    if not isinstance(policy, AppraisalPolicy):
        raise wrong_type("policies", "a collection of AppraisalPolicy", policy)
    values: Iterable[bytes] | None = getattr(policy, rule)
    if values is None:
        text = f"policy: must have the rule {rule}, or it would accept any guest; add it"
        raise UsageError(text, reason="missing")
    return values
