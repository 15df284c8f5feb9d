"""Caches of the engine: warm and cold engines agree, whatever was verified before."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from attestkit._crypto.ecdsa import P256PublicKey
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import Authority, issue_certificate
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import QuoteConfig
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, SignatureError
from attestkit.quote import Quote
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.engine import Dcap
from tests.backends.simulator.simulated_cases import flip_bit
from tests.runner.cases import every_case
from tests.thorough import slow
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    NOW,
    OTHER,
    PKI,
    RAW,
    ROOT,
    TCB_SIGNER,
    create_crl,
    create_enclave_quote,
    create_tcb_info,
    create_td_quote,
    pem,
    replace_collateral,
)
from tests.verifier.dcap.test_vectors import load_cases

SECOND: Final = QuotingEnclave(PKI, "second").quote(TdBody().td10())


def outcome(dcap: Dcap, raw: bytes, collateral: Collateral, now: int = NOW) -> object:
    """Return the result of a verification, or class and reason of its error."""
    try:
        return dcap.authenticate(Quote.parse(raw), collateral, now)
    except AttestKitError as error:
        return type(error), getattr(error, "reason", None)


@pytest.fixture
def count_verifications(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that returns the P-256 verifications since its last call."""
    calls: list[bytes] = []
    verify_der = P256PublicKey.verify_der

    def counting(self: P256PublicKey, signature: bytes, data: bytes) -> None:
        calls.append(signature)
        verify_der(self, signature, data)

    monkeypatch.setattr(P256PublicKey, "verify_der", counting)

    def count() -> int:
        number = len(calls)
        calls.clear()
        return number

    return count


def test_engine_verifies_each_fact_once(count_verifications: Callable[[], int]) -> None:
    """A quote needs as many verifications as there are new facts."""
    dcap = Dcap(ROOT)
    assert count_verifications() == 1  # the trust anchor
    outcome(dcap, RAW, COLLATERAL)
    assert count_verifications() == 9  # nothing known
    outcome(dcap, create_td_quote(report_data=b"\1" * 64), COLLATERAL)
    assert count_verifications() == 1  # another quote
    enclave = QuotingEnclave(PKI, config=QuoteConfig(qe_auth_data=b"other"))
    outcome(dcap, enclave.quote(TdBody().td10()), COLLATERAL)
    assert count_verifications() == 2  # another QE report
    outcome(dcap, RAW, create_tcb_info(evaluation_number=19))
    assert count_verifications() == 2  # other TCB info
    outcome(dcap, SECOND, COLLATERAL)
    assert count_verifications() == 3  # another platform


def test_evaluation_is_that_of_enclave_and_not_of_its_key() -> None:
    """QE reports that differ in their report data share an evaluation; other reports do not."""
    dcap = Dcap(ROOT)
    expected = outcome(dcap, RAW, COLLATERAL)
    assert outcome(dcap, create_enclave_quote(qe_auth_data=b"other"), COLLATERAL) == expected
    assert (len(dcap._enclaves), len(dcap._evaluations)) == (2, 1)
    newer = create_enclave_quote(qe_isvsvn=9)
    assert outcome(dcap, newer, COLLATERAL) == outcome(Dcap(ROOT), newer, COLLATERAL)
    assert (len(dcap._enclaves), len(dcap._evaluations)) == (3, 2)


def test_precheck_is_known_to_verification(count_verifications: Callable[[], int]) -> None:
    """Signatures verified before a fetch are not verified again after it."""
    dcap = Dcap(ROOT)
    dcap.precheck(Quote.parse(RAW), None, NOW)
    assert count_verifications() == 1 + 4  # anchor; PCK CA, PCK certificate, QE report, quote
    outcome(dcap, RAW, COLLATERAL)
    assert count_verifications() == 6


REVOKED: Final = {
    "leaf": create_crl("pck_crl", revoked=("platform/0/pck-leaf",)),
    "PCK CA": create_crl("root_crl", revoked=("pck-platform-ca",)),
    "signer": create_crl("root_crl", revoked=("tcb-signing",)),
    "root": create_crl("root_crl", revoked=("root-ca",)),
}


@every_case("revoked", REVOKED)
def test_certificate_revoked_between_two_quotes(revoked: str) -> None:
    """A newer CRL applies to a platform that was accepted before."""
    dcap = Dcap(ROOT)
    accepted = outcome(dcap, RAW, COLLATERAL)
    for _ in range(2):
        assert outcome(dcap, RAW, REVOKED[revoked])[1] == "cert_revoked"  # type: ignore[index]
        assert outcome(dcap, RAW, COLLATERAL) == accepted


