"""A saved proof is verified again, without the server; every altered part of it is refused."""

import json
from base64 import b64decode, b64encode
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import attestkit
from attestkit.client import ProofBundle, Require, verify_proof
from attestkit.client.proofs.proof import Proof
from attestkit.client.services.bound import bound
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.services.service import Claims
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    PolicyError,
    ServiceError,
    UsageError,
    VerificationError,
)
from attestkit.testing import AttestedServer
from tests.client.proofs.saved_proofs import saved_proof
from tests.raising import raises
from tests.untyped import untyped

NAME_AND_KEY = "that nonce, name and TLS key"
TIME = "the time of the proof"


def verify(bundle: ProofBundle, *, ra_tls: bool = False, **options: Any) -> Proof:
    """Verify a bundle as its user does."""
    require = Require(freshness="key possession")
    policy = saved_proof(ra_tls=ra_tls).policy
    return verify_proof(bundle, policy=policy, **{"require": require, **options})


def bundle_of(*, ra_tls: bool = False) -> ProofBundle:
    """Return the bundle, as it is read from a file."""
    return ProofBundle.from_json(saved_proof(ra_tls=ra_tls).proof.bundle.to_json())


@pytest.mark.parametrize("ra_tls", [False, True])
def test_saved_proof_is_verified(ra_tls: bool) -> None:
    """Evidence, key and nonce are those of the first time; the rest is said to be recorded."""
    first = saved_proof(ra_tls=ra_tls).proof
    again = verify(bundle_of(ra_tls=ra_tls), ra_tls=ra_tls)
    assert again.bindings == first.bindings
    assert again.result.claims == first.result.claims
    assert (again.origin, again.service, again.freshness) == (
        first.origin,
        first.service,
        first.freshness,
    )
    assert again.proven_at > first.proven_at
    assert again.not_proven[0].startswith(NAME_AND_KEY)
    assert again.not_proven[1:] == first.not_proven
    assert NAME_AND_KEY in str(again)


def test_key_is_compared_for_a_service_that_forgets_it() -> None:
    """A caller's service that does not compare the observed key accepts no other one."""

    class Forgetful:
        """The service of attestkit's servers, without the comparison."""

        def __getattr__(self, name: str) -> Any:
            return getattr(OwnDocument(), name)

        def read(self, answers: Any, nonce: bytes, _seen: object, model: str | None) -> Claims:
            return OwnDocument().read(answers, nonce, None, model)

    service = untyped(Forgetful())
    assert verify(bundle_of(), service=service).bindings == verify(bundle_of()).bindings
    other = replace(bundle_of(), certificate=bundle_of(ra_tls=True).certificate)
    with raises(ServiceError, "other_key"):
        verify(other, service=service)


def test_proof_ends_with_the_collateral() -> None:
    """A proof that `max_age` would let last longer ends with the first part of its collateral."""
    facts = verify(bundle_of()).result.tcb.collateral
    assert facts is not None
    now = facts.earliest_expiration - timedelta(minutes=10)
    assert verify(bundle_of(), now=now).valid_until == facts.earliest_expiration


