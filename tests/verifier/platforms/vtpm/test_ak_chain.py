"""Certificates of TPM keys from evidence, arguments and fetches."""

from collections.abc import Callable, Iterator
from datetime import datetime, timezone

import pytest

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import GcpTdx
from attestkit.collateral.issuer_fetcher import MAX_REQUESTS, IssuerFetcher
from attestkit.collateral.responses import Response
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    SignatureError,
    UsageError,
)
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)
COMPOSED = "vtpm/composed/gcp-tdx/"
HOSTS = ("ca.invalid",)
GOOGLE_CRL = "vtpm/gcp/salrashid123/intermediate.crl"  # of another issuer

pytestmark = needs_shared


def composed(name: str) -> bytes:
    """Return a file of the composed evidence."""
    return data(COMPOSED + name)


def der(name: str) -> bytes:
    """Return the certificate in a PEM file of the composed evidence."""
    return split_pem(composed(name).decode())[0]


def ak_certificate() -> bytes:
    """Return the AK certificate of the composed evidence."""
    platform = Attestation.from_bytes(composed("good.v1.bin")).evidence.platform
    assert isinstance(platform, GcpTdx)
    return platform.tpm_quote.ak_cert


class Server:
    """Answers of a web server by URL, and the URLs that were requested."""

    def __init__(self, crl: str = "root.crl") -> None:
        self.pages = {
            "http://ca.invalid/intermediate.crt": composed("intermediate.pem"),
            "http://ca.invalid/root.crt": der("root.pem"),
            "http://ca.invalid/root.crl": composed(crl),
        }
        self.requested: list[str] = []

    def __call__(self, url: str) -> Response:
        """Return the answer to a request."""
        self.requested.append(url)
        body = self.pages.get(url)
        return Response(404 if body is None else 200, {}, body or b"")


class Clock:
    """A monotonic clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def chains(getter: Callable[[str], Response] | None = None, *certificates: bytes) -> AkChains:
    """Return chains under the composed root."""
    fetcher = None if getter is None else IssuerFetcher(getter, hosts=HOSTS)
    return AkChains(der("root.pem"), certificates=certificates, fetcher=fetcher)


def verify(found: AkChains, **options: object) -> list[tuple[str, str]]:
    """Return check and outcome of each step for the composed certificate."""
    verified = found.verify(ak_certificate(), found.google, NOW, **options)  # type: ignore[arg-type]
    return [(step.check, step.outcome) for step in verified.steps]


PASSED = [("ak_certificate", "passed"), ("ak_revocation", "passed")]
UNREVOKED = [("ak_certificate", "passed"), ("ak_revocation", "skipped")]


def test_issuers_of_arguments_and_of_the_evidence_are_equivalent() -> None:
    """The intermediate may come from either; without a CRL revocation is not proven."""
    assert verify(chains(None, composed("intermediate.pem"))) == UNREVOKED
    assert verify(chains(), beside=[der("intermediate.pem")]) == UNREVOKED
    with pytest.raises(CollateralError) as caught:
        verify(chains())
    assert caught.value.reason == "missing"


def test_a_crl_of_the_arguments_counts() -> None:
    """A CRL that lists no certificate passes the step, one that does refuses the key."""
    assert verify(chains(None, composed("intermediate.pem"), composed("root.crl"))) == PASSED
    text = composed("intermediate.pem") + composed_pem("root.crl")
    assert verify(chains(None, text)) == PASSED
    revoking = chains(None, der("intermediate.pem"), composed("root-revokes-intermediate.crl"))
    with pytest.raises(SignatureError) as caught:
        verify(revoking)
    assert caught.value.reason == "cert_revoked"


def composed_pem(name: str) -> bytes:
    """Return a CRL of the composed evidence in PEM."""
    from attestkit._crypto.pem import encode_pem

    return encode_pem("X509 CRL", composed(name)).encode()


def test_issuer_and_crl_are_fetched_once_from_the_addresses_of_the_certificates() -> None:
    """Verified answers are cached."""
    server = Server()
    found = chains(server)
    assert verify(found) == PASSED
    assert server.requested == [
        "http://ca.invalid/intermediate.crt",
        "http://ca.invalid/root.crl",
    ]
    assert verify(found) == PASSED
    assert len(server.requested) == 2
    with pytest.raises(SignatureError) as caught:
        verify(chains(Server("root-revokes-intermediate.crl")))
    assert caught.value.reason == "cert_revoked"


def test_lists_of_other_roots_are_not_fetched() -> None:
    """The lists of a private CA are at hosts that are never asked, and its keys stay usable."""
    server = Server()
    fetcher = IssuerFetcher(server, hosts=HOSTS)
    found = AkChains(
        roots=[der("root.pem")], certificates=[composed("intermediate.pem")], fetcher=fetcher
    )
    verified = found.verify(ak_certificate(), found.others, NOW)
    assert [(step.check, step.outcome) for step in verified.steps] == UNREVOKED
    assert not server.requested


def test_only_allowed_hosts_are_asked() -> None:
    """An address in a certificate that is not verified yet reaches Google's hosts only."""
    server = Server()
    by_default = AkChains(der("root.pem"), fetcher=IssuerFetcher(server))
    with pytest.raises(CollateralError) as caught:
        verify(by_default)
    assert caught.value.reason == "fetch_failed"
    assert not server.requested
    allowed = ["http://pki.goog/a", "https://x.storage.googleapis.com/a/b.crt"]
    refused = [
        "http://pki.goog:8080/a",
        "http://a@pki.goog/",
        "http://pki.goog.evil/",
        "http://xpki.goog/",
        "http://storage.googleapis.com.evil/",
        "http://evilstorage.googleapis.com/",
        "ftp://pki.goog/",
        "http://[",
        "http://169.254.169.254/",
        "http:///pki.goog",
        "http://evil.example\\.storage.googleapis.com/",
        "http://evil.example;.storage.googleapis.com/",
    ]
    asked: list[str] = []

    def note(url: str) -> Response:
        asked.append(url)
        return Response(200, {}, b"x")

    for url in allowed:
        assert IssuerFetcher(note).get(url, 100) == b"x"
    for url in refused:
        with pytest.raises(CollateralError):
            IssuerFetcher(note).get(url, 100)
    assert asked == allowed


