"""Tests of rejections: by dcap-qvl, and of input that dcap-qvl accepts (gaps)."""

from hashlib import sha256
from typing import Any

import pytest

from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit.backends.simulator.scenarios.config import TcbLevel
from attestkit.collateral import Collateral
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.quote import Quote
from tests.clients.python_dcap_qvl import REJECT, verify_with_dcap_qvl
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    FUTURE,
    NOW,
    OTHER,
    PAST,
    PKI,
    RAW,
    ROOT,
    TCB_SIGNER,
    create_crl,
    create_enclave_quote,
    create_pki,
    create_qe_identity,
    create_tcb_info,
    create_td_quote,
    get_rejection,
    issue_signer,
    pem,
    qe_identity,
    replace_collateral,
    sign,
    tcb_info,
)

ISSUER_CHAINS = ["tcb_info_issuer_chain", "qe_identity_issuer_chain"]
PCK_CERTIFICATE = PKI.platform().pck_der
BLOCK = "-----BEGIN CERTIFICATE-----"


def create_quote_with_chain(root: bytes) -> bytes:
    """Return a quote whose PCK chain ends in another root."""
    chain = pem(PCK_CERTIFICATE, PKI.pck_ca_der, root)
    return create_enclave_quote(certification=chain.encode())


def is_accepted_by_dcap_qvl(
    raw: bytes = RAW, endorsements: Collateral = COLLATERAL, now: int = NOW
) -> bool:
    """Return whether dcap-qvl alone accepts, which shows that the added check is needed."""
    return verify_with_dcap_qvl(raw, endorsements, ROOT, now).status != REJECT


def sign_with_pck_key(field: str, *chain: bytes) -> Collateral:
    """Return collateral with a body that is signed by the PCK certificate's key."""
    body = field.removesuffix("_issuer_chain")
    signature = PKI.platform().pck_key.sign(getattr(COLLATERAL, body).encode())
    return replace_collateral(**{field: pem(*chain), f"{body}_signature": signature})


def create_issuer_chains(field: str) -> list[tuple[str, str, Collateral]]:
    """Return the reason, part of the text, and collateral for each invalid issuer chain."""
    signer, length = PKI.tcb_signing_der, "chain_length"
    own = sign_with_pck_key(field, PCK_CERTIFICATE, PKI.pck_ca_der, ROOT)
    found = [
        (length, "not 3 certificates", own),
        ("untrusted_root", "", replace_collateral(**{field: pem(signer, OTHER.root_der)})),
    ]
    for chain in ([signer], [signer, ROOT, ROOT], [signer, PKI.pck_ca_der, ROOT]):
        text = f"not {len(chain)} certificates"
        found.append((length, text, replace_collateral(**{field: pem(*chain)})))
    for name in ("Somebody", "Intel SGX TCB Signin", "intel sgx tcb signing", f"{TCB_SIGNER},O=x"):
        other = replace_collateral(**{field: pem(issue_signer(name), ROOT)})
        found.append(("unexpected_subject", "must be Intel SGX TCB Signing", other))
    return found


def drop_component(kind: str) -> Collateral:
    """Return TCB info whose second level has 15 components of a kind."""
    return tcb_info(lambda body: body["tcbLevels"][1]["tcb"][kind].pop())


Rows = dict[type[AttestKitError], list[tuple[str, str, bytes | Collateral]]]
"""Reason, part of the text, and quote or collateral, by error type."""

VALID = PKI.config.not_before, PKI.config.not_after
OLD, NEW = create_pki(pck_not_after=PAST), create_pki(not_before=FUTURE)
REVOKED = (TcbLevel(4, "2024-11-13T00:00:00Z", "Revoked"),)


def replace_chain(name: str, *certificates: bytes) -> Collateral:
    """Return collateral with another issuer chain of a body."""
    return replace_collateral(**{f"{name}_issuer_chain": pem(*certificates)})


def replace_signer(name: str, start: object = None, end: object = None) -> Collateral:
    """Return collateral whose named body is signed by a certificate with these dates."""
    window = Window(untyped(start or VALID[0]), untyped(end or VALID[1]))
    return replace_chain(name, issue_signer(validity=window), ROOT)


def create_quote_with_attributes(value: int) -> bytes:
    """Return the quote of a TD with these attributes."""
    return create_td_quote(td_attributes=value.to_bytes(8, "little"))


def create_quote_with_svns(*svns: int, field: str = "tee_tcb_svn") -> bytes:
    """Return the quote of a TD with these first SVNs."""
    return create_td_quote(**{field: bytes(svns).ljust(16, b"\0")})


