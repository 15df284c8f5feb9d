"""attestkit: remote attestation of confidential VMs.

`open()` returns an attester for the TEE that the program runs in, or for a simulated one. `verify`
and `Verifier` appraise evidence, and `connect()` returns a server whose evidence it has verified,
for requests. All names are imported on first use.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit import backends, errors, ra_tls
    from attestkit.aio import AsyncAttester
    from attestkit.attestation import Attestation
    from attestkit.attester import Attester
    from attestkit.client import Endpoint, Proof, Require, aconnect, connect
    from attestkit.collateral import Collateral
    from attestkit.columns import quote_columns
    from attestkit.event_log import Event, EventLog, TpmEventLog
    from attestkit.factory import aopen, open
    from attestkit.keys import AppKeys, KeyDeriver, verify_key_chain, verify_signature
    from attestkit.quote import Quote
    from attestkit.report_data import ReportData
    from attestkit.simulated_roots import SimulatedRoots
    from attestkit.snp_report import SnpReport
    from attestkit.td_report import TdReport
    from attestkit.verifier import (
        AppraisalPolicy,
        AttestationResult,
        EvidenceBundle,
        Verifier,
        verify,
    )

__all__ = [
    "AppKeys",
    "AppraisalPolicy",
    "AsyncAttester",
    "Attestation",
    "AttestationResult",
    "Attester",
    "Collateral",
    "Endpoint",
    "Event",
    "EventLog",
    "EvidenceBundle",
    "KeyDeriver",
    "Proof",
    "Quote",
    "ReportData",
    "Require",
    "SimulatedRoots",
    "SnpReport",
    "TdReport",
    "TpmEventLog",
    "Verifier",
    "aconnect",
    "aopen",
    "backends",
    "connect",
    "errors",
    "open",
    "quote_columns",
    "ra_tls",
    "verify",
    "verify_key_chain",
    "verify_signature",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "aio": ["AsyncAttester"],
            "attestation": ["Attestation"],
            "attester": ["Attester"],
            "backends": ["backends"],
            "client": ["Endpoint", "Proof", "Require", "aconnect", "connect"],
            "collateral": ["Collateral"],
            "columns": ["quote_columns"],
            "errors": ["errors"],
            "event_log": ["Event", "EventLog", "TpmEventLog"],
            "factory": ["aopen", "open"],
            "keys": [
                "AppKeys",
                "KeyDeriver",
                "verify_key_chain",
                "verify_signature",
            ],
            "quote": ["Quote"],
            "ra_tls": ["ra_tls"],
            "report_data": ["ReportData"],
            "simulated_roots": ["SimulatedRoots"],
            "snp_report": ["SnpReport"],
            "td_report": ["TdReport"],
            "verifier": [
                "AppraisalPolicy",
                "AttestationResult",
                "EvidenceBundle",
                "Verifier",
                "verify",
            ],
        },
    )
