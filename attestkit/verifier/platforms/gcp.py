"""Authentication of a Google Confidential VM's TPM, beside that of its hardware.

The checks are those of dstack's verifier, and stricter where it has gaps. The signature is verified
before the log is replayed, so that nothing unsigned is replayed. Requests for issuer certificates,
if allowed, are sent only after both.
"""

import hmac
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._crypto.public_key import load_verification_key
from attestkit._outcomes.steps import VerificationStep, passed, skipped
from attestkit._sanitize import shown
from attestkit.attestation import Attestation
from attestkit.attestation.gcp import pcr_value
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import GcpSnp, GcpTdx, RuntimeEvent, Stack, TpmQuote
from attestkit.errors import FormatError, ReplayError, SignatureError, VerificationError
from attestkit.event_log.runtime_events import runtime_preimage
from attestkit.tpm import PcrSelection, TpmsAttest
from attestkit.tpm.pcrs import (
    EVENT_PCR,
    INIT_DATA_PCR,
    LOGGED_PCRS,
    PCR_COUNT,
    extend,
    format_pcrs,
    start_value,
)
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.vtpm.ak_chain import (
    AkChains,
    VerifiedAk,
    read_evidence_certificate,
)
from attestkit.verifier.platforms.vtpm.attestation_key import (
    AttestationKey,
    form_steps,
    gce_details,
    instance_step,
    read_attestation_key,
)
from attestkit.verifier.platforms.vtpm.pcr_logs import ReplayedPcrs, further_step, unexplained_steps
from attestkit.verifier.platforms.vtpm.quote import ALL_PCRS, VerifiedQuote

_BANK: Final = "sha256"
_TDX_PCRS: Final = (PcrSelection(_BANK, (0, 2, EVENT_PCR)),)
_SCHEMES: Final = {"rsa": ("rsassa", _BANK), "p256": ("ecdsa", _BANK)}
_MAX_EVENTS: Final = 65_536
_CERTIFIED: Final = passed(
    "attestation_key",
    "the attestation key is that of its certificate; the TPM is the host's, so its PCRs are a "
    "statement of the cloud provider, not of the processor",
)


class GcpAuthenticator:
    """Authenticator of the vTPM of Google's Confidential VMs."""

    def __init__(self, chains: AkChains) -> None:
        """Set the verifier of AK certificates."""
        self._chains = chains

    def authenticate(
        self,
        attestation: Attestation,
        hardware: Authenticated,
        now: datetime,
        before_fetch: Callable[[], object] = lambda: None,
    ) -> Authenticated:
        """Verify the TPM's quote, and that it is over the hardware's evidence.

        Args:
            attestation: Evidence of `GcpTdx` or `GcpSnp`.
            hardware: Authentic content of the TDX quote or SEV-SNP report in the evidence.
            now: Time of the verification, with a time zone.
            before_fetch: Function that is called before each request for a certificate.

        Raises:
            FormatError: If message, signature, log or PCR values are malformed.
            SignatureError: If the signature, the certificates of its key, or a CRL is not valid.
            CollateralError: If a certificate is missing, or cannot be fetched.
            VerificationError: If bank, selection or PCR values are not the quoted ones
                (`pcr_selection`, `pcr_digest`), or the quote is not over the hardware's evidence
                (`tpm_join`).
            ReplayError: If a log does not replay to its PCR.
        """
        platform, stack = attestation.evidence
        if isinstance(platform, GcpSnp):
            return self._authenticate_snp(platform, hardware, now, before_fetch)
        assert isinstance(platform, GcpTdx)
        return self._authenticate_tdx(platform, stack, hardware, now, before_fetch)

    def _authenticate_tdx(
        self,
        platform: GcpTdx,
        stack: Stack,
        hardware: Authenticated,
        now: datetime,
        before_fetch: Callable[[], object],
    ) -> Authenticated:
        """Verify the TPM's quote beside a TDX quote, with the logs of its PCRs.

        Args:
            platform: TDX quote and TPM quote.
            stack: The runtime events and the VM configuration.
            hardware: Authentic content of the TDX quote.
            now: Time of the verification, with a time zone.
            before_fetch: Function that is called before each request for a certificate.
        """
        tpm_quote = platform.tpm_quote
        _check_form(tpm_quote)
        quote = _read_key(tpm_quote).verify_quote(tpm_quote, _TDX_PCRS)
        logs = _replay_log(tpm_quote)
        certified = self._chains.verify(
            tpm_quote.ak_cert, self._chains.google, now, before_fetch=before_fetch
        )
        found = _combine(hardware, quote, certified, platform.quote, logs.steps)
        # In an image of dstack, nothing extends PCR 14 before the first event.
        is_of_dstack = VmConfig.parse(stack.config).find("gcp_measurement") is not None
        events = _replay_events(tpm_quote, stack.runtime_events, after_shim=not is_of_dstack)
        assert found.vtpm is not None
        vtpm = replace(found.vtpm, replayed=(*logs.replayed, (_BANK, EVENT_PCR)))
        return found._replace(steps=(*found.steps, events), vtpm=vtpm)

    def _authenticate_snp(
        self,
        platform: GcpSnp,
        hardware: Authenticated,
        now: datetime,
        before_fetch: Callable[[], object],
    ) -> Authenticated:
        """Verify the TPM's quote beside an SEV-SNP report; the TPM's logs are not replayed.

        Args:
            platform: SEV-SNP report and TPM quote.
            hardware: Authentic content of the report.
            now: Time of the verification, with a time zone.
            before_fetch: Function that is called before each request for a certificate.
        """
        evidence = platform.vtpm_quote
        if not evidence.ak_certificates:
            message = "AK certificate: missing; add Google's certificate of the TPM's key"
            raise FormatError(message, reason="missing")
        key = read_attestation_key(evidence.ak_public, evidence.ak_certificates)
        quote = key.verify_quote(evidence, (ALL_PCRS,))
        leaf, *beside = evidence.ak_certificates
        certified = self._chains.verify(
            leaf, self._chains.google, now, beside=beside, before_fetch=before_fetch
        )
        found = _combine(hardware, quote, certified, platform.report)
        return found._replace(steps=(*found.steps, *form_steps(key, by_google=True)))