def set_unknown_status(body: dict[str, Any]) -> None:
    """Set a status of the first TCB level that Intel does not define."""
    body["tcbLevels"][0]["tcbStatus"] = "CertRevoked"


EARLY, LATE = "is valid from 2026-09-21T14:13:21Z", "was valid until 2026-09-21T14:13:20Z"
OTHER_CHAIN = {"qe_identity_issuer_chain": OTHER.collateral(NOW).qe_identity_issuer_chain}
MODULE_SVN = "the TDX module's SVN is 3, the level from 2024-11 needs 6"
REJECTIONS: Rows = {
    VerificationError: [
        ("tdx_module_mismatch", "MRSIGNERSEAM", create_td_quote(mr_signer_seam=b"\1" * 48)),
        ("tdx_module_mismatch", "SEAMATTRIBUTES", create_td_quote(seam_attributes=b"\1" * 8)),
        ("tdx_module_mismatch", "no module of version 1", create_tcb_info(module_id="TDX_02")),
        ("tdx_module_mismatch", "", create_quote_with_svns(7, 9, 3, field="tee_tcb_svn2")),
        ("tcb_not_supported", MODULE_SVN, create_quote_with_svns(3, 1, 3)),
        ("tcb_not_supported", "is 1", create_quote_with_svns(1, 1, 3, field="tee_tcb_svn2")),
        ("tcb_revoked", "the TDX module", create_tcb_info(module_levels=REVOKED)),
        ("tcb_revoked", "the quoting enclave", create_qe_identity(levels=REVOKED)),
        ("td_debug", "0100001000000000", create_quote_with_attributes(1 << 28 | 1)),
        ("td_attributes", "1000001000000000", create_quote_with_attributes(1 << 28 | 1 << 4)),
        ("td_attributes", "MIGRATABLE", create_quote_with_attributes(1 << 28 | 1 << 29)),
        ("td_attributes", "reserved", create_quote_with_attributes(1 << 28 | 1 << 32)),
        ("td_attributes", "SEPT_VE_DISABLE is not set", create_quote_with_attributes(0)),
        ("service_td", "MR_SERVICETD", create_td_quote(mr_service_td=b"\1" * 48)),
        ("qe_identity_mismatch", "MISCSELECT", create_enclave_quote(qe_miscselect=1)),
        ("qe_identity_mismatch", "ISVPRODID", create_enclave_quote(qe_isvprodid=1)),
        ("qe_identity_mismatch", "", create_enclave_quote(qe_attributes=bytes(16))),
        ("tcb_info_wrong_type", "", create_tcb_info(id="SGX")),
    ],
    CollateralError: [
        ("tcb_info_malformed", "", tcb_info(lambda b: b.pop("tdxModule"))),
        ("tcb_info_malformed", "fetch fresh collateral", tcb_info(set_unknown_status)),
        ("qe_identity_malformed", "", qe_identity(lambda b: b["tcbLevels"].clear())),
        ("crl_malformed", "", replace_collateral(pck_crl=b"garbage")),
        ("crl_malformed", "", replace_collateral(root_ca_crl=b"garbage")),
        ("cert_malformed", "TCB info", replace_collateral(tcb_info_issuer_chain="x")),
        ("cert_malformed", "QE identity", replace_collateral(qe_identity_issuer_chain="x")),
    ],
    SignatureError: [
        ("tcb_info_bad_signature", "", replace_collateral(tcb_info="garbage")),
        ("qe_identity_bad_signature", "", replace_collateral(qe_identity="garbage")),
        ("cert_revoked", "PCK Platform CA", create_crl("root_crl", revoked=("pck-platform-ca",))),
        ("cert_revoked", "TCB Signing", create_crl("root_crl", revoked=("tcb-signing",))),
        ("cert_revoked", "Root CA", create_crl("root_crl", revoked=("root-ca",))),
        ("crl_bad_signature", "the CRL of the root CA", create_crl("root_crl", key="other")),
        ("crl_bad_signature", "the CRL of the PCK CA", create_crl("pck_crl", key="other")),
        ("untrusted_root", "PCK certificate chain", create_enclave_quote(OTHER)),
        ("untrusted_root", "QE identity", replace_collateral(**OTHER_CHAIN)),
        ("cert_bad_signature", "", replace_chain("tcb_info", issue_signer(issuer=OTHER), ROOT)),
        ("cert_constraints", "", replace_chain("tcb_info", issue_signer(path_length=0), ROOT)),
    ],
    CollateralExpiredError: [
        ("cert_expired", "TCB Signing was", replace_signer("tcb_info", end=PAST)),
        ("cert_expired", f"TCB Signing {EARLY}", replace_signer("qe_identity", FUTURE)),
        ("cert_expired", "PCK Certificate was", create_enclave_quote(OLD)),
        ("cert_expired", f"PCK Certificate {EARLY}", create_enclave_quote(NEW)),
        ("qe_identity_not_yet_valid", EARLY, create_qe_identity(issue=NOW + 1)),
    ],
}
# Input that dcap-qvl accepts, and attestkit rejects.
PCEID = "PCEID 0001, and the PCK certificate has 0000"
SHORT = "level 1: must have 16 components"
GAPS: Rows = {
    SignatureError: [
        *create_issuer_chains("tcb_info_issuer_chain"),
        *create_issuer_chains("qe_identity_issuer_chain"),
        ("untrusted_root", "", create_quote_with_chain(OTHER.root_der)),
    ],
    CollateralExpiredError: [
        # A CRL is valid from its thisUpdate; bodies expire at nextUpdate, as a CRL does.
        ("crl_expired", EARLY, create_crl("root_crl", this_update=NOW + 1)),
        ("crl_expired", EARLY, create_crl("pck_crl", this_update=NOW + 1)),
        ("tcb_info_expired", LATE, create_tcb_info(next_update=NOW)),
        ("qe_identity_expired", LATE, create_qe_identity(next_update=NOW)),
    ],
    VerificationError: [
        ("tcb_info_mismatch", PCEID, create_tcb_info(pceid=b"\0\1")),
        ("tcb_info_mismatch", "", create_enclave_quote(create_pki(pceid=b"\1\0"))),
        ("tcb_info_wrong_type", "", create_tcb_info(version=4)),
        ("tcb_info_wrong_type", "", tcb_info(lambda body: body.update(tcbType=1))),
        ("qe_identity_wrong_type", "", create_qe_identity(version=3)),
    ],
    CollateralError: [  # a level that is not reached must be well-formed, too
        ("tcb_info_malformed", SHORT, drop_component("sgxtcbcomponents")),
        ("tcb_info_malformed", SHORT, drop_component("tdxtcbcomponents")),
    ],
}


