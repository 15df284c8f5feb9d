"""Attempts on sealed environments, and on keys of a local key provider."""

import json
from base64 import b64decode, b64encode
from functools import cache
from time import process_time
from typing import Any, Final

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hpke import hpke_seal
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import SgxQuotingEnclave
from attestkit.errors import (
    AttestKitError,
    FormatError,
    KmsError,
    UsageError,
    VerificationError,
)
from attestkit.kms.local_provider import SealedKey, SimulatedLocalProvider, fetch_local_keys
from attestkit.kms.local_provider.sealed_key import (
    decode_response,
    provider_report_data,
    read_size,
    seal_seed,
    td_report_data,
)
from attestkit.kms.sealed_env import Epochs, open_env, seal_env
from tests.attacks.attempts import Surfaces, bound
from tests.kms.local_provider.machine import (
    ENCLAVE,
    NOW,
    PKI,
    TD,
    make_provider,
    make_verifier,
)

attacks = Surfaces("kms")

# -- sealed environments -----------------------------------------------------------------------

SECRET: Final = bytes(range(1, 33))
PUBLIC: Final = x25519_public_key(SECRET)
OTHER: Final = x25519_public_key(bytes(range(2, 34)))
EPOCHS: Final = Epochs(2, 7)
VARIABLES: Final = [("TOKEN", "s3cret"), ("PATH", "/bin")]
SEALED: Final = seal_env(VARIABLES, PUBLIC, epochs=EPOCHS)
LEGACY: Final = seal_env(VARIABLES, PUBLIC)
assert open_env(SEALED, SECRET, epochs=EPOCHS) == open_env(LEGACY, SECRET) == dict(VARIABLES)


def opened(**changes: Any) -> object:
    """Open an envelope with other members."""
    text = json.dumps({**json.loads(SEALED), **changes})
    return open_env(text, SECRET, epochs=EPOCHS)


def resealed(plaintext: object) -> object:
    """Open what the attacker sealed: everybody who knows the public key can."""
    data = plaintext if isinstance(plaintext, bytes) else json.dumps(plaintext).encode()
    enc, ciphertext = hpke_seal(PUBLIC, b"dstack-sealed-env-v1:2:7", data)
    return opened(enc=b64encode(enc).decode(), ciphertext=b64encode(ciphertext).decode())


def env(*variables: tuple[object, object]) -> dict[str, object]:
    """Return an environment before it is sealed."""
    return {"env": [{"key": name, "value": value} for name, value in variables]}


assert resealed(env(("A", "b"))) == {"A": "b"}
NEXT: Final = json.loads(seal_env(VARIABLES, PUBLIC, epochs=EPOCHS))
ENVELOPES: Final[dict[str, tuple[Any, type[AttestKitError], tuple[str, ...]]]] = {
    "of an older epoch": (
        bound(open_env, seal_env(VARIABLES, PUBLIC, epochs=(1, 7)), SECRET, epochs=EPOCHS),
        FormatError,
        ("wrong_value",),
    ),
    "with the epochs of another one": (
        bound(open_env, SEALED.replace('"app_epoch":7', '"app_epoch":8'), SECRET, epochs=(2, 8)),
        VerificationError,
        ("bad_signature",),
    ),
    "with exchanged epochs": (
        bound(
            open_env,
            SEALED.replace('"root_epoch":2,"app_epoch":7', '"root_epoch":7,"app_epoch":2'),
            SECRET,
            epochs=(7, 2),
        ),
        VerificationError,
        ("bad_signature",),
    ),
    "of the older form": (
        bound(open_env, LEGACY, SECRET, epochs=EPOCHS),
        FormatError,
        ("unrecognized",),
    ),
    "of another key": (
        bound(open_env, seal_env(VARIABLES, OTHER, epochs=EPOCHS), SECRET, epochs=EPOCHS),
        VerificationError,
        ("bad_signature",),
    ),
    "of two halves": (bound(opened, enc=NEXT["enc"]), VerificationError, ("bad_signature",)),
    "with an epoch as true": (bound(opened, root_epoch=True), FormatError, ("wrong_type",)),
    "with an epoch as text": (bound(opened, root_epoch="2"), FormatError, ("wrong_type",)),
    "with an epoch as a fraction": (bound(opened, root_epoch=2.0), FormatError, ("wrong_type",)),
    "with an epoch beyond 32 bits": (
        bound(opened, root_epoch=(1 << 32) + 2),
        FormatError,
        ("wrong_value",),
    ),
    "with a version as true": (bound(opened, version=True), FormatError, ("unsupported_version",)),
    "with a later version": (bound(opened, version=2), FormatError, ("unsupported_version",)),
    "with a key of low order": (
        bound(opened, enc=b64encode(bytes(32)).decode()),
        AttestKitError,
        ("bad_signature",),
    ),
    "with a member twice": (
        bound(open_env, SEALED.replace("{", '{"version":1,', 1), SECRET, epochs=EPOCHS),
        FormatError,
        ("duplicate",),
    ),
    "with a byte more": (
        bound(
            opened,
            ciphertext=b64encode(b64decode(json.loads(SEALED)["ciphertext"]) + b"\0").decode(),
        ),
        VerificationError,
        ("bad_signature",),
    ),
    "without padding": (
        bound(opened, enc=json.loads(SEALED)["enc"].rstrip("=")),
        FormatError,
        ("encoding", "wrong_size"),
    ),
    "with text behind": (
        bound(open_env, SEALED + "{}", SECRET, epochs=EPOCHS),
        FormatError,
        ("syntax",),
    ),
    "in capital hex of half a byte": (
        bound(open_env, LEGACY[:-1], SECRET),
        FormatError,
        ("unrecognized",),
    ),
}
for _name, (_run, _error, _reasons) in ENVELOPES.items():
    attacks.add("recombine", f"environment {_name}", _run, _error, *_reasons)

