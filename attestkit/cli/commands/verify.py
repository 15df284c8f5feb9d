"""`attestkit verify FILE...`: verification of evidence files, and signed results (EAR).

The members of `--json` for a file are those of `FileOutcome.to_dict`.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit._sanitize import key
from attestkit.cli.exit_codes import most_severe_code, print_error, set_exit_code
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command
from attestkit.cli.options.report_data import any_freshness_option
from attestkit.cli.options.verification import VerificationOptions, verification_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_outputs, require_file, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.cli.file_outcome import FileOutcome
    from attestkit.verifier.ear.signed_token import EarKey, TokenFormat
    from attestkit.verifier.result import AttestationResult

FORMS: Final = ("jwt", "cose")
_SAVE, _KEYS = "--save-ear", "--save-ear-keys"


class Signing(NamedTuple):
    """The signing key, format and output files of an EAR.

    Attributes:
        path: File for the EAR.
        keys: File for the public key; None: it is not written.
        key: Private key.
        form: `jwt` or `cose`.
        inputs: Files that were read; outputs must not overwrite them.
    """

    path: Path  # for the EAR
    keys: Path | None  # for the public key
    key: "EarKey"
    form: "TokenFormat"
    inputs: tuple[Path, ...]  # the key's file, which outputs must not overwrite

    @property
    def outputs(self) -> Iterable[tuple[str, Path | None]]:
        """The output files, each with its option, such as `--save-ear`; None if not given."""
        return ((_SAVE, self.path), (_KEYS, self.keys))

    def sign(self, result: "AttestationResult") -> bytes:
        """Return a result as a signed EAR in the chosen format.

        Raises:
            UsageError: If the EAR is longer than 262,144 bytes.
        """
        from attestkit.verifier.ear.result_token import sign_ear  # lazy: few runs sign

        return sign_ear(result, self.key, form=self.form)

    def write(self, token: bytes) -> None:
        """Write the public key as a JWK set, if its file is given, then `token`, the EAR.

        Raises:
            UsageError: If a file cannot be written.
        """
        from attestkit.serve.verifier_service.ear import encode_key_set

        if self.keys is not None:
            write_output(_KEYS, self.keys, encode_key_set(self.key) + b"\n")
        write_output(_SAVE, self.path, token)


def _signing(
    *,
    save_ear: Path | None,
    ear_key: Path | None,
    ear_format: str | None,
    save_ear_keys: Path | None,
) -> Signing | None:
    if save_ear is None or ear_key is None:
        given = {
            _SAVE: save_ear,
            "--ear-key": ear_key,
            "--ear-format": ear_format,
            _KEYS: save_ear_keys,
        }
        for name, value in given.items():
            if value is not None:
                text = f"{name}: an EAR needs both --save-ear and --ear-key"
                raise UsageError(text, reason="missing")
        return None
    require_file(_SAVE, save_ear)
    require_file(_KEYS, save_ear_keys)
    from attestkit.serve.verifier_service.ear import read_ear_key  # lazy: loads cryptography

    form: TokenFormat = "cose" if ear_format == "cose" else "jwt"
    key = read_ear_key("--ear-key", ear_key)
    return Signing(save_ear, save_ear_keys, key, form, (ear_key,))


signing_options: Final = option.group(
    "signing",
    option.section(
        "Signed result (EAR)",
        option.file(_SAVE, "Write the result of one accepted file as an EAR."),
        option.file("--ear-key", "Private key: Ed25519 or P-256 in PEM, or a seed."),
        click.option("--ear-format", type=click.Choice(FORMS), help="JWT (default) or COSE_Sign1."),
        option.file(_KEYS, "Also write the public key, as a JWK set."),
    ),
    _signing,
)


SIMULATED: Final = (
    "SIMULATED evidence: its root is the given trust anchor, not the vendor's; proves nothing about"
    " hardware."
)
OWN_INSTANT: Final = (
    "verified at the time that the bundle names, which its creator chose; later revocation or"
    " expiry does not show."
)
BOUND_TO_KEY: Final = (
    "not checked: the evidence is bound to the certificate's key; a TLS handshake proves possession"
)
UNCHECKED: Final = "freshness not checked"
NOT_FRESH: Final = "not checked; give the expected nonce with --nonce HEX"
NOT_CHALLENGED: Final = "not checked: the report data is the expected one, which may be a constant"

_GPU_BINDINGS: Final = {
    "report_data": "report data",
    "runtime_event": "runtime event: as of boot, not fresh",
    "nonce": "nonce only: the GPUs could be those of another machine",
}


@click.command(
    cls=Command,
    example="verify evidence --pccs URL --nonce $NONCE",
    codes="012345",
    meanings={
        0: "all accepted",
        5: "unreadable input; of several the first of 2, 4, 3, 5, 1",
    },
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@verification_options
@any_freshness_option
@option.file("--save-bundle", "Write evidence, collateral and time for later.")
@signing_options
@option.flag("-v", "--verbose", text="Show the verification steps.")
@option.json
def verify(
    *,
    files: tuple[Path, ...],
    options: VerificationOptions,
    any_freshness: bool,
    save_bundle: Path | None,
    signing: Signing | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Verify evidence files.

    FILE is evidence, a quote, an agent's response, an RA-TLS certificate or a bundle; - is stdin.
    Endorsements of options replace those of a bundle. But for a certificate, expected report data
    or --any-freshness is required.
    """
    _check_saving(save_bundle, signing, files, options)
    outcomes = _verify_files(files, options, any_freshness=any_freshness)
    code = set_exit_code(most_severe_code(outcome.code for outcome in outcomes))
    if code == 0:  # before any output: a failed write must not print results
        _save(outcomes[0], save_bundle, signing)
    if as_json:
        results = [outcome.to_dict() for outcome in outcomes]
        console.as_json({"results": results, "exit_code": code})
    else:
        _show(outcomes, verbose=verbose)
    _print_errors(outcomes)
    return code


