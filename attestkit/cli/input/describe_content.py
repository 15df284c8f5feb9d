"""The content of a file as plain values: a quote, log, evidence, certificate or recording."""

import json
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats.strict_json import check_depth
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp, is_of_dstack
from attestkit.cli.input.detect_format import FileContent, identify
from attestkit.cli.output.tpm_evidence import describe_tpm, ima_replay, tpm_replay
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.event_log import EventLog, TpmEventLog
from attestkit.event_log.ima import ImaLog
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport
from attestkit.tpm.algorithms import HASH_SIZES

if TYPE_CHECKING:
    from attestkit.backends.recording.recording_file import RecordingFile
    from attestkit.cli.output.certificate_text import CertificateText
    from attestkit.verifier.evidence.formats import EvidenceBundle


def _registers(values: tuple[bytes, ...]) -> dict[str, str]:
    return {f"rtmr{index}": value.hex() for index, value in enumerate(values)}


def _quote(quote: Quote) -> dict[str, Any]:
    """Return the fields of a quote by name, with the certificates of its certification data."""
    fields = quote.to_dict()
    certification: dict[str, Any] = quote.certification._asdict()
    certification["data"] = quote.certification.data.hex()
    try:
        chain = quote.pck_chain
    except FormatError as error:  # show the other fields of a quote with a malformed chain
        certification["error"] = str(error)
    else:
        if chain:
            from attestkit.cli.output.certificate_text import describe_certificate

            certification["certificates"] = [describe_certificate(der) for der in chain]
    return {**fields, "certification": certification}


def _event_log(log: EventLog) -> dict[str, Any]:
    events = [
        {
            "register": event.register,
            "type": event.type_name,
            "name": event.name,
            "digest": event.digest.hex(),
            "payload": event.payload.hex(),
        }
        for event in log.events
    ]
    return {"events": events, "replay": _registers(log.replay()), "warnings": list(log.warnings)}


def _tpm_log(log: TpmEventLog) -> dict[str, Any]:
    events = [
        {
            "pcr": event.pcr,
            "type": event.type_name,
            "digests": {bank: digest.hex() for bank, digest in event.digests},
            "data": event.data.hex(),
        }
        for event in log.events
    ]
    return {"events": events, "replay": {bank: tpm_replay(log, bank) for bank in log.banks}}


def _ima_log(log: ImaLog) -> dict[str, Any]:
    records = [
        {
            "pcr": record.pcr,
            "template": record.template,
            "digest": record.digest.hex(),
            "data": record.data.hex(),
        }
        for record in log.records
    ]
    replay = {bank: ima_replay(log, bank) for bank in HASH_SIZES}
    return {"bank": log.bank, "violations": log.violations, "records": records, "replay": replay}


def _attestation(evidence: Attestation) -> dict[str, Any]:
    quote, platform = evidence.quote, evidence.evidence.platform
    log: dict[str, Any] | None = _event_log(evidence.event_log)
    app: dict[str, Any] | None = None
    if isinstance(platform, SevSnp) or not is_of_dstack(platform):
        log = None  # no registers for a log of events
    try:
        named = not isinstance(platform, SevSnp) or platform.mr_config
        if named and is_of_dstack(platform):
            app = evidence.app_info.to_dict()
    except AttestKitError as error:  # show inconsistent evidence, too
        app = {"error": str(error)}
    return {
        "platform": evidence.platform,
        "encoding": evidence.encoding,
        "report_data": evidence.report_data.hex(),
        "config": evidence.config,
        "app_info": app,
        "quote": None if quote is None else _quote(quote),
        "event_log": log,
        "vtpm": describe_tpm(evidence),
        "gpu_evidence": _enclosed_gpus(evidence),
    }


def _enclosed_gpus(evidence: Attestation) -> dict[str, Any] | None:
    try:
        gpus = evidence.gpu_evidence
    except FormatError as error:  # show the evidence of the CPU
        return {"error": str(error)}
    return None if gpus is None else _gpu("describe_gpu_evidence")(gpus)


