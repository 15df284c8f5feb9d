"""Verification of GPU evidence: fabricated and real cases, simulated faults, and machines."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pytest

from attestkit._crypto.p384 import P384PublicKey
from attestkit._crypto.pem import split_pem
from attestkit.backends.simulator.gpu.deviations import OcspFault, add_field
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.backends.simulator.gpu.gpu_pki import (
    GpuPki,
    ServedCertificate,
    SimulatedOcsp,
)
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError, UsageError
from attestkit.gpu.device.opaque_data import FEATURE_FLAG, PROTECTED_PCIE_STATUS
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
from attestkit.gpu.result import GpuResult
from attestkit.gpu.roots import GpuRoots
from attestkit.gpu.rules import GpuRules
from attestkit.gpu.verification import verify
from tests.gpu.gpu_samples import CASES, EXPECTED, read_pem
from tests.gpu.simulated_machine import NONCE, NOW, endorsements, machine, verify_machine
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import SHARED, data, needs_shared

FABRICATED: Final = SHARED / "data/gpu/fabricated"
# Faults of tokens and of nonces in OCSP answers are of services, which are not used here.
FAULTS: Final = sorted(name for name in GPU_FAULTS if not name.startswith(("nras-", "ocsp-nonce-")))


def read_case(case: dict[str, Any]) -> tuple[GpuEvidence, GpuRoots, GpuEndorsements]:
    """Return evidence, roots and endorsements of a fabricated case."""
    folder = FABRICATED / case["name"]
    chain = read_pem(f"fabricated/{case['name']}/chain.pem")
    device = DeviceEvidence(case["arch"], (folder / "report.bin").read_bytes(), chain)
    roots = [split_pem((folder / f"{name}-root.pem").read_text())[0] for name in ("device", "rim")]
    rims = {
        case[f"{part}_rim_id"]: (folder / f"{part}-rim.xml").read_bytes()
        for part in ("driver", "vbios")
    }
    ocsp = tuple(path.read_bytes() for path in sorted((folder / "ocsp").iterdir()))
    return GpuEvidence((device,)), GpuRoots(*roots), GpuEndorsements(rims, ocsp)


def verify_case(case: dict[str, Any], **options: Any) -> GpuResult:
    """Verify a fabricated case at its time."""
    evidence, roots, found = read_case(case)
    return verify(
        evidence,
        nonce=bytes.fromhex(case["nonce"]),
        now=datetime.fromisoformat(case["time"].replace("Z", "+00:00")),
        endorsements=found,
        roots=roots,
        **options,
    )


# -- samples -----------------------------------------------------------------------------------


@needs_shared
@every_case("case", CASES, ids=lambda case: str(case["name"]))
def test_fabricated_case_has_its_verdict(case: dict[str, Any]) -> None:
    """Each case is accepted, or refused by the check that it names."""
    if case["verdict"] == "accept":
        found = verify_case(case)
        assert len(found.devices) == 1
        assert found.simulated
        assert not found.not_proven
        return
    with pytest.raises(GpuEvidenceError) as caught:
        verify_case(case)
    assert caught.value.reason == case["failed_check"]
    assert caught.value.device == 0


@needs_shared
def test_real_case_is_accepted_under_nvidias_roots() -> None:
    """The complete real case passes; its OCSP answers have no common time, so they are off."""
    case = EXPECTED["complete_case"]
    folder = f"reports/{case['report']}"
    report = data(f"gpu/{folder}/report.bin")
    names = ("NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001")
    found = verify(
        GpuEvidence((DeviceEvidence("HOPPER", report, read_pem(f"{folder}/chain.pem")),)),
        nonce=report[4:36],
        now=datetime.fromisoformat(case["at"].replace("Z", "+00:00")),
        endorsements=GpuEndorsements({name: data(f"gpu/rims/{name}.xml") for name in names}),
        rules=GpuRules(ocsp="off"),
    )
    [device] = found.devices
    assert not found.simulated
    assert found.not_proven == ("gpu_revocation",)
    expected = EXPECTED["comparisons"][case["report"]]["with_nvdec_rule"]
    assert device.matched == expected["matched"]
    assert list(device.skipped) == expected["skipped"]
    assert [rim.identifier for rim in device.rims] == list(names)


@needs_shared
def test_real_switch_is_accepted_under_nvidias_roots() -> None:
    """A switch has one manifest, and all its measurements are compared."""
    folder = "reports/ls10-96.10.55.00.01"
    report, name = data(f"gpu/{folder}/report.bin"), "NV_SWITCH_BIOS_5612_0002_890_9610550001"
    found = verify(
        GpuEvidence((DeviceEvidence("LS10", report, read_pem(f"{folder}/chain.pem")),)),
        nonce=report[4:36],
        now=datetime(2026, 11, 28, tzinfo=timezone.utc),
        endorsements=GpuEndorsements({name: data(f"gpu/rims/{name}.xml")}),
        rules=GpuRules(ocsp="off"),
    )
    [device] = found.devices
    expected = EXPECTED["comparisons"]["ls10-96.10.55.00.01"]["with_nvdec_rule"]
    assert device.matched == expected["matched"]
    assert (device.kind, device.driver_version, len(device.rims)) == ("switch", None, 1)
    assert found.not_proven == ("gpu_revocation", "gpu_topology")


@needs_shared
def test_real_machine_without_manifests_is_not_refused() -> None:
    """All devices are gone through; missing manifests are a CollateralError that lists all."""
    gpus = GpuEvidence.from_json(data("gpu/evidence/ppcie-gpus.json"))
    switches = GpuEvidence.from_json(data("gpu/evidence/ppcie-switches.json"))
    devices = (*gpus.devices, *switches.devices)
    with pytest.raises(CollateralError) as caught:
        verify(
            GpuEvidence(devices),
            nonce=devices[0].report[4:36],
            now=datetime(2026, 11, 28, tzinfo=timezone.utc),
            rules=GpuRules(ocsp="off"),
        )
    assert caught.value.reason == "missing"
    assert str(caught.value).count("missing") == len(devices)


# -- simulated machines ------------------------------------------------------------------------


@pytest.mark.slow
@every_case("name", FAULTS)
def test_fault_is_refused_by_its_check(name: str) -> None:
    """Each fault of the simulator is refused by the check that it names, or accepted."""
    gpus, expected = machine(fault=name), GPU_FAULTS[name].check
    if expected is None:
        assert verify_machine(gpus).devices
        return
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus)
    assert caught.value.reason == expected


def test_machine_with_switches_is_accepted() -> None:
    """Eight GPUs in protected PCIe mode, and their four switches."""
    found = verify_machine(machine(8), rules=GpuRules(protected_pcie=True, count=8, switch_count=4))
    assert (len(found.gpus), len(found.switches)) == (8, 4)
    assert {device.mode for device in found.gpus} == {"protected_pcie"}
    assert not found.not_proven
    assert len({device.pdi for device in found.devices}) == 12


def test_protected_machine_without_switches_is_not_fully_proven() -> None:
    """Without evidence of switches the connections are not checked, unless a rule needs them."""
    gpus = machine(8)
    only_gpus = GpuEvidence(gpus.evidence(NONCE).devices[:8])
    assert verify_machine(gpus, only_gpus).not_proven == ("gpu_topology",)
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus, only_gpus, rules=GpuRules(protected_pcie=True))
    assert caught.value.reason == "topology"


def test_error_is_of_the_first_refused_device_and_lists_all() -> None:
    """A device's failure does not hide that of another one."""
    gpus = machine(2)
    first, second = gpus.evidence(NONCE).devices
    wrong = replace(second, report=second.report[:-1] + bytes([second.report[-1] ^ 1]))
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus, GpuEvidence((first, wrong)))
    assert (caught.value.reason, caught.value.device) == ("report_signature", 1)
    other = replace(first, report=first.report + b"\0")
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus, GpuEvidence((other, wrong)))
    assert (caught.value.reason, caught.value.device) == ("format", 0)
    assert "GPU 0" in str(caught.value)
    assert "GPU 1" in str(caught.value)


