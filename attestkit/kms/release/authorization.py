"""Authorization: the decision of a KMS about a guest whose evidence it has verified.

`BootInfo` describes the guest. Verification is that of `Verifier`, except for the identity of the
app: a guest requests its keys before the event `system-ready`.

A decision is made for one of two roles: `app` for the keys of an app, `kms` for the roots, which
a second KMS requests in order to serve the same keys.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit._argument_checks import require_size, wrong_type
from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.launch.vm_config import read_os_image_hash
from attestkit.errors import UsageError, VerificationError
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from attestkit.verifier.evidence.checks import KeyRequest

_WITHOUT_STATUS: Final = {"dstack-aws-nitro-tpm": "UpToDate"}  # as upstream's KMS
_APP_ID_SIZE: Final = 20
_IMAGE_HASH_SIZES: Final = (0, 32)  # bytes; empty if the configuration has none
Role: TypeAlias = Literal["app", "kms"]
"""Keys that a guest requests: those of its app, or the roots of the KMS."""
NOT_REGISTERED: Final = "app not registered"
_NO_ROOTS: Final = "this KMS does not release its roots"


class BootInfo(NamedTuple):
    """The values on which an authorization decides; byte strings may be empty."""

    tee_variant: str  # dstack-tdx, dstack-amd-sev-snp ...
    mr_aggregated: bytes  # 32 bytes
    os_image_hash: bytes  # 32 bytes; empty if the image could not be verified
    mr_system: bytes  # 32 bytes
    app_id: bytes  # 20 bytes
    compose_hash: bytes  # 32 bytes
    instance_id: bytes  # 20 bytes
    device_id: bytes  # 32 bytes
    key_provider_info: bytes  # JSON text
    tcb_status: str  # the vendor's status; empty if the platform has none
    advisory_ids: tuple[str, ...]

    @classmethod
    def of(
        cls, tee_variant: str, info: AppInfo, tcb_status: str, advisory_ids: tuple[str, ...]
    ) -> "BootInfo":
        """Return the values of a guest from its platform, app's identity and TCB.

        Args:
            tee_variant: Name of the platform, such as `dstack-tdx`.
            info: Identity of the app.
            tcb_status: The vendor's status, such as `UpToDate`; empty if the platform has none.
            advisory_ids: Security advisories that apply to the platform, such as `INTEL-SA-00837`.
        """
        return cls._make((tee_variant, *_measured(info), tcb_status, advisory_ids))

    def to_json(self) -> str:
        """Return the body of a request to an authorization webhook: compact JSON, bytes in hex."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON object, with bytes in hex, and members in the order of dstack's KMS."""
        return {
            "teeVariant": self.tee_variant,
            "mrAggregated": self.mr_aggregated.hex(),
            "osImageHash": self.os_image_hash.hex(),
            "mrSystem": self.mr_system.hex(),
            "appId": self.app_id.hex(),
            "composeHash": self.compose_hash.hex(),
            "instanceId": self.instance_id.hex(),
            "deviceId": self.device_id.hex(),
            "keyProviderInfo": self.key_provider_info.hex(),
            "tcbStatus": self.tcb_status,
            "advisoryIds": list(self.advisory_ids),
        }


_measured: Final = attrgetter(*BootInfo._fields[1:-2])  # of an AppInfo, which has the same names


class VerifiedGuest(NamedTuple):
    """A guest whose evidence was verified for a request to the KMS: its values, app and result."""

    boot_info: BootInfo
    app_info: AppInfo  # content of a certificate's extension
    result: AttestationResult
    ppid: bytes  # verified identity of an Intel processor, 16 bytes; else empty


