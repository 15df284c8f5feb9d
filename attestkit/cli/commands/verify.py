"""`attestkit verify FILE...`: a verdict per file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.exit_codes import complain, decide, gravest
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.options.ear_signing import Signing, signing_options
from attestkit.cli.options.verification import Asked, verification_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_outputs, check_places, is_stdout, write_output
from attestkit.errors import UsageError
from attestkit.quote import Quote

if TYPE_CHECKING:
    from attestkit.attestation import AppInfo
    from attestkit.cli.file_verifier import Outcome
    from attestkit.verifier.result import AttestationResult

__all__ = ["verify"]

SIMULATED: Final = (
    "SIMULATED evidence: it leads to the root that was handed in, not to the platform's maker,"
    " and proves nothing about hardware."
)
OWN_INSTANT: Final = (
    "judged at the instant that the bundle itself names: what was revoked or expired since then"
    " does not show, and whoever made the bundle chose it."
)
OF_KEY: Final = (
    "not checked: it is about the certificate's key, and a handshake shows who holds that"
)
NOT_FRESH: Final = "not checked: --report-data HEX says what it must have been made for"

_EPILOG: Final = (
    "Example: attestkit verify evidence --pccs URL --report-data 00ff\n\n"
    "Exit codes: 0 all accepted, 1 usage, 2 rejected, 3 network or device, 4 refused by policy, "
    "5 unreadable. Of several files the gravest counts, in the order 2, 4, 3, 5, 1."
)


@click.command(epilog=_EPILOG)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@verification_options
@click.option(
    "--save-bundle",
    metavar="FILE",
    type=PATH,
    help="Of one accepted file: write it with its collateral and instant into one file.",
)
@signing_options
@click.option("-v", "--verbose", is_flag=True, help="Show the steps.")
@json_option
def verify(
    *,
    files: tuple[Path, ...],
    asked: Asked,
    save_bundle: Path | None,
    signing: Signing | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Verify evidence: a verdict per file.

    FILE is evidence in any encoding, a quote, an answer of the guest agent, an RA-TLS certificate,
    or an evidence bundle, whose collateral gives way to options; - is stdin. Each is judged now, or
    as --at says, in the order given.
    """
    _check_saving(save_bundle, signing, files, asked)
    outcomes = _judge(files, asked)
    code = decide(gravest(outcome.code for outcome in outcomes))
    if code == 0:  # before anything is told: what cannot be written is no success
        _save(outcomes[0], save_bundle, signing, asked)
    if as_json:
        results = [outcome.to_dict() for outcome in outcomes]
        console.as_json({"results": results, "exit_code": code})
    else:
        _show(outcomes, verbose=verbose)
    _complain(outcomes)
    return code


def _save(
    outcome: "Outcome", save_bundle: Path | None, signing: Signing | None, asked: Asked
) -> None:
    """Write what is to be kept of one accepted file; all of it is made before any is written."""
    token = None
    if signing is not None and outcome.result is not None:
        token = signing.sign(outcome.result, asked.policy)
    if save_bundle is not None:
        write_output("--save-bundle", save_bundle, outcome.bundle().to_json(), mode=0o600)
    if signing is not None and token is not None:
        signing.write(token)


def _check_saving(
    path: Path | None, signing: Signing | None, files: tuple[Path, ...], asked: Asked
) -> None:
    option = "--save-bundle" if path is not None else "--save-ear"
    if path is None and signing is None:
        return
    if len(files) != 1:
        raise UsageError(f"{option} takes one file")
    if path is not None and is_stdout(path):
        raise UsageError(f"--save-bundle {path}: stdout has the verdict; name a file")
    if signing is not None and asked.own_instant:
        raise UsageError("--save-ear and --at bundle: whoever made the bundle would date the EAR")
    outputs = (("--save-bundle", path), *(() if signing is None else signing.outputs))
    inputs = () if signing is None else signing.inputs
    check_outputs(outputs, (*files, *asked.inputs, *inputs))
    check_places(outputs)


def _judge(files: tuple[Path, ...], asked: Asked) -> "list[Outcome]":
    from attestkit.cli.file_verifier import Judge  # late: loads the verifier

    judge = Judge(asked)
    outcomes = []
    with console.progress("verifying", len(files)) as advance:
        for path in files:
            outcomes.append(judge.outcome(path))
            advance()
    return outcomes


