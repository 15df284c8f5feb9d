"""The unverified content of evidence with a TPM, as plain values: quotes, PCRs, key, logs."""

from typing import Any, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.tpm import PcrLogs, find_pcr_logs
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    Evidence,
    GcpSnp,
    GcpTdx,
    GoTpmTools,
    NitroTpm,
    PcrValue,
    Platform,
    Tpm,
    TpmEventDigest,
)
from attestkit.errors import AttestKitError
from attestkit.event_log import TpmEventLog
from attestkit.event_log.ima import ImaLog
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import runtime_preimage
from attestkit.tpm import TpmsAttest, TpmtSignature
from attestkit.tpm.pcrs import EVENT_PCR, extend, start_value


class TpmParts(NamedTuple):
    """Parts of evidence that belong to a TPM.

    Attributes:
        quotes: TPMS_ATTEST and TPMT_SIGNATURE of each quote.
        pcr_values: Values of PCRs.
        attestation_key: TPMT_PUBLIC or DER; empty if a certificate or report has it.
        certificates: Certificates in DER, that of the key first.
        logs: Logs of firmware and IMA.
        digests: Events of a log in the form of dstack, then runtime events; empty with other logs.
        measures_events: Whether runtime events extend PCR 14.
    """

    quotes: tuple[tuple[bytes, bytes], ...] = ()  # TPMS_ATTEST and TPMT_SIGNATURE
    pcr_values: tuple[PcrValue, ...] = ()
    attestation_key: bytes = b""  # TPMT_PUBLIC or DER; empty if a certificate or report has it
    certificates: tuple[bytes, ...] = ()  # DER, of the key first
    logs: PcrLogs = PcrLogs()
    # Of a log in the form of dstack, then of the runtime events; empty with other logs.
    digests: tuple[TpmEventDigest, ...] = ()
    measures_events: bool = False  # whether runtime events extend PCR 14


def read_tpm_parts(evidence: Evidence) -> TpmParts | None:
    """Return quotes, PCRs, key and logs of the TPM in evidence; None without a TPM.

    Raises:
        FormatError: If a message of go-tpm-tools is malformed.
    """
    platform = evidence.platform
    if isinstance(platform, GcpTdx):
        quote, events = platform.tpm_quote, evidence.stack.runtime_events
        measured = [TpmEventDigest(EVENT_PCR, sha256(runtime_preimage(*event))) for event in events]
        return TpmParts(
            ((quote.message, quote.signature),),
            quote.pcr_values,
            certificates=(quote.ak_cert,),
            digests=(*quote.event_log, *measured),
            measures_events=True,
        )
    if isinstance(platform, (AzureSnp, AzureTdx, GcpSnp, Tpm)):
        found = platform.vtpm_quote
        return TpmParts(
            ((found.message, found.signature),),
            found.pcr_values,
            found.ak_public,
            found.ak_certificates,
            find_pcr_logs(platform) or PcrLogs(),
        )
    if isinstance(platform, GoTpmTools):
        from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage  # lazy: only for these

        message = GoTpmToolsMessage.parse(platform.message)
        return TpmParts(
            tuple([(one.message, one.signature) for one in message.quotes]),
            tuple([pcr for one in message.quotes for pcr in one.pcr_values]),
            message.ak_public,
            tuple(filter(None, (message.ak_certificate, *message.intermediates))),
            PcrLogs(message.event_log),
        )
    return None


def describe_tpm(evidence: Attestation) -> dict[str, Any] | None:
    """Return the TPM's part of evidence, ready for JSON; None on a platform without a TPM.

    The members are `attestation_key` (hex), `quotes`, `pcrs`, `log_error`, `certificates` and
    `paravisor`. The only member is `error` if the evidence of the TPM is malformed as a whole. A
    malformed quote or certificate has the member `error` instead of its own.
    """
    platform = evidence.evidence.platform
    try:
        if isinstance(platform, NitroTpm):
            return _describe_document(evidence)
        parts = read_tpm_parts(evidence.evidence)
    except AttestKitError as error:
        return {"error": str(error)}
    if parts is None:
        return None
    from attestkit.cli.output.certificate_text import describe_certificate  # lazy: slow to import

    explained, problem = explain_pcrs(parts)
    return {
        "attestation_key": parts.attestation_key.hex(),
        "quotes": [_describe_quote(*quote) for quote in parts.quotes],
        "pcrs": [
            {
                "pcr": f"{pcr.algorithm}:{pcr.number}",
                "value": pcr.value.hex(),
                "explained": (pcr.algorithm, pcr.number) in explained,
            }
            for pcr in sorted(parts.pcr_values, key=lambda pcr: (pcr.algorithm, pcr.number))
        ],
        "log_error": problem,
        "certificates": [describe_certificate(der) for der in parts.certificates],
        "paravisor": _describe_paravisor(platform),
    }


