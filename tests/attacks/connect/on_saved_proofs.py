"""Attempts on saved proofs: files that say something else than was proven."""

import json
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from typing import Any, Final

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.client.offline import verify_proof
from attestkit.client.proofs.proof import Proof, ProofBundle
from attestkit.errors import (
    AttestKitError,
    FormatError,
    ServiceError,
    UsageError,
)
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier import AppraisalPolicy
from tests.attacks.attempts import Surfaces
from tests.client.proofs.saved_proofs import saved_proof

attacks = Surfaces("connect")
HASH: Final = bytes(32)


def verify(bundle: ProofBundle | str, **options: Any) -> Proof:
    """Verify a saved proof; the unaltered one is accepted."""
    _check_saved()
    given = ProofBundle.from_json(bundle) if isinstance(bundle, str) else bundle
    return verify_proof(given, policy=saved_proof().policy, **options)


@cache
def _check_saved() -> None:
    verify_proof(ProofBundle.from_json(_text()), policy=saved_proof().policy)


def _bundle() -> ProofBundle:
    return saved_proof().proof.bundle


def _text(**changes: Any) -> str:
    """Return the JSON of the saved proof with other members."""
    return json.dumps({**json.loads(_bundle().to_json()), **changes})


def _changed(**changes: Any) -> None:
    verify(replace(_bundle(), **changes))


def _in_json(changes: dict[str, Any]) -> None:
    verify(_text(**changes))


def _other_certificate() -> bytes:
    found = saved_proof(ra_tls=True).proof.bundle.certificate
    assert found is not None
    return found


@attacks.attempt("recombine", ServiceError, "other_key")
def saved_proof_with_the_certificate_of_another_server() -> None:
    """The evidence is about the key of the certificate that was observed."""
    _changed(certificate=_other_certificate())


@attacks.attempt("replay", ServiceError, "nonce_echo")
def saved_proof_for_another_nonce() -> None:
    """The nonce in the file is that of the evidence."""
    _changed(nonce=HASH)


@attacks.attempt("confuse", ServiceError, "no_channel")
def saved_proof_that_says_that_requests_were_sealed() -> None:
    """The service has no key to seal to."""
    _changed(sealed=True)


@attacks.attempt("confuse", UsageError, "not_applicable")
def saved_proof_of_a_model_that_was_not_asked_for() -> None:
    """The file names a model; servers of attestkit have none."""
    _changed(model="org/large")


@attacks.attempt("confuse", AttestKitError, "inconsistent", "no_evidence")
def saved_proof_under_the_name_of_another_service() -> None:
    """The answers are those of a document, and not of a certificate."""
    _changed(service="ra-tls")


@attacks.attempt("confuse", FormatError, "inconsistent")
def saved_proof_of_a_service_that_is_asked_apart_with_a_certificate() -> None:
    """Its certificate would not be compared with anything."""
    _changed(service="secretvm")


@attacks.attempt("recombine", FormatError, "inconsistent")
def saved_proof_with_a_second_answer() -> None:
    """One answer is verified, and the other shown."""
    _changed(answers=_bundle().answers * 2)


@attacks.attempt("recombine", FormatError, "inconsistent")
def saved_proof_with_collateral_of_more_machines() -> None:
    """There is one item for each machine."""
    _changed(collateral=_bundle().collateral * 2)


@attacks.attempt("confuse", AttestKitError, "cert_expired")
def saved_proof_at_a_time_before_its_collateral() -> None:
    """The file chooses the time, at which revoked platforms were fine."""
    old = replace(_bundle(), at=_bundle().at - timedelta(days=7300))
    verify(old, use_bundle_time=True)


@attacks.attempt("confuse", UsageError, "any_app")
def saved_proof_under_a_policy_for_any_program() -> None:
    """The same policies are refused as for connections."""
    verify_proof(_bundle(), policy=AppraisalPolicy.default())


@attacks.attempt("forge", AttestKitError, "untrusted_root")
def saved_proof_by_another_simulator() -> None:
    """Its roots are not the caller's."""
    named = saved_proof().policy.policy
    other = SimulatedRoots(SimulatedPki(b"\x77" * 32).root_der)
    verify_proof(_bundle(), policy=named, trust_anchor=other)


for _name, _changes, _reasons in (
    ("a version that is true", {"version": True}, ("unsupported_version", "wrong_type")),
    ("a version that is 1.5", {"version": 1.5}, ("unsupported_version",)),
    ("an unknown member", {"trusted": True}, ("unknown_field",)),
    ("a host with a path", {"host": "a.example/b"}, ("wrong_value",)),
    ("a host with a user", {"host": "a@b.example"}, ("wrong_value",)),
    ("a port that is true", {"port": True}, ("wrong_value",)),
    ("a time without a zone", {"at": "2026-11-01T00:00:00"}, ("wrong_value",)),
    ("a time before all years", {"at": "0001-01-01T00:00:00+14:00"}, ("wrong_value",)),
    ("a nonce of another size", {"nonce": "00" * 64}, ("wrong_size",)),
    ("answers without end", {"answers": ["AAAA"] * 17}, ("too_many",)),
    ("an answer over its size", {"answers": ["AAAA" * ((6 << 20) - 1)]}, ("too_large",)),
):
    attacks.add(
        "exhaust" if "too_" in _reasons[0] else "confuse",
        f"saved proof with {_name}",
        partial(_in_json, _changes),
        FormatError,
        *_reasons,
    )


@attacks.attempt("confuse", FormatError, "duplicate")
def saved_proof_with_two_nonces() -> None:
    """One is shown, and the other verified."""
    verify(_text()[:-1] + ', "nonce": "' + "00" * 32 + '"}')


@attacks.attempt("exhaust", FormatError, "too_many")
def answer_with_a_million_values() -> None:
    """It has the size of a document, and would take a hundred times as much memory."""
    _changed(answers=(b"[" + b"0," * (1 << 20) + b"0]",))
