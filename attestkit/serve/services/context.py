"""Context of the service methods: the attester, the app's keys, and the server's identity."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from attestkit.attestation import Attestation, Encoding
from attestkit.attestation.wire.evidence_parts import is_of_dstack
from attestkit.attester import Attester, app_info
from attestkit.backends.base import EventPcr, EvidenceCollector, GuestAgent
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, BackendError, UnsupportedError, UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.keys import AppKeys, LocalKeys
from attestkit.keys.key_claims import require_key_epoch_0
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.docker.engine import DOCKER, ContainerEngine
from attestkit.serve.health.app_health import make_monitor
from attestkit.serve.health.monitor import HEALTHY, HealthVerdict
from attestkit.serve.machine_info import DATA_DISKS, GpuSampler, Machine
from attestkit.serve.rpc import messages, messages_v1
from attestkit.serve.rpc import messages as m
from attestkit.serve.rpc.error_responses import NotImplementedHereError
from attestkit.serve.rpc.event_log_json import INDENTED, EventLogJson, tcb_info
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.messages_v1 import AttestResponse
from attestkit.serve.rpc.response_template import EscapedText, ResponseTemplate
from attestkit.serve.services.backend_errors import backend_error
from attestkit.serve.services.certificate_issuer import NO_KEYS, CertificateIssuer
from attestkit.serve.services.device_queue import DeviceQueue
from attestkit.serve.services.quote_responses import QuoteResponses
from attestkit.serve.services.signing_queue import SigningQueue

if TYPE_CHECKING:
    from attestkit.kms.client import KmsClient
    from attestkit.serve.health.monitor import HealthMonitor


T = TypeVar("T")
M = TypeVar("M", bound=NamedTuple)
_State: TypeAlias = Rtmrs | tuple[Event, ...] | None

_NO_V1: Final = (
    "{}: evidence of version 1 cannot represent {}; use Attest of / or /v0, which returns it as a "
    "CMW collection in CBOR, or attestkit attest --encoding cbor in this guest"
)
_REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
_HASHES = ("mr_aggregated", "os_image_hash", "compose_hash", "device_id")
_RETRY_AFTER = 5.0  # seconds for which a failure is repeated without using the device
_NEXT_CERTIFICATE = 30.0  # seconds after which a demo certificate is requested again
_logger = logging.getLogger("attestkit.serve")


class Release(NamedTuple):
    """Versions and name of the server.

    A version is a release of the guest agent API, not of attestkit: clients check it before they
    use an algorithm or an option. 0.5.11 is the last one with every method of `/` that is served
    here, and 0.6.0 the first one with `/v1`.
    """

    version: str = "0.5.11"
    rev: str = "unknown"  # or "git:" and 20 hex digits
    ident: str = "attestkit"  # the Server header
    version_v1: str = "0.6.0"


class AppMeasurements(NamedTuple):
    """Measurements of the app and its machine."""

    registers: Mapping[str, bytes | None]  # by name; None if the platform has none
    log: EventLog
    tcb_info: EscapedText


class AppIdentity(NamedTuple):
    """Identity of the app, and the response of Info."""

    app: m.AppInfo  # without certificate and TCB info
    platform: str  # `Attestation.platform`
    measured: AppMeasurements | None  # None if hidden
    response: PreparedResponse[m.AppInfo]


class DecodedEvidence(NamedTuple):
    """Evidence, and the app's identity in it."""

    attestation: Attestation
    info: m.AppInfo  # without certificate and TCB info


