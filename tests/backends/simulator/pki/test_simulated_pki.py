"""One seed gives the simulated PKI of the vectors byte for byte, and every outcome they list."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from hashlib import sha256, sha384
from typing import Any

import pytest
from cryptography import x509

from attestkit._crypto.ecdsa import p256_verify
from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki, collateral_window
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    QuoteConfig,
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
    build,
)
from tests.dcap import REJECT, judge
from tests.vectors import load, needs_shared

DERIVED = load("simulated-pki/derived.json")
ISSUE, NEXT = 1789862400, 1792454400
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


def status(collateral: CollateralConfig, now: int = NOW) -> str:
    """Return what dcap-qvl says of a healthy quote beside that collateral."""
    quote = ENCLAVE.quote(BODY.td10())
    return judge(quote, PKI.collateral(NOW, collateral), PKI.root_der, now).status


@needs_shared
def test_derivation_step_by_step() -> None:
    """HKDF output, scalars, public keys, serials and raw values are the vectors'."""
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
def test_certificates_are_the_vectors() -> None:
    """The four certificates, their key ids and the root's key id are the vectors'."""
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
def test_collateral_is_the_vector() -> None:
    """Every part of the collateral, and the whole as JSON, are the vectors'."""
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
def test_quotes_are_the_vectors() -> None:
    """The three quotes, and the QE report inside, are the vectors'."""
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
def test_defaults_are_the_written_configuration() -> None:
    """The default configuration is the one that the vectors write out."""
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
def test_knobs_build_each_case(case: dict[str, Any]) -> None:
    """Quote, collateral and root of each of the 42 cases come out of the knobs."""
    built = build(case["id"])
    assert built.quote == (VECTORS / case["quote"]).read_bytes()
    assert built.collateral == Collateral.load(VECTORS / case["collateral"])
    assert built.root == (VECTORS / case["root"]).read_bytes()


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_dcap_qvl_says_what_was_observed(case: dict[str, Any]) -> None:
    """dcap-qvl gives each case the outcome, status, advisories and text that the vectors list."""
    quote, root = ((VECTORS / case[name]).read_bytes() for name in ("quote", "root"))
    verdict = judge(quote, Collateral.load(VECTORS / case["collateral"]), root, case["now"])
    expect, observed = case["expect"], case["observed"]["dcap-qvl 0.7.0"]
    if expect["outcome"] == "accept":
        assert verdict[:2] == (expect["status"], tuple(expect["advisory_ids"]))
        assert observed == f"accept:{verdict.status}"
    else:
        assert verdict.status == REJECT
        # The vectors keep 160 characters, with runs of white space as one space.
        text = " ".join(verdict.text.split()).removeprefix("Verification failed: ")
        assert observed == f"reject: {text[:160]}"


def test_the_cases_are_42() -> None:
    """The table and the vectors list the same cases."""
    assert len(CASES) in {0, 42}


def test_collateral_is_the_same_all_day_and_changes_at_midnight() -> None:
    """Both ends of a UTC day give equal bytes; one second more gives others, a day later."""
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


def test_the_window_is_half_open() -> None:
    """dcap-qvl accepts from the issue to the second before the next update, and no others."""
    verdicts = [status(CollateralConfig(), now) for now in (ISSUE - 1, ISSUE, NEXT - 1, NEXT)]
    assert verdicts == ["reject", "UpToDate", "UpToDate", "reject"]


@pytest.mark.parametrize("now", [0, 86399, -1, float("nan"), float("inf"), 253399795200, 1e300])
def test_times_that_nobody_can_write_are_refused(now: float) -> None:
    """Before the second day of 1970 and after the year 9999 there is no collateral."""
    with pytest.raises(UsageError, match="the time must be in"):
        PKI.collateral(now)