def test_validity_is_checked_for_known_collateral() -> None:
    """Collateral and platform that were accepted before are rejected before and after validity."""
    dcap = Dcap(ROOT)
    outcome(dcap, RAW, COLLATERAL)
    for now in (0, int(COLLATERAL.valid_from.timestamp()) - 1):
        assert outcome(dcap, RAW, COLLATERAL, now) == outcome(Dcap(ROOT), RAW, COLLATERAL, now)
    late = int(COLLATERAL.valid_until.timestamp())
    assert outcome(dcap, RAW, COLLATERAL, late)[1] == "crl_expired"  # type: ignore[index]
    assert outcome(dcap, RAW, COLLATERAL, late - 1) == outcome(Dcap(ROOT), RAW, COLLATERAL)


def test_rejections_are_not_cached() -> None:
    """Evidence that was rejected leaves nothing in the caches, and others are still accepted."""
    dcap = Dcap(ROOT)
    accepted = outcome(Dcap(ROOT), RAW, COLLATERAL)
    altered = [
        (flip_bit(RAW, offset, 0), COLLATERAL) for offset in (60, 640, 710, 800, 1160, 1225, 3000)
    ]
    altered += [(RAW, replace_collateral(tcb_info_signature=b"\1" * 64))]
    altered += [(RAW, replace_collateral(pck_crl=flip_bit(COLLATERAL.pck_crl, 60, 0)))]
    for raw, collateral in altered:
        assert not isinstance(outcome(dcap, raw, collateral), Authenticated)
    sizes = len(dcap._enclaves), len(dcap._evaluations), len(dcap._chains._platforms)
    assert sizes == (1, 0, 1)  # platform and QE report of the altered quote body
    assert outcome(dcap, RAW, COLLATERAL) == accepted


def issue(authority: Authority, path_length: int | None, serial: int = 0x4100_0000_0000) -> bytes:
    """Return another certificate that the root of the PKI issued."""
    return issue_certificate(
        authority,
        PKI._root,
        serial=serial,
        validity=Window(PKI.config.not_before, PKI.config.not_after),
        crl_url="https://pcs.attestkit.invalid/IntelSGXRootCA.der",
        path_length=path_length,
    )


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_verified_body_is_not_that_of_another_signer(part: str) -> None:
    """A signature counts for the certificate that it was verified with only."""
    other = issue(Authority(TCB_SIGNER, PKI.key("another-signer")), None)
    wrong = replace_collateral(**{f"{part}_issuer_chain": pem(other, ROOT)})
    dcap = Dcap(ROOT)
    assert not isinstance(outcome(dcap, RAW, COLLATERAL)[1], str)  # type: ignore[index]
    warm = outcome(dcap, RAW, wrong)
    assert warm == outcome(Dcap(ROOT), RAW, wrong)
    assert warm == (SignatureError, f"{part}_bad_signature")


def test_renewed_pck_ca_is_accepted_until_it_is_revoked() -> None:
    """A CA with two certificates has one CRL; each certificate can be revoked by the root."""
    renewed, serial = issue(PKI._pck_ca, 0), 0x4100_0000_0000
    chain = pem(PKI.platform().pck_der, renewed, ROOT).encode()
    raw = create_enclave_quote(certification=chain)
    dcap = Dcap(ROOT)
    accepted = outcome(dcap, raw, COLLATERAL)
    assert not isinstance(accepted[1], str)  # type: ignore[index]
    revoked = create_crl("root_crl", revoked=(serial,))
    assert outcome(dcap, raw, revoked) == (SignatureError, "cert_revoked")
    assert not isinstance(outcome(dcap, RAW, revoked)[1], str)  # type: ignore[index]
    assert outcome(dcap, raw, COLLATERAL) == accepted


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "pck_crl"])
def test_chains_with_two_certificates_of_the_root_are_rejected(part: str) -> None:
    """Chains of one collateral end in one certificate, also if another has the key of the root."""
    root = issue(PKI._root, 1)
    issuer = PKI.pck_ca_der if part == "pck_crl" else PKI.tcb_signing_der
    wrong = replace_collateral(**{f"{part}_issuer_chain": pem(issuer, root)})
    assert outcome(Dcap(ROOT), RAW, wrong) == (SignatureError, "untrusted_root")


def test_collateral_of_other_root_is_never_used() -> None:
    """Two engines share nothing: each rejects what only the other accepted."""
    first, second = Dcap(ROOT), Dcap(OTHER.root_der)
    theirs = QuotingEnclave(OTHER).quote(TdBody().td10()), OTHER.collateral(NOW)
    for _ in range(2):
        assert outcome(first, *theirs)[1] == "untrusted_root"  # type: ignore[index]
        assert outcome(second, RAW, COLLATERAL)[1] == "untrusted_root"  # type: ignore[index]
        assert not isinstance(outcome(first, RAW, COLLATERAL)[1], str)  # type: ignore[index]
        outcome(second, *theirs)