@every_case(
    ("kind", "reason", "fragment", "given", "gap"),
    [
        (kind, *row, gap)
        for gap, table in ((False, REJECTIONS), (True, GAPS))
        for kind, rows in table.items()
        for row in rows
    ],
)
def test_authenticate_rejection_has_type_reason_and_text(
    kind: type[AttestKitError],
    reason: str,
    fragment: str,
    given: bytes | Collateral,
    *,
    gap: bool,
) -> None:
    """Each rejection has its type, reason and text; dcap-qvl accepts the gaps only."""
    raw, endorsements = (given, COLLATERAL) if isinstance(given, bytes) else (RAW, given)
    assert is_accepted_by_dcap_qvl(raw, endorsements) is gap
    error = get_rejection(raw, endorsements)
    assert type(error) is kind
    assert error.reason == reason
    assert fragment in str(error)


def test_expired_collateral_names_part_and_end_of_validity() -> None:
    """The error names the expired part, its end, the time, and the remedy."""
    assert str(get_rejection(now=1792454400)) == (
        "the CRL of the root CA was valid until 2026-10-20T00:00:00Z, and the verification is at "
        "2026-10-20T00:00:00Z; all of the collateral was valid until 2026-10-20T00:00:00Z; "
        "fetch fresh collateral"
    )
    endorsements = create_crl("pck_crl", next_update=NOW)
    assert str(get_rejection(RAW, endorsements)).startswith(
        "the CRL of the PCK CA was valid until 2026-09-21T14:13:20Z"
    )


@pytest.mark.parametrize("body", ["tcb_info", "qe_identity"])
def test_body_signed_by_pck_certificate_without_its_ca_is_rejected(body: str) -> None:
    """A PCK certificate must not sign TCB info or QE identity."""
    short = replace_collateral(**{f"{body}_issuer_chain": pem(PCK_CERTIFICATE, ROOT)})
    assert get_rejection(RAW, short).reason == "unexpected_subject"


