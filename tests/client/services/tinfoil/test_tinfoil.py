"""Tinfoil's documents of every generation about simulated TEEs: read, verified, and refused."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from attestkit._crypto.pem import split_pem
from attestkit.client.services.tinfoil.tinfoil import ROUTER, Tinfoil, TinfoilBundle
from attestkit.errors import (
    FormatError,
    ServiceError,
    UsageError,
    VerificationError,
)
from attestkit.testing import SimulatedTee
from tests.client.services.tinfoil.tinfoil_maker import (
    HPKE,
    NONCE,
    NOT_AFTER,
    Enclave,
    changed,
    compact,
    leaves,
    other_digit,
    read,
    refusal,
    replace_leaf,
    setting,
    without,
)
from tests.runner.cases import every_case

if TYPE_CHECKING:
    from attestkit.client.services.service import Service

PLATFORMS: Final = {"sev-snp": "snp", "tdx": "tdx"}
OPTIONAL: Final = {"collateral"}  # which an answer may lack
GENERATIONS: Final = ("v2", "june", "august")


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


@pytest.mark.parametrize("generation", GENERATIONS)
def test_document_of_each_generation_verifies(enclave: Enclave, generation: str) -> None:
    """The claims have both keys, and evidence that verifies over the report data."""
    claims = read(enclave, getattr(enclave, generation)())
    keys = {binding.kind: binding.key for binding in claims.bindings}
    assert list(keys) == ["tls-spki", "hpke"]
    assert keys == {"tls-spki": enclave.tls, "hpke": HPKE}
    assert claims.freshness == ("key possession" if generation == "v2" else "nonce")
    assert claims.valid_until == (NOT_AFTER if generation == "june" else None)
    assert any("nonce" in gap for gap in claims.not_proven) == (generation == "v2")
    enclave.verify(claims)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_document_without_a_peer_names_its_key(snp: Enclave, generation: str) -> None:
    """Read apart, the key of the document is claimed, for a comparison on each connection."""
    answer = getattr(snp, generation)()
    claims = Tinfoil("enclave.example").read((answer,), NONCE, None, None)
    assert claims.bindings[0].key == snp.tls
    assert claims.bindings[0].is_of == "server"
    assert Tinfoil().read((answer,), NONCE, None, None).bindings[0].is_of == "router"
    snp.verify(claims)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_document_on_another_connection_is_refused(snp: Enclave, generation: str) -> None:
    """A relay with genuine evidence of another server has another key."""
    relay = snp.peer()._replace(spki=snp.spki + b"\0")
    with pytest.raises(ServiceError) as caught:
        Tinfoil().read((getattr(snp, generation)(),), NONCE, relay, None)
    assert caught.value.reason == "other_key"


@pytest.mark.parametrize("generation", ["june", "august"])
def test_document_for_another_nonce_is_refused(snp: Enclave, generation: str) -> None:
    """An old document has an old nonce; if only the echo is new, the report data are old."""
    answer = getattr(snp, generation)()
    with pytest.raises(ServiceError) as caught:
        Tinfoil().read((answer,), bytes(32), snp.peer(), None)
    assert caught.value.reason == "nonce_echo"


def test_replayed_report_under_a_new_nonce_does_not_verify(snp: Enclave) -> None:
    """The nonce counts in the signed bytes: a document that is signed anew shows nothing."""
    new = bytes(32)
    answer = snp.june(setting("report_data", "nonce", to=new.hex()))
    claims = Tinfoil().read((answer,), new, snp.peer(), None)
    with pytest.raises(VerificationError) as caught:
        snp.verify(claims)
    assert caught.value.reason == "report_data"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_cut_length_is_refused(snp: Enclave, generation: str) -> None:
    """Each prefix of a document is a FormatError."""
    answer = getattr(snp, generation)().rstrip(b"\n")
    for size in range(len(answer)):
        with pytest.raises(FormatError):
            read(snp, answer[:size])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_changed_text_is_refused(enclave: Enclave, generation: str) -> None:
    """No text of a document can be changed."""
    answer = getattr(enclave, generation)()
    for path in leaves(json.loads(answer)):
        document = json.loads(answer)
        replace_leaf(document, path, other_digit)
        refusal(enclave, compact(document).encode())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_members_are_exact(snp: Enclave, generation: str) -> None:
    """A member more, less, twice, or in other letters is refused, at every level."""
    answer = getattr(snp, generation)().decode()
    document = json.loads(answer)
    for path in ((), *((name,) for name in document if isinstance(document[name], dict))):
        for name in set(document if not path else document[path[0]]) - OPTIONAL:
            fewer = changed(answer, without(*path, name))
            assert refusal(snp, fewer).reason in {"missing", "unsupported"}
        more = changed(answer, setting(*path, "more", to=1))
        assert refusal(snp, more).reason == "unknown_field"
    double = answer.replace('"format":', '"format":"x","format":', 1).encode()
    assert refusal(snp, double).reason == "duplicate"
    upper = answer.replace('"format":', '"Format":', 1).encode()
    assert refusal(snp, upper).reason == "missing"
    assert refusal(snp, answer.encode() + b"{}").reason == "syntax"


# -- the services ----------------------------------------------------------------------------------


def test_services_fit_the_protocol() -> None:
    """Both are services; the bundle comes from a server of its own."""
    services: tuple[Service, ...] = (Tinfoil(), TinfoilBundle())
    assert [(service.name, service.where) for service in services] == [
        ("tinfoil", "wire"),
        ("tinfoil-bundle", "apart"),
    ]
    [question] = services[0].questions(NONCE, "model")
    assert question.target == f"/.well-known/tinfoil-attestation?nonce={NONCE.hex()}"
    [question] = services[1].questions(NONCE, None)
    assert (question.origin, question.target) == ("https://atc.tinfoil.sh", "/attestation")


@every_case(
    ("host", "known"),
    [
        (ROUTER, True),
        ("GEMMA4-31b-1.inf10.tinfoil.sh.", True),
        ("a.containers.tinfoil.dev", True),
        ("tinfoil.sh", True),
        ("nottinfoil.sh", False),
        ("tinfoil.sh.example.com", False),
        ("", False),
    ],
)
def test_hosts_of_tinfoil(host: str, known: bool) -> None:
    """Hosts below the domains of Tinfoil are recognized, and no others."""
    assert Tinfoil().recognizes(host) == known
    assert not TinfoilBundle().recognizes(host)


def test_wrong_arguments_are_usage_errors(snp: Enclave) -> None:
    """There is one answer, and a nonce has 32 bytes."""
    for call in (
        lambda: Tinfoil().read((), NONCE, None, None),
        lambda: Tinfoil().read((snp.v2(), snp.v2()), NONCE, None, None),
        lambda: Tinfoil().read((snp.v2(),), b"", None, None),
        lambda: Tinfoil().questions(b"", None),
    ):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize(
    ("host", "names", "role"),
    [
        (ROUTER, ("a",), "router"),
        (f"{ROUTER.upper()}.", ("a",), "router"),
        (f"eu.{ROUTER}", ("a",), "router"),
        ("model.inf10.tinfoil.sh", (ROUTER, "a"), "router"),
        ("model.inf10.tinfoil.sh", ("a",), "server"),
        (f"not{ROUTER}", ("a",), "server"),
        ("model.inf10.tinfoil.sh", (), "server"),
    ],
)
def test_router_is_told_by_its_name(
    snp: Enclave, host: str, names: tuple[str, ...], role: str
) -> None:
    """The protection ends at the router under any of its names, and those of its certificate."""
    der = split_pem(snp.pem(*names))[0] if names else b"no certificate"
    peer = snp.peer(host)._replace(certificate=der)
    claims = Tinfoil().read((snp.august(),), NONCE, peer, None)
    assert {binding.is_of for binding in claims.bindings} == {role}
