"""Protocols of backends. A backend is the interface to one TEE; it does not parse evidence.

Optional abilities are separate protocols: `RegisterExtender` (RTMRs that a program can extend),
`SnpReporter` (SEV-SNP reports), `EvidenceCollector` (evidence of several parts, such as a report
and a TPM's quote), `EventPcr` (a PCR for runtime events), `GuestAgent` (a TEE behind a guest
agent), `AppHost` (the configuration and keys of the app), `BootHost` (an AppHost with keys of a
KMS), `GpuCollector` (evidence of GPUs).
"""

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeGuard, runtime_checkable

from attestkit.collateral import Collateral
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import Launch
from attestkit.errors import UsageError
from attestkit.event_log.journal import RuntimeLog
from attestkit.keys import AppKeys, KeyDeriver
from attestkit.simulated_roots import SimulatedRoots

if TYPE_CHECKING:
    from attestkit.attestation.wire.evidence_parts import Platform
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.evidence import GpuEvidence
    from attestkit.gpu.roots import GpuRoots

__all__ = [
    "AppHost",
    "Backend",
    "BootHost",
    "EventPcr",
    "EvidenceCollector",
    "GpuCollector",
    "GuestAgent",
    "LaunchRecord",
    "RecordedBackend",
    "RegisterExtender",
    "SimulatedBackend",
    "SimulatedGpuCollector",
    "SnpEvidence",
    "SnpReporter",
    "check_bytes",
    "hosts_app",
    "simulates_gpus",
]


@runtime_checkable
class Backend(Protocol):
    """The interface to a TEE. Calls are serialised by the caller; errors are AttestKitErrors."""

    name: str  # the name that selects it, such as "simulator"
    simulated: bool  # True: the evidence proves nothing about hardware
    blocking: bool  # True: calls wait for a device, so asyncio code runs them in a thread

    @classmethod
    def probe(cls) -> None:
        """Raise BackendUnavailableError if the backend cannot be used on this machine."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote over `report_data`, or the report of an SnpReporter.

        Args:
            report_data: Exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            UnsupportedError: If the platform has no quote, as most EvidenceCollectors.
            QuoteUnavailableError: If the platform returned no quote.
            BackendBusyError: If the device is busy.
            BackendError: If the request failed for another reason.
        """
        ...

    def read_event_log(self) -> bytes:
        """Return the event log as `EventLog.parse` accepts it; empty without a log.

        The log is the boot log of the firmware, binary: the whole area with its padding. That of a
        GuestAgent is JSON, and also has the runtime events. Without a boot log, quotes work, but
        `attest` fails unless all registers are zero, because the log must replay to the registers.

        Raises:
            BackendError: If the log exists but cannot be read.
        """
        ...

    def close(self) -> None:
        """Release the device. A second call has no effect."""


@runtime_checkable
class RegisterExtender(Protocol):
    """A TEE with run-time measurement registers: RTMR0 to RTMR3 of 48 bytes each."""

    def read_rtmr(self, register: int) -> bytes:
        """Return the current value of a register, 0 to 3: 48 bytes.

        Raises:
            UsageError: If `register` is not 0 to 3.
            BackendError: If the register cannot be read.
        """
        ...

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3, `register` 2 or 3, by a digest of 48 bytes; nothing is logged.

        Raises:
            UsageError: If `register` is not 2 or 3, or `digest` is not 48 bytes.
            UnsupportedError: If the platform cannot extend registers.
            BackendError: If the extend failed; it may have taken effect.
        """

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events; every call returns the same object.

        Args:
            version: How digests of runtime events are computed, 1 or 2 (see `runtime_preimage`);
                the app-compose states it. None: as those of this boot's events, or 1 before the
                first event. Calls after the first ignore it.

        Raises:
            AttestKitError: If the log cannot be opened; some backends refuse after `close`.
        """
        ...


class SnpEvidence(NamedTuple):
    """An SEV-SNP report and its certificates, from one request."""

    report: bytes  # 1184 bytes
    certificates: bytes  # the certificate table of the host; may be empty