class Guest:
    """One app in one TEE, as the service methods see it.

    Args:
        attester: Produces quotes and evidence.
        app_compose: The app's compose file.
        app_keys: The app's keys; None: key methods fail.
        now: Returns the Unix time.
        random: Returns the given number of random bytes.
        machine: Static information about the machine; None: that of this machine, or with a
            simulated attester that of `Machine.simulated`.
        release: Version and name of the server.
        stats: Counters to update.
        limits: Limits of the listeners.
        data_disks: Mount points of the file systems in the system information.
        docker: Address of the container engine; ConfigError if it is invalid.
        has_emit_event: Whether the method EmitEvent works.
        kms: Client of the KMS that signs certificates, if the app's keys come from a KMS; None: a
            client with the URL and the root CA in the key file.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        app_compose: AppCompose,
        app_keys: AppKeys | None,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        machine: Machine | None = None,
        release: Release | None = None,
        stats: Stats | None = None,
        limits: Limits | None = None,
        data_disks: Sequence[str] = DATA_DISKS,
        docker: str = DOCKER,
        has_emit_event: bool = True,
        kms: "KmsClient | None" = None,
    ) -> None:
        self.attester = attester
        self.app_compose = app_compose
        self.app_keys = app_keys
        self.vm_config: str = attester.vm_config
        self.now = now
        self.random = random
        simulated = attester.simulated
        self.machine: Machine = machine or (Machine.simulated() if simulated else Machine.read())
        ident = "attestkit simulator" if simulated else "attestkit"
        self.release: Release = release or Release(ident=ident)
        self.stats: Stats = stats or Stats()
        self.limits: Limits = limits or Limits()
        self.data_disks = data_disks
        self.has_emit_event = has_emit_event
        self.gpus: GpuSampler = GpuSampler(attester.backend, simulated=simulated)
        self.containers: ContainerEngine = ContainerEngine(docker)
        self.health_monitor: HealthMonitor | None = make_monitor(app_compose, self.containers, now)
        self.run_id: str = random(4).hex()
        self._device: DeviceQueue | None = None
        self._no_quote = m.GetQuoteResponse(vm_config=self.vm_config)
        self._keys = None if app_keys is None else LocalKeys(app_keys)
        self.issuer: CertificateIssuer = self._make_issuer(kms)
        self._signing: SigningQueue | None = None
        self._has_bare_quotes = _has_bare_quotes(attester)
        # Known beforehand: comparing with a protocol takes 40 us, and each request needs it.
        self._has_event_pcr = isinstance(attester.backend, EventPcr)
        self._quotes = QuoteResponses(attester, self.stats)
        self._log_of_info = EventLogJson(INDENTED)
        self._app_cert: EscapedText | None = None
        self._next_app_cert = 0.0  # time of the next attempt
        self._cache: dict[str, tuple[_State, Any]] = {}
        self._failures: dict[str, tuple[float, BackendError]] = {}

    def _make_issuer(self, kms: "KmsClient | None") -> CertificateIssuer:
        return CertificateIssuer(
            self.app_keys,
            kms,
            attest=self._attest_for_certificate,
            now=self.now,
            random=self.random,
            # Simulated images of older agents write an array, which v1 never did.
            app_info_array=getattr(self.attester.backend, "app_info_array", None),
        )

    def close(self) -> None:
        """Begin no more requests, and wait for the running one; the attester stays open."""
        if self._signing is not None:
            self._signing.close()
        if self._device is not None:
            self._device.close()

    @property
    def device_blocks(self) -> bool:
        """Whether calls of the device wait in its queue.

        A simulator blocks while a slow fault is armed, and while an event is written to its disk,
        because other calls have to wait then.
        """
        return self.attester.blocking or (self._device is not None and self._device.is_writing)

    @property
    def health(self) -> HealthVerdict:
        """The last verdict on the app's health; healthy if the app does not require checks."""
        return HEALTHY if self.health_monitor is None else self.health_monitor.verdict

    @property
    def signs_remotely(self) -> bool:
        """Whether certificates are signed by a KMS, over the network."""
        return self.issuer.is_remote

    def _device_queue(self) -> DeviceQueue:
        if self._device is None:
            # A connection has at most one request here. Those of closed connections are removed,
            # except one that runs; the metrics may have another.
            listeners = max(1, len(self.stats.traffic))
            self._device = DeviceQueue(listeners * self.limits.connections + 2)
        return self._device

    def _signing_queue(self) -> SigningQueue:
        if self._signing is None:
            self._signing = SigningQueue()
        return self._signing

    async def on_device(
        self, work: Callable[[], T], *, writes: bool = False, signs: bool = False
    ) -> T:
        """Run `work` and return its result; in the device's thread if it may block.

        Cancellation drops it, unless it has begun: then it is finished.

        Args:
            work: Function without arguments; its exception is raised here.
            writes: It writes to a disk, so it always runs in the device's thread.
            signs: It has a certificate signed; if a KMS signs, it runs in a thread that may wait.

        Raises:
            LimitError: If too many requests wait for the device, or after `close`.
            BackendBusyError: If too many requests wait for the KMS, or after `close`.
            BackendError: If the KMS has not signed within 100 s.
        """
        if signs and self.signs_remotely:
            return await self._signing_queue().run(work)
        if not (writes or self.device_blocks):
            return work()
        return await self._device_queue().run(work, writes=writes)

    @property
    def keys(self) -> LocalKeys:
        """The app's keys; UnsupportedError without keys."""
        if self._keys is None:
            raise UnsupportedError(NO_KEYS, reason="no_keys")
        return self._keys

    def quote(self, report_data: bytes, answer: M, /, **varying: bytes) -> PreparedResponse[M]:
        """Return `answer` with a quote over 64 bytes of report data, and its event log.

        `answer` lacks both, and the fields in `varying`, whose values are specific to this request.

        Raises:
            UsageError: If the platform has no TDX quotes.
            BackendError: If the platform returns no quote, or the event log is not usable.
        """
        return self._quotes.quote(report_data, answer, **varying)

    def quote_response(self, report_data: bytes) -> PreparedResponse[m.GetQuoteResponse]:
        """Return the response of GetQuote; `report_data` is zero-padded to 64 bytes.

        Raises:
            UsageError: If the report data has more than 64 bytes, or the platform has no TDX
                quotes.
            BackendError: If the platform returns no quote, or the event log is not usable.
        """
        report_data = _pad(report_data)
        return self.quote(report_data, self._no_quote, report_data=report_data)

    def attest_v1(self, report_data: bytes) -> PreparedResponse[AttestResponse]:
        """Return the response of Attest in the guest API v1, without GPU evidence.

        `report_data` has 64 bytes.

        Raises:
            BackendError: If the platform produces no evidence.
            UnsupportedError: If version 1 of the evidence format does not define the platform.
        """
        if self._has_bare_quotes:
            return self._quotes.attest(report_data)
        failure = "Failed to get attestation"
        evidence = _require_v1(self.attest(report_data, failure), failure)
        return PreparedResponse.of(AttestResponse(evidence.to_bytes("v1")))

    def attest(self, report_data: bytes, failure: str = "Failed to get attestation") -> Attestation:
        """Return evidence over report data.

        Args:
            report_data: Up to 64 bytes; zero-padded to 64.
            failure: Start of the text of a BackendError.

        Raises:
            UsageError: If the report data has more than 64 bytes.
            BackendError: If the platform produces no evidence.
        """
        report_data = _pad(report_data)
        try:
            evidence = self.attester.attest(report_data=report_data)
        except AttestKitError as error:
            self.stats.device_errors[type(error).__name__] += 1
            raise backend_error(failure, error) from error
        self.stats.quotes += 1
        return evidence

    def cached(self, name: str, make: Callable[[], T]) -> T:
        """Return the result of `make`, cached under `name` while no register changes.

        A failure of the platform is repeated for five seconds without using the device: any client
        may cause this call, and a failing device can take half a minute.

        Raises:
            BackendError: Raised by `make`, or by an earlier call of it within those five seconds.
            AttestKitError: Another error of `make`, or if the registers cannot be read.
        """
        registers = self._registers()
        cached = self._cache.get(name)
        if cached is not None and cached[0] == registers:
            result: T = cached[1]
            return result
        made = self._make(name, make)
        # Another thread may have emitted an event, or reset a simulated TD, since the first read.
        if self._registers() == registers:
            self._cache[name] = registers, made
        return made

    def _registers(self) -> _State:
        """Return the registers, or the events of a TPM's PCR, for `cached`; None without either."""
        try:
            if self._has_event_pcr:
                return self.attester.event_log().events
            return self.attester.registers()
        except UnsupportedError:
            return None

    def _make(self, name: str, make: Callable[[], T]) -> T:
        at, error = self._failures.pop(name, (0.0, None))
        now = self.now()
        if error is not None and 0 <= now - at < _RETRY_AFTER:
            self._failures[name] = at, error
            raise error.with_traceback(None)
        try:
            return make()
        except BackendError as failure:
            self._failures[name] = now, failure
            raise

    def _attest_for_certificate(
        self, report_data: bytes, encoding: Encoding | None, /
    ) -> Attestation:
        failure = "Failed to get certificate attestation"
        evidence = self.attest(report_data, failure)
        return _require_v1(evidence, failure) if encoding == "v1" else evidence

    def info(self, *, hidden: bool = False) -> PreparedResponse[m.AppInfo]:
        """Return the response of Info; `hidden` leaves out the TCB info and VM configuration.

        Raises:
            BackendError: As for `decode_evidence`.
        """
        return self.identity(hidden=hidden).response

    def identity(self, *, hidden: bool = False) -> AppIdentity:
        """Return the app's identity and, if not `hidden`, its measurements and VM configuration.

        Raises:
            BackendError: As for `decode_evidence`.
        """
        name = "hidden info" if hidden else "info"
        if self.signs_remotely and self._app_cert is not None:
            name += " with certificate"  # which a KMS may sign while one without it is made
        if self._app_cert is None and self.now() >= self._next_app_cert:
            self._cache.pop(name, None)  # it lacks the certificate
        return self.cached(name, lambda: self._identify(hidden=hidden))

    def decode_evidence(self) -> DecodedEvidence:
        """Return evidence and the app's identity in it, decoded once while no register changes.

        Raises:
            BackendError: If the platform produces no evidence, or no app can be read from it.
            AttestKitError: If the registers cannot be read.
        """
        return self.cached("identity", self._decode)

    def _decode(self) -> DecodedEvidence:
        attestation = self.attest(b"")
        try:
            app = app_info(attestation)
        except AttestKitError as error:
            raise backend_error("Failed to decode app info", error) from error
        info = m.AppInfo(
            app_name=self.app_compose.name,
            key_provider_info=_utf8(app.key_provider_info),
            vm_config=self.vm_config,
            cloud_vendor=self.machine.cloud_vendor,
            cloud_product=self.machine.cloud_product,
            **{name: getattr(app, name) for name in ("app_id", "instance_id", *_HASHES)},
        )
        return DecodedEvidence(attestation, info)

    def _identify(self, *, hidden: bool) -> AppIdentity:
        attestation, info = self.decode_evidence()
        if hidden:
            info = info._replace(vm_config="")
        measured = None if hidden else self._measured(attestation, info)
        text = EscapedText() if measured is None else measured.tcb_info
        template = ResponseTemplate(info, app_cert=self._demo_certificate(), tcb_info=text)
        return AppIdentity(info, attestation.platform, measured, template.render())

    def _measured(self, attestation: Attestation, info: m.AppInfo) -> AppMeasurements:
        quote, log = attestation.quote, attestation.event_log
        if self._has_event_pcr:  # its events are not in a TD's log
            log = EventLog(attestation.runtime_events)
        values = (None,) * 5 if quote is None else (quote.mrtd, *quote.rtmrs)
        registers: dict[str, bytes | None] = dict(zip(_REGISTERS, values, strict=True))
        hashes = {name: getattr(info, name) for name in _HASHES}
        compose = _utf8(self.app_compose.raw)
        text = tcb_info({**registers, **hashes}, self._log_of_info.of(log), compose)
        return AppMeasurements(registers, log, text)

    def _demo_certificate(self) -> EscapedText:
        """Return the chain of a demo certificate, issued once; empty if that is not possible."""
        if self._app_cert is not None:
            return self._app_cert
        try:
            self.issuer.check()
        except UnsupportedError:
            self._app_cert = EscapedText()
            return self._app_cert
        is_due = self.now() >= self._next_app_cert
        if not is_due and self.signs_remotely:  # events must not cause more requests
            return EscapedText()
        self._next_app_cert = self.now() + _NEXT_CERTIFICATE
        if self.signs_remotely:  # Info must not wait for the KMS
            self._signing_queue().start(self._issue_demo)
            return EscapedText()
        return self._issue_demo()

    def _issue_demo(self) -> EscapedText:
        args = m.GetTlsKeyArgs(subject="demo-cert", usage_ra_tls=True, usage_client_auth=True)
        try:
            chain = self.issuer.issue(args).certificate_chain
        except AttestKitError as error:
            _logger.warning("demo certificate: cannot be issued yet: %s", error)
            return EscapedText()
        self._app_cert = issued = EscapedText.of("\n".join(chain))
        return issued


