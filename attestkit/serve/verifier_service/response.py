"""Verification for POST /verify: its steps, the flags that they set, and why one refused.

Request and response are those of the dstack verifier service (dstack, verifier). Values in
`details` are verified; steps that were not reached leave false or null.

The response has one more member, `freshness_checked`: whether the evidence is bound to the nonce of
the query. With an expected value in the query, `bound_to` follows it. The expected value never
comes from the body: that is the attester's, and so is a `report_data` in it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from attestkit._formats import strict_json
from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import verify_os_image
from attestkit.attestation.wire.evidence_parts import GcpTdx, NitroTpm, is_of_dstack
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    ConfigError,
    FormatError,
    UnsupportedError,
    VerificationError,
)
from attestkit.serve.verifier_service.query import VerifyQuery
from attestkit.serve.verifier_service.request import VerificationRequest
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.tdx import FetchNeededError
from attestkit.verifier.policy.app_pins import names_boot, names_guest
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
    from attestkit.verifier.verifier import Examination, Verifier

_FLAGS: Final = (
    "quote_verified",
    "event_log_verified",
    "os_image_hash_verified",
    "acpi_tables_verified",
)
_ANY: Final = VerifyQuery()
_BEFORE: Final = "Internal error"  # documented name of failures before the first step
_QUOTE: Final = "Quote verification failed"
_OS_IMAGE: Final = "OS image hash verification failed"
_EVENT_LOG: Final = "Event log verification failed"
_POLICY: Final = "Policy"
STEPS: Final = {
    _BEFORE: "reading",
    _QUOTE: "quote",
    _OS_IMAGE: "os_image",
    _EVENT_LOG: "event_log",
    _POLICY: "policy",
}
"""Steps of a verification, by the start of `reason` in a response: their labels in metrics."""

_encode: Final = msgspec.json.Encoder().encode
_DEL: Final = b"\x7f"  # the only ASCII character that msgspec does not escape as `json` does
_LONGEST_REMEMBERED: Final = 1024  # bytes of the description of a key provider

_NULLS: Final = ("os_image_is_dev", "os_image_version", "tee_variant", "report_data", "tcb_status")


class Outcome(NamedTuple):
    """Result of a verification: the content of the response to POST /verify, and its cause.

    `details` is that member of the response. `reason` is the failed step and the error, as text;
    None if all steps passed.
    """

    details: dict[str, Any]
    reason: str | None
    result: AttestationResult | None  # None unless all steps passed
    cause: AttestKitError | None = None  # more specific than the documented reason
    step: str = ""  # the failed step, a key of STEPS
    failed: bool = False  # the verification failed for another reason than the evidence
    compared: bool = False  # whether the query had an expected value

    def to_json(self) -> bytes:
        """Return the documented response as compact ASCII JSON."""
        answer = {
            "is_valid": self.result is not None,
            "details": self.details,
            "reason": self.reason,
            "freshness_checked": self.result is not None and self.result.fresh,
        }
        if self.compared:
            answer["bound_to"] = None if self.result is None else self.result.bound_to
        if self.result is not None:  # the reason of a refusal may have any text
            found = _encode(answer)
            if found.isascii() and _DEL not in found:
                return found
        return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode("ascii")


def run_verification(
    verifier: "Verifier",
    request: VerificationRequest,
    report: Callable[[BaseException], str],
    *,
    query: VerifyQuery = _ANY,
    fetch: bool = True,
) -> Outcome:
    """Run the steps of a verification until one fails.

    Args:
        verifier: Runs the steps, of which the appraisal by its policy is the last.
        request: Evidence to verify.
        report: Function that logs an unexpected error, and returns the request id that the client
            gets instead of the error's text.
        query: Nonce that the evidence must be bound to, or the report data that it must have;
            without both, any report data is accepted.
        fetch: Whether collateral may be fetched from a PCCS.

    Raises:
        FetchNeededError: If collateral must be fetched, but fetch=False.
    """
    run = _Verification(verifier, request, query, fetch)
    return _outcome(run, report)._replace(compared=query.expects)


def _outcome(run: "_Verification", report: Callable[[BaseException], str]) -> Outcome:
    try:
        return Outcome(run.details, None, run.take())
    except FetchNeededError:
        raise
    except AttestKitError as error:
        if isinstance(error.__cause__, AttestKitError) and run.step == _BEFORE:
            return Outcome(run.details, f"{run.step}: {error}", None, error.__cause__, run.step)
        expected = error.reason != "internal"
        text = str(error) if expected else f"internal error, request {report(error)}"
        # Missing collateral or an altered image at hand says nothing about the evidence.
        collateral = isinstance(error, CollateralError) and not isinstance(error, VerificationError)
        if isinstance(error, ConfigError):
            report(error)
        failed = collateral or isinstance(error, ConfigError) or not expected
    except BaseException as error:  # noqa: BLE001 - a Rust panic is not an Exception
        text, failed = f"internal error, request {report(error)}", True
    return Outcome(run.details, f"{run.step}: {text}", None, step=run.step, failed=failed)


@dataclass(eq=False)
class _Verification:
    """A verification in progress; `step` and `details` record how far it has come."""

    _verifier: "Verifier"
    _request: VerificationRequest
    _query: VerifyQuery
    _fetch: bool
    step: str = field(default=_BEFORE, init=False)
    details: dict[str, Any] = field(
        init=False,
        default_factory=lambda: {
            **dict.fromkeys(_FLAGS, False),
            **dict.fromkeys(_NULLS),
            "advisory_ids": [],
            "key_provider": None,
            "app_info": None,
        },
    )

    def take(self) -> AttestationResult:
        attestation = self._request.read_attestation()
        self.step = _QUOTE
        examination, authenticated = self._authenticate(attestation)
        self.step = _OS_IMAGE
        image_hash = examination.image_hash()
        if image_hash or self._needs_image(attestation):
            self._os_image(examination, attestation, image_hash)
            self.step = _EVENT_LOG
            self._app_info(examination, authenticated, image_hash)
        else:  # no image and no app of dstack: the policy has to name the guests
            _require_named_guests(self._verifier.policy, attestation.platform)
            self.step = _EVENT_LOG
            examination.app_info()
        self.step = _POLICY
        if (nonce := self._query.nonce) is not None:
            result = examination.appraise(nonce=nonce)
        else:
            result = examination.appraise(report_data=self._query.report_data)
        if not isinstance(result, AttestationResult):  # only a result means success
            raise TypeError(f"appraise() returned {type(result).__name__}")
        if (vtpm := result.claims.vtpm) is not None:
            self.details.update(tee_variant=result.claims.platform, vtpm=vtpm.to_dict())
        if result.gpu is not None:
            self.details.update(gpu=result.gpu.claims)
        return result

    def _authenticate(self, attestation: Attestation) -> "tuple[Examination, Authenticated]":
        """Verify signatures, TCB status and the replay of the event log."""
        examination = self._examine(attestation)
        authenticated = examination.authenticate()
        examination.replay()
        status = authenticated.status
        self.details.update(
            quote_verified=True,
            tee_variant=attestation.platform,
            report_data=attestation.report_data.hex(),
            tcb_status=None if status is None else str(status),
            advisory_ids=list(authenticated.advisory_ids),
        )
        return examination, authenticated

    def _examine(self, attestation: Attestation) -> "Examination":
        if not self._request.has_gpus:
            return self._verifier.examine(attestation, fetch=self._fetch)
        gpu, endorsements = self._request.read_gpu()
        verifier = self._verifier.with_gpu_endorsements(endorsements)
        return verifier.examine(attestation, fetch=self._fetch, gpu=gpu)

    def _needs_image(self, attestation: Attestation) -> bool:
        """Return whether evidence must contain the hash of a dstack image.

        A TPM proves the boot of other images too, which rules of the policy can name.
        """
        platform = attestation.evidence.platform
        if isinstance(platform, (GcpTdx, NitroTpm)):
            return not names_boot(self._verifier.policy, attestation.platform)
        return is_of_dstack(platform)

    def _os_image(self, examination: "Examination", attestation: Attestation, found: bytes) -> None:
        if not found:
            # A Verifier leaves an unknown hash to its policy; here it is required.
            try:
                verify_os_image(attestation.evidence)  # raises the specific error
            except UnsupportedError as error:
                reason = examination.os_image.left_out or str(error)
                raise UnsupportedError(reason, reason="os_image") from error
            raise VerificationError("evidence: has no hash of an OS image", reason="os_image")
        image = examination.os_image
        self.details.update(
            os_image_hash_verified=True,
            acpi_tables_verified=image.acpi_tables,
            os_image_is_dev=image.is_dev,
            os_image_version=image.version,
        )

    def _app_info(
        self, examination: "Examination", authenticated: Authenticated, image_hash: bytes
    ) -> None:
        info = examination.app_info()
        if info is None:
            raise VerificationError("evidence: has no app id", reason="identity")
        info = info._replace(os_image_hash=image_hash)
        variant = self.details["tee_variant"]
        self.details.update(
            event_log_verified=True,
            key_provider=_describe_key_provider(info.key_provider_info),
            app_info=info.to_dict(),
            boot_info=_boot_info(info, variant, authenticated),
        )


def _require_named_guests(policy: "AppraisalPolicy", platform: str) -> None:
    """Raise UnsupportedError if a policy accepts any guest of a platform.

    Clients take `is_valid` to mean a known guest. `platform` is the name of the evidence's
    platform.
    """
    if names_guest(policy, platform):
        return
    raise UnsupportedError(
        f"{platform} evidence names no OS image and no app; name the guests in the service's "
        "policy: what they boot, by PCR 4 in pcrs and at Azure the paravisor, too; or their "
        "machines, by trusted_aks, gce_project, or the number in gce_instance",
        reason="os_image",
    )


def _describe_key_provider(text: bytes) -> Mapping[str, str] | None:
    """Return name and id of the key provider in JSON `text`; None if missing or malformed."""
    parse = _key_provider if len(text) <= _LONGEST_REMEMBERED else _key_provider.__wrapped__
    return parse(text)


@lru_cache(64)  # the same for all machines of a service; each result is only read
def _key_provider(text: bytes) -> Mapping[str, str] | None:
    try:
        fields = strict_json.read_object(text, "key_provider_info")
        return {name: strict_json.string(fields, name) for name in ("name", "id")}
    except FormatError:
        return None


def _boot_info(info: "AppInfo", variant: str, authenticated: Authenticated) -> dict[str, Any]:
    """Return the values by which a dstack KMS authorises an app, by the KMS's names for them.

    `variant` is the name of the platform, such as dstack-tdx.
    """
    status = authenticated.status
    return {
        "teeVariant": variant,
        "mrAggregated": info.mr_aggregated.hex(),
        "osImageHash": info.os_image_hash.hex(),
        "mrSystem": info.mr_system.hex(),
        "appId": info.app_id.hex(),
        "composeHash": info.compose_hash.hex(),
        "instanceId": info.instance_id.hex(),
        "deviceId": info.device_id.hex(),
        "keyProviderInfo": info.key_provider_info.hex(),
        "tcbStatus": "" if status is None else str(status),
        "advisoryIds": list(authenticated.advisory_ids),
    }
