"""Rules about the verification of an OS image: its measurement document, and ACPI tables."""

import pytest

from attestkit.verifier import ReferenceValues
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    NITRO,
    SGX,
    SNP,
    TDX,
    appraise,
    appraise_in_steps,
    authenticated,
    claims,
    get_rejection_text,
    rules,
)


@every_case(
    ("version", "minimum", "accepted"),
    [(4, 4, True), (4, 3, True), (3, 4, False), (3, 3, True), (None, 0, False), (5, 4, True)],
)
def test_minimum_measurement_version_compares_document(
    version: int | None, minimum: int, *, accepted: bool
) -> None:
    """A verified image must have a document of at least this version."""
    policy, found = rules(minimum_measurement_version=minimum), claims(measurement_version=version)
    if accepted:
        assert "minimum_version" in [step.check for step in appraise_in_steps(policy, found)]
    else:
        get_rejection_text("minimum_version", policy, found)


def test_minimum_measurement_version_rejects_other_platforms() -> None:
    """The documents of other platforms have other versions, which are not compared."""
    policy = rules(minimum_measurement_version=0)
    for platform in (SNP, NITRO, SGX):
        get_rejection_text("minimum_version", policy, claims(platform), authenticated(platform))


def test_require_acpi_tables_rejects_tables_of_host() -> None:
    """Without a reference value of RTMR0, the host chooses the tables; image or not."""
    rtmr0 = dict(claims().registers)["rtmr0"]
    policy = rules(require_acpi_tables=True)
    pinned = policy.replace(reference_values=ReferenceValues(rtmr0=(rtmr0,)))
    for found in (claims(), claims(os_image_hash=b"")):
        get_rejection_text("acpi_tables", policy, found)
        assert appraise(pinned, found)


@pytest.mark.parametrize(("platform", "accepted"), [(TDX, False), (SNP, False), (NITRO, True)])
def test_require_acpi_tables_by_platform(platform: str, *, accepted: bool) -> None:
    """Nothing measures the tables of an SEV-SNP guest, and an enclave has none."""
    policy, arguments = rules(require_acpi_tables=True), (claims(platform), authenticated(platform))
    if accepted:
        assert appraise(policy, *arguments)
    else:
        get_rejection_text("acpi_tables", policy, *arguments)
