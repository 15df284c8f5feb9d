"""Tinfoil's documents of v2, and the bundles around them."""

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.client.services.service import Claims
from attestkit.client.services.tinfoil.tinfoil import TinfoilBundle
from attestkit.client.services.tinfoil.tinfoil_documents import MAX_EVIDENCE
from attestkit.errors import (
    FormatError,
    ServiceError,
)
from attestkit.testing import SimulatedTee
from tests.client.services.tinfoil.tinfoil_maker import (
    DOMAIN,
    HPKE,
    NONCE,
    NOT_AFTER,
    Enclave,
    b64,
    compact,
    read,
    refusal,
    setting,
    spell,
    without,
)

PLATFORMS: Final = {"sev-snp": "snp", "tdx": "tdx"}


@pytest.fixture(scope="module", params=PLATFORMS)
def enclave(request: pytest.FixtureRequest) -> Iterator[Enclave]:
    """Provide an enclave of each platform."""
    with SimulatedTee(platform=PLATFORMS[request.param]) as tee:
        yield Enclave(tee, request.param)


@pytest.fixture(scope="module")
def snp() -> Iterator[Enclave]:
    """Provide an enclave on SEV-SNP, for tests in which the platform does not matter."""
    with SimulatedTee(platform="snp") as tee:
        yield Enclave(tee, "sev-snp")


def v2_of(body: bytes) -> bytes:
    """Return a document of v2 on SEV-SNP with this body."""
    form = "https://tinfoil.sh/predicate/sev-snp-guest/v2"
    return compact({"format": form, "body": b64(body)}).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"xx", "syntax"),
        (gzip.compress(b"x", mtime=0)[:-1], "truncated"),
        (gzip.compress(b"x", mtime=0), "wrong_size"),
        (gzip.compress(bytes(1184), mtime=0) + b"\0", "trailing_data"),
        (gzip.compress(bytes(MAX_EVIDENCE + 1), mtime=0), "too_large"),
    ],
)
def test_v2_body_is_one_bounded_gzip_stream(snp: Enclave, body: bytes, reason: str) -> None:
    """The body is a report or quote of bounded size, and nothing more."""
    error = refusal(snp, v2_of(body))
    assert (type(error), error.reason) == (FormatError, reason)


def test_v2_without_hpke_key_claims_none(snp: Enclave) -> None:
    """Zeros are not a key of HPKE."""
    report = snp.tee.raw_quote(snp.tls)
    claims = read(snp, v2_of(gzip.compress(report, mtime=0)))
    assert [binding.kind for binding in claims.bindings] == ["tls-spki"]
    snp.verify(claims)


def read_bundle(answer: bytes) -> Claims:
    """Return the claims of a bundle."""
    return TinfoilBundle().read((answer,), NONCE, None, None)


def test_bundle_verifies(enclave: Enclave) -> None:
    """A bundle has the claims of its document; the certificate spells key and document."""
    claims = read_bundle(enclave.bundle())
    assert [binding.key for binding in claims.bindings] == [enclave.tls, HPKE]
    assert claims.freshness == "key possession"
    assert claims.valid_until == NOT_AFTER
    enclave.verify(claims)
    full = enclave.bundle(lambda bundle: bundle.update(vcek=b64(b"\x30\0"), releaseTag="v1"))
    assert read_bundle(full).machines[0].snp_certificates == (b"\x30\0",)
    TinfoilBundle().read((enclave.bundle(),), NONCE, enclave.peer(), None)


def test_every_cut_length_of_a_bundle_is_refused(snp: Enclave) -> None:
    """Each prefix of a bundle is a FormatError."""
    answer = snp.bundle()
    for size in range(len(answer)):
        with pytest.raises(FormatError):
            read_bundle(answer[:size])


def test_bundle_of_another_domain_or_key_is_refused(snp: Enclave) -> None:
    """The bundle is about the domain that was asked for, and the key of the connection."""
    with pytest.raises(ServiceError) as caught:
        TinfoilBundle("other.tinfoil.sh").read((snp.bundle(),), NONCE, None, None)
    assert caught.value.reason == "other_origin"
    peer = snp.peer()._replace(spki=b"other")
    with pytest.raises(ServiceError) as caught:
        TinfoilBundle().read((snp.bundle(),), NONCE, peer, None)
    assert caught.value.reason == "other_key"


def names_of(snp: Enclave) -> list[str]:
    """Return the DNS names of the certificate of a bundle."""
    return list(read_certificate(json.loads(snp.bundle())["enclaveCert"]).alt_names)


@pytest.mark.parametrize(
    "change",
    [
        lambda names: names.remove(DOMAIN),
        lambda names: names.remove(spell(HPKE, "hpke")[0]),
        lambda names: names.remove(spell(HPKE, "hpke")[-1]),
        lambda names: names.append(spell(HPKE, "hpke")[0].replace("00", "09", 1)),
        lambda names: names.append(spell(HPKE, "hpke")[0].replace("tinfoil", "tinfoi", 1)),
        lambda names: names.append("02a.hpke.tinfoil.sh"),
        lambda names: names.append("02aaaaaaaa.hpke.example.com"),
        lambda names: names.__setitem__(slice(1, 3), spell(bytes(32), "hpke")),
        lambda names: names.__setitem__(slice(3, None), spell(b"ab" * 32, "hatt")),
        lambda names: names.__delitem__(slice(3, None)),
    ],
)
def test_bundle_whose_certificate_spells_something_else_is_refused(
    snp: Enclave, change: Callable[[list[str]], object]
) -> None:
    """Domain, HPKE key and document's hash must be the certificate's names, all and in order."""
    names = names_of(snp)
    change(names)
    with pytest.raises(FormatError) as caught:
        read_bundle(snp.bundle(setting("enclaveCert", to=snp.pem(*names))))
    assert caught.value.reason == "inconsistent"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setting("digest", to="AB" * 32), "encoding"),
        (setting("sigstoreBundle", to=[]), "wrong_type"),
        (setting("enclaveCert", to="x"), "syntax"),
        (setting("domain", to=5), "wrong_type"),
        (setting("enclaveAttestationReport", to="x"), "wrong_type"),
        (without("digest"), "missing"),
        (setting("more", to=1), "unknown_field"),
    ],
)
def test_bundle_is_strict(snp: Enclave, change: Any, reason: str) -> None:
    """Members of a bundle have one form each."""
    with pytest.raises(FormatError) as caught:
        read_bundle(snp.bundle(change))
    assert caught.value.reason == reason
