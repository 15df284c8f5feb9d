"""Tests of checks that attestkit adds to dcap-qvl: each rejects input that dcap-qvl accepts."""

from hashlib import sha256

import pytest

from attestkit._crypto.x509.sgx_pki_writer import Window
from attestkit.backends.simulator.scenarios.config import CrlConfig, QeIdentityConfig, TcbInfoConfig
from attestkit.collateral import Collateral
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.quote import Quote
from tests.dcap import REJECT, judge
from tests.raising import raises
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    NOW,
    OTHER,
    PAST,
    PKI,
    RAW,
    ROOT,
    collateral,
    create_enclave_quote,
    create_pki,
    get_reason,
    get_rejection,
    issue_signer,
    pem,
    replace_collateral,
    sign,
    tcb_info,
)

ISSUER_CHAINS = ["tcb_info_issuer_chain", "qe_identity_issuer_chain"]
PCK_CERTIFICATE = PKI.platform().pck_der
BLOCK = "-----BEGIN CERTIFICATE-----"


def is_accepted_by_dcap_qvl(
    raw: bytes = RAW, endorsements: Collateral = COLLATERAL, now: int = NOW
) -> bool:
    """Return whether dcap-qvl alone accepts, which shows that the added check is needed."""
    return judge(raw, endorsements, ROOT, now).status != REJECT


def test_tcb_info_of_other_pceid_is_rejected() -> None:
    """The PCEIDs of TCB info and PCK certificate must be equal."""
    endorsements = collateral(tcb_info=TcbInfoConfig(pceid=b"\0\1"))
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert type(error) is VerificationError
    assert error.reason == "tcb_info_mismatch"
    assert "PCEID 0001, the PCK certificate has 0000" in str(error)


def test_pck_certificate_of_other_pceid_is_rejected() -> None:
    """A PCK certificate with another PCEID than TCB info is rejected."""
    other = create_pki(pceid=b"\1\0")
    assert is_accepted_by_dcap_qvl(create_enclave_quote(other))
    assert get_reason(get_rejection(create_enclave_quote(other))) == "tcb_info_mismatch"


@pytest.mark.parametrize("body", ["tcb_info", "qe_identity"])
def test_body_signed_by_pck_certificate_is_rejected(body: str) -> None:
    """A PCK certificate, although it leads to the root, must not sign TCB info or QE identity."""
    signature = PKI.platform().pck_key.sign(getattr(COLLATERAL, body).encode())
    chain = pem(PCK_CERTIFICATE, PKI.pck_ca_der, ROOT)
    endorsements = replace_collateral(
        **{f"{body}_issuer_chain": chain, f"{body}_signature": signature}
    )
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert isinstance(error, SignatureError)
    assert error.reason == "chain_length"
    short = replace_collateral(**{f"{body}_issuer_chain": pem(PCK_CERTIFICATE, ROOT)})
    assert get_reason(get_rejection(RAW, short)) == "unexpected_subject"


@pytest.mark.parametrize("field", ISSUER_CHAINS)
@pytest.mark.parametrize(
    "name",
    ["Somebody", "Intel SGX TCB Signin", "intel sgx tcb signing", "Intel SGX TCB Signing,O=x"],
)
def test_body_signed_by_other_subject_is_rejected(field: str, name: str) -> None:
    """Only the TCB signer's subject may sign TCB info and QE identity."""
    endorsements = replace_collateral(**{field: pem(issue_signer(name), ROOT)})
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert isinstance(error, SignatureError)
    assert error.reason == "unexpected_subject"
    assert "must be Intel SGX TCB Signing" in str(error)


@pytest.mark.parametrize("field", ISSUER_CHAINS)
@pytest.mark.parametrize(
    "chain",
    [
        [PKI.tcb_signing_der],
        [PKI.tcb_signing_der, ROOT, ROOT],
        [PKI.tcb_signing_der, PKI.pck_ca_der, ROOT],
    ],
    ids=["one", "root-twice", "three"],
)
def test_issuer_chain_must_have_two_certificates(field: str, chain: list[bytes]) -> None:
    """An issuer chain has exactly the TCB signer's certificate and the root."""
    endorsements = replace_collateral(**{field: pem(*chain)})
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert isinstance(error, SignatureError)
    assert error.reason == "chain_length"
    assert f": {len(chain)} certificates, must be " in str(error)


@pytest.mark.parametrize("field", ISSUER_CHAINS)
@pytest.mark.parametrize("label", ["CERTIFICATE", "X509 CERTIFICATE", "ANYTHING"])
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
            assert get_reason(get_rejection(RAW, endorsements)) in {
                "cert_malformed",
                "chain_length",
            }