def test_certificate_is_not_used_in_another_place() -> None:
    """A certificate that was verified as PCK CA does not sign TCB info, and the reverse."""
    dcap = Dcap(ROOT)
    outcome(dcap, RAW, COLLATERAL)
    authority = pem(PKI.pck_ca_der, ROOT)
    found = outcome(dcap, RAW, replace_collateral(tcb_info_issuer_chain=authority))
    assert found[1] == "unexpected_subject"  # type: ignore[index]
    signer = pem(PKI.tcb_signing_der, ROOT)
    found = outcome(dcap, RAW, replace_collateral(pck_crl_issuer_chain=signer))
    assert found[1] == "unexpected_subject"  # type: ignore[index]


def test_large_collateral_is_not_cached() -> None:
    """Collateral over 256 KiB is verified each time, and leaves no evaluation, either."""
    dcap = Dcap(ROOT)
    large = create_crl("pck_crl", revoked=tuple(f"other/{n}" for n in range(9000)))
    assert large.size > 256 << 10
    for _ in range(2):
        assert outcome(dcap, RAW, large) == outcome(Dcap(ROOT), RAW, COLLATERAL)
    collaterals = dcap._collateral
    sizes = [len(collaterals._collaterals), len(collaterals._crls), len(collaterals._tcb_infos)]
    assert [*sizes, len(dcap._evaluations)] == [0, 0, 0, 0]


def test_unverified_chain_in_collateral_is_no_key() -> None:
    """An unverified PCK chain in collateral does not become part of a cache key."""
    dcap = Dcap(ROOT)
    for number in range(3):
        outcome(dcap, RAW, replace(COLLATERAL, pck_certificate_chain=f"{number}"))
    assert len(dcap._collateral._collaterals) == 1


CRLF, LF = "\r\n", "\n"


def with_line_ends(end: str, *certificates: bytes) -> bytes:
    """Return certificates in PEM with these line ends."""
    return pem(*certificates).replace("\n", end).encode()


LEAF, AUTHORITY = PKI.platform().pck_der, PKI.pck_ca_der
FIRST: Final = with_line_ends(CRLF, LEAF)
CHAINS: Final = {
    "mixed": FIRST + with_line_ends(LF, AUTHORITY, ROOT),
    "without CA": with_line_ends(LF, LEAF, ROOT),
    "two CAs": FIRST + with_line_ends(LF, AUTHORITY, AUTHORITY, ROOT),
    "junk": FIRST + b"junk\n" + with_line_ends(LF, ROOT),
    "blank line": with_line_ends(LF, LEAF) + b"\n" + with_line_ends(LF, AUTHORITY, ROOT),
    "CRLF": with_line_ends(CRLF, LEAF, AUTHORITY, ROOT),
}


def test_chains_have_same_outcome_warm_and_cold() -> None:
    """Line ends are not signed: they must not complete a chain with parts of another one."""
    dcap = Dcap(ROOT)
    quotes = {name: create_enclave_quote(certification=chain) for name, chain in CHAINS.items()}
    cold = {name: outcome(Dcap(ROOT), raw, COLLATERAL) for name, raw in quotes.items()}
    for name in (*quotes, *reversed(quotes)):
        assert outcome(dcap, quotes[name], COLLATERAL) == cold[name], name
    accepted = {name for name, found in cold.items() if found == outcome(dcap, RAW, COLLATERAL)}
    assert accepted == {"mixed", "blank line", "CRLF"}


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("seed", [0, *slow((1,), (2,))])
def test_warm_engines_agree_with_vectors(seed: int) -> None:
    """One engine per root gives each vector's outcome, in any order and repeatedly."""
    cases: list[tuple[Any, dict[str, Any]]] = [
        (parameter.values[0], parameter.values[1])
        for name in ("dcap", "simulated-pki")
        for parameter in load_cases(name)
    ]
    order = cases * 2
    random.Random(seed).shuffle(order)
    engines: dict[bytes, Dcap] = {}
    for folder, case in order:
        root = (folder / case["root"]).read_bytes()
        dcap = engines.setdefault(root, Dcap(root))
        raw = (folder / case["quote"]).read_bytes()
        collateral = Collateral.load(folder / case["collateral"])
        warm = outcome(dcap, raw, collateral, case["now"])
        assert warm == outcome(Dcap(root), raw, collateral, case["now"]), case["id"]
