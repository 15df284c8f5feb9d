"""Google's certificates of attestation keys, and the instance that they name."""

import json

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.vendor_roots import google_roots
from attestkit.attestation import Attestation
from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.attestation.wire.evidence_parts import (
    GcpTdx,
    PcrValue,
    TpmQuote,
)
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from attestkit.verifier.platforms.vtpm.attestation_key import gce_details
from tests.vectors import data, needs_shared
from tests.verifier.platforms.google import NOW, composed, refused

pytestmark = needs_shared


def test_details_name_the_instance() -> None:
    """The details have the names that rules of a policy use."""
    found = GceInstance("zone", 1, "project", 1 << 63, "name", 0, is_production=False)
    assert gce_details(found) == (
        ("gce_project", "project"),
        ("gce_zone", "zone"),
        ("gce_instance", "name"),
        ("gce_project_number", "1"),
        ("gce_instance_id", str(1 << 63)),
        ("gce_security_version", "0"),
        ("gce_is_production", "false"),
    )
    assert gce_details(None) == ()


def test_the_genuine_quote_of_google_verifies_up_to_the_join() -> None:
    """A quote of a Confidential VM, whose hardware evidence is not at hand, has Google's key."""
    fixture = json.loads(data("vtpm/gcp/vaportpm/test-gcp-tdx-fixture.json"))
    expected = json.loads(data("vtpm/expected.json"))["gcp/vaportpm/test-gcp-tdx-fixture.json"]
    leaf, *authorities = split_pem(fixture["attestation"]["gcp"]["ak_cert_chain"])
    attest = bytes.fromhex(fixture["attestation"]["tpm"]["ecc_p256"]["attest_data"])
    pcrs = {int(n): bytes.fromhex(v) for n, v in fixture["pcrs"]["sha256"].items()}
    quote = TpmQuote(
        attest,
        bytes.fromhex(expected["tpmt_signature"]),
        tuple(PcrValue(index, "sha256", pcrs[index]) for index in range(24)),
        leaf,
        "gcp",
        (),
    )
    roots = [("Google", read_path_certificate(root)) for root in google_roots()]
    certified = AkChains().verify(leaf, roots, NOW, beside=authorities[:1])
    assert certified.gce is not None
    assert certified.gce.instance_id == expected["gce"]["instance_id"]
    evidence = composed().evidence
    platform = GcpTdx(b"", (), quote)
    kind, reason = refused(Attestation(evidence._replace(platform=platform)))
    assert (kind.__name__, reason) == ("ReplayError", "pcr_mismatch")  # its log is not at hand


def test_the_older_hierarchy_of_google_is_trusted() -> None:
    """An AK certificate of 2021 has an empty subject, and leads to the root of 2018."""
    folder = "vtpm/gcp/go-tpm-tools/"
    message = GoTpmToolsMessage.parse(data(folder + "gce-cos-85-nonce9009.pb"))
    found = AkChains()
    certified = found.verify(
        message.ak_certificate,
        found.google,
        NOW,
        beside=[data(folder + "ca-certs/tpm_ek_intermediate_2.crt")],
    )
    assert certified.path.root_name == "Google's TPM root of 2018"
    expected = json.loads(data("vtpm/expected.json"))["gcp/go-tpm-tools/gce-cos-85-nonce9009.pb"]
    assert dict(gce_details(certified.gce))["gce_instance"] == expected["gce"]["instance_name"]
    assert [step.outcome for step in certified.steps] == ["passed", "skipped"]