def _save(outcome: "FileOutcome", save_bundle: Path | None, signing: Signing | None) -> None:
    """Write the bundle and the EAR of one accepted file; sign before the first write.

    `save_bundle` is the file for the bundle; None: no bundle. `signing` None: no EAR.
    """
    token = None
    if signing is not None and outcome.result is not None:
        token = signing.sign(outcome.result)
    if save_bundle is not None:
        write_output("--save-bundle", save_bundle, outcome.bundle().to_json(), mode=0o600)
    if signing is not None and token is not None:
        signing.write(token)


def _check_saving(
    path: Path | None,
    signing: Signing | None,
    files: tuple[Path, ...],
    options: VerificationOptions,
) -> None:
    option = "--save-bundle" if path is not None else "--save-ear"
    if path is None and signing is None:
        return
    if len(files) != 1:
        raise UsageError(f"{option}: requires exactly one FILE", reason="conflict")
    require_file("--save-bundle", path)
    if signing is not None and options.own_instant:
        raise UsageError(
            "--save-ear: excludes --at bundle, whose creator would choose the time of the EAR",
            reason="conflict",
        )
    outputs = (("--save-bundle", path), *(() if signing is None else signing.outputs))
    inputs = () if signing is None else signing.inputs
    check_outputs(outputs, (*files, *options.inputs, *inputs), writable=True)


def _verify_files(
    files: tuple[Path, ...], options: VerificationOptions, *, any_freshness: bool
) -> "list[FileOutcome]":
    from attestkit.cli.file_verifier import FileVerifier  # lazy: loads the verifier

    verifier = FileVerifier(options, any_freshness=any_freshness)
    outcomes = []
    with console.progress("verifying", len(files)) as advance:
        for path in files:
            outcomes.append(verifier.verify(path))
            advance()
    return outcomes


def _print_errors(outcomes: Sequence["FileOutcome"]) -> None:
    sys.stdout.flush()  # results first, where stdout and stderr are the same
    for outcome in outcomes:
        if outcome.error is not None:
            print_error(outcome.error_line())


def _show(outcomes: Sequence["FileOutcome"], *, verbose: bool) -> None:
    if len(outcomes) == 1:
        _show_one(outcomes[0])
    else:
        _show_table(outcomes)
    if verbose:
        for outcome in outcomes:
            console.steps(f"{outcome.path}: checked", map(str, outcome.steps or ["nothing"]))


def _show_one(outcome: "FileOutcome") -> None:
    result = outcome.result
    unchecked = outcome.code == 0 and not outcome.fresh
    verdict = f"{outcome.verdict}, {UNCHECKED}" if unchecked else outcome.verdict
    console.verdict(f"{outcome.path}: {verdict}", good=outcome.code == 0)
    if result is None:
        console.fields(None, {"reason": outcome.reason or None, "policy": outcome.policy})
        return
    if result.simulated:
        console.warning(SIMULATED)
    if outcome.own_instant:
        console.warning(OWN_INSTANT)
    console.fields(None, {**_facts(outcome, result), "freshness": _freshness(outcome)})


