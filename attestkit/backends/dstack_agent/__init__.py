"""Backend for a TEE behind a dstack guest agent, which has the event log and the keys.

An agent counts as simulated unless it returns a TDX quote over fresh random report data whose
signature chains to Intel's SGX Root CA. An agent without TDX quotes counts as simulated too,
because its evidence is not verified here. A simulated agent is used only if selected by name.
"""

import hmac
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from attestkit._crypto.ecdsa import p256_verify
from attestkit._crypto.x509.vendor_roots import pck_key
from attestkit._formats import strict_json
from attestkit.backends import find_agent_endpoint
from attestkit.backends.dstack_agent.client import TIMEOUT, AgentClient, AgentResponse
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
from attestkit.keys import AgentKeys
from attestkit.keys.hkdf import utf8
from attestkit.quote import TEE_TDX, Quote

__all__ = ["DstackAgent"]

_REPORT_DATA: Final = 64  # bytes


class DstackAgent:
    """Backend that uses the service DstackGuest of a guest agent.

    Args:
        endpoint: A URL (`http://`, `https://`), or the path of the agent's socket. None:
            `$DSTACK_SIMULATOR_ENDPOINT`, otherwise the first default socket that exists.
        timeout: Timeout of a call in seconds.
        random: Returns the given number of random bytes.

    Attributes:
        simulated: True unless a quote of the agent is signed by Intel hardware. The constructor
            checks it; it does not replace a verifier.
        why_simulated: The reason why it counts as simulated, in words; otherwise empty.
        keys: The keys of the app, requested from the agent.

    Raises:
        BackendUnavailableError: If the agent is missing or not accessible.
        BackendBusyError: If the agent is overloaded or does not respond in time.
        UsageError: If the endpoint is invalid.
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
        self.keys: AgentKeys = AgentKeys(self._client)
        self.why_simulated: str = self._why_simulated(random)
        self.simulated: bool = bool(self.why_simulated)

    def _why_simulated(self, random: Callable[[int], bytes]) -> str:
        """Return why the agent counts as simulated; one that fails to return a quote does."""
        try:
            return _why_simulated(self._client, random)
        except (BackendUnavailableError, BackendBusyError):
            raise
        except BackendError as error:
            return f"no quote to verify: {error}"

    @classmethod
    def probe(cls, endpoint: str | None = None) -> None:
        """Check that an agent responds, simulated or not.

        Args:
            endpoint: As in the constructor.

        Raises:
            BackendUnavailableError: If the agent is missing or not accessible.
            BackendError: If the response is not that of an agent.
        """
        _check_agent(AgentClient(find_agent_endpoint()[0] if endpoint is None else endpoint))

    @classmethod
    def probe_for_detection(cls) -> None:
        """Probe for detection (`backends.detect`).

        A simulated agent is accepted only if `$DSTACK_SIMULATOR_ENDPOINT` selects it.

        Raises:
            BackendUnavailableError: If the agent is missing or simulated.
            UsageError: If the environment selects an agent that is not usable.
            QuoteUnavailableError: If the agent returns no quote, so it cannot be checked.
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
            UsageError: If `report_data` is not 64 bytes.
            QuoteUnavailableError: If the agent or its platform has no quote.
            BackendUnavailableError: If the agent is not accessible.
            BackendBusyError: If the agent is overloaded or does not respond in time.
            BackendError: If the response is malformed.
        """
        response = self._client.call("GetQuote", _quote_arguments(report_data))
        if quote := _bytes(response, "quote"):
            return quote
        raise QuoteUnavailableError(
            "response to GetQuote: no TDX quote, because the platform is not TDX; use "
            "get_quote_response for its evidence",
            reason="empty",
            path=self._client.endpoint,
        )

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the response of the agent, JSON as `Attestation.from_agent_response` accepts it.

        Only its size (32 MiB) and its nesting depth are checked.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            BackendError: As `get_quote`.
        """
        return self._client.post("GetQuote", _quote_arguments(report_data)).text

    def read_event_log(self) -> bytes:
        """Return the event log from the response to GetQuote: JSON, boot and runtime events.

        The agent omits the payloads of the firmware's events. Empty on a platform without a log.

        Raises:
            BackendError: As `get_quote`.
        """
        response = self._client.call("GetQuote", _quote_arguments(bytes(_REPORT_DATA)))
        return _text(response, "event_log").encode()

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
            raise UsageError("payload: must be bytes", reason="wrong_type")
        self._client.post("EmitEvent", {"event": name, "payload": payload.hex()})

    # -- the app -------------------------------------------------------------------------------

    def read_app_compose(self) -> bytes:
        """Return the app-compose.json from the response to Info, unchanged.

        Raises:
            UnsupportedError: If the agent hides it or does not have it.
            BackendError: As `get_quote`.
        """
        tcb_info = _text(self._client.call("Info"), "tcb_info")
        if not tcb_info:
            raise UnsupportedError("response to Info: the agent hides tcb_info", reason="no_app")
        try:
            found = _text(strict_json.read_object(tcb_info, "tcb_info"), "app_compose")
        except FormatError as error:
            raise _malformed("tcb_info", error) from error
        if not found:
            raise UnsupportedError("response to Info: no app_compose in tcb_info", reason="no_app")
        return found.encode()

    def close(self) -> None:
        """Close the backend and `keys`. A second call has no effect."""
        self._client.close()

    def __repr__(self) -> str:
        return f"DstackAgent(endpoint={self._client.endpoint!r})"


