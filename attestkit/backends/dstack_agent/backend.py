"""Backend `dstack_agent`: evidence, events and the app of a dstack guest agent.

Agents of dstack 0.6 have the API `dstack.guest.v1`, which is used for evidence and the app; others
have v0 only. Raw quotes, events and the keys of v0 are requested from v0 in both cases.

An agent counts as simulated unless it returns a TDX quote over fresh random report data whose
signature chains to Intel's SGX Root CA. An agent without TDX quotes counts as simulated too,
because its evidence is not verified here. A simulated agent is used only if selected by name.
"""

import hmac
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from attestkit._argument_checks import wrong_type
from attestkit._crypto.ecdsa import p256_verify
from attestkit._crypto.x509.vendor_roots import pck_key
from attestkit._formats import strict_json
from attestkit.attestation import Attestation
from attestkit.backends.dstack_agent.client import TIMEOUT, AgentClient, AgentResponse
from attestkit.backends.environment import find_agent_endpoint
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    FormatError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.event_log import EventLog
from attestkit.keys import AgentKeys
from attestkit.keys.agent_keys import AgentApi
from attestkit.keys.hkdf import utf8
from attestkit.quote import TEE_TDX, Quote

_REPORT_DATA: Final = 64  # bytes
_ATTEST: Final = "v1/Attest"