def verify_guest(
    verifier: Verifier,
    attestation: Attestation,
    *,
    report_data: bytes,
    ca_spki: bytes | None,
    vm_config: str = "",
    boottime: bool = False,
    use_claimed_image: bool = False,
    choose_policy: Callable[[AppInfo], AppraisalPolicy | None] | None = None,
    now: datetime | float | None = None,
) -> VerifiedGuest:
    """Verify the evidence of a guest that requests keys or a certificate.

    Args:
        verifier: Trust anchors, collateral and policy.
        attestation: The evidence, such as of `ra_tls.read`, which binds it to a certificate's key.
        report_data: Report data that the evidence must have, 64 bytes.
        ca_spki: SubjectPublicKeyInfo of this KMS's root CA in DER, 91 bytes: the key provider id
            that the configuration sealed at launch may name. None if the guest is a KMS itself:
            its key provider is not this KMS, and is named by the sealed configuration and the log.
        vm_config: VM configuration in the request, JSON text; the evidence's if empty.
        boottime: Use the registers up to `boot-mr-done`, and no key provider, as SignCert does.
        use_claimed_image: Use the hash of the OS image that the configuration names if the image
            cannot be verified. For simulation only: a policy with `refuse_simulated` excludes it.
        choose_policy: Returns the policy for an app; None for that of the verifier.
        now: Time of the verification: an aware datetime, or seconds since 1970; None is the
            verifier's clock.

    Raises:
        VerificationError: If the evidence is not valid, names no app (reason `identity`), or is not
            accepted by the policy.
        FormatError: If evidence or configuration are malformed, or differ.
        CollateralError: If collateral is missing.
        UsageError: If an argument has a wrong size, or `use_claimed_image` is excluded.
    """
    require_size("report data", report_data, 64)
    if ca_spki is not None:
        require_size("ca_spki", ca_spki, 91)
    attestation = attestation.with_vm_config(vm_config)
    steps = verifier.examine(attestation, now=now)
    authenticated = steps.authenticate()
    steps.replay()
    steps.image_hash()
    info = steps.app_info(KeyRequest(ca_spki, boottime))
    if info is None or len(info.app_id) != _APP_ID_SIZE:
        raise VerificationError("evidence: app id must have 20 bytes", reason="identity")
    policy = verifier.policy if choose_policy is None else choose_policy(info) or verifier.policy
    if use_claimed_image:
        if policy.refuse_simulated:
            text = "use_claimed_image: for simulation only; drop refuse_simulated from the policy"
            raise UsageError(text, reason="conflict")
        # A verified hash is the same one.
        info = info._replace(os_image_hash=_read_claimed_hash(attestation.config))
    result = steps.appraise(report_data=report_data, policy=policy)
    platform, status = result.claims.platform, result.tcb.status
    text = _WITHOUT_STATUS.get(platform, "") if status is None else status.value
    return VerifiedGuest(
        BootInfo.of(platform, info, text, result.advisory_ids),
        info,
        result,
        ppid=b"" if steps.parsed.quote is None else authenticated.device,
    )


def _read_claimed_hash(config: str) -> bytes:
    """Return the hash of the OS image in a VM configuration, 32 bytes or empty."""
    claimed = read_os_image_hash(config)
    if len(claimed) not in _IMAGE_HASH_SIZES:
        text = f"VM configuration: os_image_hash: must be 32 bytes, not {len(claimed)}"
        raise VerificationError(text, reason="identity")
    return claimed


class Decision(NamedTuple):
    """Whether a guest gets keys; the reason of a refusal, and the app id of its gateway."""

    is_allowed: bool
    reason: str = ""  # of a refusal
    gateway_app_id: str = ""  # of the gateway that the app uses

    @classmethod
    def allow(cls, gateway_app_id: str = "") -> "Decision":
        """Return the decision to release keys; `gateway_app_id` is empty without a gateway."""
        return cls(is_allowed=True, gateway_app_id=gateway_app_id)

    @classmethod
    def refuse(cls, reason: str) -> "Decision":
        """Return the decision not to release keys, with this reason, which the guest receives."""
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
    """What GetMeta of a KMS reports of its authorization; None where it has no such value."""

    is_dev: bool = False  # whether it is a development KMS, which accepts every app
    gateway_app_id: str | None = None  # app id of the gateway, as the configuration writes it
    kms_contract_address: str | None = None  # contract that decides, on the chain `chain_id`
    chain_id: int | None = None  # id of an EVM chain
    app_auth_implementation: str | None = None  # address of the contract that apps' contracts use


