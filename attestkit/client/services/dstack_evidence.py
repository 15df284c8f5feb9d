"""Evidence of a dstack guest in a service's answer: TDX quote, event log, app-compose document.

Services name these members differently; the values have the same form.
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.attestation.wire.evidence_parts import td_body
from attestkit.errors import FormatError
from attestkit.quote import TdQuoteBody

_COMPOSE_EVENT: Final = "compose-hash"
_APP_EVENT: Final = "app-id"
_BOOT_END: Final = "system-ready"  # what follows was emitted by the app


def read_dstack_evidence(
    quote: bytes, event_log: object, vm_config: object, what: str
) -> Attestation | bytes:
    """Return the evidence: a TDX quote with its event log, or the quote alone without a log.

    Args:
        quote: The raw TDX quote.
        event_log: A list of events, its JSON text, or None if the answer has none.
        vm_config: dstack's VM configuration: JSON text, its decoded object, or None if the answer
            has none.
        what: Name of the answer, with which errors begin.

    Raises:
        FormatError: If log or configuration has another type, or quote or log is malformed. Without
            a log, the quote is not decoded.
    """
    if event_log is None:
        return quote
    if not isinstance(event_log, str):
        if not isinstance(event_log, list):
            message = f"{what}: event_log: must be a list, or the JSON text of one"
            raise FormatError(message, reason="wrong_type")
        event_log = json.dumps(event_log)
    config = _config_text(vm_config, what)
    try:
        return Attestation.from_quote_and_log(quote, event_log, config)
    except FormatError as error:
        raise FormatError(f"{what}: {error}", reason=error.reason) from error


def check_app_compose(evidence: Attestation | bytes, app_compose: object, what: str) -> None:
    """Compare an app-compose document with its hashes in event log and MR_CONFIG_ID, if they exist.

    The hashes are authentic only once the evidence is verified. If neither exists, the document is
    accepted, and nothing is known about it.

    Args:
        evidence: TDX quote with its event log, or the raw quote alone.
        app_compose: Text of the document, or None if the answer has none.
        what: Name of the answer, with which errors begin.

    Raises:
        FormatError: If the app compose is not text, or differs from the measured one (reason
            `inconsistent`), or the quote is malformed.
    """
    if app_compose is None:
        return
    if not isinstance(app_compose, str):
        raise strict_json.wrong_json_type(f"{what}: app_compose", "text", app_compose)
    if strict_json.has_surrogate(app_compose):
        message = f"{what}: app_compose: unpaired surrogate in text"
        raise FormatError(message, reason="encoding")
    compose_hash = sha256(app_compose.encode())
    measured = boot_event(evidence, _COMPOSE_EVENT, what)
    if measured is not None and not hmac.compare_digest(measured, compose_hash):
        message = f"{what}: app_compose: its hash is not that of the event {_COMPOSE_EVENT}"
        raise FormatError(message, reason="inconsistent")
    config_id = _td_quote(evidence, what).mr_config_id
    if config_id[:1] == b"\1" and not hmac.compare_digest(config_id, config_id_v1(compose_hash)):
        message = f"{what}: app_compose: its hash is not the one in MR_CONFIG_ID"
        raise FormatError(message, reason="inconsistent")


def app_id_of(evidence: Attestation | bytes, what: str) -> bytes | None:
    """Return the app id in the event log; None without one. Authentic once the log is verified.

    Args:
        evidence: TDX quote with its event log, or the raw quote alone, which has no log.
        what: Name of the answer, with which errors begin.

    Raises:
        FormatError: If the log has several app ids, or is malformed.
    """
    return boot_event(evidence, _APP_EVENT, what)


def boot_event(evidence: Attestation | bytes, name: str, what: str) -> bytes | None:
    """Return the payload of a runtime event before `system-ready`; None if it is missing.

    Later events are the app's, which could imitate those of the boot.

    Args:
        evidence: TDX quote with its event log, or the raw quote alone, which has no events.
        name: Name of the event, such as `app-id`.
        what: Name of the answer, with which errors begin.

    Raises:
        FormatError: If there are several (reason `duplicate`), or an event is malformed.
    """
    if isinstance(evidence, bytes):
        return None
    found = []
    for event in evidence.runtime_events:
        if event.name == _BOOT_END:
            break
        if event.name == name:
            found.append(event.payload)
    if len(found) > 1:
        raise FormatError(f"{what}: event_log: {name} must occur once", reason="duplicate")
    return found[0] if found else None


def _td_quote(evidence: Attestation | bytes, what: str) -> TdQuoteBody:
    quote = evidence if isinstance(evidence, bytes) else evidence.quote
    if quote is None:
        raise FormatError(f"{what}: quote: must be a TDX quote", reason="wrong_type")
    return td_body(quote)


def object_of_text(value: object, what: str) -> Mapping[str, Any]:
    """Return an object that is given as such, or as its JSON text, which is decoded strictly.

    Raises:
        FormatError: If `value` is neither; the message begins with `what`.
    """
    if isinstance(value, str):
        return strict_json.read_object(value, what)
    if not isinstance(value, dict):
        raise strict_json.wrong_json_type(what, "an object, or its JSON text", value)
    return value


def _config_text(vm_config: object, what: str) -> str:
    if vm_config is None or isinstance(vm_config, str):
        return vm_config or ""
    if not isinstance(vm_config, dict):
        message = f"{what}: vm_config: must be an object, or its JSON text"
        raise FormatError(message, reason="wrong_type")
    return json.dumps(vm_config)