def test_every_byte_of_a_report_is_protected() -> None:
    """A report with a changed byte is refused for its format, keys or signature.

    Every 13th byte: tests of the report change each one of parser and signature.
    """
    gpus = machine(1)
    [device] = gpus.evidence(NONCE).devices
    for at in range(0, len(device.report), 13):
        altered = bytearray(device.report)
        altered[at] ^= 0x40
        with pytest.raises(GpuEvidenceError) as caught:
            verify_machine(gpus, GpuEvidence((replace(device, report=bytes(altered)),)))
        assert caught.value.reason in {"format", "device_chain", "fwid", "report_signature"}


def test_stated_architecture_must_be_that_of_the_certificates() -> None:
    """The architecture that the sender states is compared with the certificates."""
    gpus = machine(1)
    [device] = gpus.evidence(NONCE).devices
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus, GpuEvidence((replace(device, architecture="BLACKWELL"),)))
    assert caught.value.reason == "device_chain"
    assert verify_machine(gpus, GpuEvidence((replace(device, architecture=None),))).devices


def test_other_roots_are_not_trusted() -> None:
    """Without its own roots, simulated evidence is refused under NVIDIA's."""
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(machine(1), roots=None)
    assert caught.value.reason == "device_chain"


# -- endorsements ------------------------------------------------------------------------------