@every_case("field", ISSUER_CHAINS)
@every_case("label", ["CERTIFICATE", "X509 CERTIFICATE", "ANYTHING"])
def test_issuer_chain_with_ambiguous_pem_is_rejected(field: str, label: str) -> None:
    """A PEM block that some readers skip and others accept is rejected."""
    body = field.removesuffix("_issuer_chain")
    hidden = pem(PCK_CERTIFICATE).replace("CERTIFICATE", label)
    for text in (
        hidden + pem(PKI.tcb_signing_der, ROOT),
        f"text\n{hidden}" + pem(PKI.tcb_signing_der, ROOT),
        pem(PKI.tcb_signing_der) + hidden + pem(ROOT),
    ):
        signature = PKI.platform().pck_key.sign(getattr(COLLATERAL, body).encode())
        for signed in (signature, getattr(COLLATERAL, f"{body}_signature")):
            endorsements = replace_collateral(**{field: text, f"{body}_signature": signed})
            assert get_rejection(RAW, endorsements).reason in {
                "cert_malformed",
                "chain_length",
            }


@every_case(
    ("chain", "expected"),
    [
        ([PCK_CERTIFICATE], "chain_length"),
        ([PCK_CERTIFICATE, PKI.pck_ca_der, ROOT, ROOT], "chain_length"),
        ([PKI.pck_ca_der, PCK_CERTIFICATE, ROOT], "unexpected_subject"),
        ([ROOT, PKI.pck_ca_der, PCK_CERTIFICATE], "unexpected_subject"),
        ([PKI.tcb_signing_der, ROOT], "chain_length"),
        ([PCK_CERTIFICATE, ROOT, PKI.pck_ca_der], "unexpected_subject"),
    ],
    ids=["leaf", "four", "ca-first", "reversed", "signer", "ca-last"],
)
def test_pck_chain_must_be_leaf_ca_and_root(chain: list[bytes], expected: str) -> None:
    """A PCK chain is the PCK certificate, the PCK CA and the root, in this order."""
    error = get_rejection(create_enclave_quote(certification=pem(*chain).encode()))
    assert isinstance(error, SignatureError)
    assert error.reason == expected


@pytest.mark.parametrize("text", [b"", b"garbage", (BLOCK + "\nAAAA\n").encode()])
def test_pck_chain_without_certificates_raises_format_error(text: bytes) -> None:
    """A PCK chain without certificates raises FormatError."""
    error = get_rejection(create_enclave_quote(certification=text))
    assert (type(error), error.reason) == (FormatError, "quote_format")


def test_qe_report_data_upper_half_must_be_zero() -> None:
    """The QE report data after the 32 bytes of the hash must be zero."""
    binding = sha256(PKI.platform().attestation_key.public_point + bytes(range(32))).digest()
    raw = create_enclave_quote(qe_report_data=binding + bytes(31) + b"\1")
    assert is_accepted_by_dcap_qvl(raw)
    with raises(FormatError, "qe_binding"):
        Quote.parse(raw)


def test_expired_trust_anchor_is_rejected() -> None:
    """The trust anchor's validity is checked."""
    old = create_pki(not_after=PAST)
    assert verify_with_dcap_qvl(RAW, COLLATERAL, old.root_der, NOW).status != REJECT
    error = get_rejection(root=old.root_der)
    assert (type(error), error.reason) == (CollateralExpiredError, "cert_expired")
    assert "Intel SGX Root CA was valid until" in str(error)


def test_renewed_tcb_signer_is_accepted() -> None:
    """A renewed certificate of the TCB signer is accepted."""
    renewed = issue_signer(validity=Window(PKI.config.not_before, PKI.config.not_after))
    endorsements = replace_collateral(tcb_info_issuer_chain=pem(renewed, ROOT))
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    assert sign(COLLATERAL.tcb_info) == COLLATERAL.tcb_info_signature
    with pytest.raises(AssertionError, match="accepted as UpToDate"):
        get_rejection(RAW, endorsements)


def test_signature_with_unused_bits_is_rejected() -> None:
    """The count of unused bits of a certificate's signature is unsigned, and must be zero.

    dcap-qvl and OpenSSL reject it, too; `cryptography` ignores it in `Certificate.signature`.
    """

    def with_unused_bit(der: bytes) -> bytes:
        assert der[-1] % 2 == 0  # DER: unused bits are zero
        at = der.rindex(b"\0\x30")
        return der[:at] + b"\1" + der[at + 1 :]

    leaf, authority = PKI.platform().pck_der, PKI.pck_ca_der
    for chain in ((with_unused_bit(leaf), authority), (leaf, with_unused_bit(authority))):
        raw = create_enclave_quote(certification=pem(*chain, ROOT).encode())
        assert get_rejection(raw).reason == "cert_bad_signature"
        assert verify_with_dcap_qvl(raw, COLLATERAL, ROOT, NOW).status == REJECT
    issuer_chain = pem(with_unused_bit(authority), ROOT)
    error = get_rejection(RAW, replace_collateral(pck_crl_issuer_chain=issuer_chain))
    assert error.reason == "cert_bad_signature"