@runtime_checkable
class SnpReporter(Protocol):
    """An SEV-SNP guest: it has reports instead of quotes, and no RTMRs."""

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return a report over `report_data`, exactly 64 bytes, and the host's certificates.

        Raises:
            AttestKitError: As for `Backend.get_quote`.
        """
        ...


@runtime_checkable
class EvidenceCollector(Protocol):
    """A platform whose evidence has several parts.

    Its `get_quote` raises UnsupportedError, or returns only the quote or report of the hardware.
    """

    def collect_evidence(self, report_data: bytes) -> "Platform":
        """Return the platform's evidence over `report_data`, exactly 64 bytes, as received.

        The backend checks the report data in each part of the evidence that has a field for it.

        Raises:
            AttestKitError: As for `Backend.get_quote`.
        """
        ...

    def read_attestation_key(self) -> bytes:
        """Return the public part of the TPM's attestation key: SubjectPublicKeyInfo in DER.

        The Attester puts a hash of the caller's nonce and this key into the report data
        (`ReportData.for_nonce_and_ak`), so that the hardware's evidence names the TPM.

        Raises:
            UnsupportedError: If the report data need not contain the key, because the hardware's
                evidence names it anyway, or because the platform has no hardware evidence.
            AttestKitError: As for `Backend.get_quote`.
        """
        ...


@runtime_checkable
class EventPcr(Protocol):
    """An EvidenceCollector whose runtime events extend a PCR of the TPM's SHA-384 bank."""

    event_pcr: int  # attestkit.tpm.pcrs.EVENT_PCR

    def read_event_pcr(self) -> bytes:
        """Return the current value of the PCR: 48 bytes.

        Raises:
            UnsupportedError: If the TPM has no SHA-384 bank.
            BackendError: If the TPM fails.
        """
        ...

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events; every call returns the same object.

        Args:
            version: How event digests are computed, 1 or 2 (see `runtime_preimage`). None: as
                those of this boot's events, or 1 if there are none. Only the first call uses it.

        Raises:
            AttestKitError: If the log cannot be opened; some backends refuse after `close`.
        """
        ...


@runtime_checkable
class GuestAgent(Protocol):
    """A TEE behind a guest agent: the agent has the event log and the keys, and extends RTMR3."""

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the response of the agent, JSON as `Attestation.from_agent_response` accepts it.

        Args:
            report_data: Exactly 64 bytes.

        Raises:
            AttestKitError: As for `Backend.get_quote`.
        """
        ...

    def emit_event(self, name: str, payload: bytes) -> None:
        """Log a runtime event of a name and a payload (raw bytes), and extend RTMR3 by it.

        Raises:
            AttestKitError: As for `Attester.emit_event`.
        """

    def read_app_compose(self) -> bytes:
        """Return app-compose.json as deployed, byte for byte.

        Raises:
            UnsupportedError: If the agent does not send it.
            AttestKitError: As for `Backend.get_quote`.
        """
        ...

    @property
    def keys(self) -> KeyDeriver:
        """Deriver of the app's keys; only calls of its methods send requests to the agent."""
        ...


@runtime_checkable
class AppHost(Protocol):
    """A backend with the configuration and the keys of the app, as the host delivered them.

    Each attribute raises UnsupportedError if the host delivered no such value, and ConfigError if
    the host's file is malformed. Use `hosts_app` instead of `isinstance`, which reads the
    attributes before Python 3.12.
    """

    @property
    def app_compose(self) -> AppCompose:
        """The parsed app-compose.json of the app."""
        ...

    @property
    def vm_config(self) -> str:
        """The VM configuration: the JSON text of the host, unchanged."""
        ...

    @property
    def app_keys(self) -> AppKeys:
        """The app's secret root keys (`.appkeys.json`), from which its other keys are derived."""
        ...


