"""attestkit: hardware abstraction over confidential VMs.

`open()` returns an attester for the TEE that the program runs in, or for a simulated one. `verify`
and `Verifier` appraise evidence. All names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit import backends, errors, ra_tls
    from attestkit.aio import AsyncAttester
    from attestkit.attestation import AppInfo, Attestation
    from attestkit.attester import Attester
    from attestkit.collateral import Collateral
    from attestkit.columns import QuoteColumns, quote_columns
    from attestkit.dstack.app_compose import AppCompose
    from attestkit.event_log import Event, EventLog, TpmEventLog
    from attestkit.factory import aopen, open
    from attestkit.keys import (
        AgentKeys,
        AppKeys,
        DerivedKey,
        KeyDeriver,
        LocalKeys,
        Signature,
        verify_signature,
    )
    from attestkit.quote import Quote
    from attestkit.report_data import ReportData, ReportDataWarning
    from attestkit.snp_report import SnpReport
    from attestkit.td_report import TdReport
    from attestkit.verifier import (
        AppraisalPolicy,
        AttestationResult,
        EvidenceBundle,
        ReferenceValues,
        TcbStatus,
        Verifier,
        verify,
    )

__all__ = [
    "AgentKeys",
    "AppCompose",
    "AppInfo",
    "AppKeys",
    "AppraisalPolicy",
    "AsyncAttester",
    "Attestation",
    "AttestationResult",
    "Attester",
    "Collateral",
    "DerivedKey",
    "Event",
    "EventLog",
    "EvidenceBundle",
    "KeyDeriver",
    "LocalKeys",
    "Quote",
    "QuoteColumns",
    "ReferenceValues",
    "ReportData",
    "ReportDataWarning",
    "Signature",
    "SnpReport",
    "TcbStatus",
    "TdReport",
    "TpmEventLog",
    "Verifier",
    "aopen",
    "backends",
    "errors",
    "open",
    "quote_columns",
    "ra_tls",
    "verify",
    "verify_signature",
]

# Public name: the module that defines it, or "" for a submodule.
_HOME = {
    "AgentKeys": "keys",
    "AppCompose": "dstack.app_compose",
    "AppInfo": "attestation",
    "AppKeys": "keys",
    "AppraisalPolicy": "verifier",
    "AsyncAttester": "aio",
    "Attestation": "attestation",
    "AttestationResult": "verifier",
    "Attester": "attester",
    "Collateral": "collateral",
    "DerivedKey": "keys",
    "Event": "event_log",
    "EventLog": "event_log",
    "EvidenceBundle": "verifier",
    "KeyDeriver": "keys",
    "LocalKeys": "keys",
    "Quote": "quote",
    "QuoteColumns": "columns",
    "ReferenceValues": "verifier",
    "ReportData": "report_data",
    "ReportDataWarning": "report_data",
    "Signature": "keys",
    "SnpReport": "snp_report",
    "TcbStatus": "verifier",
    "TdReport": "td_report",
    "TpmEventLog": "event_log",
    "Verifier": "verifier",
    "aopen": "factory",
    "backends": "",
    "errors": "",
    "open": "factory",
    "quote_columns": "columns",
    "ra_tls": "",
    "verify": "verifier",
    "verify_signature": "keys",
}


if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name on first access."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{home or name}")
        value: object = getattr(module, name) if home else module
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
