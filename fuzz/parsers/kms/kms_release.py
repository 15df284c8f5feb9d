"""Targets: files and answers that a simulated KMS reads."""

import json

from attestkit._formats.strict_json import read_object
from attestkit.errors import ConfigError, FormatError
from attestkit.kms.answers import BootstrapStatement
from attestkit.kms.release.auth_simple import AuthSimpleConfig
from attestkit.kms.release.authorization import BootInfo, Decision
from attestkit.kms.release.state_folder import read_bootstrap_info
from attestkit.kms.release.webhook import read_authority, read_decision
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys


def _bootstrap(_raw: bytes, found: BootstrapStatement) -> None:
    check("sizes of keys", (len(found.ca_spki), len(found.k256_public_key)) == (91, 33))
    check_same("written and read again", read_bootstrap_info(found.to_json().encode()), found)


def bootstrap_samples() -> list[bytes]:
    """Return the file of a KMS that attested itself, and of one that did not."""
    keys = bytes(91), bytes(33)
    return [
        BootstrapStatement(*keys, evidence).to_json().encode() for evidence in (b"", b"evidence")
    ]


_BOOT = BootInfo(
    *("dstack-tdx", b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32, b"\x5b" * 20, b"\xdd" * 32),
    *(bytes(20), b"\xee" * 32, b"", "UpToDate", ()),
)


def _auth_simple(_raw: bytes, config: AuthSimpleConfig) -> None:
    for decision in (config.decide("app", _BOOT), config.decide("kms", _BOOT)):
        check("a reason of a refusal", decision.is_allowed == (not decision.reason))
    config.open_to_any_device()


def auth_simple_samples() -> list[bytes]:
    """Return files that allow an app, a KMS, and nothing."""
    app = {"composeHashes": ["0x" + "dd" * 32], "devices": ["ee" * 32], "allowAnyDevice": True}
    every = {
        "gatewayAppId": "any",
        "kmsContractAddr": "0x0",
        "appImplementation": "0x1",
        "chainId": 1,
        "osImages": ["0x" + "BB" * 32],
        "allowedTcbStatuses": ["UpToDate"],
        "allowedAdvisoryIds": [],
        "kms": {"mrAggregated": ["aa" * 32], "devices": []},
        "apps": {"0x" + "5b" * 20: app},
    }
    return [json.dumps(every).encode(), b"{}"]


def _read_decision(raw: bytes) -> Decision:
    fields = read_object(raw, "answer")
    if "isAllowed" not in fields:
        read_authority(fields)
    return read_decision(fields)


def _decision(raw: bytes, found: Decision) -> None:
    check("an explicit decision", b"true" in raw if found.is_allowed else b"false" in raw)
    check("printable texts", (found.reason + found.gateway_app_id).isprintable())


def decision_samples() -> list[bytes]:
    """Return answers of an authorization server."""
    authority = {"gatewayAppId": "", "kmsContractAddr": "", "chainId": 1, "appImplementation": ""}
    return [
        Decision.allow("any").to_json().encode(),
        Decision.refuse("no").to_json().encode(),
        json.dumps(authority).encode(),
    ]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "kms_bootstrap",
            obeys(read_bootstrap_info, FormatError, accepted=_bootstrap),
            bootstrap_samples,
            "json.dict",
            1024,
        ),
        ParserTarget(
            "auth_simple",
            obeys(AuthSimpleConfig.from_json, ConfigError, accepted=_auth_simple),
            auth_simple_samples,
            "json.dict",
            2048,
        ),
        ParserTarget(
            "kms_decision",
            obeys(_read_decision, FormatError, accepted=_decision),
            decision_samples,
            "json.dict",
            1024,
        ),
    ]
