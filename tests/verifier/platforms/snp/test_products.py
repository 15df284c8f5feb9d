"""Products, keys and report versions of AMD: real certificates and reports, and their claims."""

from datetime import datetime, timedelta
from typing import Final

import pytest

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.amd_extension import read_amd_extension
from attestkit._crypto.x509.cert_path import check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
from attestkit.errors import (
    CollateralExpiredError,
    FormatError,
    PolicyError,
    SignatureError,
    UnsupportedError,
)
from attestkit.snp_report import SnpReport
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.platforms.snp.authenticator import Snp
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd

AWS: Final = "vtpm/aws/trustee"
PROVIDER: Final = "CN=cc-us-east-2.amazonaws.com"


def aws_evidence() -> SevSnp:
    """Return the report of an EC2 guest, with the VLEK and the ASVK of Milan."""
    asvk = split_pem(data("snp/go-sev-guest/ask_ark_milan_vlek.pem").decode())[0]
    return SevSnp(data(f"{AWS}/test-vlek-report.bin"), (data(f"{AWS}/test-vlek.der"), asvk), "")


def vlek_time() -> datetime:
    """Return a time at which the VLEK of AWS is valid."""
    return read_path_certificate(data(f"{AWS}/test-vlek.der")).valid_from + timedelta(days=30)


@needs_shared
def test_vlek_report_of_aws_is_authentic_up_to_vmpl() -> None:
    """Signature and chain of a real report hold under AMD's root; its VMPL is 1."""
    with raises(PolicyError, "vmpl") as caught:
        Snp().authenticate(aws_evidence(), vlek_time())
    steps = {step.check: step for step in caught.value.steps}
    assert steps["signature"].outcome == "passed"
    assert PROVIDER in steps["chip"].text
    later = vlek_time() + timedelta(days=400)  # valid for a year
    with raises(CollateralExpiredError, "cert_expired"):
        Snp().authenticate(aws_evidence(), later)


@needs_shared
def test_every_signed_byte_of_aws_report_is_covered() -> None:
    """Any changed byte of the signed region is refused."""
    snp, real, now = Snp(), aws_evidence(), vlek_time()
    for at in range(0, 0x2A0, 7):
        changed = bytearray(real.report)
        changed[at] ^= 1
        with pytest.raises((SignatureError, FormatError, UnsupportedError)):
            snp.authenticate(real._replace(report=bytes(changed)), now)


@needs_shared
@pytest.mark.parametrize(("product", "size"), [("Milan", 64), ("Turin", 8)])
def test_real_vcek_leads_to_built_in_root(product: str, size: int) -> None:
    """AMD's VCEKs of both layouts are read, with FMC and short chip id on Turin only."""
    name = product.lower()
    leaf = read_path_certificate(data(f"snp/virtee-sev/vcek_{name}.der"))
    ask = split_pem(data(f"snp/virtee-sev/cert_chain_{name}").decode())[0]
    root = read_path_certificate(AMD_ROOTS[product])
    path = (("VCEK", leaf), ("ASK", read_path_certificate(ask)), ("ARK", root))
    check_path(path, leaf.valid_from + timedelta(days=30))
    key = read_amd_extension(leaf.extensions)
    assert key is not None
    assert (key.product, key.kind, len(key.hardware_id)) == (product, "VCEK", size)
    assert (key.fmc is not None) is (product == "Turin")


def attested(version: int) -> Attestation:
    """Return evidence of a report of this version, with mitigations from version 5 on."""
    vectors = {0x1F8: b"\1" + bytes(7), 0x200: b"\3" + bytes(7)} if version >= 5 else {}
    platform = amd.evidence(amd.report(vectors, version=version))
    return Attestation(Evidence(platform, Stack(amd.REPORT_DATA, (), "")))


@every_case("version", [2, 3, 4, 5])
def test_fields_of_each_version_are_claimed(version: int) -> None:
    """CPUID since version 3, mitigation vectors since version 5; the version itself is a claim."""
    found = Verifier(trust_anchor=amd.ark()).verify(
        attested(version), report_data=amd.REPORT_DATA, now=amd.NOW
    )
    claims = found.claims
    assert claims["report_version"] == version.to_bytes(4, "little")
    assert claims["cpuid"] == (bytes((0x19, 1, 1)) if version >= 3 else bytes(3))
    assert claims["launch_mit_vector"][0] == (1 if version >= 5 else 0)
    assert claims["current_mit_vector"][0] == (3 if version >= 5 else 0)
    assert claims.get("vlek_provider") is None
    assert found.tcb.product == "Milan"
    assert found.to_dict()["tcb"]["product"] == "Milan"  # type: ignore[index]


@every_case("version", [0, 1, 6, 7, 0xFFFFFFFF])
def test_unknown_version_is_refused(version: int) -> None:
    """A version whose fields are not known is refused; a newer one says what to do."""
    raw = version.to_bytes(4, "little") + amd.report()[4:]
    with raises(FormatError, "unsupported_version") as caught:
        SnpReport.parse(raw)
    assert ("update attestkit" in str(caught.value)) is (version > 5)


def test_vlek_provider_is_claimed_and_decided_by_policy() -> None:
    """The provider in the certificate is a claim; only a policy that lists it accepts."""
    raw = amd.report({0x48: b"\4", 0x1A0: bytes(64)})
    platform = amd.evidence(raw, (amd.asvk(), amd.vlek()))
    evidence = Attestation(Evidence(platform, Stack(amd.REPORT_DATA, (), "")))

    def verify(policy: AppraisalPolicy) -> bytes:
        verifier = Verifier(trust_anchor=amd.ark(), policy=policy)
        found = verifier.verify(evidence, report_data=amd.REPORT_DATA, now=amd.NOW)
        return bytes(found.claims["vlek_provider"])

    default = AppraisalPolicy.default()
    assert verify(default.replace(vlek_providers=["a-provider"])) == b"a-provider"
    for refusing in (default, default.replace(vlek_providers=["b-provider"])):
        with raises(PolicyError, "vlek_providers", part="'a-provider'"):
            verify(refusing)


def test_minimum_tcb_of_the_report_product() -> None:
    """The product is that of the certificate, also in a report of version 2."""
    minimum = {"Milan": {"snp": 23, "microcode": 213}, "Turin": {"snp": 99}}
    policy = AppraisalPolicy.default().replace(minimum_tcb=minimum)
    for version in (2, 5):
        verifier = Verifier(trust_anchor=amd.ark(), policy=policy)
        verifier.verify(attested(version), report_data=amd.REPORT_DATA, now=amd.NOW)
        higher = policy.replace(minimum_tcb={"Milan": {"snp": 24}})
        with raises(PolicyError, "minimum_svn", part="component snp of the reported TCB"):
            Verifier(trust_anchor=amd.ark(), policy=higher).verify(
                attested(version), report_data=amd.REPORT_DATA, now=amd.NOW
            )
        other = policy.replace(minimum_tcb={"Genoa": {"snp": 1}})
        with raises(PolicyError, "minimum_svn", part="of a Milan, must be Genoa"):
            Verifier(trust_anchor=amd.ark(), policy=other).verify(
                attested(version), report_data=amd.REPORT_DATA, now=amd.NOW
            )
