"""What bare dcap-qvl accepts and has to be refused: our checks around it close each gap."""

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
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    NOW,
    OTHER,
    PAST,
    PKI,
    RAW,
    ROOT,
    changed,
    collateral,
    enclave,
    pem,
    pki,
    reason,
    refused,
    sign,
    signer,
    tcb_info,
)

ISSUER_CHAINS = ["tcb_info_issuer_chain", "qe_identity_issuer_chain"]
LEAF = PKI.platform().pck_der
BLOCK = "-----BEGIN CERTIFICATE-----"


def accepted_by_dcap_qvl(raw: bytes = RAW, given: Collateral = COLLATERAL, now: int = NOW) -> bool:
    """Tell whether dcap-qvl alone accepts: a gap is one only while it does."""
    return judge(raw, given, ROOT, now).status != REJECT


def test_tcb_info_for_another_pce() -> None:
    """The PCEID of TCB info and PCK certificate must be equal."""
    given = collateral(tcb_info=TcbInfoConfig(pceid=b"\0\1"))
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert type(error) is VerificationError
    assert error.reason == "tcb_info_mismatch"
    assert "PCEID 0001, the PCK certificate has 0000" in str(error)


def test_pce_of_the_platform_differs() -> None:
    """The same gap from the other side: a PCK certificate of another PCE."""
    other = pki(pceid=b"\1\0")
    assert accepted_by_dcap_qvl(enclave(other))
    assert reason(refused(enclave(other))) == "tcb_info_mismatch"


@pytest.mark.parametrize("body", ["tcb_info", "qe_identity"])
def test_a_body_signed_by_the_pck_leaf(body: str) -> None:
    """A platform's own key signs no TCB levels, though it leads to the root."""
    signature = PKI.platform().pck_key.sign(getattr(COLLATERAL, body).encode())
    chain = pem(LEAF, PKI.pck_ca_der, ROOT)
    given = changed(**{f"{body}_issuer_chain": chain, f"{body}_signature": signature})
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert isinstance(error, SignatureError)
    assert error.reason == "chain_length"
    short = changed(**{f"{body}_issuer_chain": pem(LEAF, ROOT)})
    assert reason(refused(RAW, short)) == "unexpected_subject"


@pytest.mark.parametrize("field", ISSUER_CHAINS)
@pytest.mark.parametrize(
    "name",
    ["Somebody", "Intel SGX TCB Signin", "intel sgx tcb signing", "Intel SGX TCB Signing,O=x"],
)
def test_a_body_signed_by_another_name(field: str, name: str) -> None:
    """Under the root only the certificate of the TCB signer's name signs bodies."""
    given = changed(**{field: pem(signer(name), ROOT)})
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert isinstance(error, SignatureError)
    assert error.reason == "unexpected_subject"
    assert "signed by Intel SGX TCB Signing, not by" in str(error)


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
def test_an_issuer_chain_is_two_certificates(field: str, chain: list[bytes]) -> None:
    """A chain of the TCB signer has the signer and the root, no more and no less."""
    given = changed(**{field: pem(*chain)})
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert isinstance(error, SignatureError)
    assert error.reason == "chain_length"
    assert f"not of {len(chain)} certificates" in str(error)


@pytest.mark.parametrize("field", ISSUER_CHAINS)
@pytest.mark.parametrize("label", ["CERTIFICATE", "X509 CERTIFICATE", "ANYTHING"])
def test_no_certificate_hides_in_an_issuer_chain(field: str, label: str) -> None:
    """A block that one reader of PEM passes over and another takes is refused."""
    body = field.removesuffix("_issuer_chain")
    hidden = pem(LEAF).replace("CERTIFICATE", label)
    for text in (
        hidden + pem(PKI.tcb_signing_der, ROOT),
        f"text\n{hidden}" + pem(PKI.tcb_signing_der, ROOT),
        pem(PKI.tcb_signing_der) + hidden + pem(ROOT),
    ):
        signature = PKI.platform().pck_key.sign(getattr(COLLATERAL, body).encode())
        for signed in (signature, getattr(COLLATERAL, f"{body}_signature")):
            given = changed(**{field: text, f"{body}_signature": signed})
            assert reason(refused(RAW, given)) in {"cert_malformed", "chain_length"}


@pytest.mark.parametrize("field", ISSUER_CHAINS)
def test_an_issuer_chain_ends_in_the_anchor(field: str) -> None:
    """A chain that names another root is refused, though its signer leads to ours."""
    given = changed(**{field: pem(PKI.tcb_signing_der, OTHER.root_der)})
    assert accepted_by_dcap_qvl(given=given)
    assert reason(refused(RAW, given)) == "untrusted_root"