def _quote_arguments(report_data: object) -> dict[str, str]:
    if not isinstance(report_data, bytes) or len(report_data) != _REPORT_DATA:
        raise UsageError("report_data: must be 64 bytes", reason="wrong_size")
    return {"report_data": report_data.hex()}


# -- probing -------------------------------------------------------------------------------------


def _check_agent(client: AgentClient) -> None:
    """Make a call that only an agent has."""
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

    Raises:
        BackendUnavailableError: If it has no GetQuote, so it is not an agent, or is not accessible.
        BackendError: As `AgentClient.post`.
    """
    report_data = random(_REPORT_DATA)
    try:
        response = client.post("GetQuote", _quote_arguments(report_data))
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
    """Raise an AttestKitError unless the quote is fresh and its signature chains to Intel.

    Checking the root certificate alone is not enough: simulators return captured quotes of hardware
    with replaced report data.
    """
    fields = strict_json.read_object(response.text, "response to GetQuote")
    raw = _bytes(fields, "quote")
    if not raw:
        raise UnsupportedError("response to GetQuote: no TDX quote", reason="no_quote")
    quote = Quote.parse(raw)
    if quote.tee_type != TEE_TDX:
        raise UnsupportedError("response to GetQuote: not a quote of a TD", reason="no_quote")
    if not hmac.compare_digest(quote.report_data, report_data):
        text = "response to GetQuote: wrong report data in the quote"
        raise VerificationError(text, reason="report_data_mismatch")
    p256_verify(quote.attestation_key, quote.signature, quote.signed_region)
    p256_verify(pck_key(quote.pck_chain), quote.qe_report_signature, quote.qe_report.raw)


# -- fields of responses -------------------------------------------------------------------------


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return the text of the field `name`; empty if it is missing."""
    try:
        return strict_json.string(dict(fields), name, "")
    except FormatError as error:
        raise _malformed(name, error) from error


def _bytes(fields: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of the hex field `name`; empty if it is missing."""
    try:
        return strict_json.hex_field(dict(fields), name)
    except FormatError as error:
        raise _malformed(name, error) from error


def _malformed(name: str, error: FormatError) -> BackendError:
    return BackendError(f"response of the agent: {name}: {error}", reason="malformed_response")