@pytest.mark.parametrize("field", ISSUER_CHAINS)
def test_issuer_chain_must_end_in_trust_anchor(field: str) -> None:
    """An issuer chain with another root is rejected, although its signer is trusted."""
    endorsements = replace_collateral(**{field: pem(PKI.tcb_signing_der, OTHER.root_der)})
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    assert get_reason(get_rejection(RAW, endorsements)) == "untrusted_root"


def test_pck_chain_must_end_in_trust_anchor() -> None:
    """A quote whose PCK chain contains another root is rejected."""
    raw = create_enclave_quote(
        certification=pem(PCK_CERTIFICATE, PKI.pck_ca_der, OTHER.root_der).encode()
    )
    assert is_accepted_by_dcap_qvl(raw)
    assert get_reason(get_rejection(raw)) == "untrusted_root"


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([PCK_CERTIFICATE], "chain_length"),
        ([PCK_CERTIFICATE, PKI.pck_ca_der, ROOT, ROOT], "chain_length"),
        ([PKI.pck_ca_der, PCK_CERTIFICATE, ROOT], "unexpected_subject"),
        ([ROOT, PKI.pck_ca_der, PCK_CERTIFICATE], "unexpected_subject"),
        ([PKI.tcb_signing_der, ROOT], "unexpected_subject"),
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
    assert isinstance(error, FormatError)
    assert error.reason == "quote_format"


@pytest.mark.parametrize("part", ["root_crl", "pck_crl"])
def test_crl_before_this_update_is_rejected(part: str) -> None:
    """A CRL is valid from its thisUpdate."""
    endorsements = collateral(**{part: CrlConfig(this_update=NOW + 1)})
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert isinstance(error, CollateralExpiredError)
    assert error.reason == "crl_expired"
    assert "is valid from 2026-09-21T14:13:21Z" in str(error)


@pytest.mark.parametrize(
    ("endorsements", "expected"),
    [
        (collateral(tcb_info=TcbInfoConfig(next_update=NOW)), "tcb_info_expired"),
        (collateral(qe_identity=QeIdentityConfig(next_update=NOW)), "qe_identity_expired"),
    ],
    ids=["tcb-info", "qe-identity"],
)
def test_body_at_next_update_is_expired(endorsements: Collateral, expected: str) -> None:
    """TCB info and QE identity expire at nextUpdate, as a CRL does."""
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert isinstance(error, CollateralExpiredError)
    assert error.reason == expected
    assert "was valid until 2026-09-21T14:13:20Z" in str(error)


@pytest.mark.parametrize(
    ("endorsements", "expected"),
    [
        (collateral(tcb_info=TcbInfoConfig(version=4)), "tcb_info_wrong_type"),
        (tcb_info(lambda body: body.update(tcbType=1)), "tcb_info_wrong_type"),
        (collateral(qe_identity=QeIdentityConfig(version=3)), "qe_identity_wrong_type"),
    ],
    ids=["version", "type", "qe-version"],
)
def test_body_of_unknown_version_is_rejected(endorsements: Collateral, expected: str) -> None:
    """TCB info and QE identity of unknown versions or types are rejected."""
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert type(error) is VerificationError
    assert error.reason == expected


@pytest.mark.parametrize("kind", ["sgxtcbcomponents", "tdxtcbcomponents"])
def test_tcb_level_must_have_16_components(kind: str) -> None:
    """A level that is not reached must be well-formed, too."""
    endorsements = tcb_info(lambda body: body["tcbLevels"][1]["tcb"][kind].pop())
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    error = get_rejection(RAW, endorsements)
    assert isinstance(error, CollateralError)
    assert get_reason(error) == "tcb_info_malformed"
    assert "level 1 must have 16 components" in str(error)


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
    assert judge(RAW, COLLATERAL, old.root_der, NOW).status != REJECT
    error = get_rejection(root=old.root_der)
    assert isinstance(error, CollateralExpiredError)
    assert error.reason == "cert_expired"
    assert "the trust anchor is valid from 2020-01-01" in str(error)


def test_renewed_tcb_signer_is_accepted() -> None:
    """A renewed certificate of the TCB signer is accepted."""
    renewed = issue_signer(validity=Window(PKI.config.not_before, PKI.config.not_after))
    endorsements = replace_collateral(tcb_info_issuer_chain=pem(renewed, ROOT))
    assert is_accepted_by_dcap_qvl(endorsements=endorsements)
    assert sign(COLLATERAL.tcb_info) == COLLATERAL.tcb_info_signature
    with pytest.raises(AssertionError, match="accepted as UpToDate"):
        get_rejection(RAW, endorsements)