CONTENTS: Final[dict[str, tuple[object, str]]] = {
    "a name with a sign of equality": (env(("A=B", "x")), "wrong_value"),
    "a name with a NUL": (env(("A\0B", "x")), "wrong_value"),
    "a name with a line end": (env(("A\nB", "x")), "wrong_value"),
    "a name of another script": (env(("\u0410", "x")), "wrong_value"),
    "a name that begins with a digit": (env(("1A", "x")), "wrong_value"),
    "an empty name": (env(("", "x")), "wrong_value"),
    "a long name": (env(("A" * 256, "x")), "wrong_value"),
    "a value as a number": (env(("A", 1)), "wrong_type"),
    "a value as nothing": (env(("A", None)), "wrong_type"),
    "half of a pair": (env(("A", "\ud800")), "encoding"),
    "a long value": (env(("A", "x" * 131_073)), "too_large"),
    "many values": (env(*[(f"A{at}", "x" * 130_000) for at in range(9)]), "too_large"),
    "many variables": (env(*[("A", "x")] * 1025), "too_many"),
    "variables in an object": ({"env": {"A": "x"}}, "wrong_type"),
    "deep brackets": (b"[" * 100_000, "syntax"),
    "no JSON": (b"A=x", "syntax"),
}
for _name, (_content, _reason) in CONTENTS.items():
    attacks.add(
        "forge", f"environment with {_name}", bound(resealed, _content), FormatError, _reason
    )


@attacks.attempt("confuse")
def environment_with_names_that_the_app_does_not_accept() -> None:
    """The list of accepted names is of exact names."""
    plain = seal_env([("TOKEN", "a"), ("Token", "b"), ("TOKEN_", "c"), ("LD_PRELOAD", "d")], PUBLIC)
    assert open_env(plain, SECRET, allowed=["TOKEN"]) == {"TOKEN": "a"}
    assert open_env(plain, SECRET, allowed=[]) == {}


@attacks.attempt("exhaust", FormatError, "too_large")
def environment_of_more_than_32_mib() -> object:
    """The host supplies the file."""
    return open_env("{" + " " * (32 << 20), SECRET)


@attacks.attempt("exhaust")
def environment_of_millions_of_brackets() -> None:
    """A file of the largest size is refused at once."""
    started = process_time()
    try:
        open_env(b"{" + b"[" * (8 << 20), SECRET)
    except FormatError:
        assert process_time() - started < 1
    else:
        raise AssertionError("accepted")


for _name, _key, _reason in (
    ("of low order", bytes(32), "invalid_key"),
    ("of 31 bytes", bytes(31), "wrong_size"),
):
    attacks.add(
        "confuse",
        f"environment sealed to a key {_name}",
        bound(seal_env, VARIABLES, _key, epochs=EPOCHS),
        UsageError,
        _reason,
    )


# -- local key provider ------------------------------------------------------------------------


@cache
def provider() -> SimulatedLocalProvider:
    """Return the provider of the machine."""
    return make_provider(sealing_key=bytes(range(16)))


def quoted(box: bytes, pki: SimulatedPki = PKI, **changes: Any) -> SealedKey:
    """Return an answer with the quote of an enclave that the host runs."""
    given = {"report_data": provider_report_data(box), **changes}
    return SealedKey(box, SgxQuotingEnclave(pki).quote(ENCLAVE._replace(**given)))


def fetch(
    answer: Any = lambda quote: provider().release(quote), td: Simulator = TD, **options: Any
) -> object:
    """Fetch the keys of a TD."""
    given = {"verifier": make_verifier(), "now": NOW, **options}
    return fetch_local_keys(td.get_quote, answer, **given)


