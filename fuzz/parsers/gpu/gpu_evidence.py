"""Targets: evidence of GPUs and switches, their reports and their device chains."""

import json
from functools import cache, partial
from typing import Final

from attestkit._crypto.der import DerReader
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError
from attestkit.gpu import DeviceEvidence, GpuEvidence, Report
from attestkit.gpu.architectures import Chip
from attestkit.gpu.device.device_chain import (
    COMPOSITE_OID,
    FWID_SIZE,
    TCB_INFO_OID,
    DeviceChain,
    Dice,
    parse_device_chain,
    read_dice,
    verify_device_chain,
)
from attestkit.gpu.device.opaque_data import encode_opaque_data
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, tried
from tests.gpu.made_devices import (
    GPU_FIELDS,
    NOW,
    SWITCH_FIELDS,
    composite,
    key,
    make_device,
    report_bytes,
    tcb_info,
)
from tests.vectors import data

_NVIDIA: Final = ("hopper-550.90.07", "gb100-575.32", "ls10-96.10.55.00.01")
_CHIP: Final = Chip("GH100", "HOPPER")


def report_samples() -> list[bytes]:
    """Return made reports, and NVIDIA's where there are any."""
    signer = key("a leaf")
    blackwell = {**GPU_FIELDS, 22: bytes(144), 34: b"\1\0", 35: b"GB202\0", 36: b"\1\0"}
    made = [
        report_bytes(signer),
        report_bytes(signer, fields=blackwell.items()),
        report_bytes(signer, "switch", fields=[*SWITCH_FIELDS.items(), (99, b"x")]),
    ]
    real = [data(f"gpu/reports/{name}/report.bin") for name in _NVIDIA]
    return [*made, *filter(None, real), made[0] + b"\0"]


def _parse_report(raw: bytes) -> Report:
    return Report.parse(raw, strip_nul=raw.endswith(b"\0"))


def _report(raw: bytes, report: Report) -> None:
    check("all bytes", raw in {whole := report.signed + report.signature, whole + b"\0"})
    opaque = encode_opaque_data(report.opaque)
    check("opaque data", report.signed.endswith(opaque))
    check_same("measurements", len(report.measurements), 64 if report.kind == "gpu" else 31)
    check("one size", {len(value) for value in report.measurements} == {48})
    check("an identifier", report.vbios_rim_id(_CHIP).isascii())
    check("a version", report.vbios_version.isprintable())
    if report.kind == "gpu":
        check("an identifier", "/" not in report.driver_rim_id(_CHIP))
    tried(lambda: report.verify_signature(key("another").spki), None, SignatureError)
    repr(report)


def evidence_samples() -> list[bytes]:
    """Return evidence in every layout and encoding."""
    device = make_device()
    report = report_bytes(device.key)[:60]  # it is not parsed
    leaf = (b"\x30\x03\x02\x01\x01",)
    one = DeviceEvidence("HOPPER", report, leaf, bytes(32)).to_object()
    bare = DeviceEvidence(None, report, leaf).to_object()
    values = [
        [one],
        [one, {**one, "evidence": report.hex(), "arch": "Blackwell"}],
        {"evidences": [one], "result_code": 0, "result_message": "Ok"},
        {"evidence_list": [bare], "arch": "LS10", "nonce": bytes(32).hex()},
        {"device_evidence_list": [{**bare, "uuid": "GPU-0"}]},
    ]
    return [json.dumps(value).encode() for value in values]


def _evidence(raw: bytes, evidence: GpuEvidence) -> None:
    check_same("the JSON", evidence.to_json(), raw)
    again = GpuEvidence(evidence.devices)
    check_same("devices", GpuEvidence.from_json(again.raw).devices, evidence.devices)
    repr(evidence)


def chain_samples() -> list[bytes]:
    """Return chains of every kind, their certificates one after the other."""
    chains = [
        make_device().certificates,
        make_device("GB100").certificates[:-1],
        make_device("LS_10").certificates[:2],
    ]
    return list(map(b"".join, chains))


def _read_chain(raw: bytes) -> DeviceChain:
    reader, found = DerReader(raw), []
    while reader.tag() is not None:
        found.append(reader.whole())
    return parse_device_chain(tuple(found))


@cache
def _root() -> bytes:
    return make_device().root


def _chain(raw: bytes, chain: DeviceChain) -> None:
    check_same("certificates", b"".join(chain.certificates), raw)
    check("a FWID", {len(fwid) for fwid in chain.fwids} == {FWID_SIZE})
    check_same("an identifier", chain.device_serial[-16:], chain.pdi.hex())
    check("a model", chain.hardware_model.isprintable())
    verify = partial(verify_device_chain, chain, _root(), NOW)
    tried(verify, None, SignatureError, CollateralExpiredError)


def dice_samples() -> list[bytes]:
    """Return extensions of both kinds, after a byte that selects the kind."""
    hopper = composite(key("a BROM").spki)
    return [b"\0" + hopper, b"\1" + tcb_info()]


def _read_dice(raw: bytes) -> Dice:
    return read_dice({TCB_INFO_OID if raw[:1] == b"\1" else COMPOSITE_OID: raw[1:]})


def _dice(raw: bytes, dice: Dice) -> None:
    check("FWIDs", all(fwid in raw for fwid in dice.fwids))
    check("a key", dice.key is None or dice.key in raw)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "gpu_report",
            obeys(_parse_report, FormatError, accepted=_report),
            report_samples,
            max_len=0x2000,
        ),
        ParserTarget(
            "gpu_evidence",
            obeys(GpuEvidence.from_json, FormatError, accepted=_evidence, grows=True),
            evidence_samples,
            "json.dict",
        ),
        ParserTarget(
            "device_chain",
            obeys(_read_chain, FormatError, accepted=_chain),
            chain_samples,
            "x509.dict",
            8192,
        ),
        ParserTarget(
            "dice",
            obeys(_read_dice, FormatError, accepted=_dice),
            dice_samples,
            "x509.dict",
        ),
    ]
