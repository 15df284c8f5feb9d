"""`BootInfo`: description of a guest that requests keys, from verified evidence.

Verification is that of `Verifier`, except for the identity of the app: a guest requests its keys
before the event `system-ready` (kms.md, section 1.5).
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from attestkit._argument_checks import require_size
from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.launch.vm_config import read_os_image_hash
from attestkit.errors import UsageError, VerificationError
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from attestkit.verifier.evidence.checks import KeyRequest

_WITHOUT_STATUS: Final = {"dstack-aws-nitro-tpm": "UpToDate"}  # kms.md, section 3.1
_APP_ID_SIZE: Final = 20
_IMAGE_HASH_SIZES: Final = (0, 32)  # bytes; empty if the configuration has none


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
        """Return the values of an app's identity and its platform's TCB."""
        return cls(
            tee_variant=tee_variant,
            mr_aggregated=info.mr_aggregated,
            os_image_hash=info.os_image_hash,
            mr_system=info.mr_system,
            app_id=info.app_id,
            compose_hash=info.compose_hash,
            instance_id=info.instance_id,
            device_id=info.device_id,
            key_provider_info=info.key_provider_info,
            tcb_status=tcb_status,
            advisory_ids=advisory_ids,
        )

    def to_json(self) -> str:
        """Return the body of a request to an authorization webhook: compact JSON, hex (3.1)."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON object, with members in the order of upstream."""
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


class VerifiedGuest(NamedTuple):
    """A guest whose evidence was verified for a request to the KMS."""

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
            its key provider is another one, which the sealed configuration and the log name.
        vm_config: VM configuration in the request, JSON text; the evidence's if empty.
        boottime: Use the registers up to `boot-mr-done`, and no key provider, as SignCert does.
        use_claimed_image: Use the hash of the OS image that the configuration names if the image
            cannot be verified. For simulation only: a policy with `refuse_simulated` excludes it.
        choose_policy: Returns the policy for an app; None for that of the verifier.
        now: Time of the verification, as for `Verifier.verify`.

    Raises:
        VerificationError: If the evidence is not valid, names no app (`identity`), or is not
            accepted by the policy.
        FormatError: If evidence or configuration are malformed, or differ.
        CollateralError: If collateral is missing.
        UsageError: If an argument has another size, or `use_claimed_image` is excluded.
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
        raise VerificationError("app id: must have 20 bytes", reason="identity")
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
        text = f"os_image_hash: {len(claimed)} bytes, must be 32"
        raise VerificationError(text, reason="identity")
    return claimed