class DstackAgent:
    """Backend that uses the service DstackGuest of a guest agent.

    Args:
        endpoint: A URL (`http://`, `https://`), or the path of the agent's socket. None:
            `$DSTACK_SIMULATOR_ENDPOINT`, otherwise the first default socket that exists.
        timeout: Timeout of a call in seconds.
        random: Returns the given number of random bytes.

    Attributes:
        api: The newest API of the agent: "v1" (`dstack.guest.v1`, of dstack 0.6) or "v0". It is
            requested once, by the constructor; open the backend again after an upgrade of the
            agent.
        simulated: True unless a quote of the agent is signed by Intel hardware. The constructor
            checks it; it does not replace a verifier.
        why_simulated: The reason why it counts as simulated, in words; otherwise empty.
        keys: The keys of the app, requested from the agent.

    Raises:
        BackendUnavailableError: If the agent is missing or not accessible.
        BackendBusyError: If the agent is overloaded or does not respond in time.
        BackendError: If the response is not that of an agent.
        UsageError: If the endpoint or the timeout is invalid.
    """

    name = "dstack_agent"
    blocking = True

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        timeout: float = TIMEOUT,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if endpoint is None:
            endpoint, _ = find_agent_endpoint()
        self._client = AgentClient(endpoint, timeout=timeout)
        self.api: AgentApi = self._client.find_api()
        self.keys: AgentKeys = AgentKeys(self._client)
        self.why_simulated: str = self._why_simulated(random)
        self.simulated: bool = bool(self.why_simulated)

    def _why_simulated(self, random: Callable[[int], bytes]) -> str:
        """Return why the agent counts as simulated, for example because it returns no quote.

        Empty if a quote over data from `random` (argument: number of bytes) is signed by Intel
        hardware.
        """
        try:
            return _why_simulated(self._client, random)
        except (BackendUnavailableError, BackendBusyError):
            raise
        except BackendError as error:
            return f"no quote to verify: {error}"

    @classmethod
    def find_api(cls, endpoint: str | None = None) -> AgentApi:
        """Return the newest API that an agent has: "v1" (`dstack.guest.v1`) or the older "v0".

        Args:
            endpoint: URL or path of the agent's socket; None: as in the constructor.

        Raises:
            UsageError: If the endpoint is invalid.
            BackendUnavailableError: If the agent is missing or not accessible.
            BackendBusyError: If the agent is overloaded or does not respond in time.
            BackendError: If the response is not that of an agent.
        """
        return _make_client(endpoint).find_api()

    @classmethod
    def probe(cls, endpoint: str | None = None) -> None:
        """Check that an agent responds, simulated or not.

        Args:
            endpoint: URL or path of the agent's socket; None: as in the constructor.

        Raises:
            UsageError: If the endpoint is invalid.
            BackendUnavailableError: If the agent is missing or not accessible.
            BackendBusyError: If the agent is overloaded or does not respond in time.
            BackendError: If the response is not that of an agent.
        """
        _check_agent(_make_client(endpoint))

    @classmethod
    def probe_for_detection(cls) -> None:
        """Probe as `probe` does, for `backends.detect`, and check that the agent is not simulated.

        A simulated agent is accepted only if `$DSTACK_SIMULATOR_ENDPOINT` selects it.

        Raises:
            BackendUnavailableError: If the agent is missing or simulated.
            UsageError: If the environment selects an agent that is not usable.
            QuoteUnavailableError: If the agent fails to return evidence, so it cannot be checked.
            BackendError: If the response is not that of an agent.
        """
        endpoint, named = find_agent_endpoint()
        client = AgentClient(endpoint)
        try:
            _check_agent(client)
        except BackendUnavailableError as error:
            if named:
                text = f"$DSTACK_SIMULATOR_ENDPOINT: {error}"
                raise UsageError(text, reason="wrong_value") from error
            raise
        if named:
            return
        if why := _why_simulated(client, os.urandom):
            raise BackendUnavailableError(
                f"guest agent at {endpoint}: simulated ({why}); to use it, set "
                f'DSTACK_SIMULATOR_ENDPOINT={endpoint} or call attestkit.open("dstack_agent")',
                reason="simulated",
                path=endpoint,
            )

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw TDX quote over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes, or the backend is closed.
            UnsupportedError: If the agent has no method for quotes, or refuses it.
            QuoteUnavailableError: If the agent or its platform has no quote.
            BackendUnavailableError: If the agent is not accessible.
            BackendBusyError: If the agent is overloaded or does not respond in time.
            BackendError: If the response is malformed, or the call failed for another reason.
        """
        arguments = _quote_arguments(report_data)
        try:
            quote = _bytes(self._client.call("GetQuote", arguments), "quote")
        except UnsupportedError:
            if self.api == "v0":
                raise
            quote = _attested_quote(self._client.post(_ATTEST, arguments).text)
        if quote:
            return quote
        raise QuoteUnavailableError(
            "response of the agent: no TDX quote, because the platform is not TDX; use "
            "get_quote_response for its evidence",
            reason="empty",
            path=self._client.endpoint,
        )

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the response of the agent, JSON as `Attestation.from_agent_response` accepts it.

        It calls Attest of the agent's API v1, or GetQuote if the agent does not have or allow
        Attest. Only the size of the response (at most 32 MiB) and its nesting depth are checked.

        Raises:
            AttestKitError: As `get_quote`.
        """
        return _request_evidence(self._client, report_data).text

    def read_event_log(self) -> bytes:
        """Return the event log of the agent's evidence: a JSON array of boot and runtime events.

        Agents may omit the payloads of the firmware's events. Empty on a platform without a log.

        Raises:
            AttestKitError: As `get_quote`.
        """
        text = _request_evidence(self._client, bytes(_REPORT_DATA)).text
        with _reading():
            fields = strict_json.read_object(text, "body")
        if "quote" in fields or "event_log" in fields:
            return _text(fields, "event_log").encode()
        evidence = _decode_evidence(text)
        with _reading("attestation: "):
            log = EventLog() if evidence is None else evidence.event_log
            return log.to_json().encode() if log.events else b""

    def emit_event(self, name: str, payload: bytes) -> None:
        """Emit an event through the agent, which extends RTMR3 and logs it.

        The request is not retried: if the response is lost, the reason is `outcome_unknown`.

        Raises:
            UsageError: If the name is not text, the payload is not bytes, or the agent rejects
                them.
            UnsupportedError: If the agent has no EmitEvent, which release 0.6.0 removed.
            BackendUnavailableError: If the agent is not accessible; nothing was emitted.
            BackendError: If the request failed for another reason.
        """
        utf8("an event name", name)
        if not isinstance(payload, bytes):
            raise wrong_type("payload", "bytes", payload)
        self._client.post("EmitEvent", {"event": name, "payload": payload.hex()})

    # -- the app -------------------------------------------------------------------------------

    def read_app_compose(self) -> bytes:
        """Return the app-compose.json from the response to Info, unchanged.

        Raises:
            UnsupportedError: If the agent hides it, does not have it, or has no method Info.
            AttestKitError: As `get_quote`.
        """
        if self.api == "v1":
            if compose := _text(self._client.call("v1/Info"), "app_compose"):
                return compose.encode()
            raise UnsupportedError(
                "response to v1/Info: no app_compose; use dstack.sock, or set "
                "public_tcbinfo in the app-compose",
                reason="no_app",
            )
        tcb_info = _text(self._client.call("Info"), "tcb_info")
        if not tcb_info:
            raise UnsupportedError(
                "response to Info: the agent hides tcb_info; use dstack.sock, or set "
                "public_tcbinfo in the app-compose",
                reason="no_app",
            )
        with _reading():
            found = _text(strict_json.read_object(tcb_info, "tcb_info"), "app_compose")
        if not found:
            raise UnsupportedError("response to Info: no app_compose in tcb_info", reason="no_app")
        return found.encode()

    def close(self) -> None:
        """Close the backend and `keys`. A second call has no effect."""
        self._client.close()

    def __repr__(self) -> str:
        return f"DstackAgent(endpoint={self._client.endpoint!r}, api={self.api!r})"