def test_the_pck_chain_ends_in_the_anchor() -> None:
    """So is a quote whose chain names another root."""
    raw = enclave(certification=pem(LEAF, PKI.pck_ca_der, OTHER.root_der).encode())
    assert accepted_by_dcap_qvl(raw)
    assert reason(refused(raw)) == "untrusted_root"


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ([LEAF], "chain_length"),
        ([LEAF, PKI.pck_ca_der, ROOT, ROOT], "chain_length"),
        ([PKI.pck_ca_der, LEAF, ROOT], "unexpected_subject"),
        ([ROOT, PKI.pck_ca_der, LEAF], "unexpected_subject"),
        ([PKI.tcb_signing_der, ROOT], "unexpected_subject"),
        ([LEAF, ROOT, PKI.pck_ca_der], "unexpected_subject"),
    ],
    ids=["leaf", "four", "ca-first", "reversed", "signer", "ca-last"],
)
def test_a_pck_chain_is_leaf_authority_and_root(chain: list[bytes], why: str) -> None:
    """In the quote's chain every certificate has its place and its name."""
    error = refused(enclave(certification=pem(*chain).encode()))
    assert isinstance(error, SignatureError)
    assert error.reason == why


@pytest.mark.parametrize("text", [b"", b"garbage", (BLOCK + "\nAAAA\n").encode()])
def test_a_pck_chain_is_certificates(text: bytes) -> None:
    """Something else than certificates in their place breaks the quote's format."""
    error = refused(enclave(certification=text))
    assert isinstance(error, FormatError)
    assert error.reason == "quote_format"


@pytest.mark.parametrize("part", ["root_crl", "pck_crl"])
def test_a_crl_from_the_future(part: str) -> None:
    """A CRL holds from its thisUpdate on."""
    given = collateral(**{part: CrlConfig(this_update=NOW + 1)})
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert isinstance(error, CollateralExpiredError)
    assert error.reason == "crl_expired"
    assert "is valid from 2026-09-21T14:13:21Z" in str(error)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (collateral(tcb_info=TcbInfoConfig(next_update=NOW)), "tcb_info_expired"),
        (collateral(qe_identity=QeIdentityConfig(next_update=NOW)), "qe_identity_expired"),
    ],
    ids=["tcb-info", "qe-identity"],
)
def test_a_body_ends_with_its_second(given: Collateral, why: str) -> None:
    """At nextUpdate a body is not valid any more, as a CRL is not."""
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert isinstance(error, CollateralExpiredError)
    assert error.reason == why
    assert "was valid until 2026-09-21T14:13:20Z" in str(error)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (collateral(tcb_info=TcbInfoConfig(version=4)), "tcb_info_wrong_type"),
        (tcb_info(lambda body: body.update(tcbType=1)), "tcb_info_wrong_type"),
        (collateral(qe_identity=QeIdentityConfig(version=3)), "qe_identity_wrong_type"),
    ],
    ids=["version", "type", "qe-version"],
)
def test_a_body_of_another_version(given: Collateral, why: str) -> None:
    """What a later version means is not known, so it is refused."""
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert type(error) is VerificationError
    assert error.reason == why


@pytest.mark.parametrize("kind", ["sgxtcbcomponents", "tdxtcbcomponents"])
def test_every_level_has_16_components(kind: str) -> None:
    """A level that is not come to is whole too."""
    given = tcb_info(lambda body: body["tcbLevels"][1]["tcb"][kind].pop())
    assert accepted_by_dcap_qvl(given=given)
    error = refused(RAW, given)
    assert isinstance(error, CollateralError)
    assert reason(error) == "tcb_info_malformed"
    assert "level 1 has not 16 components" in str(error)


def test_the_upper_half_of_the_binding() -> None:
    """A QE report whose data go on behind the hash vouches for nothing."""
    binding = sha256(PKI.platform().attestation_key.public_point + bytes(range(32))).digest()
    raw = enclave(qe_report_data=binding + bytes(31) + b"\1")
    assert accepted_by_dcap_qvl(raw)
    with pytest.raises(FormatError) as caught:
        Quote.parse(raw)
    assert caught.value.reason == "qe_binding"


def test_an_expired_root() -> None:
    """The trust anchor itself has dates."""
    old = pki(not_after=PAST)
    assert judge(RAW, COLLATERAL, old.root_der, NOW).status != REJECT
    error = refused(root=old.root_der)
    assert isinstance(error, CollateralExpiredError)
    assert error.reason == "cert_expired"
    assert "the trust anchor is valid from 2020-01-01" in str(error)


def test_signatures_of_the_rightly_named_signer_count() -> None:
    """The checks refuse names, not new certificates: Intel issues its signer anew at times."""
    renewed = signer(validity=Window(PKI.config.not_before, PKI.config.not_after))
    given = changed(tcb_info_issuer_chain=pem(renewed, ROOT))
    assert accepted_by_dcap_qvl(given=given)
    assert sign(COLLATERAL.tcb_info) == COLLATERAL.tcb_info_signature
    with pytest.raises(AssertionError, match="accepted as UpToDate"):
        refused(RAW, given)
