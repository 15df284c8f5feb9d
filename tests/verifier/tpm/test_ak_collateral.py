"""Certificates and CRLs of a TPM's key: fetched, in arguments and in evidence bundles."""

import json
import pickle
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import AuthorityInformationAccessOID

from attestkit._crypto.x509.ak_certificates.path import IssuerMissingError
from attestkit._crypto.x509.cert_path import PathCertificate
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Stack, Tpm
from attestkit.collateral.issuer_fetcher import MAX_REQUESTS
from attestkit.collateral.responses import Response
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    SignatureError,
    UsageError,
)
from attestkit.factory import open as open_attester
from attestkit.verifier import AppraisalPolicy, Verifier, chain_cache
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.crypto.x509.test_ak_certificates import Authority
from tests.pki.certificates import name_of
from tests.raising import raises
from tests.untyped import untyped
from tests.verifier.platforms.vtpm.made_tpm import EXTRA, SPKI, vtpm_quote

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
_URL: Final = b"http://ca.storage.googleapis.com/"
CA_URL, CRL_URL, ROOT_CRL_URL = ((_URL + name).decode() for name in (b"ca", b"cr", b"rt"))


def issuer_at(url: str) -> tuple[str, bytes, bool]:
    """Return authority information access with the URL of the issuer's certificate."""
    name = b"\x86" + bytes([len(url)]) + url.encode()
    entry = b"\x06\x08" + bytes.fromhex("2b06010505073002") + name
    inner = b"\x30" + bytes([len(entry)]) + entry
    return "1.3.6.1.5.5.7.1.1", b"\x30" + bytes([len(inner)]) + inner, False


def crl_at(url: str) -> tuple[str, bytes, bool]:
    """Return CRL distribution points with a URL."""
    found = b"\x86" + bytes([len(url)]) + url.encode()
    for tag in (0xA0, 0xA0, 0x30, 0x30):
        found = bytes([tag, len(found)]) + found
    return "2.5.29.31", found, False


ROOT: Final = Authority("root")
ISSUER: Final = Authority("issuer", ROOT, more=(crl_at(ROOT_CRL_URL),))


def _key(spki: bytes) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def issue_leaf(spki: bytes = SPKI) -> PathCertificate:
    """Return the certificate of a key, which names its issuer and the CRL."""
    more = (issuer_at(CA_URL), crl_at(CRL_URL))
    return ISSUER.issue(ISSUER.name, _key(spki), leaf=True, usages=(), more=more)


LEAF: Final = issue_leaf()
CLEAN: Final = (ROOT.crl(1), ISSUER.crl(2))


def evidence() -> bytes:
    """Return evidence of a TPM whose key has a certificate, without that of its issuer."""
    platform = Tpm(vtpm_quote()._replace(ak_certificates=(LEAF.der,)))
    return Attestation(Evidence(platform, Stack(EXTRA.ljust(64, b"\0"), (), ""))).to_bytes()


class Server:
    """Answers by URL, and the URLs that were requested."""

    def __init__(self) -> None:
        self.pages = {CA_URL: ISSUER.built.der, ROOT_CRL_URL: CLEAN[0], CRL_URL: CLEAN[1]}
        self.requested: list[str] = []

    def __call__(self, url: str) -> Response:
        """Return the answer to a request."""
        self.requested.append(url)
        return Response(200, {}, self.pages[url])


def verifier(server: Callable[[str], Response], *certificates: bytes, **options: Any) -> Verifier:
    """Return a verifier under the root that may fetch."""
    listed = options.pop("trusted_aks", None)
    policy = AppraisalPolicy.default().replace(platforms={"tpm"}, trusted_aks=listed)
    fetch = {"fetch_ak_certificates": True, "clock": lambda: NOW, **options}
    anchor = ROOT.built.der
    return Verifier(
        trust_anchor=anchor, policy=policy, getter=server, ak_certificates=certificates, **fetch
    )


def outcome(found: Any) -> dict[str, str]:
    """Return the outcomes of a result's steps about certificates."""
    return {step.check: step.outcome for step in found.steps}


def bundle(*certificates: bytes) -> EvidenceBundle:
    """Return a bundle with certificates and CRLs."""
    return EvidenceBundle(evidence(), None, NOW, EXTRA, ak_certificates=certificates)


# -- evidence bundles ------------------------------------------------------------------------------


