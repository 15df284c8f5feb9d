"""Attester: evidence about the TEE that this program runs in.

An Attester owns one backend and serialises calls of it in FIFO order. Quote and event log are read
under one lock and compared before they are returned, so they always agree.
"""

import contextlib
import os
from typing import TYPE_CHECKING, Generic, NoReturn, final

from attestkit._system.fifo_lock import FifoLock
from attestkit.attestation import AppInfo, Attestation
from attestkit.attester.evidence_source import (
    EvidenceSource,
    HostApp,
    SourceContext,
    app_info,
    collect_gpu_evidence,
)
from attestkit.attester.tdx_source import TdSource
from attestkit.backends.base import (
    AppHost,
    Backend,
    EventPcr,
    EvidenceCollector,
    GuestAgent,
    RegisterExtender,
    SimulatedBackend,
    SnpReporter,
    hosts_app,
    simulates_gpus,
)
from attestkit.backends.environment import find_host_shared_folder
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import UnsupportedError, UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.keys import KeyDeriver
from attestkit.quote import Quote
from attestkit.report_data import ReportData, gpu_nonce, requested_report_data

if TYPE_CHECKING:
    from typing_extensions import TypeVar, Unpack  # only for type checkers, which bundle it

    from attestkit.dstack.host_shared_folder import HostShared
    from attestkit.verifier import Verifier
    from attestkit.verifier.verifier_options import VerifierOptions

    # `Attester` alone is an Attester[Backend].
    B_co = TypeVar("B_co", bound=Backend, default=Backend, covariant=True)
    B = TypeVar("B", bound=Backend)
else:
    from typing import TypeVar

    B_co = TypeVar("B_co", bound=Backend, covariant=True)

__all__ = ["Attester", "app_info"]


