"""An OS image of an SEV-SNP guest holds only under SEV_FEATURES that the policy accepts."""

from typing import Final

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.wire.evidence_parts import Evidence, Stack
from attestkit.backends.simulator.images.os_image import simulated_snp_image
from attestkit.errors import PolicyError
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.platforms import amd

IMAGE: Final = simulated_snp_image().os_image_hash
PINNED: Final = AppraisalPolicy.default().replace(os_image_hash=(IMAGE,))


def verify(evidence: Attestation, policy: AppraisalPolicy = PINNED) -> AttestationResult:
    """Verify evidence under the simulated root."""
    verifier = Verifier(trust_anchor=amd.ark(), policy=policy)
    return verifier.verify(evidence, report_data=amd.REPORT_DATA, now=amd.NOW)


@pytest.mark.parametrize("features", [0x1, 0x21])
def test_snp_os_image_holds_under_default_features(features: int) -> None:
    """SNP alone, and with debug swap, are accepted by default."""
    result = verify(amd.launched_evidence(guest_features=features))
    assert result.claims.os_image_hash == IMAGE
    assert result.claims["sev_features"] == features.to_bytes(8, "little")


@every_case("features", [0x3, 0x5, 0x9, 0x11, 0x20, 0x41, 0x201, 1 << 63 | 1])
def test_snp_os_image_under_other_features_is_rejected(features: int) -> None:
    """A host cannot launch the same image with other features under the hash of the image."""
    evidence = amd.launched_evidence(guest_features=features)
    for policy in (PINNED, AppraisalPolicy.development()):
        with raises(PolicyError, "sev_features"):
            verify(evidence, policy)
    assert verify(evidence, PINNED.replace(sev_features=(features,))).claims.os_image_hash == IMAGE
    assert verify(evidence, PINNED.replace(sev_features=None)).claims.os_image_hash == IMAGE


def test_snp_other_features_reject_the_image_step() -> None:
    """The step that returns the image's hash rejects it, for callers of single steps."""
    verifier = Verifier(trust_anchor=amd.ark())
    examination = verifier.examine(amd.launched_evidence(guest_features=3), now=amd.NOW)
    examination.authenticate()
    examination.replay()
    with raises(PolicyError, "sev_features"):
        examination.image_hash()


def test_snp_launch_parameters_are_claims() -> None:
    """A verified launch has vCPUs and CPU type as claims, with rules."""
    result = verify(amd.launched_evidence(vcpus=2, vcpu_type=" epyc-milan-v2"))
    assert result.claims["vcpus"] == bytes((2, 0, 0, 0))
    assert result.claims["vcpu_type"] == b"EPYC-Milan"
    evidence = amd.launched_evidence(vcpus=2, vcpu_type="EPYC-Milan")
    accepted = PINNED.replace(vcpus=(2,), vcpu_type=("EPYC-Milan-v1",))
    assert verify(evidence, accepted).claims.os_image_hash == IMAGE
    for rule, reason in (({"vcpus": (1,)}, "vcpus"), ({"vcpu_type": ("EPYC",)}, "vcpu_type")):
        with raises(PolicyError, reason):
            verify(evidence, PINNED.replace(**rule))


def test_snp_unverified_launch_gives_no_claims() -> None:
    """Without a verified image, launch parameters are only the sender's."""
    evidence = amd.evidence(amd.report({0xC0: host_data(amd.MR_CONFIG)}), mr_config=amd.MR_CONFIG)
    bare = Attestation(Evidence(evidence, Stack(amd.REPORT_DATA, (), "")))
    claims = verify(bare, AppraisalPolicy.default()).claims
    assert not {"sev_features", "vcpus", "vcpu_type"} & claims.keys()
    with raises(PolicyError, "vcpus"):
        verify(bare, AppraisalPolicy.default().replace(vcpus=(1,)))


def test_snp_report_fields_are_claims() -> None:
    """TCB versions, firmware versions and bits of the report are claims."""
    changes = {
        0x1E8: bytes((31, 55, 1, 0, 31, 55, 1)),  # build, minor, major: current and committed
        0x40: bytes((0x25,)),
        0x04: bytes((7,)),
        0x110: b"\x99" * 48,  # not valid without AUTHOR_KEY_EN
    }
    evidence = Attestation(
        Evidence(amd.evidence(amd.report(changes)), Stack(amd.REPORT_DATA, (), ""))
    )
    result = verify(evidence, AppraisalPolicy.default())
    claims = result.claims
    for which in ("current", "reported", "committed", "launch"):
        assert claims[f"{which}_tcb"] == amd.TCB
    assert claims["current_version"] == claims["committed_version"] == bytes((1, 55, 31))
    assert claims["policy"] == (0x3_0000).to_bytes(8, "little")
    assert claims["platform_info"] == bytes((0x25, *bytes(7)))
    assert claims["guest_svn"] == bytes((7, 0, 0, 0))
    assert claims["vmpl"] == claims["key_info"] == bytes(4)
    assert claims["cpuid"] == bytes((0x19, 1, 1))
    assert claims["author_key_digest"] == bytes(48)
    levels = dict(result.tcb.components)
    assert levels == {"boot_loader": 4, "tee": 0, "snp": 23, "microcode": 213}
    for other in (result.tcb.current, result.tcb.committed, result.tcb.launch):
        assert dict(other) == levels


@pytest.mark.parametrize(
    ("which", "at"), [("current", 0x38), ("committed", 0x1E0), ("launch", 0x1F0)]
)
def test_snp_minimum_svns_hold_for_other_tcb_versions(which: str, at: int) -> None:
    """A report whose reported TCB meets the minimum is rejected for another TCB below it."""
    older = bytes((4, 0, 0, 0, 0, 0, 22, 213))
    evidence = Attestation(
        Evidence(amd.evidence(amd.report({at: older})), Stack(amd.REPORT_DATA, (), ""))
    )
    policy = AppraisalPolicy.development().replace(minimum_svns=(("snp", 23),))
    with raises(PolicyError, "minimum_svn", part=which):
        verify(evidence, policy)