def explain_pcrs(parts: TpmParts) -> tuple[frozenset[tuple[str, int]], str | None]:
    """Return the PCRs, such as ("sha256", 4), that the logs replay to, and the error of the replay.

    The error is None if the replay succeeded or there are no logs.
    """
    if parts.digests or parts.measures_events:
        return _replay_digests(parts), None
    boot_log, ima_log, later = parts.logs
    if not boot_log and not ima_log:
        return frozenset(), None
    from attestkit.verifier.platforms.vtpm.pcr_logs import replay_pcr_logs  # lazy: only with logs

    pcrs = [(pcr.algorithm, pcr.number, pcr.value) for pcr in parts.pcr_values]
    try:
        found = replay_pcr_logs(pcrs, boot_log, ima_log, extended_later=later)
        return frozenset(found.replayed), None
    except AttestKitError as error:
        return frozenset(), str(error)


def _replay_digests(parts: TpmParts) -> frozenset[tuple[str, int]]:
    replayed = {EVENT_PCR: start_value(EVENT_PCR, 32)} if parts.measures_events else {}
    for index, digest in parts.digests:
        value = replayed.get(index) or start_value(index, len(digest))
        replayed[index] = extend("sha256", value, [digest])
    return frozenset(
        ("sha256", pcr.number)
        for pcr in parts.pcr_values
        if pcr.algorithm == "sha256" and replayed.get(pcr.number) == pcr.value
    )


def _describe_quote(message: bytes, signature: bytes) -> dict[str, Any]:
    try:
        attest, signed = TpmsAttest.parse(message), TpmtSignature.parse(signature)
    except AttestKitError as error:
        return {"error": str(error)}
    return {
        "algorithm": f"{signed.algorithm}-{signed.hash_name}",
        "extra_data": attest.extra_data.hex(),
        "selection": ", ".join(
            f"{one.bank}: {' '.join(map(str, one.pcrs)) or 'none'}" for one in attest.selections
        ),
        "pcr_digest": attest.pcr_digest.hex(),
        "clock_ms": attest.clock_ms,
        "reset_count": attest.reset_count,
        "restart_count": attest.restart_count,
        "safe": attest.safe,
        "firmware_version": f"{attest.firmware_version:016x}",
    }


def _describe_document(evidence: Attestation) -> dict[str, Any]:
    """Return the PCRs in a NitroTPM's attestation document, with the members of `describe_tpm`.

    The document has no TPM quote and no key.
    """
    from attestkit.cli.output.certificate_text import describe_certificate  # lazy: slow to import

    document = evidence.nitro_document
    assert document is not None
    replayed = () if evidence.is_bare else (replay_from(ZERO, evidence.runtime_events),)
    return {
        "attestation_key": "",
        "quotes": [],
        "pcrs": [
            {
                "pcr": f"sha384:{index}",
                "value": value.hex(),
                "explained": index == EVENT_PCR and value in replayed,
            }
            for index, value in sorted(document.pcrs.items())
        ],
        "log_error": None,
        "certificates": [describe_certificate(document.certificate)],
        "paravisor": None,
    }


def _describe_paravisor(platform: Platform) -> dict[str, Any] | None:
    """Return the VM's properties in the HCL report of a paravisor; None without a paravisor.

    The members are `report_type`, `attestation_key`, `user_data` (both hex) and `configuration`; or
    `error` alone.
    """
    if not isinstance(platform, (AzureSnp, AzureTdx)):
        return None
    from attestkit.attestation.azure import HclReport  # lazy: only for Azure

    try:
        report = HclReport.parse(platform.hcl_report)
    except AttestKitError as error:
        return {"error": str(error)}
    user_data = report.content.user_data
    return {
        "report_type": report.report_type,
        "attestation_key": report.content.attestation_key.spki.hex(),
        "user_data": None if user_data is None else user_data.hex(),
        "configuration": dict(report.content.configuration),
    }


def tpm_replay(log: TpmEventLog, bank: str) -> dict[str, str]:
    """Return the replayed PCRs of a bank such as `sha256` in hex, by `pcr0` etc.; or an `error`."""
    try:
        return {f"pcr{pcr}": value.hex() for pcr, value in log.replay(bank).items()}
    except AttestKitError as error:  # unsupported algorithm, or events without this bank's digest
        return {"error": str(error)}


def ima_replay(log: ImaLog, bank: str) -> dict[str, str]:
    """Return the PCRs that all records of an IMA log lead to in a bank such as `sha256`.

    They are in hex, by name such as `pcr10`.
    """
    return {f"pcr{pcr}": log.replay(bank, pcr).hex() for pcr in log.pcrs}
