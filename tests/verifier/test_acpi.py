"""A host that hands a TD ACPI tables of its own is told of, and refused where RTMR0 is pinned."""

from typing import Final

import pytest

from attestkit.attestation import Attestation
from attestkit.backends.simulator.boot_log import boot_log, boot_records, replay_records
from attestkit.errors import PolicyError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.verifier import AppraisalPolicy, ReferenceValues
from attestkit.verifier.ear.claims import trust
from attestkit.verifier.policy.toml_writer import pin
from attestkit.verifier.result import TcbStatus
from tests.verifier import parcels
from tests.verifier.parcels import BOOT, IMAGE, NONCE
from tests.verifier.policy.policy_samples import (
    IMAGE_HASH,
    NITRO,
    SGX,
    SNP,
    TDX,
    authenticated,
    bare_claims,
    claims,
    judged,
    result,
    rules,
)

CHOSEN: Final = "caution: the ACPI tables are whichever the host chose"
UNMEASURED: Final = "caution: nothing measures the ACPI tables"
NAMED: Final = AppraisalPolicy.strict().replace(os_image_hash={IMAGE.os_image_hash})


def of_the_host() -> Attestation:
    """Return evidence of the vendor's image, with tables that are not the vendor's."""
    image = IMAGE._replace(acpi=(*IMAGE.acpi[:2], b"\xee" * 48))
    firmware = EventLog.from_ccel(boot_log(image))
    log = firmware.with_runtime([runtime_event(name, payload, 1) for name, payload in BOOT])
    quote = parcels.quote_of(log, rtmr0=replay_records(boot_records(image))[0])
    return Attestation.for_tdx(quote, log, IMAGE.vm_config)


def pinning(values: dict[str, bytes]) -> ReferenceValues:
    """Return the rule that asks for these registers."""
    return ReferenceValues(**{name: (value,) for name, value in values.items()})


def cautions(steps: tuple[str, ...]) -> list[str]:
    """Return what the steps say of ACPI tables."""
    return [step for step in steps if "ACPI" in step and step.startswith("caution: ")]


@pytest.mark.parametrize("policy", [NAMED, AppraisalPolicy.default()])
@pytest.mark.parametrize("evidence", [parcels.evidence(), of_the_host()])
def test_a_recognised_image_with_any_tables_is_a_caution(
    evidence: Attestation, policy: AppraisalPolicy
) -> None:
    """The image is the vendor's either way: what is not known of it is said."""
    found = parcels.verifier(policy=policy).verify(evidence.to_bytes(), report_data=NONCE)
    assert found.claims.os_image_hash == IMAGE.os_image_hash
    [told] = cautions(found.steps)
    assert told.startswith(CHOSEN)
    assert "pin rtmr0" in told


def test_a_pinned_register_refuses_the_hosts_tables() -> None:
    """That is what the caution advises, and what `attestkit policy` writes."""
    good = parcels.verifier().verify(parcels.evidence().to_bytes(), report_data=NONCE)
    rtmr0 = good.claims.register("rtmr0")
    assert rtmr0 is not None
    values = pinning({"rtmr0": rtmr0})
    for policy in (NAMED.replace(reference_values=values), pin(good)):
        judge = parcels.verifier(policy=policy)
        assert cautions(judge.verify(parcels.evidence().to_bytes(), report_data=NONCE).steps) == []
        with pytest.raises(PolicyError, match="rtmr0 is") as caught:
            judge.verify(of_the_host().to_bytes(), report_data=NONCE)
        assert caught.value.reason == "reference_value"


def test_an_image_that_is_pinned_by_its_registers() -> None:
    """Without RTMR0 among them the tables are anybody's, whether the image is recognised or not."""
    registers = dict(claims().registers)
    image = {name: registers[name] for name in ("mrtd", "rtmr1", "rtmr2")}
    for found in (claims(), claims(os_image_hash=b""), bare_claims()):
        assert cautions(judged(rules(reference_values=pinning(image)), found))[0].startswith(CHOSEN)
        all_four = pinning({**image, "rtmr0": registers["rtmr0"]})
        assert cautions(judged(rules(reference_values=all_four), found)) == []
    assert cautions(judged(rules(), bare_claims())) == []


@pytest.mark.parametrize(("platform", "wanted"), [(SNP, UNMEASURED), (NITRO, ""), (SGX, "")])
def test_other_platforms(platform: str, wanted: str) -> None:
    """Of SEV-SNP no register has them, so that no rule helps; an enclave is given none."""
    word = authenticated(status=None if platform == NITRO else TcbStatus.UP_TO_DATE)
    steps = judged(rules(), claims(platform), word)
    assert [step.startswith(wanted) for step in cautions(steps)] == [True] * bool(wanted)
    unnamed = judged(rules(), claims(platform, os_image_hash=b""), word)
    assert cautions(unnamed) == []


# -- what a signed verdict claims ------------------------------------------------------------------


def test_executables_of_a_td_are_claimed_where_the_tables_are_pinned() -> None:
    """AR4SI's 3 says that nothing but what is approved was loaded, and tables have code in them."""
    rtmr0 = dict(claims().registers)["rtmr0"]
    named = rules(os_image_hash=(IMAGE_HASH,))
    pinned = named.replace(reference_values=pinning({"rtmr0": rtmr0}))
    assert trust(result(), pinned)["executables"] == 3
    of_another = named.replace(reference_values=pinning({"rtmr0": bytes(48)}))
    unnamed = rules(reference_values=pinning({"rtmr0": rtmr0}))
    for policy in (named, of_another, unnamed, rules(), None):
        assert "executables" not in trust(result(), policy)


@pytest.mark.parametrize(("platform", "claimed"), [(TDX, False), (SNP, False), (NITRO, True)])
def test_executables_of_other_platforms(platform: str, *, claimed: bool) -> None:
    """A hash is enough of an enclave, whose operator gives it no tables."""
    named = rules(os_image_hash=(IMAGE_HASH,))
    assert ("executables" in trust(result(claims(platform)), named)) is claimed