@every_case(
    ("url", "body", "reason"),
    [
        ("intermediate.crt", b"text", "cert_malformed"),
        ("intermediate.crt", b"-----BEGIN CERTIFICATE-----\n", "cert_malformed"),
        ("intermediate.crt", bytes(16_385), "too_large"),
        ("intermediate.crt", None, "fetch_failed"),
        ("root.crl", b"text", "crl_malformed"),
        ("root.crl", GOOGLE_CRL, "missing"),
        ("root.crl", None, "fetch_failed"),
    ],
)
def test_a_bad_answer_refuses_the_key_and_is_soon_replaced(
    url: str, body: bytes | str | None, reason: str
) -> None:
    """Fetched data must load, and be of the issuer; errors are cached for a minute only."""
    server, clock = Server(), Clock()
    fetcher = IssuerFetcher(server, hosts=HOSTS, timer=clock)
    found = AkChains(der("root.pem"), fetcher=fetcher)
    good = server.pages[f"http://ca.invalid/{url}"]
    if body is None:
        del server.pages[f"http://ca.invalid/{url}"]
    else:
        page = data(body) if isinstance(body, str) else body
        server.pages[f"http://ca.invalid/{url}"] = page
    for _ in range(2):
        with pytest.raises(CollateralError) as caught:
            verify(found)
        assert caught.value.reason == reason
    assert server.requested.count(f"http://ca.invalid/{url}") == 1
    server.pages[f"http://ca.invalid/{url}"] = good
    clock.now += 61
    assert verify(found) == PASSED
    count = len(server.requested)
    clock.now += 3500
    assert verify(found) == PASSED
    assert len(server.requested) == count
    clock.now += 101
    assert verify(found) == PASSED
    assert len(server.requested) == count + 2


def test_requests_of_one_verification_are_limited_in_number_and_time() -> None:
    """A chain of certificates cannot make the verifier send requests without end."""
    clock = Clock()

    def slow(url: str) -> Response:
        clock.now += 10.0
        return Response(200, {}, url.encode())

    session = IssuerFetcher(slow, hosts=HOSTS, timer=clock).session(lambda: None)
    for at in range(3):
        session.certificate((f"http://ca.invalid/{at}",))
    with pytest.raises(CollateralError, match="30 s"):
        session.certificate(("http://ca.invalid/3",))
    session = IssuerFetcher(Server(), hosts=HOSTS).session(lambda: None)
    for at in range(MAX_REQUESTS):
        with pytest.raises(CollateralError, match="404"):
            session.crl((f"http://ca.invalid/{at}",))
    with pytest.raises(CollateralError, match="16 requests"):
        session.crl(("http://ca.invalid/last",))


