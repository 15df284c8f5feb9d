"""Tests of nonces: evidence is fresh only if it is bound to the nonce that the verifier chose."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import attestkit
from attestkit import Attester, ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit.backends.simulator import Simulator
from attestkit.errors import CollateralError, ConfigError, PolicyError, UsageError
from attestkit.keys import AppKeys
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.machines.tees import FakeTd, Machine
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.platforms import intel

if TYPE_CHECKING:
    from collections.abc import Callable

NONCE: Final = bytes(range(16))
KEYS: Final = AppKeys.from_seed(bytes(32))

every_platform = pytest.mark.parametrize("platform", ["tdx", "snp"])


def open_simulator(platform: str = "tdx") -> Attester[Simulator]:
    """Return an attester of a simulated TEE."""
    return attestkit.open("simulator", seed=bytes(32), platform=platform)


@every_platform
@pytest.mark.parametrize("size", [8, 64])
def test_verify_nonce_makes_result_fresh(platform: str, size: int) -> None:
    """Evidence over a nonce is accepted with this nonce only, and the result is fresh."""
    nonce = bytes(range(size))
    with open_simulator(platform) as tee:
        evidence, verifier = tee.attest(nonce=nonce).to_bytes(), tee.verifier()
    result = verifier.verify(evidence, nonce=nonce)
    assert (result.bound_to, result.nonce, result.fresh) == ("nonce", nonce, True)
    assert result.to_dict()["fresh"] is True
    for other in (nonce[::-1], nonce[:-1] + b"\xff", NONCE + b"x"):
        with raises(PolicyError, "report_data"):
            verifier.verify(evidence, nonce=other)


def test_verify_report_data_is_never_fresh() -> None:
    """Report data may be a constant: a result without nonce is not fresh, and says so."""
    with open_simulator() as tee:
        evidence, verifier = tee.attest(nonce=NONCE), tee.verifier()
    for report_data, bound_to in ((ReportData.for_nonce(NONCE), "report_data"), (None, None)):
        result = verifier.verify(evidence, report_data=report_data)
        assert (result.bound_to, result.nonce, result.fresh) == (bound_to, None, False)
        plain = result.to_dict()
        assert (plain["bound_to"], plain["fresh"]) == (bound_to, False)


@every_platform
@pytest.mark.parametrize("report_data", [b"", b"\0", bytes(64)])
def test_verify_empty_report_data_binds_to_nothing(platform: str, report_data: bytes) -> None:
    """Empty report data is compared; it is not freshness, and not a binding."""
    with open_simulator(platform) as tee:
        evidence, verifier = tee.attest(report_data=bytes(64)), tee.verifier()
        bound = tee.attest(nonce=NONCE)
    result = verifier.verify(evidence, report_data=report_data)
    assert (result.bound_to, result.nonce, result.fresh) == (None, None, False)
    assert ("report_data", "caution") in [(step.check, step.outcome) for step in result.steps]
    with raises(PolicyError, "report_data"):
        verifier.verify(bound, report_data=report_data)


def test_result_keeps_policy_that_accepted_it() -> None:
    """The policy of a result is that of its appraisal, also after the verifier got another."""
    development = AppraisalPolicy.development()
    with open_simulator() as tee:
        evidence, verifier = tee.attest(nonce=NONCE), tee.verifier(policy=development)
    result = verifier.verify(evidence, nonce=NONCE)
    verifier.policy = AppraisalPolicy.strict()
    assert result.policy == development
    assert pickle.loads(pickle.dumps(result)).policy == development
    with pytest.raises(AttributeError):
        untyped(result).policy = AppraisalPolicy.strict()
    with pytest.raises(AttributeError):
        untyped(result.policy).accepted_statuses = ()


def test_nonce_equal_to_tls_binding_is_no_tls_binding() -> None:
    """A challenger that chooses the binding of its own TLS key gets no evidence for this key."""
    assert KEYS.ca_key is not None
    key = P256Key.from_scalar(b"\7" * 32)
    binding = ReportData.bind(ReportData.RATLS_CERT, key.spki_der)
    with open_simulator() as tee:
        evidence, verifier = tee.attest(nonce=binding), tee.verifier()
        issued = ra_tls.issue(
            subject="challenger",
            key=key,
            attest=lambda **_: evidence,
            ca_cert=KEYS.ca_cert,
            ca_key=KEYS.ca_key,
            usage_ra_tls=True,
        )
        genuine = tee.attest(report_data=binding)
    assert evidence.report_data != binding
    with raises(attestkit.errors.VerificationError, "report_data"):
        ra_tls.verify(issued.certificate_chain[0], verifier)
    with raises(PolicyError, "report_data"):
        verifier.verify(evidence, report_data=binding)
    with raises(PolicyError, "report_data"):  # nor is a TLS binding evidence over that nonce
        verifier.verify(genuine, nonce=binding)
    assert not verifier.verify(genuine, report_data=binding).fresh


ED25519_KEY, SECP256K1_KEY = bytes(range(32)), b"\2" + bytes(range(32))
BINDINGS: Final = {
    "TLS key": ReportData.bind(ReportData.RATLS_CERT, P256Key.from_scalar(b"\7" * 32).spki_der),
    "Ed25519 app key": ReportData.for_app_key("ed25519", ED25519_KEY),
    "secp256k1 app key": ReportData.for_app_key("secp256k1", SECP256K1_KEY),
    "KMS": ReportData.bind(ReportData.KMS_ROOT_CA, b"root"),
    "app data": ReportData.bind(ReportData.APP_DATA, b"data"),
    "another nonce": ReportData.for_nonce(NONCE),
}
"""Report data that a relying party takes for the binding of a key or value."""


@every_platform
@pytest.mark.parametrize("binding", BINDINGS.values(), ids=BINDINGS)
def test_nonce_equal_to_binding_is_not_this_binding(platform: str, binding: bytes) -> None:
    """Evidence for a nonce binds no key, even if the nonce has the bytes of a binding."""
    with open_simulator(platform) as tee:
        verifier = tee.verifier()
        for nonce in {binding, binding.rstrip(b"\0")}:  # as sent, and before it was padded
            evidence = tee.attest(nonce=nonce)
            assert evidence.report_data not in BINDINGS.values()
            assert verifier.verify(evidence, nonce=nonce).fresh
            for value in BINDINGS.values():
                with raises(PolicyError, "report_data"):
                    verifier.verify(evidence, report_data=value)
        genuine = tee.attest(report_data=binding)
        with raises(PolicyError, "report_data"):
            verifier.verify(genuine, nonce=binding)


@every_case(
    ("options", "reason"),
    [
        ({}, "missing"),
        ({"nonce": None}, "missing"),
        ({"nonce": NONCE, "report_data": NONCE}, "conflict"),
        ({"nonce": NONCE, "report_data": None}, "conflict"),
        ({"nonce": bytes(7)}, "wrong_size"),
        ({"nonce": bytes(65)}, "wrong_size"),
        ({"nonce": "00112233"}, "wrong_type"),
        ({"report_data": bytes(65)}, "too_large"),
        ({"report_data": 5}, "wrong_type"),
    ],
)
def test_verify_requires_one_valid_expectation(options: dict[str, Any], reason: str) -> None:
    """Exactly one of nonce and report data is given; anything else is never "accept any"."""
    verifier, evidence = intel.verifier(), intel.evidence()
    examination = verifier.examine(evidence)
    bundle = attestkit.EvidenceBundle(evidence.to_bytes(), intel.collateral(), intel.NOW)
    calls: list[Callable[..., object]] = [
        lambda **given: verifier.verify(evidence, **given),
        lambda **given: attestkit.verify(evidence, **given),
        lambda **given: verifier.verify_bundle(bundle, **given),
        examination.appraise,
    ]
    for call in calls:
        with raises(UsageError, reason):
            call(**options)
    with pytest.raises(TypeError):
        untyped(verifier).verify(evidence, NONCE)


@every_case(
    ("options", "reason"),
    [
        ({}, "missing"),
        ({"nonce": NONCE, "report_data": bytes(64)}, "conflict"),
        ({"nonce": NONCE, "pad": True}, "conflict"),
        ({"nonce": bytes(7)}, "wrong_size"),
        ({"nonce": bytes(65)}, "wrong_size"),
        ({"nonce": "a nonce!"}, "wrong_type"),
        ({"report_data": bytes(65)}, "wrong_size"),
        ({"report_data": bytes(65), "pad": True}, "too_large"),
        ({"report_data": bytearray(64)}, "wrong_type"),
    ],
)
def test_attest_requires_one_valid_request(options: dict[str, Any], reason: str) -> None:
    """Exactly one of nonce and report data is given, of a valid size; otherwise no evidence."""
    with open_simulator() as tee:
        with raises(UsageError, reason):
            tee.attest(**options)
        with pytest.raises(TypeError):
            untyped(tee).attest(NONCE)


# -- verifier of a simulated TEE -------------------------------------------------------------------


def test_attester_verifier_takes_options_and_trusts_its_tee_only() -> None:
    """`tee.verifier` passes its options on, and trusts no other simulated TEE."""
    with open_simulator() as tee, attestkit.open("simulator", seed=b"\1" * 32) as other:
        verifier = tee.verifier(policy=AppraisalPolicy.development())
        assert verifier.policy == AppraisalPolicy.development()
        assert verifier.verify(tee.attest(nonce=NONCE), nonce=NONCE).simulated
        with pytest.raises(attestkit.errors.VerificationError):
            verifier.verify(other.attest(nonce=NONCE), nonce=NONCE)
        with pytest.raises(UsageError):
            tee.verifier(collateral=tee.backend.collateral(), pccs_url="https://pccs.invalid")


def test_attester_verifier_requires_simulator(tmp_path: Path) -> None:
    """Hardware, and a backend that only claims to be simulated, have no such verifier."""
    backend = FakeTd(Machine(tmp_path))
    for simulated in (True, False):
        backend.simulated = simulated
        with Attester(backend) as tee, raises(UsageError, "not_applicable"):
            tee.verifier()

    untyped(backend).trust_anchor = intel.PKI.root_der
    untyped(backend).collateral = intel.collateral
    with Attester(backend) as tee, raises(UsageError, "not_applicable"):
        tee.verifier()


def test_verify_reads_collateral_and_policy_from_files(tmp_path: Path) -> None:
    """Collateral and policy may be paths; a file that cannot be read is an error."""
    collateral, policy = tmp_path / "collateral.json", tmp_path / "policy.toml"
    with open_simulator() as tee:
        evidence, root = tee.attest(nonce=NONCE).to_bytes(), tee.backend.trust_anchor
        tee.backend.collateral().save(collateral)
    policy.write_text(AppraisalPolicy.development().to_toml())
    given: dict[str, Any] = {"collateral": str(collateral), "policy": policy}
    assert attestkit.verify(evidence, nonce=NONCE, trust_anchor=root, **given).fresh
    assert Verifier(policy="strict").policy == AppraisalPolicy.strict()  # as `--policy strict`
    with pytest.raises(CollateralError):
        Verifier(collateral=tmp_path / "none")
    with pytest.raises(ConfigError):
        Verifier(policy=str(tmp_path / "none"))


@every_platform
def test_app_info_and_registers_have_one_spelling(platform: str) -> None:
    """Attester, evidence and result name the app and the registers alike."""
    with open_simulator(platform) as tee:
        evidence, verifier, info = tee.attest(nonce=NONCE), tee.verifier(), tee.app_info
        registers = None if platform == "snp" else tee.registers()
    result = verifier.verify(evidence, nonce=NONCE)
    assert result.app_info is not None
    assert evidence.app_info == info
    assert info.app_id == result.app_info.app_id
    assert evidence.registers == result.registers == registers