def test_missing_endorsements_are_collateral_errors() -> None:
    """Missing endorsements are a CollateralError; a refusal of another device counts first."""
    gpus = machine(1)
    complete = endorsements(gpus)
    for found in (
        GpuEndorsements(),
        GpuEndorsements(complete.rims),
        GpuEndorsements({}, complete.ocsp),
        GpuEndorsements(dict(list(complete.rims.items())[:1]), complete.ocsp),
    ):
        with pytest.raises(CollateralError) as caught:
            verify_machine(gpus, endorsements=found)
        assert caught.value.reason == "missing"


def test_ocsp_answers_are_checked_at_the_given_time() -> None:
    """A stale answer is refused, also one that is older than the rules allow."""
    gpus = machine(1)
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus, now=NOW + timedelta(days=2))
    assert caught.value.reason == "device_ocsp"
    later = NOW + timedelta(hours=6)
    assert verify_machine(gpus, now=later).devices
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus, now=later, rules=GpuRules(max_ocsp_age=timedelta(hours=3)))
    assert caught.value.reason == "device_ocsp"


def test_hold_of_a_signer_is_accepted_by_rule_with_caution() -> None:
    """A manifest's signer may be on hold by policy; a device's certificate never."""
    gpus = machine(fault="ocsp-rim-leaf-hold")
    found = verify_machine(gpus, rules=GpuRules(allow_hold=True))
    assert found.not_proven == ("gpu_revocation",)
    with pytest.raises(GpuEvidenceError):
        verify_machine(machine(fault="ocsp-brom-revoked"), rules=GpuRules(allow_hold=True))


def test_each_signature_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared certificates are verified once; of a known machine, only the reports are verified."""
    verified: list[tuple[bytes, bytes]] = []
    original = P384PublicKey.verify_der

    def verify_der(self: P384PublicKey, signature: bytes, signed: bytes) -> None:
        verified.append((signature, signed))
        original(self, signature, signed)

    monkeypatch.setattr(P384PublicKey, "verify_der", verify_der)
    gpus = SimulatedGpus(b"\x77" * 32, GpuConfig(8))  # of which no other test is
    verify_machine(gpus)
    assert len({*verified}) == len(verified) > 12 * 3
    for nonce in (b"\1" * 32, b"\2" * 32):
        verified.clear()
        evidence = gpus.evidence(nonce)
        found = verify_machine(gpus, evidence.raw, nonce=nonce)
        assert len(found.devices) == 12
        signed = [device.report[:-96] for device in evidence.devices]
        assert sorted(data for _, data in verified) == sorted(signed)


def test_nul_after_signature_is_accepted_by_rule() -> None:
    """A collector's buffer may have exactly one NUL after the signature; the default refuses it."""
    gpus = machine(1)
    [device] = gpus.evidence(NONCE).devices
    for rest, allowed in ((b"\0", True), (b"\0\0", False), (b"\1", False)):
        padded = GpuEvidence((replace(device, report=device.report + rest),))
        if allowed:
            accepted = verify_machine(gpus, padded, rules=GpuRules(allow_trailing_nul=True))
            assert accepted.devices
        for rules in (GpuRules(), *(() if allowed else (GpuRules(allow_trailing_nul=True),))):
            with pytest.raises(GpuEvidenceError) as caught:
                verify_machine(gpus, padded, rules=rules)
            assert caught.value.reason == "format"


def test_hold_of_a_ca_is_refused_under_every_rule() -> None:
    """Only the signer of a manifest may be on hold, not the CAs above it."""
    gpus = machine(1)
    pki, model = GpuPki(gpus.derive), gpus.devices[0].model
    _, (_, l3, ca, _) = pki.rim_signer(model)
    hold = OcspFault("rim_signer", "revoked", "certificate_hold")
    for der, issuer in ((l3, pki.rim_ca(model)), (ca, pki.rim_root)):
        answers = SimulatedOcsp(pki, [ServedCertificate(der, issuer, hold)]).answers(NOW)
        given = replace(endorsements(gpus), ocsp=(*answers, *endorsements(gpus).ocsp))
        with pytest.raises(GpuEvidenceError) as caught:
            verify_machine(gpus, endorsements=given, rules=GpuRules(allow_hold=True))
        assert caught.value.reason == "driver_rim_ocsp"
        assert "on hold" in str(caught.value)


def test_ended_ocsp_answers_are_accepted_within_the_grace_with_caution() -> None:
    """An answer may be used for a time after its end by policy; the result then says so."""
    gpus, late = machine(1), NOW + timedelta(hours=30)
    grace = GpuRules(ocsp_grace=timedelta(hours=6))
    found = verify_machine(gpus, now=late, rules=grace)
    assert found.not_proven == ("gpu_revocation",)
    assert verify_machine(gpus, rules=grace).not_proven == ()
    with pytest.raises(GpuEvidenceError) as caught:
        verify_machine(gpus, now=late, rules=GpuRules(ocsp_grace=timedelta(hours=5)))
    assert caught.value.reason == "device_ocsp"


