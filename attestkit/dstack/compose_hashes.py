"""Hashes of an application's deployment: of its compose file, GPU policy and launch token."""

import json
import math
from collections.abc import Mapping
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._reasons import UsageReason
from attestkit.errors import UsageError

_LAUNCH_TOKEN_TAG: Final = b"dstack-launch-token/v1:"


def gpu_policy_hash(policy: Mapping[str, object]) -> bytes:
    """Return the SHA-256 of a GPU policy in its canonical form (RFC 8785).

    Args:
        policy: Keys as written; values are booleans, strings or None.

    Raises:
        UsageError: If a value has another type.
    """
    for key, value in policy.items():
        if not isinstance(value, (bool, str)) and value is not None:
            raise UsageError(f"gpu_policy: {key}: must be boolean or string", reason="wrong_type")
    # Without numbers, RFC 8785 differs from compact JSON only in the order of keys (UTF-16).
    ordered = {key: policy[key] for key in sorted(policy, key=lambda key: key.encode("utf-16-be"))}
    return sha256(_compact(ordered))


def launch_token_hash(token: bytes) -> str:
    """Return `requirements.launch_token_hash` (64 hex digits) for a token of at least 32 bytes.

    Raises:
        UsageError: If the token is shorter.
    """
    if len(token) < 32:
        raise UsageError(f"launch token: {len(token)} bytes, fewer than 32", reason="wrong_size")
    return sha256(_LAUNCH_TOKEN_TAG + token).hex()


def compose_hash_deterministic(
    app_compose: Mapping[str, object], *, normalize: bool = False
) -> str:
    """Return the hash (64 hex digits) that `get_compose_hash` of dstack's Python SDK returns.

    It is the SHA-256 of compact JSON with sorted keys, without top-level keys that are None, and
    with null for NaN and infinities. It equals the measured hash only if the file is such JSON.

    Args:
        app_compose: Content of an app-compose.json, with any keys.
        normalize: Leave out the script that the runner does not use, and an empty
            `pre_launch_script`.

    Raises:
        UsageError: If a value cannot be encoded as JSON.
    """
    try:
        found = {key: _finite(value) for key, value in app_compose.items()}
    except RecursionError as error:
        raise UsageError("app-compose: nested too deeply", reason="wrong_value") from error
    fields = {key: value for key, value in found.items() if value is not None}
    if normalize:
        if fields.get("runner") == "bash":
            fields.pop("docker_compose_file", None)
        elif fields.get("runner") in {"docker-compose", "nerdctl-compose"}:
            fields.pop("bash_script", None)
        if not fields.get("pre_launch_script"):
            fields.pop("pre_launch_script", None)
    return sha256(_compact(fields, sort=True)).hex()


def _finite(value: object) -> object:
    """Return `value` with every NaN and infinity in it replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError("app-compose: keys of JSON objects must be text", reason="wrong_type")
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def _compact(value: object, *, sort: bool = False) -> bytes:
    try:
        return json.dumps(
            value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=sort
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = _json_reason(error)
        raise UsageError("app-compose: cannot be encoded as JSON", reason=reason) from error


def _json_reason(error: Exception) -> UsageReason:
    if isinstance(error, TypeError):
        return "wrong_type"
    return "encoding" if isinstance(error, UnicodeEncodeError) else "wrong_value"
