"""Simulated PKI: identical to the vectors, with configurable deviations."""

import json
from datetime import datetime, timedelta, timezone
from hashlib import sha256, sha384
from typing import Any

import pytest
from cryptography import x509
from msgspec.structs import replace

from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki, collateral_window
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
    INPUTS,
    NOW,
    OTHER_SEED,
    SEED,
    VECTORS,
    build_case,
)
from tests.dcap import REJECT, judge
from tests.raising import raises
from tests.vectors import load, needs_shared

DERIVED = load("simulated-pki/derived.json")
ISSUE, NEXT = 1789862400, 1792454400
_DATE = "2024-11-13T00:00:00Z"
LABELS = ("root-ca", "pck-platform-ca", "tcb-signing", "platform/0/pck-leaf")
PKI = SimulatedPki(SEED)
PLATFORM = PKI.platform()
ENCLAVE = QuotingEnclave(PKI)
CERTIFICATES = dict(
    zip(
        LABELS,
        (PKI.root_der, PKI.pck_ca_der, PKI.tcb_signing_der, PLATFORM.pck_der),
        strict=True,
    )
)


def dcap_qvl_status(collateral: CollateralConfig, now: int = NOW) -> str:
    """Return the status that dcap-qvl gives a valid quote with that collateral."""
    quote = ENCLAVE.quote(BODY.td10())
    return judge(quote, PKI.collateral(NOW, collateral), PKI.root_der, now).status


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
def test_certificates_equal_vectors() -> None:
    """The four certificates and their key identifiers."""
    for label, der in CERTIFICATES.items():
        assert sha256(der).hexdigest() == DERIVED["cert_sha256"][label]
        extensions = x509.load_der_x509_certificate(der).extensions
        ski = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert ski.hex() == DERIVED["subject_key_id"][label]
    assert PKI.root_der == (VECTORS / "root-ca.der").read_bytes()
    names = ("root-ca", "pck-platform-ca", "tcb-signing", "pck-leaf")
    for name, der in zip(names, CERTIFICATES.values(), strict=True):
        assert split_pem((VECTORS / f"{name}.pem").read_text()) == [der]
    chain = "".join((VECTORS / f"{n}.pem").read_text() for n in (names[3], names[1], names[0]))
    assert chain == PLATFORM.pck_chain
    root_key_id = sha384(b"\x04" + PKI.key("root-ca").public_point).hexdigest()
    assert root_key_id == DERIVED["root_key_id_sha384"]


@needs_shared
def test_collateral_equals_vectors() -> None:
    """Each part, and the JSON document."""
    collateral = PKI.collateral(NOW)
    assert collateral.to_json() == (VECTORS / "collateral.json").read_text()
    assert collateral.root_ca_crl == (VECTORS / "root-ca.crl.der").read_bytes()
    assert collateral.pck_crl == (VECTORS / "pck-platform-ca.crl.der").read_bytes()
    assert collateral.tcb_info.encode() == (VECTORS / "tcb-info.body.json").read_bytes()
    assert collateral.qe_identity.encode() == (VECTORS / "qe-identity.body.json").read_bytes()
    for name, digest in DERIVED["collateral_sha256"].items():
        value = getattr(collateral, name)
        assert sha256(value if isinstance(value, bytes) else value.encode()).hexdigest() == digest


@needs_shared
def test_quotes_equal_vectors() -> None:
    """The three quotes and the QE report."""
    quotes = {
        "quote-v4.bin": ENCLAVE.quote(BODY.td10()),
        "quote-v5-td10.bin": ENCLAVE.quote(BODY.td10(), version=5),
        "quote-v5-td15.bin": ENCLAVE.quote(BODY.td15(), version=5),
    }
    for name, quote in quotes.items():
        assert quote == (VECTORS / name).read_bytes()
        assert len(quote) == DERIVED["quote_length"][name]
        assert sha256(quote).hexdigest() == DERIVED["quote_sha256"][name]
    v4 = quotes["quote-v4.bin"]
    assert v4[770:1154].hex() == DERIVED["qe_report"]
    assert v4[1154:1218].hex() == DERIVED["qe_report_signature"]


@needs_shared
def test_default_configuration_equals_vectors() -> None:
    """The defaults are the documented values."""
    written = dict(INPUTS["config"])
    config = PkiConfig()
    for name in ("not_before", "not_after"):
        assert getattr(config, name) == datetime.fromisoformat(written.pop(name))
    for name, value in written.items():
        own = getattr(config, name)
        assert (own.hex() if isinstance(own, bytes) else own) == value
    assert collateral_window(INPUTS["now"]) == (INPUTS["issue"], INPUTS["next_update"])


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
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
    changed = [
        name for name in Collateral.__slots__ if getattr(first, name) != getattr(following, name)
    ]
    assert changed == [
        "root_ca_crl",
        "pck_crl",
        "tcb_info",
        "tcb_info_signature",
        "qe_identity",
        "qe_identity_signature",
    ]


