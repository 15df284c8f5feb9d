"""A TEE behind somebody else's dstack guest agent, which has the log and the keys.

Agents of development machines answer as those of hardware do. One is *simulated* unless a quote of
its own, over bytes that nobody could know before, is signed by a key that Intel's SGX Root CA
vouches for. So it also is if it has no TDX quote at all: the evidence of other platforms does not
show by itself who made it. Whoever names an agent gets it in any case.
"""

import hmac
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from attestkit._crypto.ecdsa import p256_verify
from attestkit._crypto.x509.vendor_roots import pck_key
from attestkit._formats import strict_json
from attestkit.backends import agent_endpoint
from attestkit.backends.dstack_agent.client import TIMEOUT, AgentClient, Answer
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    FormatError,
    QuoteUnavailableError,
    SignatureError,
    UnsupportedError,
    UsageError,
)
from attestkit.keys import AgentKeys
from attestkit.keys.hkdf import utf8
from attestkit.quote import TEE_TDX, Quote

__all__ = ["DstackAgent"]

_REPORT_DATA: Final = 64  # bytes


class DstackAgent:
    """A client of a guest agent: of its service DstackGuest.

    Args:
        endpoint: A URL (`http://`, `https://`), or the path of the agent's socket. None: what
            `$DSTACK_SIMULATOR_ENDPOINT` says, else the first of the usual sockets.
        timeout: Seconds that one call may take.
        random: Returns that many random bytes.

    Attributes:
        simulated: True unless its quotes come from Intel's hardware. It is found out when this is
            made, and proves nothing to others: that takes a verifier.
        why_simulated: Why it is taken to be simulated, in words; empty if it is not.
        keys: The app's keys, which the agent is asked for.

    Raises:
        BackendUnavailableError: There is no agent, or none that this user may talk to.
        BackendBusyError: The agent takes no more calls now, or does not answer in time.
        UsageError: The endpoint cannot be.
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
            endpoint, _ = agent_endpoint()
        self._client = AgentClient(endpoint, timeout=timeout)
        self.keys: AgentKeys = AgentKeys(self._client)
        self.why_simulated: str = self._look(random)
        self.simulated: bool = bool(self.why_simulated)

    def _look(self, random: Callable[[int], bytes]) -> str:
        """Return why it is taken to be simulated; an agent that gives no quote now is, too."""
        try:
            return _why_simulated(self._client, random)
        except (BackendUnavailableError, BackendBusyError):
            raise
        except BackendError as error:
            return f"it gives no quote to tell it by: {error}"

    @classmethod
    def probe(cls, endpoint: str | None = None) -> None:
        """Raise BackendUnavailableError unless an agent answers, simulated or not.

        Args:
            endpoint: As the constructor's.

        Raises:
            BackendUnavailableError: There is none, or none that this user may talk to.
            BackendError: What is there does not answer as an agent does.
        """
        _greet(AgentClient(agent_endpoint()[0] if endpoint is None else endpoint))

    @classmethod
    def probe_unnamed(cls) -> None:
        """Raise BackendUnavailableError unless an agent may be used that nobody asked for by name.

        A simulated one may not, unless `$DSTACK_SIMULATOR_ENDPOINT` names it: evidence is never
        made up because of what happens to listen on a socket.

        Raises:
            BackendUnavailableError: There is none, or it is simulated.
            UsageError: One was named, and cannot be used: nothing else is taken in its place.
            QuoteUnavailableError: It is there, and gives no quote to tell it by.
            BackendError: What is there does not answer as an agent does.
        """
        endpoint, named = agent_endpoint()
        client = AgentClient(endpoint)
        try:
            _greet(client)
        except BackendUnavailableError as error:
            if named:
                raise UsageError(f"DSTACK_SIMULATOR_ENDPOINT names an agent: {error}") from error
            raise
        if named:
            return
        if why := _why_simulated(client, os.urandom):
            raise BackendUnavailableError(
                f"the agent at {endpoint} is taken to be simulated, because {why}; to use it all "
                f"the same, name it: DSTACK_SIMULATOR_ENDPOINT={endpoint}, or "
                f'attestkit.open("dstack_agent")'
            )

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw TDX quote over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            QuoteUnavailableError: The agent has none to give, or its platform knows none.
            BackendUnavailableError: The agent is gone.
            BackendBusyError: It takes no more calls now, or did not answer in time.
            BackendError: Its answer cannot be read.
        """
        answer = self._client.call("GetQuote", _asked(report_data))
        if quote := _bytes(answer, "quote"):
            return quote
        raise QuoteUnavailableError(
            "the agent's answer has no quote: it runs on another platform than TDX, whose evidence "
            "get_quote_response has"
        )

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the agent's whole answer, JSON as `Attestation.from_agent_response` takes it.

        It is at most 32 MiB long, and nests no deeper than our readers go; nothing else is checked.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            BackendError: As `get_quote`.
        """
        return self._client.post("GetQuote", _asked(report_data)).text

    def read_event_log(self) -> bytes:
        """Return the agent's log as it is in the answer to GetQuote: JSON, all events.

        Payloads of firmware events are left out by the agent, their digests are not. Empty on a
        platform without a log.

        Raises:
            BackendError: As `get_quote`.
        """
        answer = self._client.call("GetQuote", _asked(bytes(_REPORT_DATA)))
        return _text(answer, "event_log").encode()

    def emit_event(self, name: str, payload: bytes) -> None:
        """Have the agent extend RTMR3 by an event, and log it.

        It is asked once: if the answer is lost, the error says that the event may be there.

        Raises:
            UsageError: The name is not text or the payload not bytes, or the agent refuses them.
            UnsupportedError: The agent does not have the call: releases before 0.6.0 do.
            BackendUnavailableError: The agent is gone; nothing was emitted.
            BackendError: Anything else that went wrong.
        """
        utf8("an event name", name)
        if not isinstance(payload, bytes):
            raise UsageError("the payload of an event is bytes")
        self._client.post("EmitEvent", {"event": name, "payload": payload.hex()})

    # -- the app -------------------------------------------------------------------------------

    def read_app_compose(self) -> bytes:
        """Return what the app was deployed from, app-compose.json as the agent has it.

        Raises:
            UnsupportedError: The agent hides it, or does not have it.
            BackendError: As `get_quote`.
        """
        tcb_info = _text(self._client.call("Info"), "tcb_info")
        if not tcb_info:
            raise UnsupportedError("the agent hides what the app was deployed from")
        try:
            found = _text(strict_json.read_object(tcb_info, "it"), "app_compose")
        except FormatError as error:
            raise _malformed("tcb_info", error) from error
        if not found:
            raise UnsupportedError("the agent does not tell what the app was deployed from")
        return found.encode()

    def close(self) -> None:
        """Refuse further calls, also of `keys`. A second call does nothing."""
        self._client.close()

    def __repr__(self) -> str:
        return f"DstackAgent(endpoint={self._client.endpoint!r})"


def _asked(report_data: object) -> dict[str, str]:
    if not isinstance(report_data, bytes) or len(report_data) != _REPORT_DATA:
        raise UsageError("report data is 64 bytes here")
    return {"report_data": report_data.hex()}


# -- whether it is there -------------------------------------------------------------------------


def _greet(client: AgentClient) -> None:
    """Have an answer that only an agent gives."""
    try:
        client.call("Version")
    except UnsupportedError:
        pass  # releases before 0.5.7
    else:
        return
    try:
        client.call("Info")
    except UnsupportedError as error:
        raise BackendUnavailableError(f"{error}; no guest agent, but something else") from error


# -- whether it is simulated ---------------------------------------------------------------------


def _why_simulated(client: AgentClient, random: Callable[[int], bytes]) -> str:
    """Return why an agent's evidence cannot be told from made-up one; empty if it can.

    Raises:
        BackendUnavailableError: It has no quotes of any kind, so it is no agent; or it is gone.
        BackendError: As `AgentClient.post`.
    """
    asked = random(_REPORT_DATA)
    try:
        answer = client.post("GetQuote", _asked(asked))
    except UnsupportedError as error:
        raise BackendUnavailableError(str(error)) from error
    if "simulator" in answer.server.lower():
        return "it says so itself, in its Server header"
    try:
        _check_origin(answer, asked)
    except AttestKitError as error:
        return str(error)
    return ""


def _check_origin(answer: Answer, asked: bytes) -> None:
    """Raise an error of ours unless the quote is fresh, and signed by what Intel vouches for.

    The root in its chain alone would not do: simulators give away a captured quote of hardware,
    with other report data written over it.
    """
    fields = strict_json.read_object(answer.text, "its answer to GetQuote")
    raw = _bytes(fields, "quote")
    if not raw:
        raise UnsupportedError("it has no TDX quote, and other evidence does not tell")
    quote = Quote.parse(raw)
    if quote.tee_type != TEE_TDX or not hmac.compare_digest(quote.report_data, asked):
        raise SignatureError("its quote is not one of a TD over what was asked")
    p256_verify(quote.attestation_key, quote.signature, quote.signed_region)
    p256_verify(pck_key(quote.pck_chain), quote.qe_report_signature, quote.qe_report.raw)


# -- fields of answers ---------------------------------------------------------------------------


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Return the text under `name`, empty where it is missing."""
    try:
        return strict_json.string(dict(fields), name, "")
    except FormatError as error:
        raise _malformed(name, error) from error


def _bytes(fields: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of the hex text under `name`, none where it is missing."""
    try:
        return strict_json.hex_field(dict(fields), name)
    except FormatError as error:
        raise _malformed(name, error) from error


def _malformed(name: str, error: FormatError) -> BackendError:
    return BackendError(f"the agent's answer is malformed: {name}: {error}")