@runtime_checkable
class BootHost(Protocol):
    """An AppHost whose app gets its keys from a KMS while the guest boots."""

    def launch(self, app_id: bytes | None = None) -> Launch:
        """Return the values that the boot events measure; `app_keys` of the result is None.

        Args:
            app_id: 20 bytes. None: the id of the host's app.

        Raises:
            AttestKitError: If the app is not known, or `app_id` is not valid for it.
        """
        ...

    def kept_keys(self) -> AppKeys | None:
        """Return the keys in the host's key file, or None without one; the caller closes them.

        Raises:
            ConfigError: If the key file cannot be read or is invalid.
        """
        ...

    def keep_keys(self, keys: AppKeys) -> None:
        """Write the keys to the host's key file; do nothing if the host does not store keys.

        Raises:
            ConfigError: If the key file cannot be written.
        """

    def use_keys(self, keys: AppKeys) -> None:
        """Replace the app's keys by these, which belong to the host from now on: it closes them."""


@runtime_checkable
class LaunchRecord(Protocol):
    """An AppHost with the mr_config document, which identifies the app on SEV-SNP."""

    @property
    def mr_config(self) -> str:
        """The document (JSON) whose hash is the report's HOST_DATA; may be empty."""
        ...


_APP_HOST_ATTRIBUTES: Final = ("app_compose", "vm_config", "app_keys")


class _AppHostBackend(Backend, AppHost, Protocol):
    """A Backend that is an AppHost."""


def hosts_app(backend: Backend) -> TypeGuard[_AppHostBackend]:
    """Return whether `backend` is an `AppHost`.

    Attributes that its class defines are looked up on the class, so no property is evaluated.
    """
    return all(
        hasattr(type(backend), name) or hasattr(backend, name) for name in _APP_HOST_ATTRIBUTES
    )


@runtime_checkable
class SimulatedBackend(Protocol):
    """A simulator. Verifiers trust its root certificate only as an explicit trust anchor."""

    @property
    def roots(self) -> SimulatedRoots:
        """The trust anchors for evidence of the TEE and its GPUs, and for keys of its KMS."""
        ...

    @property
    def trust_anchor(self) -> bytes:
        """The root certificate (DER) of its evidence, `roots.platform`."""
        ...

    def collateral(self, now: float | None = None) -> Collateral:
        """Return the Intel collateral that is valid at the Unix time `now`; None: at present."""
        ...


@runtime_checkable
class GpuCollector(Protocol):
    """A backend that returns evidence of GPUs itself, such as a simulator."""

    def gpu_evidence(self, nonce: bytes) -> "GpuEvidence":
        """Return evidence of all GPUs and switches over a nonce of 32 bytes.

        Raises:
            UnsupportedError: If the machine has no GPU.
            AttestKitError: As for `Backend.get_quote`.
        """
        ...


class SimulatedGpuCollector(GpuCollector, Protocol):
    """Simulated GPUs; verifiers trust their roots only as an explicit argument.

    The attributes raise UnsupportedError without GPUs; use `simulates_gpus` instead of
    `isinstance`, which reads them before Python 3.12.
    """

    @property
    def gpu_roots(self) -> "GpuRoots":
        """The trust anchors for certificates of devices and signers of reference manifests."""
        ...

    def gpu_endorsements(self, now: float | None = None) -> "GpuEndorsements":
        """Return reference manifests and the OCSP answers at the Unix time `now`; None: now."""
        ...


def simulates_gpus(backend: Backend) -> "TypeGuard[SimulatedGpuCollector]":
    """Return whether `backend` is a `SimulatedGpuCollector`; no property is evaluated."""
    names = ("gpu_evidence", "gpu_roots", "gpu_endorsements")
    return backend.simulated and all(hasattr(type(backend), name) for name in names)


@runtime_checkable
class RecordedBackend(Protocol):
    """A backend that records another backend, or replays its responses."""

    recorded: str  # `name` of the other backend
    recorded_simulated: bool  # `simulated` of the other backend
    trust_anchor: bytes | None  # root certificate (DER) of its evidence, if simulated


def check_bytes(what: str, value: object, size: int) -> None:
    """Raise UsageError, whose text begins with `what`, unless `value` is bytes of this `size`."""
    if not isinstance(value, bytes):
        raise UsageError(f"{what}: must be bytes, not {type(value).__name__}", reason="wrong_type")
    if len(value) != size:
        raise UsageError(f"{what}: must be {size} bytes, not {len(value)}", reason="wrong_size")
