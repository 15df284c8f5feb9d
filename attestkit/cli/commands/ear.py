"""`attestkit ear FILE`: what a verifier has signed, once that holds."""

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestkit.cli.exit_codes import POLICY, complain, decide
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.options.ear_signing import nonce_of
from attestkit.cli.options.verification import instant
from attestkit.cli.output import console
from attestkit.errors import ConfigError, FormatError, SignatureError, UsageError

if TYPE_CHECKING:
    from attestkit.verifier.ear.result_token import Ear, EarPublicKey

__all__ = ["ear"]

SIMULATED: Final = "SIMULATED: it is about no platform's maker, and proves nothing about hardware."
FRESHNESS: Final = "not checked: --nonce HEX says what it must have been signed for"

_EPILOG: Final = (
    "Example: attestkit ear verdict.jwt --key keys.json --nonce 0011223344556677\n\n"
    "Exit codes: 0 it holds, 1 usage, 2 rejected: signature, time, nonce or policy, 4 it holds and "
    "says that the evidence is not to be trusted (contraindicated), 5 unreadable input."
)


@click.command(epilog=_EPILOG)
@click.argument("file", type=PATH)
@click.option(
    "--key",
    "keys",
    metavar="FILE",
    type=PATH,
    required=True,
    help="The verifier's public key, from where you trust it: a JWK or a set of them.",
)
@click.option("--nonce", metavar="HEX", help="The nonce that it must have, 8 to 64 bytes.")
@click.option("--policy-id", metavar="TEXT", help="The policy that it must name.")
@click.option(
    "--at",
    metavar="TIME",
    help="The instant to check it at, else now: ISO 8601 (UTC if no zone is given), or seconds "
    "since 1970.",
)
@json_option
def ear(
    *,
    file: Path,
    keys: Path,
    nonce: str | None,
    policy_id: str | None,
    at: str | None,
    as_json: bool,
) -> int:
    """Check a signed verdict, and show what it says.

    FILE is an EAR (a JWT, or COSE_Sign1), as attestkit verify --save-ear and the verifier service
    make it; - is stdin. A few spaces or a newline after a JWT do not matter.
    """
    now = datetime.now(timezone.utc) if at is None else instant(at)
    wanted = nonce_of(nonce)
    public = _keys(keys)
    found = _checked(read_file(file), public, wanted, policy_id, now)
    from attestkit.verifier.ear.result_token import Tier

    bad = found.status is Tier.CONTRAINDICATED
    code = decide(POLICY if bad else 0)
    if as_json:
        console.as_json({**_plain(found), "nonce_checked": wanted is not None, "exit_code": code})
    else:
        _show(file, found, fresh=wanted is not None)
    if bad:
        complain(f"{file}: the verdict is contraindicated: what was judged is not to be trusted")
    return code


def _keys(path: Path) -> "tuple[EarPublicKey, ...]":
    from attestkit._formats import strict_json  # late: the help needs none
    from attestkit.verifier.ear.result_token import EarPublicKey

    try:
        data = read_file(path)
        fields = strict_json.read_object(data, "the key")
        if "keys" in fields:
            return EarPublicKey.from_jwks(data)
        return (EarPublicKey.from_jwk(fields),)
    except FormatError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"--key {path}: {text}") from error


def _checked(
    token: bytes,
    keys: "tuple[EarPublicKey, ...]",
    nonce: bytes | None,
    policy_id: str | None,
    now: datetime,
) -> "Ear":
    """Return the EAR, if one of the keys signed it."""
    from attestkit.verifier.ear.result_token import verify_ear

    if not token.startswith(b"\xd2"):  # a file of text ends with a newline, and a JWT does not
        token = token.rstrip(b" \t\r\n")
    refused: SignatureError | None = None
    for key in keys:
        try:
            return verify_ear(token, key, nonce=nonce, now=now, policy_id=policy_id)
        except SignatureError as error:
            # Another key's algorithm says less than that the signature is not this key's.
            if refused is None or refused.reason == "ear_bad_header":
                refused = error
    if refused is None or len(keys) == 1:
        raise refused or UsageError("there is no key")
    raise SignatureError(
        f"none of the {len(keys)} keys holds: {refused}", reason=refused.reason
    ) from refused


def _plain(found: "Ear") -> dict[str, Any]:
    """Return plain values ready for JSON."""
    return {
        "form": found.form,
        "status": str(found.status),
        "vector": found.vector,
        "simulated": found.simulated,
        "platform": found.platform,
        "issued_at": found.issued_at.isoformat(),
        "expires_at": found.expires_at.isoformat(),
        "nonce": None if found.nonce is None else found.nonce.hex(),
        "policy_id": found.policy_id,
        "raw_evidence": None if found.raw_evidence is None else found.raw_evidence.hex(),
        "build": found.build,
        "developer": found.developer,
        "result": found.result,
    }


def _show(file: Path, found: "Ear", *, fresh: bool) -> None:
    from attestkit.verifier.ear.result_token import Tier

    good = found.status in {Tier.AFFIRMING, Tier.NONE}
    console.verdict(f"{file}: it holds; status {found.status}", good=good)
    if found.simulated:
        console.warning(SIMULATED)
    result = found.result
    app = result.get("app_info")
    app = app if isinstance(app, dict) else {}
    console.fields(
        None,
        {
            "platform": found.platform,
            "TCB status": result.get("tcb_status"),
            "app id": app.get("app_id"),
            "compose hash": app.get("compose_hash"),
            "OS image": result.get("os_image_hash"),
            "report data": result.get("report_data"),
            "vector": ", ".join(f"{name} {value}" for name, value in found.vector.items()) or "-",
            "policy": found.policy_id,
            "verifier": f"{found.developer}, {found.build}",
            "issued at": found.issued_at.isoformat(timespec="seconds"),
            "expires at": found.expires_at.isoformat(timespec="seconds"),
            "nonce": None if found.nonce is None else found.nonce.hex(),
            "verdict's freshness": "of the expected nonce" if fresh else FRESHNESS,
        },
    )