def test_fetched_certificates_in_a_bundle_verify_without_requests() -> None:
    """A bundle with what a verifier fetched verifies offline, and revocation is checked."""
    server, offline = Server(), Server()
    online = verifier(server)
    assert outcome(online.verify(evidence(), report_data=EXTRA))["ak_revocation"] == "passed"
    fetched = online.fetched_ak_certificates()
    assert set(fetched) == {ISSUER.built.der, *CLEAN}
    saved = EvidenceBundle.from_json(bundle(*fetched).to_json())
    assert saved.ak_certificates == fetched
    result = verifier(offline).verify_bundle(saved, report_data=EXTRA)
    assert outcome(result)["ak_revocation"] == "passed"
    assert not offline.requested


def test_a_bundle_without_certificates_sends_no_request() -> None:
    """A verifier that may fetch does not for a bundle, neither in a copy of it."""
    server = Server()
    incomplete, found = bundle(), verifier(server, pccs_url="https://pccs.example")
    with raises(IssuerMissingError, "missing"):
        found.verify_bundle(incomplete, report_data=EXTRA)
    with raises(IssuerMissingError, "missing"):
        found.for_bundle(incomplete).verify(evidence(), report_data=EXTRA)
    # Answers that were fetched before are not used either: the bundle must be complete.
    found.verify(evidence(), report_data=EXTRA)
    count = len(server.requested)
    with raises(IssuerMissingError, "missing"):
        found.verify_bundle(incomplete, report_data=EXTRA)
    without_crls = bundle(ISSUER.built.der)
    result = found.verify_bundle(without_crls, report_data=EXTRA)
    assert outcome(result)["ak_revocation"] == "skipped"
    assert len(server.requested) == count


def test_a_pickled_verifier_of_a_bundle_keeps_its_lists() -> None:
    """A copy in another process has the CRLs of the bundle, and sends no request."""
    revoking = bundle(ISSUER.built.der, ISSUER.crl(LEAF.serial))
    plain = Verifier(
        trust_anchor=ROOT.built.der,
        policy=AppraisalPolicy.default().replace(platforms={"tpm"}),
        fetch_ak_certificates=True,
    )
    copied = pickle.loads(pickle.dumps(plain.for_bundle(revoking)))
    with raises(SignatureError, "cert_revoked"):
        copied.verify(evidence(), report_data=EXTRA, now=NOW)


def test_crls_of_a_bundle_count_where_the_verifier_has_none() -> None:
    """The creator of a bundle can add CRLs, and cannot replace those of the relying party."""
    revoking = ISSUER.crl(LEAF.serial)
    with raises(SignatureError, "cert_revoked"):
        verifier(Server()).verify_bundle(bundle(ISSUER.built.der, revoking), report_data=EXTRA)
    own = verifier(Server(), revoking)
    with raises(SignatureError, "cert_revoked"):
        own.verify_bundle(bundle(ISSUER.built.der, *CLEAN), report_data=EXTRA)
    result = verifier(Server(), *CLEAN).verify_bundle(
        bundle(ISSUER.built.der, revoking), report_data=EXTRA
    )
    assert outcome(result)["ak_revocation"] == "passed"


def test_a_bundle_does_not_override_what_was_fetched() -> None:
    """A key that the verifier knows as revoked stays so, whatever lists the bundle has."""
    server = Server()
    server.pages[CRL_URL] = ISSUER.crl(LEAF.serial)
    found = verifier(server)
    with raises(SignatureError, "cert_revoked"):
        found.verify(evidence(), report_data=EXTRA)
    for lists in ((), CLEAN):
        with raises(SignatureError, "cert_revoked"):
            found.verify_bundle(bundle(ISSUER.built.der, *lists), report_data=EXTRA)


def test_revocation_is_checked_only_with_a_list_of_every_issuer() -> None:
    """A list about the issuer says nothing of the key, also where the key names no list."""
    root = Authority("private root")
    authority = Authority("private issuer", root)
    leaf = authority.issue(name_of("machine"), _key(SPKI), leaf=True, usages=())
    chain = (leaf.der, authority.built.der)
    platform = Tpm(vtpm_quote()._replace(ak_certificates=chain))
    raw = Attestation(Evidence(platform, Stack(EXTRA.ljust(64, b"\0"), (), ""))).to_bytes()
    policy = AppraisalPolicy.default().replace(platforms={"tpm"})
    for lists, expected in (
        ((root.crl(),), "skipped"),
        ((authority.crl(),), "skipped"),
        ((root.crl(), authority.crl()), "passed"),
    ):
        found = Verifier(ak_roots=[root.built.der], ak_certificates=lists, policy=policy)
        result = found.verify(raw, report_data=EXTRA, now=NOW)
        assert outcome(result)["ak_revocation"] == expected


