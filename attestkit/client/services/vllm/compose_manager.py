"""The compose manager of NEAR AI: which compose files it has started in a machine.

The app of such a machine is only the manager, which starts anything. A second quote of the same TD
commits to its actions (attested-client.md, 2.3).
"""

import hmac
import json
from typing import Any, Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit.attestation.wire.evidence_parts import td_body
from attestkit.client.services.dstack_evidence import read_dstack_evidence
from attestkit.client.services.service import Machine
from attestkit.client.services.strict_answer import AnswerObject
from attestkit.client.services.vllm.vllm_report import VllmReport, check_nonce_echo

MAX_ACTIONS: Final = 16_384
"""Maximum number of actions of a compose manager."""

_MEMBER: Final = "compose_manager_attestation"
_HASH_SIZE: Final = 32
_SAME: Final = ("mrtd", "mr_config_id", "rtmrs")  # of both quotes


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
    members: AnswerObject, report: VllmReport, nonce: bytes
) -> ComposeManager | None:
    """Read the evidence of a compose manager beside a report; None if it is missing.

    Args:
        members: Members of the report.
        report: The report.
        nonce: Nonce of the request, 32 bytes.

    Raises:
        FormatError: If it is malformed, of another TD than the report, or if its report data do not
            have the hash of the actions (`inconsistent`).
        ServiceError: If it states another nonce (`nonce_echo`).
    """
    if not members.has(_MEMBER):
        return None
    found = members.object(_MEMBER)
    check_nonce_echo(found, nonce)
    quote = found.prefixed_hex("quote")
    actions = found.array("actions", MAX_ACTIONS)
    body, own_body = td_body(quote), td_body(report.quote())
    if any(getattr(body, name) != getattr(own_body, name) for name in _SAME):
        raise found.error("quote", "is of another TD than the report", "inconsistent")
    digest = _actions_hash(actions, body.report_data[:_HASH_SIZE], found)
    if found.has("actions_hash"):
        stated = found.prefixed_hex("actions_hash", _HASH_SIZE)
        if not hmac.compare_digest(stated, digest):
            raise found.error("actions_hash", "is not the hash of the actions", "inconsistent")
    log, config = found.get("event_log"), found.get("vm_config")
    evidence = read_dstack_evidence(quote, log, config, found.what)
    # The same TD as that of the report, so that the same policy applies.
    machine = Machine(report.machine.role, evidence, digest + nonce, is_further=True)
    return ComposeManager(machine, len(actions))


def _actions_hash(actions: list[Any], signed: bytes, found: AnswerObject) -> bytes:
    """Return the hash of the actions: releases order members by name, or as they send them."""
    for by_name in (True, False):
        text = json.dumps(actions, sort_keys=by_name, separators=(",", ":"), ensure_ascii=False)
        digest = sha256(text.encode())
        if hmac.compare_digest(digest, signed):
            return digest
    problem = "the report data of the quote do not have their hash"
    raise found.error("actions", problem, "inconsistent")