def test_a_function_before_the_request_can_forbid_it() -> None:
    """Callers that must not wait see that a request is needed, and cached answers still count."""
    server = Server()
    found = chains(server)

    def forbid() -> None:
        raise CollateralError("not now", reason="fetch_needed")

    with pytest.raises(CollateralError) as caught:
        verify(found, before_fetch=forbid)
    assert caught.value.reason == "fetch_needed"
    assert not server.requested
    verify(found)
    assert verify(found, before_fetch=forbid) == PASSED


def test_no_request_is_needed_where_none_may_be_sent() -> None:
    """An address that is never requested is not one for which the caller must wait."""
    asked: list[str] = []
    session = IssuerFetcher(Server()).session(lambda: asked.append("before"))
    for _ in range(MAX_REQUESTS + 1):
        with raises(CollateralError, "fetch_failed"):
            session.certificate(("http://ca.invalid/intermediate.crt",))
    assert not asked


def test_google_does_not_trust_the_composed_root() -> None:
    """Without trust anchor only Google's roots count."""
    google = AkChains(certificates=[der("intermediate.pem"), der("root.pem")])
    with pytest.raises(SignatureError) as caught:
        verify(google)
    assert caught.value.reason == "untrusted_root"
    assert "trust anchor" in str(caught.value)


def test_an_expired_path_is_refused() -> None:
    """The time of the verification counts, not that of the machine."""
    found = chains(None, der("intermediate.pem"))
    with pytest.raises(CollateralExpiredError) as caught:
        found.verify(ak_certificate(), found.google, datetime(2055, 1, 1, tzinfo=timezone.utc))
    assert caught.value.reason == "cert_expired"


def test_each_changed_byte_of_the_certificate_is_refused() -> None:
    """The AK certificate of evidence is signed as a whole."""
    found, certificate = chains(None, der("intermediate.pem")), ak_certificate()
    for at in range(len(certificate)):
        changed = certificate[:at] + bytes([certificate[at] ^ 4]) + certificate[at + 1 :]
        with pytest.raises(AttestKitError):
            found.verify(changed, found.google, NOW)


def changes(crl: bytes) -> Iterator[bytes]:
    """Yield copies of a CRL of which each byte has one bit changed."""
    for at in range(len(crl)):
        yield crl[:at] + bytes([crl[at] ^ 1 << at % 8]) + crl[at + 1 :]


@pytest.mark.slow
def test_each_changed_byte_of_a_fetched_crl_is_refused() -> None:
    """A list is signed as a whole; one with another name is not of the issuer."""
    server = Server()
    for changed in changes(composed("root-revokes-intermediate.crl")):
        server.pages["http://ca.invalid/root.crl"] = changed
        with pytest.raises((CollateralError, SignatureError)) as caught:
            verify(chains(server))
        assert caught.value.reason in {"crl_malformed", "crl_bad_signature", "missing"}


def test_each_changed_byte_of_a_crl_of_the_arguments_is_refused() -> None:
    """A changed list is an error; one with another name is of another issuer, and not used."""
    crl, issuer = composed("root.crl"), der("intermediate.pem")
    name = read_path_certificate(DerReader(der("root.pem")).whole(SEQUENCE)).subject
    of_name = range(crl.index(name), crl.index(name) + len(name))
    unused = []
    for at, changed in enumerate(changes(crl)):
        try:
            steps = verify(chains(None, issuer, changed))
        except (UsageError, SignatureError):
            continue
        assert steps == UNREVOKED
        unused.append(at)
    assert unused
    assert all(at in of_name for at in unused)


def test_malformed_arguments_are_errors_of_the_caller() -> None:
    """Roots, certificates and CRLs are checked when they are given."""
    for options in ({"roots": [b"x"]}, {"certificates": [b"-----BEGIN X"]}):
        with pytest.raises(UsageError):
            AkChains(None, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        AkChains(certificates=[composed("root.crl")[:-1]])
    with pytest.raises(SignatureError) as caught:
        verify(chains(), beside=[der("intermediate.pem")] * 9)
    assert caught.value.reason == "chain_length"
