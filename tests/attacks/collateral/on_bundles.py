"""Attempts on evidence bundles, files of trust anchors, and fetched certificates of TPM keys."""

import json
import os
import pickle
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.simulator import simulated_roots
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.collateral import Collateral
from attestkit.collateral.issuer_fetcher import MAX_REQUESTS, IssuerFetcher
from attestkit.collateral.responses import Response
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    ConfigError,
    FormatError,
    PolicyError,
    SignatureError,
    UsageError,
)
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from attestkit.verifier.evidence.formats import EvidenceBundle
from tests.attacks.attempts import Surfaces
from tests.crypto.x509.test_ak_certificates import Authority
from tests.raising import raises
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW
from tests.verifier.platforms.snp import test_revocation as snp
from tests.verifier.platforms.vtpm.made_tpm import EXTRA
from tests.verifier.tpm import test_ak_collateral as ak

attacks = Surfaces("collateral")

RAW: Final = intel.evidence().to_bytes()
GOOD: Final = EvidenceBundle(RAW, intel.collateral(), NOW, NONCE)
FIELDS: Final[dict[str, Any]] = json.loads(GOOD.to_json())


def verify(bundle: EvidenceBundle, **options: Any) -> AttestationResult:
    """Verify a bundle at the real time of these tests."""
    found = intel.verifier(collateral=None, **options)
    return found.verify_bundle(bundle, report_data=NONCE)


@cache
def accepted() -> None:
    """Verify the unaltered bundle, also after its JSON."""
    verify(GOOD)
    verify(EvidenceBundle.from_json(GOOD.to_json()))


@attacks.attempt("replay", CollateralExpiredError, "crl_expired")
def bundle_of_last_year_at_its_own_time() -> object:
    """The bundle names a time at which its collateral was valid; the clock decides."""
    accepted()
    past = NOW - timedelta(days=400)
    old = replace(GOOD, collateral=intel.PKI.collateral(past.timestamp()), at=past)
    return verify(old)


@attacks.attempt("replay", PolicyError, "report_data")
def bundle_with_its_own_report_data() -> object:
    """Report data in a bundle are never the expected value."""
    accepted()
    evidence = intel.evidence(report_data=b"other".ljust(64, b"\0")).to_bytes()
    return verify(replace(GOOD, evidence=evidence, report_data=b"other"))


@attacks.attempt("forge", SignatureError, "untrusted_root")
def bundle_with_collateral_of_another_pki() -> object:
    """Collateral in a bundle never serves as trust anchor."""
    accepted()
    other = SimulatedPki(bytes(32)).collateral(NOW.timestamp())
    return verify(replace(GOOD, collateral=other))


@attacks.attempt("exhaust")
def bundle_without_collateral_sends_no_request() -> None:
    """A sender must not make the verifier send requests."""
    accepted()
    found = intel.verifier(collateral=None, pccs_url="http://pccs.test", getter=intel.no_network)
    with raises(CollateralError, "missing"):
        found.verify_bundle(replace(GOOD, collateral=None), report_data=NONCE)


JSONS: Final[dict[str, tuple[bytes, str]]] = {
    "evidence twice": (
        GOOD.to_json().encode().replace(b"{", b'{"evidence": "AA==",', 1),
        "duplicate",
    ),
    "a version that is true": (
        json.dumps(FIELDS | {"version": True}).encode(),
        "unsupported_version",
    ),
    "a version of one point zero": (
        json.dumps(FIELDS | {"version": 1.0}).encode(),
        "unsupported_version",
    ),
    "an unknown member": (json.dumps(FIELDS | {"trust_anchor": "x"}).encode(), "unknown_field"),
    "a time without a zone": (
        json.dumps(FIELDS | {"at": "2026-09-21T00:00:00"}).encode(),
        "wrong_value",
    ),
    "a time that is a number": (json.dumps(FIELDS | {"at": 0}).encode(), "wrong_type"),
    "evidence in another alphabet": (
        json.dumps(FIELDS | {"evidence": "_-__"}).encode(),
        "encoding",
    ),
    "no evidence": (json.dumps(FIELDS | {"evidence": ""}).encode(), "wrong_size"),
    "collateral as a list": (json.dumps(FIELDS | {"collateral": []}).encode(), "wrong_type"),
    "UTF-16": (GOOD.to_json().encode("utf-16"), "encoding"),
    "a hundred lists of AMD": (
        json.dumps(FIELDS | {"amd_crls": [b64encode(b"0").decode()] * 100}).encode(),
        "too_many",
    ),
    "a list of a mebibyte": (
        json.dumps(FIELDS | {"amd_crls": [b64encode(bytes(1 << 20)).decode()]}).encode(),
        "wrong_size",
    ),
}