def test_time_of_the_bundle_is_used_only_if_asked() -> None:
    """Later than its collateral it is refused, unless for its own time, which the proof says."""
    bundle = bundle_of()
    later = bundle.at + timedelta(days=3650)
    with pytest.raises(AttestKitError) as caught:
        verify(bundle, now=later)
    assert isinstance(caught.value, VerificationError | CollateralError)
    proof = verify(bundle, use_bundle_time=True)
    assert proof.proven_at == bundle.at
    assert proof.not_proven[1].startswith(TIME)
    assert not any(text.startswith(TIME) for text in verify(bundle).not_proven)
    with raises(UsageError, "conflict"):
        verify(bundle, use_bundle_time=True, now=later)
    with raises(UsageError, "wrong_value"):
        verify(bundle, now=datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused
    moved = replace(bundle, at=later)
    with pytest.raises(AttestKitError):
        verify(moved, use_bundle_time=True)


def other_bundle(**options: Any) -> ProofBundle:
    """Return the bundle of another server of the same app."""
    with (
        AttestedServer(**options) as server,
        attestkit.connect(server.url, policy=server.policy, server_ca=server.ca) as endpoint,
    ):
        return endpoint.proof.bundle


def test_altered_parts_are_refused() -> None:
    """Each part of another bundle in the place of one's own, and each part that is missing."""
    bundle, other = bundle_of(), other_bundle()
    cases: list[tuple[dict[str, Any], type[AttestKitError], str]] = [
        ({"nonce": other.nonce}, ServiceError, "nonce_echo"),
        ({"nonce": bytes(32)}, ServiceError, "nonce_echo"),
        ({"answers": other.answers}, ServiceError, "nonce_echo"),
        ({"answers": other.answers, "nonce": other.nonce}, ServiceError, "other_key"),
        ({"answers": ()}, FormatError, "inconsistent"),
        ({"answers": bundle.answers * 2}, FormatError, "inconsistent"),
        ({"certificate": other.certificate}, ServiceError, "other_key"),
        ({"certificate": None}, FormatError, "inconsistent"),
        ({"certificate": b""}, FormatError, "truncated"),
        ({"sealed": True}, ServiceError, "no_channel"),
        ({"model": "m"}, UsageError, "not_applicable"),
        ({"service": "unknown"}, UsageError, "unknown_name"),
        ({"service": "ra-tls"}, FormatError, "inconsistent"),
        ({"service": "tinfoil"}, FormatError, "missing"),
        ({"collateral": ()}, FormatError, "inconsistent"),
        ({"collateral": bundle.collateral * 2}, FormatError, "inconsistent"),
        ({"host": "a b"}, FormatError, "wrong_value"),
        ({"host": "user@server.example"}, FormatError, "wrong_value"),
        ({"host": "server.example/path?"}, FormatError, "wrong_value"),
    ]
    for values, kind, reason in cases:
        with pytest.raises(kind) as caught:
            verify(replace(bundle, **values))
        assert (type(caught.value), caught.value.reason) == (kind, reason), values


def test_altered_collateral_is_refused() -> None:
    """It is signed by Intel, or here by the simulator."""
    members = json.loads(bundle_of().to_json())
    [collateral] = members["collateral"]
    text = json.dumps(collateral)
    assert "UpToDate" in text
    members["collateral"] = [json.loads(text.replace("UpToDate", "UpToDat3"))]
    with pytest.raises(AttestKitError):
        verify(ProofBundle.from_json(json.dumps(members)))


def test_altered_answers_are_refused() -> None:
    """A byte at any of 60 places of the statement and the evidence."""
    bundle = bundle_of()
    document = json.loads(bundle.answers[0])
    for name in ("statement", "evidence"):
        data = bytearray(b64decode(document[name]))
        # Behind the quote there is what the policy does not ask for, such as the app's own claims.
        for at in range(0, min(len(data), 1200), max(1, min(len(data), 1200) // 30)):
            data[at] ^= 1
            altered = json.dumps({**document, name: b64encode(data).decode()}).encode()
            data[at] ^= 1
            with pytest.raises(AttestKitError):
                verify(replace(bundle, answers=(altered,)))


def test_policy_is_asked_again() -> None:
    """Another app is not accepted; what has been required is required of the bundle."""
    with AttestedServer(
        app_compose=b'{"manifest_version":2,"name":"other","runner":"bash"}'
    ) as server:
        policy = server.policy
    with pytest.raises(AttestKitError) as caught:
        verify_proof(bundle_of(), policy=policy)
    assert isinstance(caught.value, PolicyError | VerificationError)
    with raises(ServiceError, "no_freshness"):
        verify(bundle_of(ra_tls=True), ra_tls=True, require=Require())


def test_words_of_policies() -> None:
    """Of those, "hardware-only" fetches nothing, and "first-use" is for servers."""
    anchor = saved_proof().trust_anchor
    proof = verify_proof(bundle_of(), policy="hardware-only", trust_anchor=anchor)
    assert proof.code == "nobody"
    with raises(UsageError, "conflict"):
        verify_proof(bundle_of(), policy="first-use")
    without = replace(bundle_of(), collateral=(None,))
    with pytest.raises(CollateralError):
        verify_proof(without, policy="hardware-only", trust_anchor=anchor)


def test_services_of_the_caller() -> None:
    """One that `bound` made is passed again; another name is refused."""
    mine = bound(path="/x", evidence=lambda _: b"", report_data=lambda *_: bytes(64), name="mine")
    with raises(UsageError, "conflict"):
        verify(bundle_of(), service=mine)
    bundle = replace(bundle_of(), service="mine")
    with pytest.raises(FormatError):  # its evidence is empty
        verify(bundle, service=mine)
    with raises(UsageError, "wrong_type"):
        verify_proof(bundle_of().to_json(), policy="hardware-only")  # type: ignore[arg-type]


def test_now_is_the_current_time() -> None:
    """Without `now` it is the clock's."""
    before = datetime.now(timezone.utc)
    assert before <= verify(bundle_of()).proven_at <= datetime.now(timezone.utc)
