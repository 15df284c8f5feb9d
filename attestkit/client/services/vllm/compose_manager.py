"""The compose manager of NEAR AI: which compose files it has started in a machine.

The app of such a machine is only the manager, which starts anything. A second quote of the same TD
commits to its actions (attested-client.md, 2.3).
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit.attestation.wire.evidence_parts import td_body
from attestkit.client.services.dstack_evidence import read_dstack_evidence
from attestkit.client.services.service import Machine
from attestkit.client.services.strict_answer import list_member, object_member, text_of
from attestkit.client.services.vllm.vllm_report import VllmReport, check_nonce_echo
from attestkit.errors import FormatError
from attestkit.gpu.bindings.answer_fields import hex_member

MAX_ACTIONS: Final = 16_384
"""Maximum number of actions of a compose manager."""

_MEMBER: Final = "compose_manager_attestation"
_HASH_SIZE: Final = 32


class ComposeManager(NamedTuple):
    """Evidence of a compose manager; nothing of it is verified but its form."""

    machine: Machine
    actions: int  # number of them

    def limit(self) -> str:
        """Return what the evidence does not show."""
        return (
            f"which programs the compose manager has started: its {self.actions} actions are in "
            "the evidence, and no policy compares them"
        )


def read_compose_manager(
    members: Mapping[str, Any], report: VllmReport, nonce: bytes, what: str
) -> ComposeManager | None:
    """Read the evidence of a compose manager beside a report; None if it is missing.

    Args:
        members: Members of the report.
        report: The report.
        nonce: Nonce of the request, 32 bytes.
        what: Name of the report, with which errors begin.

    Raises:
        FormatError: If it is malformed, of another TD than the report, or if its report data do not
            have the hash of the actions (`inconsistent`).
        ServiceError: If it states another nonce (`nonce_echo`).
    """
    if members.get(_MEMBER) is None:
        return None
    subject = f"{what}: {_MEMBER}"
    found = object_member(members, _MEMBER, what)
    check_nonce_echo(found, nonce, subject)
    quote_hex = text_of(found, "quote", subject).removeprefix("0x")
    quote = strict_json.from_hex(quote_hex, f"{subject}: quote")
    actions = list_member(found, "actions", subject, MAX_ACTIONS)
    body, own_body = td_body(quote), td_body(report.quote())
    if (body.mrtd, body.mr_config_id, body.rtmrs) != (
        own_body.mrtd,
        own_body.mr_config_id,
        own_body.rtmrs,
    ):
        raise FormatError(f"{subject}: is of another TD than the report", reason="inconsistent")
    digest = _actions_hash(actions, body.report_data[:_HASH_SIZE], subject)
    if found.get("actions_hash") is not None:
        stated = hex_member(found, "actions_hash", subject, _HASH_SIZE)
        if not hmac.compare_digest(stated, digest):
            message = f"{subject}: actions_hash: is not the hash of the actions"
            raise FormatError(message, reason="inconsistent")
    evidence = read_dstack_evidence(quote, found.get("event_log"), found.get("vm_config"), subject)
    # The same TD as that of the report, so that the same policy applies.
    machine = Machine(report.machine.role, evidence, digest + nonce, is_further=True)
    return ComposeManager(machine, len(actions))


def _actions_hash(actions: list[Any], signed: bytes, what: str) -> bytes:
    """Return the hash of the actions: releases order members by name, or as they send them."""
    for by_name in (True, False):
        text = json.dumps(actions, sort_keys=by_name, separators=(",", ":"), ensure_ascii=False)
        digest = sha256(text.encode())
        if hmac.compare_digest(digest, signed):
            return digest
    message = f"{what}: actions: the report data of the quote do not have their hash"
    raise FormatError(message, reason="inconsistent")
