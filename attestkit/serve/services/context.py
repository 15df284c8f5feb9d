"""What the methods of every service work on: the attester, the app's keys, who the server is."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit.attestation import Attestation
from attestkit.attester import Attester, app_info
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import (
    AttestKitError,
    BackendError,
    FormatError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import EventLog, Rtmrs
from attestkit.keys import AppKeys, LocalKeys
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.docker.engine import DOCKER, Containers
from attestkit.serve.machine_info import DATA_DISKS, Machine
from attestkit.serve.rpc.event_log_json import COMPACT, INDENTED, LogText, tcb_info
from attestkit.serve.rpc.json_codec import Prepared, encode
from attestkit.serve.rpc.messages import AppInfo, GetQuoteResponse, GetTlsKeyArgs, GetTlsKeyResponse
from attestkit.serve.rpc.response_template import Form, LongText

__all__ = ["Guest", "Identity", "Measured", "Release"]

T = TypeVar("T")
M = TypeVar("M", bound=NamedTuple)

_NO_KEYS = (
    "this server has no app keys: start it with --app-keys FILE, or have the host share "
    ".appkeys.json in the folder that $DSTACK_HOST_SHARED_DIR names"
)
_NO_QUOTE = (
    "Failed to get quote: this platform has no TDX quote; its evidence is what Attest answers, and "
    "GetQuote under attestation"
)
_VARYING = 770  # bytes of header, body and signature in the longest kind of quote
_MOST_FORMS = 16  # that are kept; clients may choose a part of some
_LARGEST_FORM = 1 << 16  # bytes and characters of all fields of one that is kept
_REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
_HASHES = ("mr_aggregated", "os_image_hash", "compose_hash", "device_id")
_RETRY_AFTER = 5.0  # seconds for which a failure is repeated without asking the device
_logger = logging.getLogger("attestkit.serve")


class Release(NamedTuple):
    """What the server says of itself.

    `version` is a release of the guest agent API, not of attestkit: clients ask for it before they
    use an algorithm or an option. 0.5.11 is the last one that has every call served here.
    """

    version: str = "0.5.11"
    rev: str = "unknown"  # or "git:" and 20 hex digits
    ident: str = "attestkit"  # the Server header


class Measured(NamedTuple):
    """What the app and its machine were measured to be."""

    registers: Mapping[str, bytes | None]  # by name; None where there are none
    log: EventLog
    tcb_info: LongText


class Identity(NamedTuple):
    """Who the app is."""

    app: AppInfo  # without certificate and TCB info
    measured: Measured | None  # None: hidden
    answer: Prepared[AppInfo]


class _Quoted(NamedTuple):
    """What quotes have in common as long as registers and certificates stay the same."""

    rtmrs: Rtmrs
    tail: bytes  # all behind the first signature of a quote
    event_log: LongText
    forms: dict[tuple[type[Any], Any], Form[Any]]  # by the rest of the answer


class Guest:
    """One app in one TEE, as its server's methods see it.

    Args:
        attester: Makes quotes and evidence.
        app_compose: What the app was deployed from.
        app_keys: The app's keys, or None: then the key methods say that there are none.
        vm_config: The machine's configuration, given back unchanged.
        now: Seconds since 1970.
        random: Returns that many random bytes.
        machine: What the operating system says; None reads it, or says "simulated".
        release: What the server says of itself.
        stats: Counts what the server does.
        limits: How much, how many, how long.
        data_disks: Mount points of the file systems that the figures tell about.
        docker: Where the container engine is; ConfigError if that cannot be.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        app_compose: AppCompose,
        app_keys: AppKeys | None,
        vm_config: str,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        machine: Machine | None = None,
        release: Release | None = None,
        stats: Stats | None = None,
        limits: Limits | None = None,
        data_disks: Sequence[str] = DATA_DISKS,
        docker: str = DOCKER,
    ) -> None:
        self.attester = attester
        self.app_compose = app_compose
        self.app_keys = app_keys
        self.vm_config = vm_config
        self.now = now
        self.random = random
        simulated = attester.simulated
        self.machine: Machine = machine or (Machine.simulated() if simulated else Machine.read())
        ident = "attestkit simulator" if simulated else "attestkit"
        self.release: Release = release or Release(ident=ident)
        self.stats: Stats = stats or Stats()
        self.limits: Limits = limits or Limits()
        self.data_disks = data_disks
        self.containers: Containers = Containers(docker)
        self.run_id: str = random(4).hex()
        self._executor: Executor | None = None
        self._writes = 0  # works under way that wait for a disk
        self._no_quote = GetQuoteResponse(vm_config=vm_config)
        self._keys = None if app_keys is None else LocalKeys(app_keys)
        self._quoted: _Quoted | None = None
        self._log_of_quotes, self._log_of_info = LogText(COMPACT), LogText(INDENTED)
        self._app_cert: LongText | None = None
        self._kept: dict[str, tuple[Rtmrs | None, Any]] = {}
        self._failed: dict[str, tuple[float, BackendError]] = {}

    def close(self) -> None:
        """Wait for the device's thread; the attester stays open."""
        if self._executor is not None:
            self._executor.shutdown()

    @property
    def executor(self) -> Executor | None:
        """The device's thread; None as long as the device does not block.

        A simulator begins to when a fault is armed that takes time. It also does while an event is
        written to its disk, which may be slow, for all that is asked of it then has to wait.
        """
        if not (self.attester.blocking or self._writes):
            return None
        if self._executor is None:
            self._executor = _device_thread()
        return self._executor

    async def on_device(self, work: Callable[[], T], *, writes: bool = False) -> T:
        """Return what `work` returns; its thread does it where the device blocks, or it writes."""
        self._writes += writes
        try:
            if (executor := self.executor) is None:
                return work()
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        finally:
            self._writes -= writes

    @property
    def keys(self) -> LocalKeys:
        """The app's keys; UnsupportedError where there are none."""
        if self._keys is None:
            raise UnsupportedError(_NO_KEYS)
        return self._keys

    def quote(self, report_data: bytes, answer: M, /, **varying: bytes) -> Prepared[M]:
        """Return `answer` with a quote over 64 bytes, and the log that belongs to it.

        Args:
            report_data: What is quoted.
            answer: All that is not in it for this request alone; its fields `quote` and `event_log`
                are empty.
            varying: What is, by field.
        """
        if not self.attester.has_quotes:
            raise UnsupportedError(_NO_QUOTE)
        try:
            quote, log = self.attester.quote_and_log(report_data)
        except AttestKitError as error:
            self.stats.device_errors[type(error).__name__] += 1
            raise BackendError(f"Failed to get quote: {error}") from error
        self.stats.quotes += 1
        raw, known = quote.raw, self._quoted
        # The registers are hashes over the whole log: where they are the same, it is the same.
        if known is None or known.rtmrs != quote.rtmrs or not raw.endswith(known.tail):
            text = self._log_of_quotes.of(log).between("[", "]")
            known = self._quoted = _Quoted(quote.rtmrs, raw[_VARYING:], text, {})
        form = known.forms.get((type(answer), answer))
        if form is None:
            if len(known.forms) >= _MOST_FORMS:
                known.forms.clear()
            common = answer._replace(quote=known.tail)
            form = Form(common, ("quote", *varying), event_log=known.event_log)
            if _size(answer) <= _LARGEST_FORM:
                known.forms[type(answer), answer] = form
        return form.fill(raw[: len(raw) - len(known.tail)], *varying.values())

    def quote_response(self, report_data: bytes) -> Prepared[GetQuoteResponse]:
        """Return the answer of GetQuote for up to 64 bytes; UsageError if there are more."""
        report_data = _pad(report_data)
        if not self.attester.has_quotes:
            evidence = self.attest(report_data, "Failed to get quote").to_bytes()
            found = GetQuoteResponse(b"", "", report_data, self.vm_config, evidence)
            return Prepared(encode(found), lambda: found)
        return self.quote(report_data, self._no_quote, report_data=report_data)

    def attest(self, report_data: bytes, failure: str = "Failed to get attestation") -> Attestation:
        """Return evidence over up to 64 bytes; UsageError if there are more."""
        report_data = _pad(report_data)
        try:
            evidence = self.attester.evidence(report_data)
        except AttestKitError as error:
            self.stats.device_errors[type(error).__name__] += 1
            raise BackendError(f"{failure}: {error}") from error
        self.stats.quotes += 1
        return evidence

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` made last time, as long as no register has changed since.

        What the platform refused is refused again for five seconds, without asking it: strangers
        may come here, and a device that fails can take half a minute to do so.
        """
        try:
            registers = self.attester.registers()
        except UnsupportedError:
            registers = None  # where there are none, nothing changes
        known = self._kept.get(name)
        if known is None or known[0] != registers:
            known = self._kept[name] = registers, self._make(name, make)
        made: T = known[1]
        return made

    def _make(self, name: str, make: Callable[[], T]) -> T:
        at, error = self._failed.pop(name, (0.0, None))
        now = self.now()
        if error is not None and 0 <= now - at < _RETRY_AFTER:
            self._failed[name] = at, error
            raise error.with_traceback(None)
        try:
            return make()
        except BackendError as failure:
            self._failed[name] = now, failure
            raise

    def certificate(self, args: GetTlsKeyArgs, key: P256Key | None) -> GetTlsKeyResponse:
        """Return a key (None: a new one) and its certificate under the app's authority.

        Raises:
            UsageError: A value cannot be written into a certificate.
            UnsupportedError: The app has no authority of its own.
            BackendError: No evidence could be had.
        """
        ca_cert, ca_key = self._authority()
        try:
            issued = ra_tls.issue(
                subject=args.subject,
                alt_names=args.alt_names,
                key=key,
                attest=lambda data: self.attest(data, "Failed to get certificate attestation"),
                ca_cert=ca_cert,
                ca_key=ca_key,
                usage_ra_tls=args.usage_ra_tls,
                server_auth=args.usage_server_auth,
                client_auth=args.usage_client_auth,
                not_before=args.not_before,
                not_after=args.not_after,
                with_app_info=args.with_app_info,
                now=self.now,
                random=self.random,
            )
        except FormatError as error:  # in the evidence or the authority, so not the caller's
            raise BackendError(f"Failed to sign the CSR: {error}") from error
        return GetTlsKeyResponse(issued.key_pem, issued.certificate_chain)

    def _authority(self) -> tuple[str, P256Key]:
        if self.app_keys is None:
            raise UnsupportedError(f"Failed to sign the CSR: {_NO_KEYS}")
        if self.app_keys.ca_key is None:
            raise UnsupportedError(
                "Failed to sign the CSR: this app's certificates come from a KMS, "
                "which is not supported yet"
            )
        return self.app_keys.ca_cert, self.app_keys.ca_key

    def info(self, *, hidden: bool = False) -> Prepared[AppInfo]:
        """Return who the app is; `hidden` leaves out what only the app itself may see."""
        return self.identity(hidden=hidden).answer

    def identity(self, *, hidden: bool = False) -> Identity:
        """Return the same, with what it was read from."""
        name = "hidden info" if hidden else "info"
        identity = self.kept(name, lambda: self._identify(hidden=hidden))
        if self._app_cert is None:
            del self._kept[name]  # so that the next call tries again
        return identity

    def _identify(self, *, hidden: bool) -> Identity:
        attestation = self.attest(b"")
        try:
            app = app_info(attestation)
        except AttestKitError as error:
            raise BackendError(f"Failed to decode app info: {error}") from error
        info = AppInfo(
            app_id=app.app_id,
            instance_id=app.instance_id,
            app_name=self.app_compose.name,
            device_id=app.device_id,
            mr_aggregated=app.mr_aggregated,
            os_image_hash=app.os_image_hash,
            key_provider_info=_utf8(app.key_provider_info),
            compose_hash=app.compose_hash,
            vm_config="" if hidden else self.vm_config,
            cloud_vendor=self.machine.cloud_vendor,
            cloud_product=self.machine.cloud_product,
        )
        measured = None if hidden else self._measured(attestation, info)
        text = LongText() if measured is None else measured.tcb_info
        form = Form(info, app_cert=self._self_test(), tcb_info=text)
        return Identity(info, measured, form.fill())

    def _measured(self, attestation: Attestation, info: AppInfo) -> Measured:
        quote, log = attestation.quote, attestation.event_log
        values = (None,) * 5 if quote is None else (quote.mrtd, *quote.rtmrs)
        registers: dict[str, bytes | None] = dict(zip(_REGISTERS, values, strict=True))
        hashes = {name: getattr(info, name) for name in _HASHES}
        compose = _utf8(self.app_compose.raw)
        text = tcb_info({**registers, **hashes}, self._log_of_info.of(log), compose)
        return Measured(registers, log, text)

    def _self_test(self) -> LongText:
        """Return the chain of a certificate made once to show that it works, or nothing."""
        if self._app_cert is not None:
            return self._app_cert
        try:
            self._authority()
        except UnsupportedError:
            self._app_cert = LongText()
            return self._app_cert
        args = GetTlsKeyArgs(subject="demo-cert", usage_ra_tls=True, usage_client_auth=True)
        try:
            chain = self.certificate(args, None).certificate_chain
        except AttestKitError as error:
            _logger.warning("no certificate for the app yet: %s", error)
            return LongText()
        self._app_cert = LongText.of("\n".join(chain))
        return self._app_cert


def _device_thread() -> Executor:
    """Return one thread, because a device takes one caller at a time anyway."""
    return ThreadPoolExecutor(1, thread_name_prefix="attestkit-device")


def _pad(report_data: bytes) -> bytes:
    # Without ReportData.pad's warning about hex text: these bytes came as hex already.
    if len(report_data) > 64:
        raise UsageError("Report data is too long")
    return report_data.ljust(64, b"\0")


def _size(answer: Iterable[object]) -> int:
    """Return how many bytes and characters the fields of a message have."""
    return sum([len(field) for field in answer if isinstance(field, (bytes, str))])


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