def _facts(outcome: "FileOutcome", result: "AttestationResult") -> dict[str, object]:
    """Return the facts of an accepted result that are shown, by title; None for missing ones."""
    from attestkit.quote import Quote  # loaded, as there is a result

    claims = result.claims
    instant = result.verified_at.isoformat(timespec="seconds")
    origin = "" if outcome.bundle_report_data is None else ", as in the bundle"
    return {
        "platform": claims.platform,
        "TCB status": result.tcb.status,
        "advisories": ", ".join(result.advisory_ids) or None,
        **_identity(result, bare=isinstance(outcome.evidence, Quote)),
        "OS image": outcome.os_image,
        **_tpm_facts(result),
        **_gpu_facts(result),
        "image version": _image_version(result),
        "report data": claims.report_data.hex() + origin,
        "policy": outcome.policy,
        "collateral": "from the bundle" if outcome.own_collateral else None,
        "verified at": f"{instant}, the time of the bundle" if outcome.own_instant else instant,
    }


def _tpm_facts(result: "AttestationResult") -> dict[str, object]:
    """Return how hardware and TPM are bound to each other, and what is not proven; by title.

    Empty for evidence without a TPM.
    """
    if (tpm := result.claims.vtpm) is None:
        return {}
    return {
        # A document of a NitroTPM has the PCRs, and no key of a TPM.
        "TPM's key": tpm.key_trust.replace("_", " ") if tpm.attestation_key else None,
        "joins": ", ".join(tpm.joins) or None,
        "not proven": ", ".join(result.not_proven) or None,
    }


def _gpu_facts(result: "AttestationResult") -> dict[str, object]:
    """Return the GPUs, and how their evidence is bound to the CPU's, by title; empty without."""
    if (gpu := result.gpu) is None:
        return {}
    kinds = Counter(
        f"{one.chip}, driver {one.driver_version}, VBIOS {one.vbios_version}"
        if one.kind == "gpu"
        else f"{one.chip} (switch), BIOS {one.vbios_version}"
        for one in gpu.devices
    )
    facts: dict[str, object] = {
        "GPUs": "; ".join(f"{count} x {key(kind, 120)}" for kind, count in kinds.items()),
        "GPU binding": None if gpu.binding is None else _GPU_BINDINGS[gpu.binding],
    }
    if result.claims.vtpm is None:
        facts["not proven"] = ", ".join(result.not_proven) or None
    return facts


def _image_version(result: "AttestationResult") -> str | None:
    """Return the version of the OS image; None without --images, or if it has no such image."""
    if result.claims.os_image_is_dev is None:
        return None
    version = key(result.claims.os_image_version or "not stated")
    return f"{version}, for development" if result.claims.os_image_is_dev else version


def _identity(result: "AttestationResult", *, bare: bool) -> dict[str, object]:
    if (info := result.app_info) is None:
        missing = "a bare quote has no event log" if bare else "no configuration document"
        if result.claims.vtpm is not None:
            missing = "the evidence does not name it"
        return {"app": f"unknown: {missing}"}
    return {
        "app id": info.app_id.hex() or "none",
        "compose hash": info.compose_hash.hex() or "none",
        "instance id": info.instance_id.hex() or None,
        "key provider": info.key_provider_info.decode(errors="replace") or None,
    }


def _freshness(outcome: "FileOutcome") -> str:
    if outcome.bound_to_key:
        return BOUND_TO_KEY
    if outcome.fresh:
        return "bound to the expected nonce"
    return NOT_FRESH if outcome.report_data is None else NOT_CHALLENGED


def _show_table(outcomes: Sequence["FileOutcome"]) -> None:
    """Print one line per file, and a summary."""
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
                outcome.reason if result is None else result.tcb.status or "",
                "" if info is None else _shorten(info.app_id),
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
    for text in dict.fromkeys(_freshness(each) for each in outcomes if each.code == 0):
        if text in {NOT_FRESH, NOT_CHALLENGED, BOUND_TO_KEY}:
            console.lines([f"freshness {text}"])


def _shorten(app_id: bytes) -> str:
    """Return the first digits of an app id on a terminal, all of it elsewhere."""
    text = app_id.hex()
    return f"{text[:10]}.." if sys.stdout.isatty() and len(text) > 12 else text


def _remarks(outcome: "FileOutcome") -> str:
    """Return the limitations of an accepted result, as text for a column."""
    result = outcome.result
    if result is None:
        return ""
    found = {
        UNCHECKED: not outcome.fresh,
        "simulated": result.simulated,
        "time of the bundle": outcome.own_instant,
        "OS image not verified": not result.claims.os_image_hash,
    }
    return ", ".join(word for word, true in found.items() if true)