def _pad(report_data: bytes) -> bytes:
    # Not ReportData.pad(), which warns about hex text: these bytes were decoded from hex.
    if len(report_data) > 64:
        raise UsageError("Report data is too long", reason="too_large")
    return report_data.ljust(64, b"\0")


def _require_v1(evidence: Attestation, failure: str) -> Attestation:
    """Return `evidence` unchanged, after checking that the guest API v1 defines its platform.

    Raises:
        NotImplementedHereError: If v1 does not define the platform; the text begins with `failure`.
    """
    if not is_of_dstack(evidence.evidence.platform):
        raise NotImplementedHereError(_NO_V1.format(failure, evidence.platform))
    return evidence


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _has_bare_quotes(attester: Attester) -> bool:
    """Return whether the attester's evidence is only a TDX quote with its event log.

    Evidence of backends with a TPM, and of a guest agent, has other parts too.
    """
    is_more = isinstance(attester.backend, (EvidenceCollector, GuestAgent))
    return attester.has_quotes and not is_more


def check_epochs(request: messages.GetKeyArgs | messages_v1.GetKeyRequest) -> int | None:
    """Return the epoch of the key if the request names an epoch, else None.

    A request can name key epochs since dstack 0.6.4; this server's keys have epoch 0. Their
    protobuf numbers are not known, so they exist in JSON and queries only. An unknown epoch is
    refused: a client that ignores the epoch in the response would use another key than it
    requested.

    Raises:
        UsageError: If the request names an epoch other than 0.
    """
    named = {request.root_epoch, request.app_epoch} - {None}
    for epoch in named:
        require_key_epoch_0(epoch)
    return 0 if named else None
