"""Fuzz targets: answers of services that attest keys for sealing: ACI, Chutes, SecretVM."""

from attestkit.client.services.aci import AciService
from attestkit.client.services.service import Claims, Machine
from attestkit.errors import FormatError, ServiceError
from fuzz.parser_contract import ParserTarget, check, check_same, obeys
from tests.client.services import aci_answers

_REPORT: int = 16 << 10  # bytes of a report with a bare quote


def _said(claims: Claims) -> object:
    """Return what two readings of an answer must have in common."""
    machines = [(one.role, one.report_data) for one in claims.machines]
    return machines, claims.bindings, claims.not_proven, dict(claims.keys)


def _machine(machine: Machine) -> None:
    check_same("report data", len(machine.report_data), 64)


def _claims(_: bytes, claims: Claims) -> None:
    check("a machine", len(claims.machines) >= 1)
    check("a binding", len(claims.bindings) >= 1)
    for machine in claims.machines:
        _machine(machine)


def _read_aci(raw: bytes) -> Claims:
    return AciService().read((raw,), aci_answers.NONCE, aci_answers.PEER, None)


def aci_samples() -> list[bytes]:
    """Return reports with a bare quote, with keys of all kinds and of none."""
    keys = aci_answers.keyset(receipt_signing_keys=[], e2ee_public_keys=[])
    reports = [
        aci_answers.report(event_log=None, vm_config=None, key_custody=None),
        aci_answers.report(keys, event_log=[], app_compose=None),
    ]
    return [aci_answers.encoded(report) for report in reports]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    refusals = (FormatError, ServiceError)
    return [
        ParserTarget(
            "aci_report",
            obeys(_read_aci, *refusals, accepted=_claims, said=_said, grows=True),
            aci_samples,
            "json.dict",
            _REPORT,
        )
    ]