@final
class Attester(Generic[B_co]):
    """An open TEE. A context manager; it can be used neither after a fork nor after pickling.

    Thread-safe; concurrent calls are processed in FIFO order. Methods that use the platform may
    raise BackendError, and after `close` UsageError.

    Attributes:
        not_proven: Keys of the app's KMS that were accepted without comparison with a pin:
            `kms_root` after trust on first use, `kms_k256_root` without a pinned secp256k1 key.
            Empty without a KMS.
    """

    def __init__(self, backend: B_co, host: AppHost | None = None) -> None:
        """Take ownership of `backend`; `close` closes it.

        Args:
            backend: The TEE.
            host: Source of the app's description and keys; the caller closes it. None: the backend
                if it is an AppHost, else on hardware the folder that the host shares with its
                guest (`attestkit.dstack.host_shared_folder`).

        Raises:
            UsageError: If `backend` is not a backend, or `$DSTACK_HOST_SHARED_DIR` is not an
                absolute path or is too long.
        """
        if not _is_backend(backend):
            raise UsageError(
                f"backend: must be a backend (attestkit.backends.base.Backend), not {backend!r}",
                reason="wrong_type",
            )
        self._backend = backend
        self._device = FifoLock()  # lock order: the journal's lock first
        self._process = os.getpid()
        self._closed = False
        self.not_proven: tuple[str, ...] = ()
        self._shared: HostShared | None = None  # closed by `close`
        self._host = self._find_host() if host is None else host
        self._source = self._make_source()

    def _find_host(self) -> AppHost | None:
        """Return the source of the app's description: the backend, or the host's shared folder."""
        backend: Backend = self._backend
        if hosts_app(backend):
            return backend
        if backend.simulated or isinstance(backend, GuestAgent):
            return None
        from attestkit.dstack.host_shared_folder import HostShared  # lazy: only needed on hardware

        self._shared = HostShared(find_host_shared_folder())
        return self._shared

    def _make_source(self) -> EvidenceSource:
        """Return the source of evidence for this kind of backend."""
        backend: Backend = self._backend
        context = SourceContext(self._device, self._check_usable)
        if isinstance(backend, GuestAgent):
            # lazy: only needed with an agent
            from attestkit.attester.agent_source import AgentSource

            return AgentSource(backend, backend, context)
        app = HostApp(self._host)
        if isinstance(backend, EvidenceCollector) and isinstance(backend, RegisterExtender):
            # lazy: only beside a TPM
            from attestkit.attester.vtpm_source import VtpmTdSource

            return VtpmTdSource(backend, backend, context, app)
        if isinstance(backend, EvidenceCollector) and isinstance(backend, EventPcr):
            # lazy: only with a TPM whose PCR has events
            from attestkit.attester.vtpm_source import EventPcrSource

            return EventPcrSource(backend, context, app)
        if isinstance(backend, EvidenceCollector):
            from attestkit.attester.vtpm_source import VtpmSource  # lazy: only with a TPM

            return VtpmSource(backend, backend, context, app)
        if isinstance(backend, SnpReporter) and not isinstance(backend, RegisterExtender):
            from attestkit.attester.snp_source import SnpSource  # lazy: only needed on SEV-SNP

            return SnpSource(backend, context, app)
        return TdSource(backend, context, app)

    # -- properties ----------------------------------------------------------------------------

    @property
    def backend(self) -> B_co:
        """The backend, for its additional methods; direct calls bypass the Attester's lock."""
        return self._backend

    @property
    def simulated(self) -> bool:
        """Whether the TEE is simulated, so that its evidence proves nothing about hardware."""
        return self._backend.simulated

    @property
    def blocking(self) -> bool:
        """Whether calls wait for a device; an event loop should then make them in a thread."""
        return self._backend.blocking

    @property
    def has_quotes(self) -> bool:
        """Whether the platform has TDX quotes; without them, as on SEV-SNP, use `attest`."""
        return self._source.has_quotes

    @property
    def evidence_source(self) -> EvidenceSource:
        """The source of evidence, for servers: its methods take exactly 64 bytes of report data.

        `quote_and_log` returns the same log object until an event is added.
        """
        self._check_usable()
        return self._source

    @property
    def host(self) -> AppHost | None:
        """Source of the app's description and keys; None if they are unknown, or with an agent."""
        return self._host

    @property
    def app_compose(self) -> AppCompose:
        """The app's compose file; with an agent, it is requested once and cached.

        Raises:
            UnsupportedError: If there is no app-compose.
            ConfigError: If the file is invalid.
        """
        return self._source.app.app_compose

    @property
    def vm_config(self) -> str:
        """The configuration of the VM as JSON; empty if unknown.

        With an agent, it is requested once and cached.

        Raises:
            ConfigError: If the host's file is invalid.
        """
        return self._source.app.vm_config

    @property
    def keys(self) -> KeyDeriver:
        """Source of the app's keys.

        They are derived in this process from the secret root keys that the host or a KMS
        delivered; with an agent, they are requested from it.

        Raises:
            UnsupportedError: If no keys were delivered.
            ConfigError: If the host's key file is invalid.
        """
        self._check_usable()
        return self._source.app.keys

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a TDX quote over `report_data`, 0 to 64 bytes, zero-padded to 64.

        Issues a `ReportDataWarning` if `report_data` looks like hex text, see `ReportData.pad`.

        Raises:
            UsageError: If `report_data` is not `bytes`, or has more than 64 of them.
            UnsupportedError: If the platform has no TDX quotes; use `attest`.
            ReplayError: If the evidence comes from a guest agent, and its event log does not replay
                to the registers in the quote.
            BackendError: If the platform returns no quote, a malformed one, or one over other
                report data.
        """
        padded = ReportData.pad(report_data)
        self._check_usable()
        return self._source.get_quote(padded)

    def attest(
        self,
        *,
        nonce: bytes | None = None,
        report_data: bytes | None = None,
        pad: bool = False,
        gpu: bool = False,
    ) -> Attestation:
        """Return evidence that is bound to exactly one of a nonce and report data.

        Args:
            nonce: 8 to 64 bytes that the verifier chose. The report data are a tagged hash of it
                (`ReportData.for_nonce`); if a TPM is present that the hardware's evidence does not
                name, a hash of nonce and TPM key (`ReportData.for_nonce_and_ak`).
            report_data: Raw report data, 64 bytes. Never pass bytes that another party chose: they
                could be a hash of that party's TLS key, which the evidence would then certify.
            pad: Whether shorter report data is accepted, and zero-padded. Not valid with a nonce.
            gpu: Whether evidence of the machine's GPUs and switches is enclosed. It needs a nonce;
                the report data commit to the nonce and to that evidence
                (`ReportData.for_nonce_and_gpu`). GPUs in DevTools mode, whose memory is not
                protected, issue a `GpuModeWarning`.

        Raises:
            UsageError: If neither or both of nonce and report data are given, one has the wrong
                type or size, or `gpu` is given without a nonce or `pad` with one.
            UnsupportedError: If `gpu` is given and the simulator has no GPUs.
            ReplayError: If the event log does not replay to the registers in the quote or document,
                or an SEV-SNP guest was launched with another mr_config document than the host's.
            JournalError: If the runtime event log cannot be read.
            ConfigError: If a file of the host is invalid.
            BackendError: As for `get_quote`, and if the driver of the GPUs returns no evidence.
        """
        bound = requested_report_data(nonce, report_data, pad=pad)
        self._check_usable()
        if gpu:
            return self._attest_with_gpus(nonce)
        if nonce is not None:
            bound = self._source.bind_nonce(nonce)
        return self._source.evidence(bound)

    def _attest_with_gpus(self, nonce: bytes | None) -> Attestation:
        if nonce is None:
            message = "gpu: evidence of GPUs needs a nonce, not report_data"
            raise UsageError(message, reason="conflict")
        collected = collect_gpu_evidence(self._backend, gpu_nonce(nonce))
        bound = ReportData.for_nonce_and_gpu(nonce, collected.raw)
        bound = self._source.bind_gpu(bound)
        return self._source.evidence(bound).with_gpu_evidence(collected)

    def event_log(self) -> EventLog:
        """Return the firmware event log followed by the runtime events; empty if there is none.

        Raises:
            JournalError: If the runtime event log cannot be read.
            ConfigError: If the app-compose is invalid; its `event_log_version` is needed.
            BackendError: If the firmware event log cannot be read, or is malformed.
        """
        self._check_usable()
        return self._source.event_log()

    @property
    def app_info(self) -> AppInfo:
        """The identity of the app, from fresh evidence.

        Raises:
            UnsupportedError: If an SEV-SNP guest has no mr_config document.
            FormatError: If that document, or the VM configuration in the evidence, is malformed.
            AttestKitError: As for `attest`.
        """
        return app_info(self.attest(report_data=bytes(64)))

    def verifier(self, **options: "Unpack[VerifierOptions]") -> "Verifier":
        """Return a verifier that trusts this simulated TEE, for tests.

        Args:
            options: Arguments of `attestkit.Verifier`, such as `policy`. `trust_anchor` replaces
                the simulator's root, `collateral` or `pccs_url` its collateral, `gpu_roots` and
                `gpu_endorsements` those of its GPUs.

        Raises:
            UsageError: If the backend is not a simulator, or an option is not valid.
            CollateralError: If a file with collateral, in an option, is unreadable or malformed.
            ConfigError: If another file in an option, such as a policy, is unreadable or malformed.
        """
        self._check_usable()
        backend: Backend = self._backend
        if not (backend.simulated and isinstance(backend, SimulatedBackend)):
            raise UsageError(
                f"verifier: {backend.name} is not a simulator; use attestkit.Verifier, which "
                "trusts the vendors' roots",
                reason="not_applicable",
            )
        from attestkit.verifier import Verifier  # lazy: most attesters do not verify

        options.setdefault("trust_anchor", backend.trust_anchor)
        if not ("collateral" in options or "pccs_url" in options):
            with contextlib.suppress(UnsupportedError):  # only Intel's platforms have collateral
                options["collateral"] = backend.collateral()
        if simulates_gpus(self._backend):
            with contextlib.suppress(UnsupportedError):  # it has no GPUs
                options.setdefault("gpu_roots", self._backend.gpu_roots)
                options.setdefault("gpu_endorsements", self._backend.gpu_endorsements())
        return Verifier(**options)

    # -- registers -----------------------------------------------------------------------------

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3, 48 bytes each; with an agent, from a fresh quote.

        Raises:
            UnsupportedError: If the platform has no RTMRs that a program can read and extend.
            ReplayError: If the event log of an agent does not replay to them.
        """
        self._check_usable()
        return self._source.registers()

    @property
    def event_register(self) -> str:
        """Name of the register that events extend: `RTMR3`, or `PCR 14` of a NitroTPM."""
        backend: Backend = self._backend
        return f"PCR {backend.event_pcr}" if isinstance(backend, EventPcr) else "RTMR3"

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3, or PCR 14 of a NitroTPM, by an event, and append it to the log, atomically.

        Args:
            name: Non-empty text, other than the names of boot events. If the app-compose has
                `event_log_version` 1, the default, it must not contain a colon, which separates
                name and payload in the hashed bytes.
            payload: Any bytes. Evidence is limited to 10 MiB and contains the payload twice
                (`event_log_version` 1) or six times (2).

        Raises:
            UsageError: If the name or the payload is invalid, or the payload alone is too large.
            UnsupportedError: If the platform has no run-time registers, or the agent no EmitEvent.
            ConfigError: If a file of the host is invalid.
            JournalError: If the log does not match the register, cannot be written, or is full. Do
                not repeat the call after `not_recorded` (the register was extended) or
                `outcome_unknown`: the next use of the log records or drops the event.
            ReplayError: If the event log of an agent does not replay to the registers.
            BackendError: If the platform rejects the extend: nothing has changed then. With an
                agent, `outcome_unknown` means that the event may have been emitted, and
                `register_unchanged` that its log lacks the event.
        """
        self._check_usable()
        return self._source.emit_event(name, payload)

    def measure_app(self, app_id: bytes | None = None) -> tuple[Event, ...]:
        """Measure the app as a dstack guest does at boot, and return the events.

        They extend RTMR3, or PCR 14 of a NitroTPM. This is for hardware whose system does not
        measure its app, which the files that the host shares describe. Call it before any other
        event is emitted; it is idempotent within a boot.

        Args:
            app_id: 20 bytes. None: the first 20 bytes of the compose hash.

        Raises:
            UsageError: If `app_id` is not 20 bytes.
            UnsupportedError: If the platform has no run-time registers or measures the app itself,
                or the host shares no app-compose.
            ConfigError: If a file of the host is invalid.
            JournalError: If other events were emitted before, or as for `emit_event`.
            BackendError: If the platform rejects an extend; earlier events remain.
        """
        self._check_usable()
        return self._source.measure_app(app_id)

    # -- closing -------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            message = "Attester: opened in another process; open another one after a fork"
            raise UsageError(message, reason="wrong_process")
        if self._closed:
            raise UsageError("Attester: it is closed; open another", reason="closed")

    def close(self) -> None:
        """Close the backend after calls in progress have finished. Idempotent."""
        if self._closed or self._process != os.getpid():
            return  # after a fork, the parent closes
        with self._source.exclusive():
            self._close_once()

    def _close_once(self) -> None:
        if self._closed:  # by another thread meanwhile
            return
        self._closed = True
        try:
            self._backend.close()
        finally:
            if self._shared is not None:
                self._shared.close()

    def __enter__(self) -> "Attester[B_co]":
        self._check_usable()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raise UsageError: another process has to open the device itself."""
        message = "Attester: not picklable; open another one in the other process"
        raise UsageError(message, reason="not_picklable")

    def __repr__(self) -> str:
        simulated = ", simulated" if self.simulated else ""
        return f"<Attester on {self._backend.name}{simulated}>"


def _is_backend(value: object) -> bool:
    return isinstance(value, Backend) and not isinstance(value, type)
