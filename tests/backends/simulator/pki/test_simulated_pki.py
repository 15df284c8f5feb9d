"""Simulated PKI: identical to the vectors, with configurable deviations."""

from datetime import timedelta
from typing import Any

import pytest

from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    TcbInfoConfig,
    TcbLevel,
)
from attestkit.collateral import Collateral
from attestkit.errors import UsageError
from tests.backends.simulator.simulated_cases import (
    BODY,
    CASES,
    NOW,
    SEED,
    VECTOR_PKI,
    VECTORS,
    build_case,
)
from tests.clients.python_dcap_qvl import verify_with_dcap_qvl
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

DERIVED = load("simulated-pki/derived.json")
ISSUE, NEXT = 1789862400, 1792454400
_DATE = "2024-11-13T00:00:00Z"
PKI = SimulatedPki(SEED, config=VECTOR_PKI)
PLATFORM = PKI.platform()
ENCLAVE = QuotingEnclave(PKI)


def dcap_qvl_status(collateral: CollateralConfig, now: int = NOW) -> str:
    """Return the status that dcap-qvl gives a valid quote with that collateral."""
    quote = ENCLAVE.quote(BODY.td10())
    return verify_with_dcap_qvl(quote, PKI.collateral(NOW, collateral), PKI.root_der, now).status


@needs_shared
def test_derivation_equals_vectors() -> None:
    """HKDF output, scalars, public keys, serial numbers and identifiers."""
    for label, okm in DERIVED["hkdf"]["p256_okm"].items():
        assert PKI.derive(f"p256/{label}", 48).hex() == okm
        assert PKI.key(label).scalar.hex() == DERIVED["private_scalar"][label]
        assert PKI.key(label).public_point.hex() == DERIVED["public_xy"][label]
    for label, serial in DERIVED["serial"].items():
        assert f"{PKI.serial(label):040x}" == serial
    assert PLATFORM.ppid.hex() == DERIVED["ppid"]
    assert PLATFORM.qe_id.hex() == DERIVED["qe_id"]
    assert PLATFORM.instance_id.hex() == DERIVED["platform_instance_id"]
    assert PLATFORM.sgx_extension.hex() == DERIVED["sgx_extension_der"]


@needs_shared
@every_case("case", CASES, ids=lambda case: case["id"])
def test_configuration_builds_each_case(case: dict[str, Any]) -> None:
    """Quote, collateral and root of each of the 42 cases."""
    built = build_case(case["id"])
    assert built.quote == (VECTORS / case["quote"]).read_bytes()
    assert built.collateral == Collateral.load(VECTORS / case["collateral"])
    assert built.root == (VECTORS / case["root"]).read_bytes()


def test_collateral_changes_at_midnight_utc() -> None:
    """Collateral is constant during a UTC day, and its validity moves by one day."""
    midnight = NOW // 86400 * 86400
    first, last = PKI.collateral(midnight), PKI.collateral(midnight + 86399.999)
    assert first == last == PKI.collateral(NOW)
    following = PKI.collateral(midnight + 86400)
    day = timedelta(days=1)
    assert following.valid_from == first.valid_from + day
    assert following.valid_until == first.valid_until + day
    for name in ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"):
        assert getattr(first, name) != getattr(following, name)


def test_collateral_validity_is_half_open() -> None:
    """dcap-qvl accepts it from the issue date up to, but not including, the next update."""
    verdicts = [
        dcap_qvl_status(CollateralConfig(), now) for now in (ISSUE - 1, ISSUE, NEXT - 1, NEXT)
    ]
    assert verdicts == ["reject", "UpToDate", "UpToDate", "reject"]


@every_case("now", [0, 86399, -1, float("nan"), float("inf"), 253399795200, 1e300])
def test_collateral_time_out_of_range_is_rejected(now: float) -> None:
    """Valid times are from the second day of 1970 to the year 9999."""
    with raises(UsageError, "out_of_range"):
        PKI.collateral(now)


def test_platforms_share_only_the_authorities() -> None:
    """Revoking one leaf leaves the other valid."""
    second = PKI.platform("second")
    own_chain, other_chain = split_pem(PLATFORM.pck_chain), split_pem(second.pck_chain)
    assert own_chain[1:] == other_chain[1:]
    assert own_chain[0] != other_chain[0]
    for name in ("ppid", "qe_id", "instance_id", "pck_key", "attestation_key"):
        assert getattr(PLATFORM, name) != getattr(second, name)
    revoked = CrlConfig(revoked=("platform/second/pck-leaf",))
    collateral = PKI.collateral(NOW, CollateralConfig(pck_crl=revoked))
    verdicts = [
        verify_with_dcap_qvl(
            QuotingEnclave(PKI, name).quote(BODY.td10()), collateral, PKI.root_der, NOW
        ).status
        for name in ("0", "second")
    ]
    assert verdicts == ["UpToDate", "reject"]


