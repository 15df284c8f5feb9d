"""The 42 cases of the simulated PKI's vectors, each built from the scenario of its name."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import (
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    Scenario,
    TcbInfoConfig,
)
from attestkit.backends.simulator.scenarios.registry import scenario
from attestkit.collateral import Collateral
from tests.vectors import SHARED, load, td_fields

VECTORS: Final = SHARED / "vectors" / "simulated-pki"
SEED: Final = bytes(range(32))
OTHER_SEED: Final = bytes(range(32, 64))
NOW: Final = 1790000000
INPUTS: Final = load("simulated-pki/inputs.json")
CASES: Final = load("simulated-pki/cases.json").get("cases", [])
BODY: Final = TdBody(**td_fields(INPUTS.get("td_body", {})))
FMSPC: Final = bytes.fromhex("a77e57000000")  # of the vectors, a former default
VECTOR_PKI: Final = PkiConfig(fmspc=FMSPC)


class Built(NamedTuple):
    """Inputs of one verification."""

    quote: bytes
    collateral: Collateral
    root: bytes


def build_case(case_id: str) -> Built:
    """Return the inputs of a case, identical to the vectors."""
    it = scenario(case_id)
    if case_id in _AS_IN_VECTORS:
        it = _AS_IN_VECTORS[case_id](it)
    pki = SimulatedPki(SEED, config=replace(it.pki, fmspc=FMSPC))
    enclave = QuotingEnclave(pki, it.platform_id, config=it.quote)
    body = BODY._replace(**dict(it.body))
    version = it.quote_version or 4
    td10 = version == 4 or it.td10
    quote = enclave.quote(body.td10() if td10 else body.td15(), version=version)
    # The collateral of each case is that of NOW, though some cases are verified at another time.
    collateral = pki.collateral(NOW, replace(it.collateral, age=timedelta()))
    root = SimulatedPki(OTHER_SEED).root_der if it.trust_anchor else SimulatedPki(SEED).root_der
    return Built(quote, collateral, root)


def flip_bit(quote: bytes, offset: int, bit: int = 0) -> bytes:
    """Return `quote` with one bit changed."""
    return quote[:offset] + bytes([quote[offset] ^ 1 << bit]) + quote[offset + 1 :]


def _quote(**config: Any) -> Callable[[Scenario], Scenario]:
    return lambda it: replace(it, quote=replace(it.quote, **config))


def _part(**parts: Any) -> Callable[[Scenario], Scenario]:
    return lambda it: replace(it, collateral=replace(it.collateral, **parts))


_STRANGER: Final = SimulatedPki(OTHER_SEED).platform()
# Scenarios are general here; the vectors use a specific seed for the other root, and a fixed time.
_AS_IN_VECTORS: Final[dict[str, Callable[[Scenario], Scenario]]] = {
    "attestation-key-unbound": _quote(attestation_key=_STRANGER.attestation_key),
    "qe-report-wrong-pck-key": _quote(pck_key=_STRANGER.pck_key),
    "tcb-info-expired": _part(tcb_info=TcbInfoConfig(next_update=NOW - 1)),
    "qe-identity-expired": _part(qe_identity=QeIdentityConfig(next_update=NOW - 1)),
    "pck-crl-expired": _part(pck_crl=CrlConfig(next_update=NOW - 1)),
    "root-crl-expired": _part(root_crl=CrlConfig(next_update=NOW - 1)),
}