def test_collateral_validity_is_half_open() -> None:
    """dcap-qvl accepts it from the issue date up to, but not including, the next update."""
    verdicts = [
        dcap_qvl_status(CollateralConfig(), now) for now in (ISSUE - 1, ISSUE, NEXT - 1, NEXT)
    ]
    assert verdicts == ["reject", "UpToDate", "UpToDate", "reject"]


@pytest.mark.parametrize("now", [0, 86399, -1, float("nan"), float("inf"), 253399795200, 1e300])
def test_collateral_time_out_of_range_is_rejected(now: float) -> None:
    """Valid times are from the second day of 1970 to the year 9999."""
    with raises(UsageError, "out_of_range"):
        PKI.collateral(now)


@pytest.mark.parametrize("now", [86400, 253399795199])
def test_collateral_of_first_and_last_day(now: int) -> None:
    """The validity is 30 days there, too."""
    crl = x509.load_der_x509_crl(PKI.collateral(now).pck_crl)
    start = datetime.fromtimestamp((now // 86400 - 1) * 86400, timezone.utc)
    assert (crl.last_update_utc, crl.next_update_utc) == (start, start + timedelta(days=30))


def test_different_seeds_share_nothing() -> None:
    """Keys, serial numbers, certificates and identifiers differ."""
    other = SimulatedPki(OTHER_SEED)
    labels = (*LABELS, "platform/0/attestation")
    for values in (
        [pki.key(label).scalar for pki in (PKI, other) for label in labels],
        [pki.serial(label) for pki in (PKI, other) for label in LABELS],
        [pki.root_der for pki in (PKI, other)],
        [pki.platform().ppid for pki in (PKI, other)],
        [pki.platform().qe_id for pki in (PKI, other)],
    ):
        assert len(set(values)) == len(values)
    own_chain, other_chain = PKI.collateral(NOW), other.collateral(NOW)
    for name in ("root_ca_crl", "pck_crl", "tcb_info_signature", "tcb_info_issuer_chain"):
        assert getattr(own_chain, name) != getattr(other_chain, name)


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
        judge(QuotingEnclave(PKI, name).quote(BODY.td10()), collateral, PKI.root_der, NOW).status
        for name in ("0", "second")
    ]
    assert verdicts == ["UpToDate", "reject"]


@pytest.mark.parametrize(
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


def test_evaluation_numbers_and_advisories_are_in_collateral() -> None:
    """Verifiers read them from the bodies and the CRLs."""
    collateral = PKI.collateral(
        NOW,
        CollateralConfig(
            tcb_info=TcbInfoConfig(evaluation_number=17, advisories=("A-1", "A-2")),
            qe_identity=QeIdentityConfig(evaluation_number=16),
            pck_crl=CrlConfig(number=5, this_update=ISSUE + 1),
        ),
    )
    tcb_info = json.loads(collateral.tcb_info)
    assert tcb_info["tcbEvaluationDataNumber"] == 17
    assert tcb_info["tcbLevels"][0]["advisoryIDs"] == ["A-1", "A-2"]
    assert json.loads(collateral.qe_identity)["tcbEvaluationDataNumber"] == 16
    crl = x509.load_der_x509_crl(collateral.pck_crl)
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 5
    assert crl.last_update_utc.timestamp() == ISSUE + 1


def test_platform_configuration_is_in_the_certificate() -> None:
    """Type, flags, SVNs and expiry of the PCK certificate."""
    past = datetime.fromtimestamp(NOW - 1, timezone.utc)
    config = PkiConfig(
        sgx_type=2, dynamic_platform=True, cached_keys=True, smt_enabled=True, pcesvn=300
    )
    pki = SimulatedPki(SEED, config=config)
    extension = pki.platform().sgx_extension
    assert b"\x05\x0a\x01\x02" in extension
    assert extension.count(b"\x01\x01\xff") == 3
    assert b"\x02\x02\x01\x2c" in extension
    quote = QuotingEnclave(pki).quote(BODY.td10())
    assert judge(quote, pki.collateral(NOW), pki.root_der, NOW).status == "UpToDate"
    assert pki.root_der == PKI.root_der
    expired = SimulatedPki(SEED, config=replace(config, pck_not_after=past))
    quote = QuotingEnclave(expired).quote(BODY.td10())
    verdict = judge(quote, expired.collateral(NOW), expired.root_der, NOW)
    assert verdict.status == REJECT
    assert "CertExpired" in verdict.text


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


def test_crl_extreme_values_round_trip() -> None:
    """The largest numbers, and the first and the last second."""
    config = CrlConfig(
        revoked=(1, (1 << 159) - 1),
        number=(1 << 159) - 1,
        this_update=-631_152_000,
        next_update=253_402_300_799,
    )
    collateral = PKI.collateral(NOW, CollateralConfig(pck_crl=config))
    crl = x509.load_der_x509_crl(collateral.pck_crl)
    assert [entry.serial_number for entry in crl] == [1, (1 << 159) - 1]
    number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert number == (1 << 159) - 1
    assert crl.last_update_utc == datetime(1950, 1, 1, tzinfo=timezone.utc)
    assert crl.next_update_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