def _collateral(collateral: Collateral) -> dict[str, Any]:
    span: dict[str, Any]
    try:
        span = {
            "valid_from": collateral.valid_from.isoformat(),
            "valid_until": collateral.valid_until.isoformat(),
        }
    except AttestKitError as error:  # a part without dates; show the others
        span = {"error": str(error)}
    return {
        **span,
        "tcb_info": _summary(collateral.tcb_info),
        "qe_identity": _summary(collateral.qe_identity),
    }


def _summary(text: str) -> dict[str, Any]:
    """Return the members of the JSON object `text`, with the length of each list in its place.

    Nested objects are left out. For other text, the only member is `error`.
    """
    try:
        check_depth(text)
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"error": f"not JSON: {error}"}
    if not isinstance(body, dict):
        return {"error": "not a JSON object"}
    return {
        key: f"{len(value)} entries" if isinstance(value, list) else value
        for key, value in body.items()
        if not isinstance(value, dict)
    }


def _certificate(certificate: "CertificateText") -> dict[str, Any]:
    return {**certificate.to_dict(), "extensions": list(certificate.extensions)}


def _bundle(bundle: "EvidenceBundle") -> dict[str, Any]:
    report_data = bundle.report_data
    return {
        "at": bundle.at.isoformat(),
        "report_data": None if report_data is None else report_data.hex(),
        "evidence": describe(identify(bundle.evidence)),
        "collateral": None if bundle.collateral is None else _collateral(bundle.collateral),
    }


def _recording(recording: "RecordingFile") -> dict[str, Any]:
    from attestkit.backends.recording.recording_file import header_field

    header = recording.header  # its members are not validated yet
    calls = Counter(entry.key[0] for entry in recording.entries)
    return {
        "backend": header_field(header, "backend", str),
        "simulated": header_field(header, "simulated", bool),
        "abilities": [str(ability) for ability in header_field(header, "abilities", list)],
        "started": header_field(header, "started", str) if "started" in header else None,
        "complete": recording.complete,
        "calls": dict(sorted(calls.items())),
    }


DESCRIBE: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    Quote: _quote,
    TdReport: TdReport.to_dict,
    SnpReport: SnpReport.to_dict,
    EventLog: _event_log,
    TpmEventLog: _tpm_log,
    ImaLog: _ima_log,
    Attestation: _attestation,
    Collateral: _collateral,
}


def _gpu(name: str) -> Callable[[Any], dict[str, Any]]:
    """Return a function that calls the function `name` of `gpu_text`.

    The module is imported by the first call.
    """

    def describe_gpu(value: object) -> dict[str, Any]:
        from attestkit.cli.output import gpu_text  # lazy: only for files of GPUs

        found: dict[str, Any] = getattr(gpu_text, name)(value)
        return found

    return describe_gpu


# By kind, for classes that are imported only for such a file.
DESCRIBE_LAZY: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "GPU report": _gpu("describe_gpu_report"),
    "GPU evidence": _gpu("describe_gpu_evidence"),
    "GPU reference manifest (RIM)": _gpu("describe_rim"),
    "GPU endorsements": _gpu("describe_gpu_endorsements"),
    "certificate without evidence": _certificate,
    "evidence bundle": _bundle,
    "recording": _recording,
}


def describe(found: FileContent) -> dict[str, Any]:
    """Return the content of a file, ready for JSON: `kind` and then its fields; bytes in hex.

    Raises:
        FormatError: If a part that is parsed only now is malformed, such as a bundle's evidence.
        VerificationError: As `identify`, for a bundle's evidence.
        UsageError: If contents of this kind cannot be shown.
    """
    for kind, description in DESCRIBE.items():
        if isinstance(found.value, kind):
            return {"kind": found.kind, **description(found.value)}
    if (lazy := DESCRIBE_LAZY.get(found.kind)) is not None:
        return {"kind": found.kind, **lazy(found.value)}
    raise UsageError(f"{found.kind}: cannot be shown", reason="not_applicable")