class KmsAuthorization(ABC):
    """Interface of the decision which guests get keys.

    Methods may block, and are called by several threads at once.
    """

    @property
    def releases_roots(self) -> bool:
        """Whether a second KMS may request the roots (GetKmsKey); `decide` still decides on it."""
        return False

    @abstractmethod
    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Decide whether a guest, whose evidence was verified, gets keys.

        Args:
            role: What it requests: `app` for the keys of its app, `kms` for the roots of this KMS.
            boot_info: Verified values of the guest.

        Raises:
            KmsError: If an authorization server failed.
            ConfigError: If the file of an authorization has an unknown key.
        """

    @abstractmethod
    def describe(self) -> AuthorityInfo:
        """Return the description of this authority for GetMeta; raises as `decide`."""

    def choose_policy(self, _role: Role, _info: AppInfo) -> AppraisalPolicy | None:
        """Return the policy by which a guest's evidence is appraised; None for the verifier's."""
        return None


class DevAuthorization(KmsAuthorization):
    """Allow every app whose evidence is verified. For development only."""

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:  # noqa: ARG002 - allows all
        """Allow every guest, whatever the arguments.

        A second KMS does not get the roots, because `authorize_guest` reads `releases_roots` first,
        which is False.
        """
        return Decision.allow("any")

    def describe(self) -> AuthorityInfo:
        """Return an AuthorityInfo with `is_dev` set: this is a development KMS."""
        return AuthorityInfo(is_dev=True, gateway_app_id="any")


class FunctionAuthorization(KmsAuthorization):
    """Let a Python function decide.

    Args:
        decide: Returns the decision about a guest that requests the keys of its app.
        decide_kms: Returns the decision about a KMS that requests the roots; None: they are not
            released.
    """

    def __init__(
        self,
        decide: Callable[[BootInfo], Decision],
        decide_kms: Callable[[BootInfo], Decision] | None = None,
    ) -> None:
        self._functions = {"app": decide, "kms": decide_kms}

    @property
    def releases_roots(self) -> bool:
        """Whether there is a function that decides about a KMS which requests the roots."""
        return self._functions["kms"] is not None

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Call the function for the role; without one, refuse.

        `role` is `app` for the keys of an app, `kms` for the roots; `boot_info` has verified values
        of the guest, which the function gets.

        Raises:
            UsageError: If the function does not return a Decision.
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
        """Return an AuthorityInfo without values: GetMeta then reports no authorization."""
        return AuthorityInfo()


class PolicyAuthorization(KmsAuthorization):
    """Allow the apps for which there is an appraisal policy that accepts their evidence.

    Args:
        policies: One policy for each app, which its rule `app_id` names.
        kms_policy: Policy for a KMS that requests the roots, with the rule `mr_aggregated`; None:
            they are not released.
        gateway_app_id: App id of the gateway that all apps use.

    Raises:
        UsageError: If a policy names no app, two name the same, or `kms_policy` has no rule
            `mr_aggregated`.
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
        """Whether there is a policy for a second KMS that requests the roots of this one."""
        return self._kms_policy is not None

    def choose_policy(self, role: Role, info: AppInfo) -> AppraisalPolicy | None:
        """Return the policy that names the guest's app; for the role `kms`, that for a KMS."""
        return self._kms_policy if role == "kms" else self._policies.get(info.app_id)

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Allow a guest for which there is a policy; refuse any other.

        The evidence was appraised by that policy before (`choose_policy`).
        `role` is `app` for the keys of an app, `kms` for the roots; `boot_info` has verified values
        of the guest.
        """
        if role == "kms":
            return Decision.allow() if self.releases_roots else Decision.refuse(_NO_ROOTS)
        if boot_info.app_id not in self._policies:
            return Decision.refuse(NOT_REGISTERED)
        return Decision.allow(self._gateway_app_id)

    def describe(self) -> AuthorityInfo:
        """Return the app id of the gateway, for GetMeta."""
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
    """Verify a guest's evidence by the policy for it; return it, and whether it gets keys.

    The returned decision is a refusal if the guest must not get keys; invalid evidence is an error.

    Args:
        verifier: Trust anchors, collateral and policy.
        authorization: Chooses the policy, and decides.
        role: What the guest requests: `app` for the keys of its app, `kms` for the roots.
        attestation: The evidence.
        report_data: Report data that the evidence must have, 64 bytes.
        ca_spki: SubjectPublicKeyInfo of this KMS's root CA in DER, 91 bytes. It is used for `app`
            only, because a second KMS has a different key provider.
        vm_config: VM configuration in the request, JSON text; the evidence's if empty.
        boottime: Use the registers up to `boot-mr-done`, and no key provider, as SignCert does.
        use_claimed_image: Use the image hash that the configuration names if the image cannot be
            verified. For simulation only.
        is_self: Whether the guest is this KMS itself, with the role `kms`: `authorization` then
            decides even if it releases no roots. PolicyAuthorization without `kms_policy` and
            FunctionAuthorization without `decide_kms` always refuse.
        now: Time of the verification: an aware datetime, or seconds since 1970; None is the
            verifier's clock.

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
    """Return the values of `rule` in a policy; UsageError if the policy lacks the rule."""
    if not isinstance(policy, AppraisalPolicy):
        raise wrong_type("policies", "a collection of AppraisalPolicy", policy)
    values: Iterable[bytes] | None = getattr(policy, rule)
    if values is None:
        text = f"policy: must have the rule {rule}, or it would accept any guest; add it"
        raise UsageError(text, reason="missing")
    return values