def test_absent_fwid_is_accepted_by_rule_with_caution() -> None:
    """Old drivers leave the field out, so that the firmware's identity is not compared."""
    found = verify_machine(machine(fault="fwid-absent"), rules=GpuRules(allow_absent_fwid=True))
    assert found.not_proven == ("gpu_report",)
    assert verify_machine(machine(1), rules=GpuRules(allow_absent_fwid=True)).not_proven == ()


ON, OFF = (PROTECTED_PCIE_STATUS, b"\xaa"), (PROTECTED_PCIE_STATUS, b"\x55")
SINGLE, MULTI, PROTECTED, UNKNOWN = ((FEATURE_FLAG, bytes((flag, 0))) for flag in range(4))
REFUSED_MODES: Final = {
    "unknown": ([UNKNOWN],),
    "contradiction, single": ([ON, SINGLE],),
    "contradiction, protected": ([OFF, PROTECTED],),
    "protected and not": ([ON], [OFF]),
    "protected by its flag and not": ([PROTECTED], [OFF]),
    "single and multi": ([SINGLE], [MULTI]),
    "multi and not stated": ([MULTI], []),
    "not stated and multi": ([], [MULTI]),
}


def modes_of(*fields: list[tuple[int, bytes]]) -> GpuResult:
    """Verify a machine whose GPUs state their modes with these fields."""
    gpus = machine(len(fields))
    chains = [one.certificates for one in gpus.evidence(NONCE).devices]
    devices = []
    for device, chain, own in zip(gpus.devices, chains, fields, strict=True):
        content = device.content(NONCE)
        for field in (PROTECTED_PCIE_STATUS, FEATURE_FLAG):
            content = content.with_field(field, None)
        for kind, value in own:
            content = add_field(kind, value, content)
        devices.append(DeviceEvidence("HOPPER", content.sign(device.device.key), chain))
    return verify_machine(gpus, GpuEvidence(tuple(devices)))


@every_case("name", REFUSED_MODES)
def test_modes_that_do_not_fit_are_refused(name: str) -> None:
    """GPUs of one machine have one mode, and the two fields of a report agree."""
    with pytest.raises(GpuEvidenceError) as caught:
        modes_of(*REFUSED_MODES[name])
    assert caught.value.reason == "modes"


def test_modes_that_fit_are_results() -> None:
    """A mode is that of either field; one that old firmware does not state is None."""
    for stated, mode in (
        (([ON, PROTECTED], [ON]), "protected_pcie"),
        (([MULTI, OFF], [MULTI]), "multi"),
        (([SINGLE], [OFF]), "single"),
        (([], []), None),
    ):
        assert modes_of(*stated).devices[0].mode == mode


def test_mismatch_is_accepted_at_named_indexes_only() -> None:
    """An accepted mismatch is a caution of the result."""
    gpus = machine(fault="measurement-25")
    found = verify_machine(gpus, rules=GpuRules(accepted_mismatches={25}))
    assert found.devices[0].mismatches == (25,)
    assert found.not_proven == ("gpu_measurements",)
    with pytest.raises(GpuEvidenceError):
        verify_machine(gpus, rules=GpuRules(accepted_mismatches={24}))


# -- arguments and results ---------------------------------------------------------------------


def test_arguments_are_checked() -> None:
    """Arguments of another type or size are usage errors, malformed JSON is a format error."""
    gpus = machine(1)
    with pytest.raises(UsageError):
        verify_machine(gpus, nonce=bytes(31))
    with pytest.raises(UsageError):
        verify_machine(gpus, nonce=untyped("n" * 32))
    with pytest.raises(UsageError):
        verify_machine(gpus, untyped(5))
    for name in ("now", "endorsements", "roots", "rules"):
        with pytest.raises(UsageError):
            verify_machine(gpus, **{name: untyped(5)})
    with pytest.raises(UsageError):
        verify_machine(gpus, now=datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))))
    with pytest.raises(UsageError):
        verify_machine(gpus, now=datetime(2026, 11, 28))  # noqa: DTZ001 - without a zone
    with pytest.raises(FormatError):
        verify_machine(gpus, b"{}")


def test_result_is_json() -> None:
    """Result and claims are values for JSON."""
    found = verify_machine(machine(1))
    text = json.dumps(found.to_dict())
    assert json.loads(text)["devices"][0]["chip"] == "GH100"
    assert found == verify_machine(machine(1))
    assert hash(found) == hash(verify_machine(machine(1)))