@every_case(
    ("config", "verdict"),
    [
        (TcbInfoConfig(id="SGX"), "reject"),
        (TcbInfoConfig(version=2), "reject"),
        (TcbInfoConfig(issue=NOW + 1), "reject"),
        (TcbInfoConfig(sgx_components=bytes([4, *PkiConfig().cpusvn[1:]])), "OutOfDate"),
        (TcbInfoConfig(sgx_components=PkiConfig().cpusvn[:15]), "reject"),
        (TcbInfoConfig(tdx_components=bytes([5, 0, 4]) + bytes(13)), "OutOfDate"),
        (TcbInfoConfig(module_id="TDX_02"), "reject"),
        (TcbInfoConfig(module_mrsigner=b"\x01" * 48), "reject"),
        (TcbInfoConfig(module_levels=(TcbLevel(7, _DATE, "Revoked"),)), "reject"),
        (QeIdentityConfig(version=1), "reject"),
        (QeIdentityConfig(issue=NOW + 1), "reject"),
        (QeIdentityConfig(miscselect=1), "reject"),
        (QeIdentityConfig(attributes=bytes(16)), "reject"),
        (QeIdentityConfig(mrsigner=bytes(32)), "reject"),
        (QeIdentityConfig(isvprodid=1), "reject"),
        (QeIdentityConfig(levels=(TcbLevel(3, _DATE, "OutOfDate"),)), "OutOfDate"),
        (CollateralConfig(root_crl=CrlConfig(key="other")), "reject"),
        (CollateralConfig(pck_crl=CrlConfig(key=PKI.key("other"))), "reject"),
    ],
)
def test_configuration_changes_the_status(
    config: TcbInfoConfig | QeIdentityConfig | CollateralConfig, verdict: str
) -> None:
    """Each option gives the intended result of dcap-qvl; further ones are in the 42 cases."""
    if isinstance(config, TcbInfoConfig):
        config = CollateralConfig(tcb_info=config)
    elif isinstance(config, QeIdentityConfig):
        config = CollateralConfig(qe_identity=config)
    assert dcap_qvl_status(config) == verdict


def test_platform_configuration_is_in_the_certificate() -> None:
    """Type, flags and SVNs of the PCK certificate."""
    config = PkiConfig(
        sgx_type=2, dynamic_platform=True, cached_keys=True, smt_enabled=True, pcesvn=300
    )
    pki = SimulatedPki(SEED, config=config)
    extension = pki.platform().sgx_extension
    assert b"\x05\x0a\x01\x02" in extension
    assert extension.count(b"\x01\x01\xff") == 3
    assert b"\x02\x02\x01\x2c" in extension
    quote = QuotingEnclave(pki).quote(BODY.td10())
    assert verify_with_dcap_qvl(quote, pki.collateral(NOW), pki.root_der, NOW).status == "UpToDate"
    assert pki.root_der == PKI.root_der


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_seed_must_be_32_bytes(seed: bytes) -> None:
    """The error does not show the seed."""
    with raises(UsageError, "wrong_size"):
        SimulatedPki(seed)


@pytest.mark.parametrize("name", ["", "a/b", "\xe9"])
def test_platform_id_must_be_plain_ascii(name: str) -> None:
    """An ID that could collide with another label is rejected."""
    with raises(UsageError, "wrong_value"):
        PKI.platform(name)


@pytest.mark.parametrize("span", [timedelta.max, timedelta.min])
def test_next_update_overflow_is_rejected(span: timedelta) -> None:
    """A span may exceed the representable times; CRLs and bodies behave alike."""
    for config in (
        CollateralConfig(pck_crl=CrlConfig(next_update=span)),
        CollateralConfig(tcb_info=TcbInfoConfig(next_update=span)),
    ):
        with raises(UsageError, "out_of_range", start="next_update: "):
            PKI.collateral(NOW, config)


def test_default_platform_ids_have_no_hexadecimal_letters() -> None:
    """go-tdx-guest 0.3.1 compares the FMSPC and PCEID of certificate and TCB info as text."""
    config = PkiConfig()
    assert (config.fmspc.hex() + config.pceid.hex()).isdecimal()