@pytest.mark.parametrize("now", [86400, 253399795199])
def test_the_first_and_the_last_day_have_collateral(now: int) -> None:
    """At both ends of the calendar the window is the same 30 days."""
    crl = x509.load_der_x509_crl(PKI.collateral(now).pck_crl)
    start = datetime.fromtimestamp((now // 86400 - 1) * 86400, timezone.utc)
    assert (crl.last_update_utc, crl.next_update_utc) == (start, start + timedelta(days=30))


def test_different_seeds_share_nothing() -> None:
    """No key, serial or certificate of one seed occurs under another."""
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
    mine, theirs = PKI.collateral(NOW), other.collateral(NOW)
    for name in ("root_ca_crl", "pck_crl", "tcb_info_signature", "tcb_info_issuer_chain"):
        assert getattr(mine, name) != getattr(theirs, name)


def test_serials_are_twenty_octets() -> None:
    """Whatever the seed, a serial is positive, 20 octets, and starts with 40 to 7F."""
    for number in range(32):
        serial = SimulatedPki(bytes([number] * 32)).serial("root-ca")
        assert 0x40 <= serial >> 152 <= 0x7F


def test_platforms_share_the_root_and_nothing_below() -> None:
    """Two platforms have one root and CA; revoking one leaf leaves the other valid."""
    second = PKI.platform("second")
    mine, theirs = split_pem(PLATFORM.pck_chain), split_pem(second.pck_chain)
    assert mine[1:] == theirs[1:]
    assert mine[0] != theirs[0]
    for name in ("ppid", "qe_id", "instance_id", "pck_key", "attestation_key"):
        assert getattr(PLATFORM, name) != getattr(second, name)
    revoked = CrlConfig(revoked=("platform/second/pck-leaf",))
    collateral = PKI.collateral(NOW, CollateralConfig(pck_crl=revoked))
    verdicts = [
        judge(QuotingEnclave(PKI, name).quote(BODY.td10()), collateral, PKI.root_der, NOW).status
        for name in ("0", "second")
    ]
    assert verdicts == ["UpToDate", "reject"]


def test_signatures_are_by_the_keys_they_name() -> None:
    """The TCB signer signed both bodies as they stand."""
    collateral = PKI.collateral(NOW)
    signer = PKI.key("tcb-signing").public_point
    p256_verify(signer, collateral.tcb_info_signature, collateral.tcb_info.encode())
    p256_verify(signer, collateral.qe_identity_signature, collateral.qe_identity.encode())


@pytest.mark.parametrize(
    ("config", "verdict"),
    [
        (TcbInfoConfig(status="OutOfDateConfigurationNeeded"), "OutOfDateConfigurationNeeded"),
        (TcbInfoConfig(pceid=b"\x00\x01"), "UpToDate"),  # dcap-qvl does not look at it
        (TcbInfoConfig(id="SGX"), "reject"),
        (TcbInfoConfig(version=2), "reject"),
        (TcbInfoConfig(issue=NOW + 1), "reject"),
        (TcbInfoConfig(sgx_components=bytes([4, *PkiConfig().cpusvn[1:]])), "OutOfDate"),
        (TcbInfoConfig(sgx_components=PkiConfig().cpusvn[:15]), "reject"),
        (TcbInfoConfig(tdx_components=bytes([5, 0, 4]) + bytes(13)), "OutOfDate"),
        (TcbInfoConfig(module_id="TDX_02"), "reject"),
        (TcbInfoConfig(module_mrsigner=b"\x01" * 48), "reject"),
        (
            TcbInfoConfig(module_levels=(TcbLevel(7, "2024-11-13T00:00:00Z", "Revoked"),)),
            "reject",
        ),
    ],
    ids=[
        "status",
        "pceid",
        "id",
        "version",
        "issue",
        "sgx",
        "15-components",
        "tdx",
        "module-id",
        "module-signer",
        "module-levels",
    ],
)
def test_knobs_of_the_tcb_info(config: TcbInfoConfig, verdict: str) -> None:
    """Each knob of the TCB info leads dcap-qvl to the outcome that it is there for."""
    assert status(CollateralConfig(tcb_info=config)) == verdict


@pytest.mark.parametrize(
    ("config", "verdict"),
    [
        (QeIdentityConfig(version=1), "reject"),
        (QeIdentityConfig(issue=NOW + 1), "reject"),
        (QeIdentityConfig(miscselect=1), "reject"),
        (QeIdentityConfig(attributes=bytes(16)), "reject"),
        (QeIdentityConfig(mrsigner=bytes(32)), "reject"),
        (QeIdentityConfig(isvprodid=1), "reject"),
        (
            QeIdentityConfig(levels=(TcbLevel(3, "2024-11-13T00:00:00Z", "OutOfDate"),)),
            "OutOfDate",
        ),
    ],
    ids=["version", "issue", "miscselect", "attributes", "mrsigner", "isvprodid", "levels"],
)
def test_knobs_of_the_qe_identity(config: QeIdentityConfig, verdict: str) -> None:
    """Each knob of the QE identity leads dcap-qvl to the outcome that it is there for."""
    assert status(CollateralConfig(qe_identity=config)) == verdict


@pytest.mark.parametrize(
    "config",
    [
        CollateralConfig(root_crl=CrlConfig(revoked=("pck-platform-ca",))),
        CollateralConfig(root_crl=CrlConfig(revoked=("tcb-signing",))),
        CollateralConfig(root_crl=CrlConfig(key="somebody")),
        CollateralConfig(pck_crl=CrlConfig(key=PKI.key("somebody"))),
    ],
    ids=["ca-revoked", "signer-revoked", "root-crl-key", "pck-crl-key"],
)
def test_knobs_of_the_crls(config: CollateralConfig) -> None:
    """A revoked authority, or a CRL signed by another key, is refused."""
    assert status(config) == "reject"


def test_evaluation_number_and_advisories_show() -> None:
    """Numbers, advisories and CRL numbers stand where verifiers read them."""
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


def test_knobs_of_the_platform() -> None:
    """Type, flags, SVNs and expiry of the PCK leaf get into the certificate."""
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
def test_a_seed_has_32_bytes(seed: bytes) -> None:
    """A seed of another size is refused, and is not shown."""
    with pytest.raises(UsageError, match=f"a seed is 32 bytes, not {len(seed)}"):
        SimulatedPki(seed)


@pytest.mark.parametrize("name", ["", "a/b", "\xe9"])
def test_a_platform_id_has_no_slash(name: str) -> None:
    """A platform id that could collide with another label is refused."""
    with pytest.raises(UsageError, match="a platform id is ASCII without a slash"):
        PKI.platform(name)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("fmspc", bytes(5)),
        ("pceid", bytes(3)),
        ("cpusvn", bytes(15)),
        ("pcesvn", 32768),
        ("sgx_type", 3),
        ("qe_mrsigner", bytes(31)),
        ("qe_isvsvn", 65536),
        ("qe_miscselect", -1),
        ("not_before", datetime.fromisoformat("2020-01-01")),
        ("not_after", datetime(2050, 1, 1, tzinfo=timezone.utc)),
        ("pck_not_after", datetime(1949, 1, 1, tzinfo=timezone.utc)),
        ("not_before", 5),
        ("not_before", None),
        ("not_before", datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))),
        ("not_after", datetime(2050, 1, 1, tzinfo=timezone(-timedelta(hours=1)))),
        ("not_after", datetime(2019, 12, 31, tzinfo=timezone.utc)),
        ("pck_not_after", datetime(2019, 12, 31, tzinfo=timezone.utc)),
        ("crl_base_url", "https://\xfc"),
        ("crl_base_url", "https://a\n"),
        ("crl_base_url", b"https://a"),
        ("fmspc", 6),
        ("pcesvn", "13"),
    ],
)
def test_configuration_out_of_range_is_named(knob: str, value: object) -> None:
    """A configured value of the wrong size or range is refused by its name."""
    knobs: dict[str, Any] = {knob: value}
    with pytest.raises(UsageError, match=f"^{knob} "):
        PkiConfig(**knobs)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("revoked", (-1,)),
        ("revoked", (0,)),
        ("revoked", (1 << 159,)),
        ("revoked", (None,)),
        ("revoked", "tcb-signing"),
        ("number", -1),
        ("number", 1 << 159),
        ("number", "1"),
        ("this_update", -(10**9)),
        ("this_update", timedelta(1)),
        ("next_update", 10**13),
        ("next_update", NOW + 0.5),
    ],
)
def test_a_crl_that_cannot_be_is_named(knob: str, value: object) -> None:
    """What no CRL can say is refused by its name, when it is set."""
    knobs: dict[str, Any] = {knob: value}
    with pytest.raises(UsageError, match=f"^{knob} must be "):
        CrlConfig(**knobs)


