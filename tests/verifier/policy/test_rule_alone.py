"""Tests of each rule in a policy with no other rule: none is forgotten, on any platform."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any, Final, NamedTuple

from attestkit.errors import PolicyError
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.platforms import (
    HCL,
    NO_STATUS,
    SNP_PLATFORMS,
    TD_PLATFORMS,
    VERIFIED_PLATFORMS,
)
from attestkit.verifier.policy.reference_values import ReferenceValues
from attestkit.verifier.policy.rules import BitMask, KeyProvider
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    ATTRIBUTES,
    NITRO,
    SNP,
    TDX,
    appraise,
    authenticated,
    claims,
    register,
)

GCP: Final = "gcp-snp"
AZURE: Final = "hcl-snp"
PLATFORMS: Final = frozenset(VERIFIED_PLATFORMS) - HCL.keys()  # as evidence names them
STATUSES: Final = frozenset(TcbStatus) - {TcbStatus.REVOKED}
RECENT: Final = STATUSES - {TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED}
# Accepts the sample evidence of all platforms.
OPEN: Final[dict[str, Any]] = {
    "accepted_statuses": STATUSES,
    "platforms": VERIFIED_PLATFORMS,
    "sev_features": None,
}


NOTHING: Final[Mapping[str, Any]] = {}


class Row(NamedTuple):
    """Value of a rule that evidence does not have, and the rejection."""

    value: object
    reason: str
    platform: str = TDX
    beside: Mapping[str, Any] = NOTHING  # rules that it needs
    claims: Mapping[str, Any] = NOTHING  # changes of the sample
    authenticated: Mapping[str, Any] = NOTHING


OTHER: Final = {size: (register(0xEE, size),) for size in (20, 32, 48)}
OLD: Final = {"status": TcbStatus.OUT_OF_DATE}
MANY_DAYS: Final = timedelta(days=3650)
BIT_20: Final = (1 << 20).to_bytes(8, "little")
BIT_40: Final = BitMask(must_be_set=1 << 40)

REFUSED: Final = {
    "accepted_statuses": Row({TcbStatus.CONFIGURATION_NEEDED}, "tcb_status"),
    "accepted_advisories": Row((), "advisory", authenticated={"advisory_ids": ("A",)}),
    "refused_advisories": Row({"A"}, "advisory", authenticated={"advisory_ids": ("A",)}),
    "platform_grace_period": Row(
        timedelta(), "grace_period", beside={"accepted_statuses": RECENT}, authenticated=OLD
    ),
    "qe_grace_period": Row(
        timedelta(),
        "grace_period",
        beside={"accepted_statuses": RECENT, "platform_grace_period": MANY_DAYS},
        authenticated=OLD,
    ),
    "minimum_evaluation_data_number": Row(19, "evaluation_data_number"),
    "minimum_svns": Row({("PCE", 14)}, "minimum_svn"),
    "minimum_tcb": Row({"Milan": {"snp": 24}}, "minimum_svn", SNP),
    "sev_features": Row((0x21,), "sev_features", SNP),
    "vcpus": Row((4,), "vcpus", SNP),
    "vcpu_type": Row(("EPYC-Genoa",), "vcpu_type", SNP),
    "guest_policy": Row(BIT_40, "attributes", SNP),
    "platform_info": Row(BIT_40, "attributes", SNP),
    "minimum_guest_svn": Row(3, "minimum_svn", SNP),
    "minimum_guest_abi": Row("1.56", "minimum_version", SNP),
    "minimum_firmware": Row("1.56.0", "minimum_version", SNP),
    "refuse_provisional_firmware": Row(
        True, "provisional_firmware", SNP, claims={"committed_version": bytes((1, 55, 28))}
    ),
    "refuse_unnamed_td_bits": Row(True, "attributes", claims={"seam_attributes": register(1, 8)}),
    "require_fixed_td_bits": Row(True, "attributes", claims={"td_attributes": BIT_20}),
    "minimum_qe_svn": Row(0, "minimum_svn"),
    "minimum_pce_svn": Row(0, "minimum_svn"),
    "refuse_dynamic_platform": Row(True, "dynamic_platform"),
    "refuse_cached_keys": Row(True, "cached_keys"),
    "refuse_smt": Row(True, "smt"),
    "require_acpi_tables": Row(True, "acpi_tables"),
    "minimum_measurement_version": Row(5, "minimum_version"),
    "required_events": Row((RequiredEvent(name="other"),), "required_event"),
    "required_events_in_order": Row(
        True,
        "required_event",
        beside={"required_events": [RequiredEvent(name=name) for name in ("model", "app-id")]},
    ),
    "only_required_events": Row("app", "required_event"),
    "pcrs": Row({"sha256:7": OTHER[32]}, "pcrs", GCP),
    "trusted_aks": Row(OTHER[32], "trusted_aks", GCP),
    "require_joins": Row({"hardware_to_ak"}, "require_joins", GCP),
    "paravisor_measurement": Row(OTHER[48], "paravisor_measurement", AZURE),
    "id_key_digest": Row(OTHER[48], "id_key_digest", AZURE),
    "secure_boot": Row(False, "secure_boot", AZURE),
    "console_enabled": Row(True, "console_enabled", AZURE),
    "tpm_persisted": Row(False, "tpm_persisted", AZURE),
    "init_data": Row(OTHER[32], "init_data", GCP),
    "gce_project": Row({"other"}, "gce_project", GCP),
    "gce_zone": Row({"other"}, "gce_zone", GCP),
    "gce_instance": Row({"other"}, "gce_instance", GCP),
    "vlek_providers": Row({"other"}, "vlek_providers", SNP, claims={"key_info": b"\4\0\0\0"}),
    "platforms": Row({SNP}, "platform"),
    "refuse_simulated": Row(True, "simulated"),
    "require_mr_config": Row(True, "require_mr_config", claims={"mr_config_id": bytes(48)}),
    "reference_values": Row(ReferenceValues(mrtd=OTHER[48]), "reference_value"),
    "td_attributes": Row(BIT_40, "attributes"),
    "xfam": Row(BIT_40, "attributes"),
    "app_id": Row(OTHER[20], "app_id"),
    "compose_hash": Row(OTHER[32], "compose_hash"),
    "instance_id": Row(OTHER[20], "instance_id"),
    "os_image_hash": Row(OTHER[32], "os_image_hash"),
    "device_id": Row(OTHER[32], "device_id"),
    "mr_aggregated": Row(OTHER[32], "mr_aggregated"),
    "mr_system": Row(OTHER[32], "mr_system"),
    "key_provider": Row((KeyProvider(name="other"),), "key_provider"),
}
# Platforms on which a rule says nothing.
ACCEPTED: Final = {
    "accepted_statuses": NO_STATUS,
    **dict.fromkeys(
        ("sev_features", "refuse_provisional_firmware", "vlek_providers"),
        PLATFORMS - SNP_PLATFORMS,
    ),
    **dict.fromkeys(("refuse_unnamed_td_bits", "require_fixed_td_bits"), PLATFORMS - TD_PLATFORMS),
    "require_mr_config": PLATFORMS - {TDX},  # of others it may be zero
    "require_acpi_tables": {NITRO},
    "platforms": {SNP},
}
# Rules without which the evidence is rejected, too.
ALLOWING: Final = {"platform_grace_period", "qe_grace_period", "vlek_providers"}


def appraise_alone(name: str, platform: str, **rule: object) -> None:
    """Appraise evidence of a platform, as far as it is that of the row, by a rule alone."""
    row = REFUSED[name]
    changes = {key: value for key, value in row.claims.items() if key in ATTRIBUTES[platform]}
    appraise(
        AppraisalPolicy(**{**OPEN, **row.beside, **rule}),
        claims(platform, **changes),
        authenticated(platform, **row.authenticated),
        simulated=True,
    )


@every_case("name", [one.name for one in fields(AppraisalPolicy)])
def test_rule_alone_rejects(name: str) -> None:
    """A rule is applied if no other is set, and rejects evidence of platforms without its value.

    A new rule needs a row. That of GPUs has others: `tests/gpu/test_rules.py`.
    """
    if name == "gpu":
        return
    row = REFUSED[name]
    if name not in ALLOWING:
        appraise_alone(name, row.platform)
    reasons: dict[str, str | None] = {}
    for platform in PLATFORMS:
        reasons[platform] = None
        try:
            appraise_alone(name, platform, **{name: row.value})
        except PolicyError as error:
            reasons[platform] = error.reason
    assert reasons[row.platform] == row.reason
    accepted = {platform for platform, reason in reasons.items() if reason is None}
    assert accepted == ACCEPTED.get(name, set())