def decode(text: bytes) -> object:
    """Decode a bundle."""
    accepted()
    return EvidenceBundle.from_json(text)


for title, (text, reason) in JSONS.items():
    attacks.add(
        "confuse",
        f"bundle with {title}",
        partial(decode, text),
        FormatError,
        reason,
    )


TWICE: Final = intel.collateral().to_json().rstrip()[:-1] + ', "tcb_info": "{}"}'


@attacks.attempt("confuse", CollateralError, "malformed")
def file_of_collateral_with_two_tcb_infos() -> object:
    """One reader verifies the first, the next one keeps the last."""
    accepted()
    return Collateral.from_json(TWICE)


@attacks.attempt("confuse", CollateralError, "malformed")
def tcb_info_with_two_next_updates() -> object:
    """The second one, which is not signed, would keep the first one in the cache for years."""
    accepted()
    text = intel.collateral().tcb_info[:-1] + ',"nextUpdate":"2099-01-01T00:00:00Z"}'
    return replace(intel.collateral(), tcb_info=text).valid_until


# -- lists of TPM keys in bundles --------------------------------------------------------------


@attacks.attempt("replay", SignatureError, "cert_revoked")
def older_list_in_a_bundle_than_the_relying_party_has() -> object:
    """The verifier's own list revokes the key; that of the bundle does not yet."""
    found = ak.verifier(ak.Server(), *ak.CLEAN)
    found.verify_bundle(ak.bundle(ak.ISSUER.built.der, *ak.CLEAN), report_data=EXTRA)
    own = ak.verifier(ak.Server(), ak.ISSUER.crl(ak.LEAF.serial))
    return own.verify_bundle(ak.bundle(ak.ISSUER.built.der, *ak.CLEAN), report_data=EXTRA)


@attacks.attempt("forge", SignatureError, "crl_bad_signature")
def list_of_another_ca_of_the_same_name() -> object:
    """An empty list that the attacker signed under the issuer's name."""
    impostor = Authority("issuer", Authority("root"))
    listed = (ak.ISSUER.built.der, ak.CLEAN[0], impostor.crl())
    return ak.verifier(ak.Server()).verify_bundle(ak.bundle(*listed), report_data=EXTRA)


def _bundle_of_snp(*lists: bytes) -> object:
    """Verify a bundle of SEV-SNP by a policy that requires no list."""
    found = snp.verifier().verify_bundle(
        snp.bundle(*lists), report_data=snp.REPORT_DATA, now=snp.NOW
    )
    assert "revocation" in found.not_proven
    return found


@attacks.attempt("forge", SignatureError, "crl_bad_signature")
def list_that_revokes_with_an_altered_signature() -> object:
    """A list is damaged, so that it no longer revokes the signer."""
    _bundle_of_snp()
    revoking = snp.crl(snp.ASK)
    return _bundle_of_snp(revoking[:-1] + bytes([revoking[-1] ^ 1]))


@attacks.attempt("forge", SignatureError, "untrusted_root")
def root_of_the_attacker_in_a_bundle() -> object:
    """A certificate beside the evidence is an issuer at most, and never a root."""
    found = Verifier(
        trust_anchor=simulated_roots(bytes(32), "tpm").platform,
        policy=AppraisalPolicy.default().replace(platforms={"tpm"}),
        clock=lambda: ak.NOW,
    )
    chain = (ak.ISSUER.built.der, ak.ROOT.built.der)
    return found.verify_bundle(ak.bundle(*chain), report_data=EXTRA)


# -- fetched certificates ----------------------------------------------------------------------

URLS: Final = {
    "of another host": "http://attacker.test/ca",
    "of a host that ends alike": "http://evilpki.goog/ca",
    "of a host that begins alike": "http://pki.goog.attacker.test/ca",
    "of the metadata service": "http://169.254.169.254/latest",
    "of this machine": "http://localhost/ca",
    "with a user name": "http://pki.goog@attacker.test/ca",
    "with a backslash": "http://attacker.test\\@pki.goog/ca",
    "with another port": "http://pki.goog:8080/ca",
    "of a file": "file://pki.goog/etc/passwd",
    "of another protocol": "gopher://pki.goog/ca",
    "with a letter of another script": "http://pk\u0456.goog/ca",
    "with a line break": "http://pki.goog\r\nHost: attacker.test/ca",
    "with an empty label": "http://.storage.googleapis.com@x/ca",
}


