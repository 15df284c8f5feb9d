"""Attempts on Tinfoil's documents and bundles."""

import gzip
import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.client.services.tinfoil.tinfoil import Tinfoil, TinfoilBundle
from attestkit.client.services.tinfoil.tinfoil_documents import MAX_EVIDENCE
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import AttestKitError, FormatError, PolicyError, ServiceError
from attestkit.testing import SimulatedTee
from tests.attacks.attempts import Surfaces
from tests.client.services.tinfoil import tinfoil_maker
from tests.client.services.tinfoil.tinfoil_maker import Enclave, b64, compact, setting

attacks = Surfaces("connect")
STRANGER: Final = ObservedPeer("api.example.com", 443, b"another leaf", b"another key")

# -- Tinfoil ---------------------------------------------------------------------------------------


@cache
def enclave(scalar: int = 7) -> Enclave:
    """Return an enclave whose documents of all generations are accepted."""
    made = Enclave(SimulatedTee(), "tdx", scalar)
    for answer in (made.v2(), made.june(), made.august()):
        made.verify(tinfoil_maker.read(made, answer))
    return made


def enclave_peer() -> ObservedPeer:
    """Return the enclave as the peer of a connection."""
    return enclave().peer()


def tinfoil(make: Callable[[Enclave], bytes], seen: Callable[[], ObservedPeer]) -> None:
    """Read an answer, and verify it."""
    own = enclave()
    own.verify(Tinfoil().read((make(own),), tinfoil_maker.NONCE, seen(), None))


def _bomb(own: Enclave) -> bytes:
    body = b64(gzip.compress(bytes(64 * MAX_EVIDENCE)))
    return own.v2(setting("body", to=body))


def _two_members(own: Enclave) -> bytes:
    quote = own.tee.raw_quote(own.tls + own.hpke)
    body = b64(gzip.compress(quote, mtime=0) + gzip.compress(b"tail", mtime=0))
    return own.v2(setting("body", to=body))


def _twice(own: Enclave) -> bytes:
    mine = tinfoil_maker.compact(setting_keys(own))
    return own.august()[:-1] + b',"crypto_material":"' + b64(mine.encode()).encode() + b'"}'


def setting_keys(own: Enclave) -> dict[str, Any]:
    """Return the section of the attacker's keys."""
    where = "https://tinfoil.sh/key"
    mine = {"id": "hpke", "format": f"{where}/x25519-hpke/v1", "data": "aa" * 32}
    return tinfoil_maker.section("crypto-material", [own.keys()[0], mine])


def _other_section(own: Enclave) -> bytes:
    data = compact(setting_keys(own)).encode()
    digest = sha256(data).hex()

    def change(document: dict[str, Any]) -> None:
        document["crypto_material"] = b64(data)
        document["cpu_evidence"]["endorsed"]["crypto_material_hash"] = digest

    return own.august(change)


def _august_with_new_report_data(own: Enclave) -> bytes:
    """Change keys, hash and stated report data: all but the quote."""
    data = compact(setting_keys(own)).encode()

    def change(document: dict[str, Any]) -> None:
        document["crypto_material"] = b64(data)
        endorsed = document["cpu_evidence"]["endorsed"]
        endorsed["crypto_material_hash"] = sha256(data).hex()
        devices = bytes.fromhex(endorsed["device_evidence_hash"])
        hashed = tinfoil_maker.LABEL + own.nonce + sha256(data) + devices
        document["challenge"]["report_data"] = sha256(hashed).hex() + "00" * 32

    return own.august(change)


def _two_keys(own: Enclave) -> bytes:
    mine = {**own.keys()[1], "data": "aa" * 32}
    return own.august(keys=[*own.keys(), mine])


def _june_signed_by_another(own: Enclave) -> bytes:
    other = Enclave(own.tee, "tdx", scalar=8)
    return own.june(after=setting("signature", to=json.loads(other.june())["signature"]))