def _combine(
    hardware: Authenticated,
    quote: VerifiedQuote,
    certified: VerifiedAk,
    embedded: bytes,
    log_steps: tuple[VerificationStep, ...] = (),
) -> Authenticated:
    """Return the hardware's content with facts and steps of the TPM's quote, if they are joined.

    Args:
        hardware: Content of the hardware's evidence.
        quote: The TPM's quote.
        certified: The TPM's key, with a verified certificate.
        embedded: Hardware evidence as embedded, whose hash the quote must have.
        log_steps: Steps of the replay of logs.
    """
    join = _check_join(quote, embedded)
    instance = instance_step(certified.gce)
    steps = (*quote.steps, *log_steps, _CERTIFIED, *certified.steps, instance, join)
    facts = quote.facts("certificate", ("ak_to_hardware",), gce_details(certified.gce))
    return hardware._replace(steps=(*hardware.steps, *steps), vtpm=facts)


def _check_form(tpm_quote: TpmQuote) -> None:
    """Check the platform's name, the log's size and records, the bank, and the order of PCR values.

    dstack's verifier does not check these.
    """
    if tpm_quote.platform != "gcp":
        message = f"TPM quote: platform must be gcp, not {shown(tpm_quote.platform)}"
        raise FormatError(message, reason="wrong_value")
    if len(tpm_quote.event_log) > _MAX_EVENTS:
        message = f"TPM event log: {len(tpm_quote.event_log)} events, at most {_MAX_EVENTS}"
        raise FormatError(message, reason="too_many")
    for at, event in enumerate(tpm_quote.event_log):
        if event.pcr_index >= PCR_COUNT or len(event.digest) != 32:
            message = f"TPM event log: event {at}: must be of PCR 0 to 23, with 32 bytes"
            raise FormatError(message, reason="wrong_value")
    attest = TpmsAttest.parse(tpm_quote.message)
    banks = [one.bank for one in attest.selections]
    if banks != [_BANK]:
        found = ", ".join(banks) or "none"
        message = f"TPM quote: must select the SHA-256 bank only, not {found}"
        raise VerificationError(message, reason="pcr_selection")
    selected = [(index, _BANK) for index in attest.selections[0].pcrs]
    values = [(number, algorithm) for number, algorithm, _ in tpm_quote.pcr_values]
    if values != selected:
        message = (
            "PCR selection mismatch: pcr_values must be the selected PCRs of sha256 in their "
            f"order: {', '.join(map(str, attest.selections[0].pcrs))}"
        )
        raise VerificationError(message, reason="pcr_selection")