def fetch(url: str) -> object:
    """Request a certificate from an address that a certificate of the evidence names."""
    sent: list[str] = []

    def getter(found: str) -> Response:
        sent.append(found)
        return Response(200, {}, ak.ISSUER.built.der)

    fetcher = IssuerFetcher(getter)
    assert fetcher.session(lambda: None).certificate(("http://pki.goog/ca",))
    try:
        return fetcher.session(lambda: None).certificate((url,))
    finally:
        assert sent == ["http://pki.goog/ca"]


for title, url in URLS.items():
    attacks.add(
        "confuse",
        f"issuer at an address {title}",
        partial(fetch, url),
        CollateralError,
        "fetch_failed",
    )


@attacks.attempt("exhaust", CollateralError, "fetch_failed")
def issuers_without_end() -> object:
    """Each certificate names another one."""
    sent: list[str] = []

    def getter(url: str) -> Response:
        sent.append(url)
        return Response(404, {}, b"")

    session = IssuerFetcher(getter).session(lambda: None)
    try:
        return session.certificate(tuple(f"http://pki.goog/{n}" for n in range(1000)))
    finally:
        assert len(sent) == MAX_REQUESTS


@attacks.attempt("exhaust", CollateralError, "too_large")
def issuer_of_a_megabyte() -> object:
    """Google's certificates have two kilobytes."""
    session = IssuerFetcher(lambda _: Response(200, {}, bytes(1 << 20))).session(lambda: None)
    return session.certificate(("http://pki.goog/ca",))


# -- roots -------------------------------------------------------------------------------------

ROOTS: Final = simulated_roots(intel.SEED)


@attacks.attempt("forge")
def file_of_roots_makes_no_result_genuine() -> None:
    """Results under roots from a file of simulated roots are marked as simulated."""
    found = Verifier(
        trust_anchor=SimulatedRoots.from_json(ROOTS.to_json()),
        collateral=intel.collateral(),
        clock=lambda: NOW,
    ).verify(RAW, report_data=NONCE)
    assert found.simulated


@attacks.attempt("recombine", SignatureError, "untrusted_root")
def root_of_gpus_as_root_of_processors() -> object:
    """The roots of a machine are not interchangeable."""
    assert ROOTS.gpu is not None
    found = Verifier(trust_anchor=ROOTS.gpu[0], collateral=intel.collateral(), clock=lambda: NOW)
    return found.verify(RAW, report_data=NONCE)


@attacks.attempt("confuse", UsageError, "conflict")
def second_root_beside_those_of_a_machine() -> object:
    """Two sources of trust anchors leave open which counts."""
    return Verifier(trust_anchor=ROOTS, ak_roots=[ROOTS.platform])


@attacks.attempt("confuse", FormatError, "duplicate")
def file_of_roots_with_two_roots_of_the_platform() -> object:
    """A reader of JSON keeps the first or the last one."""
    text = ROOTS.to_json().replace(b"{", b'{"platform": "AA==",', 1)
    return SimulatedRoots.from_json(text)


@attacks.attempt("recombine", SignatureError, "untrusted_root")
def pickled_verifier_of_another_machine() -> object:
    """A copy in another process has the roots of its own, and no cache of the first."""
    other = Verifier(trust_anchor=simulated_roots(bytes(32)), collateral=intel.collateral())
    copied = pickle.loads(pickle.dumps(other))
    return copied.verify(RAW, report_data=NONCE, now=NOW)


# -- files -------------------------------------------------------------------------------------


def _load_special(make: Callable[[Path], object], folder: Path) -> None:
    make(folder / "file")
    for load in (EvidenceBundle.load, Collateral.load, AppraisalPolicy.load):
        start = time.monotonic()
        with pytest.raises((UsageError, CollateralError, ConfigError)) as caught:
            load(folder / "file")
        assert caught.value.reason in {"cannot_read", "unreadable"}
        assert time.monotonic() - start < 2


@attacks.attempt("exhaust")
def bundle_collateral_and_policy_that_are_a_pipe(tmp_path: Path) -> None:
    """Opening the pipe would block for ever."""
    _load_special(os.mkfifo, tmp_path)


@attacks.attempt("exhaust")
def bundle_collateral_and_policy_that_are_an_endless_device(tmp_path: Path) -> None:
    """A link to a device without end is not read."""
    _load_special(lambda path: path.symlink_to("/dev/zero"), tmp_path)