def _june_certificate_of_another(own: Enclave) -> bytes:
    other = Enclave(own.tee, "tdx", scalar=8)
    return own.june(setting("certificate", to=other.pem(tinfoil_maker.DOMAIN)))


def _june_with_other_hpke(own: Enclave) -> bytes:
    return own.june(setting("report_data", "hpke_key", to="aa" * 32))


def _june_of_another_nonce(own: Enclave) -> bytes:
    return own.june(setting("report_data", "nonce", to="00" * 32))


def _june_in_two_documents(own: Enclave) -> bytes:
    return own.june() + own.june()


def _v2_in_june(own: Enclave) -> bytes:
    return own.june(setting("body", to=json.loads(own.v2())["body"]))


def _v2_of_an_august_quote(own: Enclave) -> bytes:
    found = json.loads(own.august())
    quote = own.tee.raw_quote(bytes.fromhex(found["challenge"]["report_data"]))
    return own.v2(setting("body", to=b64(gzip.compress(quote, mtime=0))))


_TINFOIL: Final[dict[str, tuple[Any, Any, type[AttestKitError], tuple[str, ...]]]] = {
    "a bomb of gzip": ("exhaust", _bomb, FormatError, ("too_large",)),
    "a second member of gzip": ("confuse", _two_members, FormatError, ("trailing_data",)),
    "its section of keys twice": ("confuse", _twice, FormatError, ("duplicate",)),
    "keys of the attacker, and their hash": (
        "forge",
        _other_section,
        FormatError,
        ("inconsistent",),
    ),
    "keys of the attacker, and all that is computed": (
        "forge",
        _august_with_new_report_data,
        PolicyError,
        ("report_data",),
    ),
    "two keys of one id": ("confuse", _two_keys, FormatError, ("duplicate",)),
    "the signature of another enclave": (
        "recombine",
        _june_signed_by_another,
        ServiceError,
        ("signature",),
    ),
    "the certificate of another enclave": (
        "recombine",
        _june_certificate_of_another,
        FormatError,
        ("inconsistent",),
    ),
    "an HPKE key of the attacker, signed": (
        "forge",
        _june_with_other_hpke,
        PolicyError,
        ("report_data",),
    ),
    "another nonce": ("replay", _june_of_another_nonce, ServiceError, ("nonce_echo",)),
    "another document behind it": ("confuse", _june_in_two_documents, FormatError, ("syntax",)),
    "members of two generations": ("confuse", _v2_in_june, FormatError, ("unknown_field",)),
    "evidence of another generation": (
        "confuse",
        _v2_of_an_august_quote,
        ServiceError,
        ("other_key",),
    ),
}
for _name, (_kind, _make, _error, _reasons) in _TINFOIL.items():
    attacks.add(
        _kind,
        f"tinfoil document with {_name}",
        partial(tinfoil, _make, enclave_peer),
        _error,
        *_reasons,
    )


@attacks.attempt("relay", ServiceError, "other_key")
def tinfoil_document_through_a_relay() -> None:
    """The relay ends TLS with its own key."""
    tinfoil(Enclave.august, lambda: STRANGER)


@attacks.attempt("recombine", ServiceError, "other_origin")
def tinfoil_bundle_of_another_domain() -> None:
    """The bundle comes from another server, and names its domain."""
    answer = enclave().bundle()
    TinfoilBundle().read((answer,), tinfoil_maker.NONCE, None, None)
    TinfoilBundle("other.tinfoil.sh").read((answer,), tinfoil_maker.NONCE, None, None)


@attacks.attempt("recombine", FormatError, "inconsistent")
def tinfoil_bundle_with_the_certificate_of_another_enclave() -> None:
    """Document and certificate name keys of each other."""
    other = json.loads(Enclave(enclave().tee, "tdx", scalar=8).bundle())
    answer = enclave().bundle(setting("enclaveCert", to=other["enclaveCert"]))
    TinfoilBundle().read((answer,), tinfoil_maker.NONCE, None, None)
