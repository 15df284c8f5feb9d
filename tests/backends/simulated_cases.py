"""The 42 cases of the simulated PKI's vectors, each built from the simulator's own knobs.

A case is a scenario and, where somebody altered what had been signed, that alteration.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from attestkit.backends.simulator.pki import SimulatedPki
from attestkit.backends.simulator.quoting import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    QuoteConfig,
    Scenario,
    TcbInfoConfig,
)
from attestkit.collateral import Collateral
from tests.vectors import SHARED, load

VECTORS: Final = SHARED / "vectors" / "simulated-pki"
SEED: Final = bytes(range(32))
OTHER_SEED: Final = bytes(range(32, 64))
NOW: Final = 1790000000
INPUTS: Final = load("simulated-pki/inputs.json")
CASES: Final = load("simulated-pki/cases.json").get("cases", [])
BODY: Final = TdBody(**{k: bytes.fromhex(v) for k, v in INPUTS.get("td_body", {}).items()})

Layout = tuple[int, bool]  # version, and whether the body is TD 1.5


class Built(NamedTuple):
    """The inputs of one verification."""

    quote: bytes
    collateral: Collateral
    root: bytes


class Case(NamedTuple):
    """How one case differs from a healthy version 4 quote with healthy collateral."""

    scenario: Scenario = Scenario()
    layout: Layout = (4, False)
    alter_quote: Callable[[bytes], bytes] = bytes
    alter_collateral: Callable[[Collateral], Collateral] = lambda collateral: collateral
    root_seed: bytes = SEED


def build(case_id: str) -> Built:
    """Return the inputs of the case called `case_id`."""
    case = _TABLE[case_id]
    scenario = case.scenario
    pki = SimulatedPki(SEED, config=scenario.pki)
    enclave = QuotingEnclave(pki, scenario.platform_id, config=scenario.quote)
    body = BODY._replace(**dict(scenario.body))
    version, is_td15 = case.layout
    quote = enclave.quote(body.td15() if is_td15 else body.td10(), version=version)
    collateral = pki.collateral(NOW, scenario.collateral)
    root = SimulatedPki(case.root_seed).root_der
    return Built(case.alter_quote(quote), case.alter_collateral(collateral), root)


def flip(quote: bytes, offset: int, bit: int = 0) -> bytes:
    """Return `quote` with one bit changed."""
    return quote[:offset] + bytes([quote[offset] ^ 1 << bit]) + quote[offset + 1 :]


def _tcb(config: TcbInfoConfig) -> Case:
    return Case(Scenario(collateral=CollateralConfig(tcb_info=config)))


def _qe(config: QeIdentityConfig) -> Case:
    return Case(Scenario(collateral=CollateralConfig(qe_identity=config)))


def _crl(*, root: CrlConfig | None = None, pck: CrlConfig | None = None) -> Case:
    config = CollateralConfig(root_crl=root or CrlConfig(), pck_crl=pck or CrlConfig())
    return Case(Scenario(collateral=config))


def _quote(config: QuoteConfig) -> Case:
    return Case(Scenario(quote=config))


def _body(name: str, value: bytes) -> Case:
    return Case(Scenario(body=((name, value),)))


def _other_root_crl(collateral: Collateral) -> Collateral:
    return replace(collateral, pck_crl=collateral.root_ca_crl)


def _alter_tcb_info(collateral: Collateral) -> Collateral:
    altered = collateral.tcb_info.replace("UpToDate", "OutOfDate", 1)
    return replace(collateral, tcb_info=altered)


def _alter_qe_identity(collateral: Collateral) -> Collateral:
    altered = collateral.qe_identity.replace('"isvprodid":2', '"isvprodid":3')
    return replace(collateral, qe_identity=altered)


_OTHER: Final = SimulatedPki(OTHER_SEED)
_TABLE: Final[dict[str, Case]] = {
    "ok-v4": Case(),
    "ok-v5-td10": Case(layout=(5, False)),
    "ok-v5-td15": Case(layout=(5, True)),
    "ok-at-issue-date": Case(),
    "ok-last-second": Case(),
    "ok-zero-padded-quote": _quote(QuoteConfig(padding=64)),
    "ok-other-serial-revoked": _crl(pck=CrlConfig(revoked=(0x1234567890,))),
    "ok-second-platform": Case(Scenario(platform_id="1")),
    "wrong-root": Case(root_seed=OTHER_SEED),
    "report-data-altered": Case(alter_quote=lambda quote: flip(quote, 568)),
    "rtmr3-altered": Case(alter_quote=lambda quote: flip(quote, 520)),
    "v5-altered": Case(layout=(5, True), alter_quote=lambda quote: flip(quote, 238)),
    "attestation-key-unbound": _quote(
        QuoteConfig(
            attestation_key=_OTHER.platform().attestation_key, bound_key="platform/0/attestation"
        )
    ),
    "qe-report-wrong-pck-key": _quote(QuoteConfig(pck_key=_OTHER.platform().pck_key)),
    "collateral-expired": Case(),
    "collateral-not-yet-valid": Case(),
    "tcb-info-expired": _tcb(TcbInfoConfig(next_update=NOW - 1)),
    "qe-identity-expired": _qe(QeIdentityConfig(next_update=NOW - 1)),
    "pck-crl-expired": _crl(pck=CrlConfig(next_update=NOW - 1)),
    "root-crl-expired": _crl(root=CrlConfig(next_update=NOW - 1)),
    "pck-revoked": _crl(pck=CrlConfig(revoked=("platform/0/pck-leaf",))),
    "pck-crl-is-root-crl": Case(alter_collateral=_other_root_crl),
    **{
        f"tcb-{status}": _tcb(TcbInfoConfig(status=status))
        for status in (
            "SWHardeningNeeded",
            "ConfigurationNeeded",
            "ConfigurationAndSWHardeningNeeded",
            "OutOfDate",
            "Revoked",
        )
    },
    "tcb-below-top-level": _tcb(TcbInfoConfig(pcesvn=14)),
    "tcb-below-all-levels": Case(
        Scenario(
            pki=PkiConfig(cpusvn=bytes(16)),
            collateral=CollateralConfig(TcbInfoConfig(sgx_components=PkiConfig().cpusvn)),
        )
    ),
    "module-OutOfDate": _body("tee_tcb_svn", bytes([5, 1, 3]) + bytes(13)),
    "qe-OutOfDate": _quote(QuoteConfig(qe_isvsvn=2)),
    "qe-below-all-levels": _quote(QuoteConfig(qe_isvsvn=1)),
    "qe-mrsigner-mismatch": _quote(QuoteConfig(qe_mrsigner=b"\x44" * 32)),
    "qe-debug": _quote(
        QuoteConfig(qe_attributes=bytes.fromhex("1700000000000000e700000000000000"))
    ),
    "qe-identity-for-sgx": _qe(QeIdentityConfig(id="QE")),
    "fmspc-mismatch": _tcb(TcbInfoConfig(fmspc=bytes(6))),
    "tcb-info-altered": Case(alter_collateral=_alter_tcb_info),
    "qe-identity-altered": Case(alter_collateral=_alter_qe_identity),
    "td-debug": _body("td_attributes", bytes.fromhex("0100001000000000")),
    "td-no-sept-ve-disable": _body("td_attributes", bytes(8)),
    "vendor-id-wrong": _quote(QuoteConfig(vendor_id=bytes(16))),
    "truncated": Case(alter_quote=lambda quote: quote[:-100]),
}