def _complain(outcomes: Sequence["Outcome"]) -> None:
    sys.stdout.flush()  # verdicts before reasons, where both go to one place
    for outcome in outcomes:
        if outcome.error is not None:
            complain(outcome.complaint())


def _show(outcomes: Sequence["Outcome"], *, verbose: bool) -> None:
    if len(outcomes) == 1:
        _show_one(outcomes[0])
    else:
        _show_table(outcomes)
    if verbose:
        for outcome in outcomes:
            console.steps(f"{outcome.path}: checked", outcome.steps or ["nothing"])


def _show_one(outcome: "Outcome") -> None:
    result = outcome.result
    console.verdict(f"{outcome.path}: {outcome.verdict}", good=outcome.code == 0)
    if result is None:
        console.fields(None, {"reason": outcome.reason or None, "policy": outcome.policy})
        return
    if result.simulated:
        console.warning(SIMULATED)
    if outcome.own_instant:
        console.warning(OWN_INSTANT)
    console.fields(None, {**_facts(outcome, result), "freshness": _freshness(outcome)})


def _facts(outcome: "Outcome", result: "AttestationResult") -> dict[str, object]:
    """Return what people want to know of an accepted result, by name; None where there is none."""
    claims, info = result.claims, result.app_info
    instant = result.verified_at.isoformat(timespec="seconds")
    named = "" if outcome.named is None else ", as the bundle says"
    return {
        "platform": claims.platform,
        "TCB status": result.tcb_status,
        "advisories": ", ".join(result.advisory_ids) or None,
        **_identity(info, bare=isinstance(outcome.evidence, Quote)),
        "OS image": outcome.os_image,
        "report data": claims.report_data.hex() + named,
        "policy": outcome.policy,
        "collateral": "the bundle's own" if outcome.own_collateral else None,
        "verified at": f"{instant}, the bundle's word" if outcome.own_instant else instant,
    }


def _identity(info: "AppInfo | None", *, bare: bool) -> dict[str, object]:
    if info is None:
        missing = "a bare quote has no log" if bare else "there is no configuration document"
        return {"app": f"none: {missing} that would name it"}
    return {
        "app id": info.app_id.hex() or "none",
        "compose hash": info.compose_hash.hex() or "none",
        "instance id": info.instance_id.hex() or None,
        "key provider": info.key_provider_info.decode(errors="replace") or None,
    }


def _freshness(outcome: "Outcome") -> str:
    if outcome.of_key:
        return OF_KEY
    return "of the expected report data" if outcome.fresh else NOT_FRESH


def _show_table(outcomes: Sequence["Outcome"]) -> None:
    """One line a file, and one for all of them."""
    records = []
    for outcome in outcomes:
        mark, result = ("ok" if outcome.code == 0 else "!!"), outcome.result
        info = None if result is None else result.app_info
        records.append(
            (
                f"[{mark}]",
                outcome.path,
                outcome.verdict,
                "" if result is None else result.claims.platform,
                outcome.reason if result is None else result.tcb_status or "",
                "" if info is None else _column(info.app_id),
                _remarks(outcome),
            )
        )
    console.rows(("", "file", "verdict", "platform", "status", "app id", ""), records)
    good = sum(outcome.code == 0 for outcome in outcomes)
    bad = len(outcomes) - good
    total = f"{good} of {len(outcomes)} accepted" + (f", {bad} not" if bad else "")
    console.lines(["", f"{total}; policy {outcomes[0].policy}"])
    if any(outcome.result is not None and outcome.result.simulated for outcome in outcomes):
        console.warning(SIMULATED)
    if any(outcome.own_instant for outcome in outcomes):
        console.warning(OWN_INSTANT)
    for told in dict.fromkeys(_freshness(each) for each in outcomes if each.code == 0):
        if told in {NOT_FRESH, OF_KEY}:
            console.lines([f"freshness {told}"])


def _column(app_id: bytes) -> str:
    """Return enough of an app id to tell apps apart on a terminal, and all of it elsewhere."""
    text = app_id.hex()
    return f"{text[:10]}.." if sys.stdout.isatty() and len(text) > 12 else text


def _remarks(outcome: "Outcome") -> str:
    """Return what a verdict leaves open, in words for a column."""
    result = outcome.result
    if result is None:
        return ""
    found = {
        "simulated": result.simulated,
        "bundle's instant": outcome.own_instant,
        "OS image not verified": not result.claims.os_image_hash,
    }
    return ", ".join(word for word, true in found.items() if true)