def test_an_expired_or_forged_crl_of_a_bundle_is_refused() -> None:
    """CRLs of a bundle are verified as those of arguments."""
    late = ISSUER.crl(start=NOW - timedelta(days=9))
    with raises(CollateralExpiredError, "crl_expired"):
        verifier(Server()).verify_bundle(bundle(ISSUER.built.der, late), report_data=EXTRA)
    forged = bytearray(CLEAN[1])
    forged[-1] ^= 1
    with raises(SignatureError, "crl_bad_signature"):
        verifier(Server()).verify_bundle(bundle(ISSUER.built.der, bytes(forged)), report_data=EXTRA)


def test_a_malformed_certificate_of_a_bundle_is_refused() -> None:
    """Neither DER nor PEM, and cut certificates are errors of the evidence."""
    der = ISSUER.built.der
    for bad in (b"x", b"\x30\x00", der[:-1], der + b"\0", CLEAN[1][:-1]):
        with pytest.raises(FormatError):
            verifier(Server()).verify_bundle(bundle(bad), report_data=EXTRA)


def test_the_member_of_a_bundle_is_bounded() -> None:
    """A list has 1 to 32 items, and 1 MiB in all; a bundle without any has no member."""
    assert "ak_certificates" not in json.loads(bundle().to_json())
    with raises(UsageError, "too_many"):
        bundle(*[b"x"] * 33)
    with raises(UsageError, "wrong_size"):
        bundle(bytes(1 << 20), b"x")
    with raises(UsageError, "wrong_type"):
        untyped(EvidenceBundle)(b"x", None, NOW, ak_certificates=[b"x"])
    fields = json.loads(bundle(b"x").to_json())
    for value, reason in (([], "wrong_type"), ("eA==", "wrong_type"), (["eA=="] * 33, "too_many")):
        with raises(FormatError, reason):
            EvidenceBundle.from_json(json.dumps(fields | {"ak_certificates": value}))
    with pytest.raises(FormatError, match="ak_certificates"):
        EvidenceBundle.from_json(json.dumps(fields | {"ak_certificates": ["?"]}))


# -- requests of an attacker -----------------------------------------------------------------------


def forged_evidence(urls: Callable[[int], Sequence[str]]) -> tuple[bytes, list[PathCertificate]]:
    """Return evidence with a key that a CA of an attacker certifies, and the certificates of CAs.

    Each certificate names `urls` of its issuer's, which has the given number; that of the key is 0.
    """

    def named(number: int) -> tuple[tuple[str, bytes, bool]]:
        found = x509.AuthorityInformationAccess(
            [
                x509.AccessDescription(
                    AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url)
                )
                for url in urls(number)
            ]
        )
        return (("1.3.6.1.5.5.7.1.1", found.public_bytes(), False),)

    issuers = [Authority("attacker's root")]
    for number in range(5, 0, -1):
        issuers.insert(0, Authority(f"attacker's CA {number}", issuers[0], more=named(number)))
    leaf = issuers[0].issue(name_of("machine"), _key(SPKI), leaf=True, usages=(), more=named(0))
    platform = Tpm(vtpm_quote()._replace(ak_certificates=(leaf.der,)))
    raw = Attestation(Evidence(platform, Stack(EXTRA.ljust(64, b"\0"), (), ""))).to_bytes()
    return raw, [one.built for one in issuers]


def test_forged_tpm_key_causes_16_requests_to_google_at_most() -> None:
    """The certificates of an attacker name what is requested: a bounded number, at Google only."""
    chosen, server = "http://bucket-{}.storage.googleapis.com/{}", Server()
    forged, issuers = forged_evidence(lambda at: [chosen.format(at, one) for one in "abcd"])
    server.pages = {chosen.format(at, "d"): one.der for at, one in enumerate(issuers)}
    requested = server.requested

    def answer(url: str) -> Response:
        if url not in server.pages:
            requested.append(url)
            return Response(404, {}, b"")
        return server(url)

    with raises(CollateralError, "fetch_failed"):
        verifier(answer).verify(forged, report_data=EXTRA)
    assert requested == [chosen.format(at, one) for at in range(4) for one in "abcd"]
    assert len(requested) == MAX_REQUESTS == 16
    elsewhere = ("http://attacker.example/ca", "http://169.254.169.254/", "http://127.0.0.1/")
    forged, _ = forged_evidence(lambda _: elsewhere)
    with raises(CollateralError, "fetch_failed"):
        verifier(answer).verify(forged, report_data=EXTRA)
    with raises(IssuerMissingError, "missing"):
        verifier(answer, fetch_ak_certificates=False).verify(forged, report_data=EXTRA)
    assert len(requested) == MAX_REQUESTS