def public_of(quote: bytes) -> bytes:
    """Return the public key that a TD has put into its report data."""
    from attestkit.quote import Quote

    return Quote.parse(quote).report_data[:32]


def seal_own(quote: bytes) -> bytes:
    """Return a seed of the host's, sealed to the TD."""
    return seal_seed(b"\x66" * 32, td_report_data(public_of(quote)))


assert fetch()
ROOT: Final = SimulatedPki(b"\x55" * 32)
ANSWERS: Final[dict[str, tuple[Any, str]]] = {
    "by an enclave of another vendor": (
        lambda: fetch(lambda quote: quoted(seal_own(quote), ROOT)),
        "evidence_refused",
    ),
    "by an enclave of the host, where one is pinned": (
        lambda: fetch(
            lambda quote: quoted(seal_own(quote), mr_enclave=b"\1" * 32),
            mr_enclave=ENCLAVE.mr_enclave,
        ),
        "wrong_provider",
    ),
    "by an enclave of the same signer, where one is pinned": (
        lambda: fetch(
            lambda quote: quoted(seal_own(quote), mr_enclave=ENCLAVE.mr_enclave[:31] + b"\0"),
            mr_enclave=ENCLAVE.mr_enclave,
        ),
        "wrong_provider",
    ),
    "with the report data of the TD": (
        lambda: fetch(
            lambda quote: quoted(seal_own(quote), report_data=td_report_data(public_of(quote)))
        ),
        "evidence_refused",
    ),
    "with the seed in the report data": (
        lambda: fetch(lambda quote: quoted(seal_own(quote), report_data=b"\x66" * 64)),
        "evidence_refused",
    ),
    "that is the TD's own quote": (
        lambda: fetch(lambda quote: SealedKey(seal_own(quote), quote)),
        "evidence_refused",
    ),
    "with a seed that is not sealed": (
        lambda: fetch(lambda _: quoted(b"\x66" * 80)),
        "invalid_key",
    ),
    "with a seed of 31 bytes": (
        lambda: fetch(lambda quote: quoted(seal_own(quote)[:-1])),
        "wrong_size",
    ),
    "with the seed of another TD": (
        lambda: fetch(
            lambda _: provider().release(TD.get_quote(td_report_data(x25519_public_key(SECRET))))
        ),
        "invalid_key",
    ),
    "after its collateral ended": (lambda: fetch(now=NOW + 10 * 365 * 86_400), "evidence_refused"),
    "before its collateral began": (lambda: fetch(now=NOW - 10 * 365 * 86_400), "evidence_refused"),
}
for _name, (_run, _reason) in ANSWERS.items():
    attacks.add(
        "replay" if "collateral" in _name or "another TD" in _name else "forge",
        f"answer of a local provider {_name}",
        _run,
        KmsError,
        _reason,
    )


def frame(**changes: object) -> bytes:
    """Return the message of a provider."""
    return json.dumps({"encrypted_key": [1] * 80, "provider_quote": [2], **changes}).encode()


assert decode_response(frame()).encrypted_key == b"\1" * 80
FRAMES: Final[dict[str, tuple[bytes, str]]] = {
    "with a byte of 256": (frame(encrypted_key=[256]), "wrong_type"),
    "with a byte below zero": (frame(encrypted_key=[-1]), "wrong_type"),
    "with a byte as a fraction": (frame(encrypted_key=[1.0]), "wrong_type"),
    "with a byte as true": (frame(encrypted_key=[True]), "wrong_type"),
    "with bytes as text": (frame(encrypted_key="\u0001" * 80), "wrong_type"),
    "with a list in a list": (frame(encrypted_key=[[1]]), "wrong_type"),
    "with a member twice": (frame().replace(b"{", b'{"encrypted_key": [9],', 1), "duplicate"),
    "with text behind": (frame() + b"{}", "syntax"),
    "without a quote": (b'{"encrypted_key": [1]}', "wrong_type"),
    "in a list": (b"[" + frame() + b"]", "wrong_type"),
    "of many members": (json.dumps({f"a{at}": 0 for at in range(20_000)}).encode(), "too_large"),
}
for _name, (_frame, _reason) in FRAMES.items():
    attacks.add(
        "confuse",
        f"message of a local provider {_name}",
        bound(decode_response, _frame),
        FormatError,
        _reason,
    )
for _name, _head in {"of no byte": bytes(4), "of 4 GiB": b"\xff" * 4, "cut": b"\0\0\1"}.items():
    attacks.add(
        "exhaust",
        f"frame of a local provider {_name}",
        bound(read_size, _head),
        FormatError,
        "wrong_size",
    )
