"""`attestkit ear FILE`: verification of a signed attestation result (EAR)."""

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.exit_codes import POLICY, print_error, set_exit_code
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command, read_instant
from attestkit.cli.options.report_data import (
    ExpectedData,
    ReportDataOptions,
    any_freshness_option,
    expected_report_data_options,
    require_expected,
)
from attestkit.cli.output import console
from attestkit.errors import ConfigError, FormatError, SignatureError, UsageError

if TYPE_CHECKING:
    from attestkit.verifier.ear.content import Ear
    from attestkit.verifier.ear.signed_token import EarPublicKey

SIMULATED: Final = "SIMULATED: the root is not the vendor's; proves nothing about hardware."
FRESHNESS: Final = "not checked; give the expected nonce with --nonce HEX"
CONSTANT: Final = "not checked: the report data is the expected one, which may be a constant"


@click.command(
    cls=Command,
    example="ear verdict.jwt --key keys.json --nonce $NONCE",
    codes="01245",
    meanings={
        0: "valid",
        2: "rejected: signature, time, nonce or policy",
        4: "valid, and contraindicated: do not trust the attester",
    },
)
@click.argument("file", type=PATH)
@option.file(
    "--key", "Trusted key of the verifier: JWK or JWK set.", parameter="keys", required=True
)
@expected_report_data_options
@any_freshness_option
@option.value("--policy-id", "TEXT", "Expected policy id.")
@option.at("Time of the verification, else now.")
@option.json
def ear(
    *,
    file: Path,
    keys: Path,
    expected: ReportDataOptions,
    any_freshness: bool,
    policy_id: str | None,
    at: str | None,
    as_json: bool,
) -> int:
    """Verify a signed attestation result (EAR) and show it.

    FILE is an EAR (JWT or COSE_Sign1) from attestkit verify --save-ear or the verifier service; -
    is stdin. White space after a JWT is ignored. --nonce, other expected report data or
    --any-freshness is required.
    """
    wanted = expected.read_expected()
    require_expected(expected=wanted != (None, None), any_freshness=any_freshness)
    now = datetime.now(timezone.utc) if at is None else read_instant(at)
    public = _read_keys(keys)
    found = _verify(read_file(file), public, wanted, policy_id, now)
    from attestkit.verifier.ear.token_claims import Tier

    bad = found.status is Tier.CONTRAINDICATED
    code = set_exit_code(POLICY if bad else 0)
    if as_json:
        more = {"status": str(found.status), "nonce_checked": wanted.nonce is not None}
        gpus = {
            name: {"status": str(gpu.status), "vector": gpu.vector}
            for name, gpu in found.gpus.items()
        }
        console.as_json({**found._asdict(), "gpus": gpus, **more, "exit_code": code})
    else:
        _show(file, found, wanted)
    if bad:
        print_error(f"{file}: the EAR's status is contraindicated: do not trust the attester")
    return code


def _read_keys(path: Path) -> "tuple[EarPublicKey, ...]":
    from attestkit._formats import strict_json  # lazy: --help does not need it
    from attestkit.verifier.ear.signed_token import EarPublicKey

    try:
        data = read_file(path)
        fields = strict_json.read_object(data, "the key")
        if "keys" in fields:
            return EarPublicKey.from_jwks(data)
        return (EarPublicKey.from_jwk(fields),)
    except FormatError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"--key {path}: {text}", reason="syntax") from error


def _verify(
    token: bytes,
    keys: "tuple[EarPublicKey, ...]",
    expected: ExpectedData,
    policy_id: str | None,
    now: datetime,
) -> "Ear":
    """Return the EAR if one of the keys verifies it.

    Args:
        token: The EAR, JWT or COSE_Sign1.
        keys: Public keys of trusted verifiers.
        expected: Nonce or report data that the EAR must have; with neither any is accepted.
        policy_id: Policy that the EAR must name; None: any.
        now: Verification time, aware.

    Raises:
        FormatError: If it is malformed.
        SignatureError: If no key verifies it.
        VerificationError: If it is expired, or an expected value differs.
    """
    from attestkit.verifier.ear.result_token import verify_ear

    if not token.startswith(b"\xd2"):  # not COSE_Sign1: a text file may end with a newline
        token = token.rstrip(b" \t\r\n")
    refused: SignatureError | None = None
    for key in keys:
        try:
            return verify_ear(
                token,
                key,
                nonce=expected.nonce,
                report_data=expected.report_data,
                any_freshness=expected == (None, None),
                now=now,
                policy_id=policy_id,
            )
        except SignatureError as error:
            # A wrong algorithm is less informative than a wrong signature.
            if refused is None or refused.reason == "ear_bad_header":
                refused = error
    if refused is None or len(keys) == 1:
        raise refused or UsageError("--key: the JWK set is empty", reason="missing")
    raise SignatureError(
        f"none of the {len(keys)} keys verifies the EAR: {refused}", reason=refused.reason
    ) from refused


def _show(file: Path, found: "Ear", expected: ExpectedData) -> None:
    from attestkit.verifier.ear.token_claims import Tier

    good = found.status in {Tier.AFFIRMING, Tier.NONE}
    freshness = FRESHNESS if expected.report_data is None else CONSTANT
    if expected.nonce is not None:
        freshness = "has the expected nonce"
    unchecked = "; freshness not checked" if expected.nonce is None else ""
    console.verdict(f"{file}: valid; status {found.status}{unchecked}", good=good)
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
            "GPUs": ", ".join(f"{name} {gpu.status}" for name, gpu in found.gpus.items()) or None,
            "policy": found.policy_id,
            "verifier": f"{found.developer}, {found.build}",
            "issued at": found.issued_at.isoformat(timespec="seconds"),
            "expires at": found.expires_at.isoformat(timespec="seconds"),
            "nonce": None if found.nonce is None else found.nonce.hex(),
            "EAR freshness": freshness,
        },
    )
