"""Event logs of Google's Confidential VMs.

The firmware logs its measurements into the vTPM; evidence of a TD contains only their digests.

Runtime events are measured in RTMR 3 and in PCR 14. The journal on disk makes RTMR 3 and the log
agree, whatever happens (`event_log.journal`). PCR 14 is extended last, after the event is in the
log. So a crash leaves PCR 14 at most one event behind, and the next use of the log extends it. No
other value of PCR 14 is accepted than that of all events, or of all but the last.
"""

import hmac
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit.attestation.wire.evidence_parts import TpmEventDigest
from attestkit.backends.linux.device_errors import access_error, failed, unavailable
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file
from attestkit.backends.tpm.quote_reader import LARGEST_LOG
from attestkit.errors import AttestKitError, FormatError, JournalError
from attestkit.event_log.event import Event
from attestkit.event_log.event_types import NO_ACTION
from attestkit.event_log.journal_protocols import RuntimeLog, mismatch_error
from attestkit.event_log.runtime_events import runtime_preimage
from attestkit.event_log.tcg import TpmEventLog
from attestkit.tpm.pcrs import EVENT_PCR, PCR_COUNT, extend

BANK: Final = "sha256"


def read_firmware_log(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> bytes:
    """Return the firmware's TPM event log, binary; without it, verifiers refuse the PCRs.

    Args:
        paths: The kernel's paths; `tpm_boot_log` is read.
        calls: The system calls.

    Raises:
        BackendUnavailableError: If it is missing or not readable by this process.
        BackendError: If it is longer than 3 MiB, or cannot be read for another reason.
    """
    path = paths.tpm_boot_log
    try:
        log = read_file(path, LARGEST_LOG, calls=calls)
    except FileNotFoundError as error:
        text = (
            "TPM event log: missing; mount securityfs (mount -t securityfs none "
            "/sys/kernel/security), and boot by UEFI"
        )
        raise unavailable(path, text, "missing") from error
    except OSError as error:
        raise access_error(path, "TPM event log: cannot be read", error, "; run as root") from error
    if len(log) > LARGEST_LOG:
        raise failed(path, f"TPM event log: more than {LARGEST_LOG} bytes", "too_large")
    return log


def read_digests(paths: KernelPaths, log: bytes) -> tuple[TpmEventDigest, ...]:
    """Return PCR and SHA-256 digest of each record of `log`, a TPM event log, that extends a PCR.

    `paths` is used in errors only.

    Raises:
        BackendError: If the log is malformed, or has no SHA-256 digests.
    """
    path = paths.tpm_boot_log
    try:
        parsed = TpmEventLog.parse(log)
    except FormatError as error:
        raise failed(path, f"TPM event log: {error}", "malformed_response") from error
    if BANK not in parsed.banks:
        text = "TPM event log: has no SHA-256 digests; enable that bank in the firmware"
        raise failed(path, text, "malformed_response")
    return tuple(
        TpmEventDigest(event.pcr, event.digest(BANK))
        for event in parsed.events
        if event.event_type != NO_ACTION and event.pcr < PCR_COUNT
    )


_NAME: Final = f"PCR {EVENT_PCR}"


class PcrAccess(NamedTuple):
    """Functions for PCR 14 of the SHA-256 bank, without a cache."""

    read: Callable[[], bytes]  # returns its value, 32 bytes
    extend: Callable[[bytes], None]  # argument: a digest of 32 bytes
    start: Callable[[], bytes]  # its value before the first event: shim measures its keys there


class PcrJournal:
    """A runtime log whose events extend PCR 14 of the vTPM, after RTMR 3."""

    def __init__(self, journal: RuntimeLog, pcr: PcrAccess) -> None:
        """Wrap the log of RTMR 3, which this object closes."""
        self._journal = journal
        self._pcr = pcr
        self._replayed: tuple[tuple[Event, ...], bytes] | None = None  # of the last comparison

    @property
    def version(self) -> int:
        """How digests of this boot's events are computed: 1 or 2, see `runtime_preimage`."""
        return self._journal.version

    @property
    def path(self) -> str:
        """Path of the log file."""
        return self._journal.path

    def locked(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the log's lock; re-entrant within a thread."""
        return self._journal.locked()

    def events(self) -> tuple[Event, ...]:
        """Return the events of this boot, after extending PCR 14 by the last one if it is behind.

        Raises:
            JournalError: As for the log of RTMR 3, and if PCR 14 does not match these events.
            BackendError: If PCR 14 cannot be read or extended.
        """
        with self._journal.locked():
            events = self._journal.events()
            self._catch_up(events)
            return events

    def emit(self, event: Event) -> None:
        """Extend RTMR 3 by the event, log it, and extend PCR 14.

        Raises:
            UsageError: If the event has another digest version than this boot's events.
            JournalError: If a register does not match the log, or a file cannot be written. If the
                reason is `not_recorded`, RTMR 3 was extended, and the next use of the log completes
                the event.
            BackendError: If a register cannot be read, or extending RTMR 3 fails; nothing was
                changed.
        """
        with self._journal.locked():
            before = self._catch_up(self._journal.events())
            self._journal.emit(event)
            try:
                self._extend(before, event)
            except AttestKitError as error:
                raise JournalError(
                    f"runtime log: RTMR3 and the log have the event, but {_NAME} does "
                    f"not: {error}; the next use of the log extends it; do not repeat the call",
                    reason="not_recorded",
                ) from error

    def close(self) -> None:
        """Close the log of RTMR 3."""
        self._journal.close()

    def _catch_up(self, events: tuple[Event, ...]) -> bytes:
        """Return the value of PCR 14 after `events`; extend it first if it lacks the last of them.

        Raises:
            JournalError: If PCR 14 has neither the value after `events` nor that before the last.
        """
        expected = self._replay(events)
        found = self._pcr.read()
        if hmac.compare_digest(found, expected):
            return expected
        before = replay_events(self._pcr.start(), events[:-1])
        if not events or not hmac.compare_digest(found, before):
            raise mismatch_error(found, expected, self.path, _NAME)
        self._extend(before, events[-1])
        return expected

    def _replay(self, events: tuple[Event, ...]) -> bytes:
        known = self._replayed
        if known is None or known[0] is not events:
            known = self._replayed = events, replay_events(self._pcr.start(), events)
        return known[1]

    def _extend(self, before: bytes, event: Event) -> None:
        """Extend PCR 14 by an event, and check its value, also if the TPM returned an error.

        `before` is its value before the event.
        """
        digest = event_digest(event)
        after = extend("sha256", before, [digest])
        try:
            self._pcr.extend(digest)
        except AttestKitError:
            if self._pcr.read() != after:
                raise
        found = self._pcr.read()
        if not hmac.compare_digest(found, after):
            raise mismatch_error(found, after, self.path, _NAME)


def event_digest(event: Event) -> bytes:
    """Return an event's digest for PCR 14, 32 bytes: as that for RTMR 3, but with SHA-256."""
    return sha256(runtime_preimage(event.name, event.payload, event.version))


def replay_events(start: bytes, events: Sequence[Event]) -> bytes:
    """Return the value of PCR 14, 32 bytes, after `events`; `start` is the value before."""
    return extend("sha256", start, map(event_digest, events))