@pytest.mark.parametrize("kind", [TcbInfoConfig, QeIdentityConfig])
@pytest.mark.parametrize("knob", ["issue", "next_update"])
@pytest.mark.parametrize("value", [10**13, -(10**9), "now"])
def test_a_time_that_cannot_be_is_named(
    kind: type[TcbInfoConfig | QeIdentityConfig], knob: str, value: object
) -> None:
    """So is a time of a signed body."""
    knobs: dict[str, Any] = {knob: value}
    with pytest.raises(UsageError, match=f"^{knob} must be "):
        kind(**knobs)


@pytest.mark.parametrize("span", [timedelta.max, timedelta.min])
def test_a_span_that_leads_out_of_all_times_is_refused(span: timedelta) -> None:
    """Where it ends depends on the time that is asked for; a CRL and a body are alike."""
    for config in (
        CollateralConfig(pck_crl=CrlConfig(next_update=span)),
        CollateralConfig(tcb_info=TcbInfoConfig(next_update=span)),
    ):
        with pytest.raises(UsageError, match=r"^next_update: "):
            PKI.collateral(NOW, config)


def test_the_edges_of_all_times_can_be_said() -> None:
    """The largest numbers, and the first and the last second, come back from the CRL."""
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


def test_values_compare_and_the_seed_is_not_shown() -> None:
    """Configurations are hashable values; a PKI's repr has no seed."""
    assert {PkiConfig(), PkiConfig()} == {PkiConfig()}
    assert hash(CollateralConfig()) == hash(CollateralConfig())
    assert hash(QuoteConfig()) == hash(QuoteConfig())
    assert SEED.hex() not in repr(PKI)
    assert repr(SEED) not in repr(PKI)