def _read_key(tpm_quote: TpmQuote) -> AttestationKey:
    """Return the key of the AK certificate, which must be RSA or P-256, for SHA-256 signatures."""
    spki = read_evidence_certificate("AK certificate", tpm_quote.ak_cert).spki
    try:
        kind = load_verification_key(spki).kind
    except SignatureError as error:
        raise SignatureError(f"AK certificate: {error}", reason="invalid_key") from error
    if kind not in _SCHEMES:
        message = f"AK certificate: its key must be of RSA or P-256, not {kind}"
        raise SignatureError(message, reason="invalid_key")
    return AttestationKey(spki, _SCHEMES[kind])


def _check_join(quote: VerifiedQuote, evidence: bytes) -> VerificationStep:
    """Check that the quote is over the SHA-256 of `evidence`, the embedded hardware evidence."""
    expected, found = sha256(evidence), quote.attest.extra_data
    if not hmac.compare_digest(found, expected):
        raise VerificationError(
            f"tpm qualified_data mismatch: the TPM signed {found.hex()}, the hardware's evidence "
            f"has the SHA-256 {expected.hex()}",
            reason="tpm_join",
        )
    return passed("ak_to_hardware", "the TPM signed the SHA-256 of the hardware's evidence")


def _replay_log(tpm_quote: TpmQuote) -> ReplayedPcrs:
    """Replay the digests of the firmware's log to the quoted PCRs other than PCR 14.

    Raises:
        ReplayError: If a PCR that only records of the log extend does not match, or has no record
            although it was extended (`pcr_mismatch`).
    """
    digests = _digests_by_pcr(tpm_quote)
    values = {(_BANK, one): value for one, _, value in tpm_quote.pcr_values if one != EVENT_PCR}
    replayed, further = [], {}
    for (bank, index), value in values.items():
        expected = extend(bank, start_value(index, len(value)), digests.get(index, ()))
        if hmac.compare_digest(value, expected):
            replayed += [(bank, index)] if index in digests else []
        elif index in LOGGED_PCRS and (index in digests or index != INIT_DATA_PCR):
            raise _mismatch(index, value, expected)
        elif index in digests:
            further[bank, index] = further_step(bank, index, value, expected)
    step = skipped("pcr_log", "the firmware's log has no record of a quoted PCR")
    if replayed:
        text = f"the digests of the firmware's log replay to {format_pcrs(replayed)}"
        step = passed("pcr_log", text)
    rest = unexplained_steps(values, {*replayed, *further})
    return ReplayedPcrs(tuple(replayed), (step, *further.values(), *rest))


def _replay_events(
    tpm_quote: TpmQuote, events: Sequence[RuntimeEvent], *, after_shim: bool
) -> VerificationStep:
    """Replay the runtime events of a TD to PCR 14.

    Args:
        tpm_quote: Quote with valid PCR values.
        events: The events.
        after_shim: Whether records of the firmware's log may precede the events: shim measures its
            keys. Otherwise, if the log has such records, records and events must each replay to the
            PCR, as upstream requires.

    Raises:
        ReplayError: If PCR 14 does not match (`pcr_mismatch`).
    """
    before = _digests_by_pcr(tpm_quote).get(EVENT_PCR, [])
    hashes = [sha256(runtime_preimage(*event)) for event in events]
    sequences = [before + hashes] if after_shim or not before else [before, hashes]
    value = pcr_value(tpm_quote, EVENT_PCR)
    for digests in sequences:
        expected = extend(_BANK, bytes(32), digests)
        if not hmac.compare_digest(value, expected):
            raise _mismatch(EVENT_PCR, value, expected)
    records = f"{len(before)} records of the firmware's log and " if before else ""
    text = f"{records}the {len(events)} runtime events replay to PCR {EVENT_PCR}"
    return passed("pcr_log", text)


def _digests_by_pcr(tpm_quote: TpmQuote) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for index, digest in tpm_quote.event_log:
        found.setdefault(index, []).append(digest)
    return found


def _mismatch(index: int, value: bytes, expected: bytes) -> ReplayError:
    return ReplayError(
        f"PCR{index} mismatch, quoted: {value.hex()}, replayed: {expected.hex()}",
        reason="pcr_mismatch",
    )