# -- fetched CRLs ----------------------------------------------------------------------------------


def test_a_crl_of_the_arguments_is_not_fetched() -> None:
    """Only what is missing is fetched: here the issuer's certificate."""
    server = Server()
    found = verifier(server, *CLEAN)
    assert outcome(found.verify(evidence(), report_data=EXTRA))["ak_revocation"] == "passed"
    assert server.requested == [CA_URL]
    server = Server()
    verifier(server, CLEAN[1]).verify(evidence(), report_data=EXTRA)
    assert server.requested == [CA_URL, ROOT_CRL_URL]


def test_an_expired_crl_of_the_arguments_is_fetched_again() -> None:
    """An expired CRL is replaced, but what it lists stays revoked."""
    server, start = Server(), NOW - timedelta(days=9)
    found = verifier(server, ISSUER.crl(start=start))
    assert outcome(found.verify(evidence(), report_data=EXTRA))["ak_revocation"] == "passed"
    assert CRL_URL in server.requested
    with raises(SignatureError, "cert_revoked"):
        verifier(Server(), ISSUER.crl(LEAF.serial, start=start)).verify(
            evidence(), report_data=EXTRA
        )
    with raises(CollateralExpiredError, "crl_expired"):
        verifier(
            Server(), ISSUER.built.der, ISSUER.crl(start=start), fetch_ak_certificates=False
        ).verify(evidence(), report_data=EXTRA)


# -- caches ----------------------------------------------------------------------------------------


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the certificates whose signatures are verified."""
    found: list[str] = []
    check = untyped(chain_cache).check_issued

    def record(named: Any, *rest: Any) -> None:
        check(named, *rest)
        found.append(named[0])

    monkeypatch.setattr(chain_cache, "check_issued", record)
    return found


def test_signatures_of_a_path_are_verified_once_also_for_bundles(signatures: list[str]) -> None:
    """A verifier shares its caches with its bundles, and checks revocation each time."""
    found = verifier(Server())
    for _ in range(2):
        found.verify_bundle(bundle(ISSUER.built.der, *CLEAN), report_data=EXTRA)
        found.verify(evidence(), report_data=EXTRA)
    assert len(signatures) == 2
    for certificate, issuer in ((LEAF, ISSUER), (ISSUER.built, ROOT)):
        with raises(SignatureError, "cert_revoked"):
            found.verify_bundle(
                bundle(ISSUER.built.der, issuer.crl(certificate.serial)), report_data=EXTRA
            )
    with raises(CollateralExpiredError, "cert_expired"):
        found.verify_bundle(
            bundle(ISSUER.built.der, *CLEAN), report_data=EXTRA, now=NOW + timedelta(days=4000)
        )


def test_a_path_that_is_not_valid_is_not_cached() -> None:
    """Certificates of an untrusted root do not fill the cache."""
    other = Authority("root", identifiers=False)
    middle = Authority("issuer", other, identifiers=False)
    key = load_der_public_key(SPKI)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    leaf = middle.issue(middle.name, key, leaf=True, usages=(), identifiers=False)
    certificates = (leaf.der, middle.built.der)
    platform = Tpm(vtpm_quote()._replace(ak_certificates=certificates))
    foreign = Attestation(Evidence(platform, Stack(EXTRA.ljust(64, b"\0"), (), "")))
    found = verifier(Server())
    with raises(SignatureError, "untrusted_root"):
        found.verify(foreign, report_data=EXTRA)
    issued = found._authenticators.ak_chains._cache._issued
    assert len(issued) == 0
    found.verify(evidence(), report_data=EXTRA)
    assert len(issued) == 2


def test_a_kept_path_does_not_hide_another_one_at_another_time() -> None:
    """Of two issuers of one name and key, the same is found as by a new verifier."""
    twin = ISSUER.built
    short = ROOT.issue(ISSUER.name, ISSUER.key.public_key(), days=5)
    leaf = ISSUER.issue(name_of("machine"), _key(SPKI), leaf=True, usages=())
    chain = (leaf.der, short.der, twin.der)
    platform = Tpm(vtpm_quote()._replace(ak_certificates=chain))
    raw = Attestation(Evidence(platform, Stack(EXTRA.ljust(64, b"\0"), (), ""))).to_bytes()
    lists = (ROOT.crl(short.serial, days=3000), ISSUER.crl(days=3000))
    later = NOW + timedelta(days=900)
    warm = verifier(Server(), *lists, fetch_ak_certificates=False)
    assert outcome(warm.verify(raw, report_data=EXTRA, now=later))["ak_revocation"] == "passed"
    for found in (warm, verifier(Server(), *lists, fetch_ak_certificates=False)):
        with raises(SignatureError, "cert_revoked"):
            found.verify(raw, report_data=EXTRA, now=NOW)


# -- listed keys -----------------------------------------------------------------------------------


def test_a_listed_key_with_a_revoked_certificate_is_refused() -> None:
    """A policy that lists a key does not override a CRL; other faults of a certificate are left."""
    options: dict[str, Any] = {"fetch_ak_certificates": False, "trusted_aks": [SPKI]}
    for lists in ((ISSUER.crl(LEAF.serial), CLEAN[0]), (CLEAN[1], ROOT.crl(ISSUER.built.serial))):
        found = verifier(Server(), ISSUER.built.der, *lists, **options)
        with raises(SignatureError, "cert_revoked"):
            found.verify(evidence(), report_data=EXTRA)
    result = verifier(Server(), **options).verify(evidence(), report_data=EXTRA)
    assert outcome(result)["ak_certificate"] == "skipped"
    assert "ak_revocation" in result.not_proven  # the sender may have left certificates out


# -- roots and simulated keys ----------------------------------------------------------------------


def certified_by(root: Authority) -> bytes:
    """Return evidence of a TPM whose key's certificate is issued by a root."""
    leaf = root.issue(name_of("machine"), _key(SPKI), leaf=True, usages=())
    platform = Tpm(vtpm_quote()._replace(ak_certificates=(leaf.der,)))
    return Attestation(Evidence(platform, Stack(EXTRA.ljust(64, b"\0"), (), ""))).to_bytes()