def _make_client(endpoint: str | None) -> AgentClient:
    return AgentClient(find_agent_endpoint()[0] if endpoint is None else endpoint)


def _quote_arguments(report_data: object) -> dict[str, str]:
    if not isinstance(report_data, bytes) or len(report_data) != _REPORT_DATA:
        given = len(report_data) if type(report_data) is bytes else type(report_data).__name__
        raise UsageError(f"report_data: must be 64 bytes, not {given}", reason="wrong_size")
    return {"report_data": report_data.hex()}


def _request_evidence(client: AgentClient, report_data: object) -> AgentResponse:
    """Request evidence over `report_data`, which must be 64 bytes; return the agent's response.

    The method is Attest of the API v1, or GetQuote where the agent or its socket lacks Attest.
    """
    arguments = _quote_arguments(report_data)
    if client.find_api() == "v1":
        try:
            return client.post(_ATTEST, arguments)
        except UnsupportedError:
            pass
    return client.post("GetQuote", arguments)


def _decode_evidence(response: str) -> Attestation | None:
    """Return the evidence in the response to Attest, a JSON text; None without evidence."""
    with _reading():
        data = _bytes(strict_json.read_object(response, "body"), "attestation")
    with _reading("attestation: "):
        return Attestation.from_bytes(data) if data else None


def _attested_quote(response: str) -> bytes:
    """Return the raw TDX quote in the response to Attest, a JSON text; empty without one."""
    evidence = _decode_evidence(response)
    with _reading("attestation: "):
        quote = None if evidence is None else evidence.quote
    return b"" if quote is None else quote.raw


# -- probing -------------------------------------------------------------------------------------


def _check_agent(client: AgentClient) -> None:
    """Call a method that only agents have; raise an error if it is missing."""
    if client.find_api() == "v1":
        return
    try:
        client.call("Version")
    except UnsupportedError:
        pass  # releases before 0.5.7
    else:
        return
    try:
        client.call("Info")
    except UnsupportedError as error:
        text = f"{error}; check that the endpoint is a guest agent"
        raise BackendUnavailableError(text, reason="missing", path=client.endpoint) from error


# -- simulation check ----------------------------------------------------------------------------


def _why_simulated(client: AgentClient, random: Callable[[int], bytes]) -> str:
    """Return why the agent counts as simulated; empty if its quote is signed by Intel hardware.

    Args:
        client: Client of the agent.
        random: Returns random report data of the given size in bytes.

    Raises:
        BackendUnavailableError: If it has no evidence, so it is not an agent, or is not accessible.
        BackendError: As `AgentClient.post`.
    """
    report_data = random(_REPORT_DATA)
    try:
        response = _request_evidence(client, report_data)
    except UnsupportedError as error:
        raise BackendUnavailableError(str(error), reason="missing", path=client.endpoint) from error
    if "simulator" in response.server.lower():
        return "its Server header names a simulator"
    try:
        _check_origin(response, report_data)
    except AttestKitError as error:
        return str(error)
    return ""


def _check_origin(response: AgentResponse, report_data: bytes) -> None:
    """Raise an AttestKitError unless the quote in `response` is fresh and of Intel hardware.

    Fresh: it is over `report_data`. Of Intel hardware: its signatures chain to Intel's root.
    Checking the root certificate alone is not enough: simulators return captured quotes of hardware
    with replaced report data.
    """
    fields = strict_json.read_object(response.text, "response of the agent")
    raw = _bytes(fields, "quote") if "quote" in fields else _attested_quote(response.text)
    if not raw:
        raise UnsupportedError("response of the agent: no TDX quote", reason="no_quote")
    quote = Quote.parse(raw)
    if quote.tee_type != TEE_TDX:
        raise UnsupportedError("response of the agent: not a quote of a TD", reason="no_quote")
    if not hmac.compare_digest(quote.report_data, report_data):
        text = "response of the agent: the quote is not over the requested report data"
        raise VerificationError(text, reason="report_data_mismatch")
    p256_verify(quote.attestation_key, quote.signature, quote.signed_region)
    p256_verify(pck_key(quote.pck_chain), quote.qe_report_signature, quote.qe_report.raw)


# -- fields of responses -------------------------------------------------------------------------


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return the text of the field `name`; empty if it is missing."""
    with _reading():
        return strict_json.string(fields, name, "")


def _bytes(fields: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of the hex field `name`; empty if it is missing."""
    with _reading():
        return strict_json.hex_field(fields, name)


@contextmanager
def _reading(subject: str = "") -> Iterator[None]:
    """Context manager: raise a FormatError as BackendError, with `subject` before its text."""
    try:
        yield
    except FormatError as error:
        text = f"response of the agent: {subject}{error}"
        raise BackendError(text, reason="malformed_response") from error