def test_roots_of_the_verifier_replace_those_of_clouds_for_a_tpm_alone() -> None:
    """With `ak_roots`, a key under the trust anchor, in place of Google's root, is refused."""
    other = Authority("another root")
    under_root, under_other = certified_by(ROOT), certified_by(other)
    both = verifier(Server(), ak_roots=[other.built.der])
    assert not both.verify(under_other, report_data=EXTRA).simulated
    with raises(IssuerMissingError, "missing"):
        both.verify(under_root, report_data=EXTRA)
    verifier(Server(), ak_roots=[ROOT.built.der, other.built.der]).verify(
        under_root, report_data=EXTRA
    )
    with raises(IssuerMissingError, "missing"):
        verifier(Server()).verify(under_other, report_data=EXTRA)


@pytest.mark.parametrize("way", ["ak_roots", "trusted_aks", "trust_anchor"])
def test_a_simulated_tpm_is_reported_however_its_key_is_trusted(way: str) -> None:
    """Certificates of the simulator have names that mark the result, and policies can refuse it."""
    with open_attester("simulator", seed=bytes(32), platform="tpm") as tee:
        simulator, evidence = untyped(tee.backend), tee.attest(nonce=b"a nonce!")
    policy = AppraisalPolicy.default().replace(platforms={"tpm"})
    options: dict[str, Any] = {way: simulator.trust_anchor}
    if way == "ak_roots":
        options = {way: [simulator.trust_anchor]}
    elif way == "trusted_aks":
        policy, options = policy.replace(trusted_aks=[simulator.attestation_key]), {}
    assert Verifier(policy=policy, **options).verify(evidence, nonce=b"a nonce!").simulated
    with raises(PolicyError, "simulated"):
        Verifier(policy=policy.replace(refuse_simulated=True), **options).verify(
            evidence, nonce=b"a nonce!"
        )


def test_other_keys_are_not_reported_as_simulated() -> None:
    """A root of the relying party certifies genuine keys, and so does its list."""
    refusing = AppraisalPolicy.default().replace(platforms={"tpm"}, refuse_simulated=True)
    found = Verifier(policy=refusing, ak_roots=[ROOT.built.der], clock=lambda: NOW)
    assert not found.verify(certified_by(ROOT), report_data=EXTRA).simulated
    listed = Verifier(policy=refusing.replace(trusted_aks=[SPKI]), clock=lambda: NOW)
    assert not listed.verify(certified_by(ROOT), report_data=EXTRA).simulated
