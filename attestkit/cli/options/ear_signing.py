"""The options of a verdict that is signed: where it goes, by which key, for whose nonce."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit.cli.options.click_types import PATH, gathered, read_hex
from attestkit.cli.output.write_output import is_stdout, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.verifier.ear.envelope import Form
    from attestkit.verifier.ear.result_token import EarKey
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
    from attestkit.verifier.result import AttestationResult

__all__ = ["Signing", "nonce_of", "signing_options"]

FORMS: Final = ("jwt", "cose")
_SAVE, _KEYS = "--save-ear", "--save-ear-keys"


class Signing(NamedTuple):
    """How an accepted verdict is to be signed, and where that goes."""

    path: Path
    keys: Path | None  # for the public key
    key: "EarKey"
    form: "Form"
    nonce: bytes | None
    inputs: tuple[Path, ...]

    @property
    def outputs(self) -> Iterable[tuple[str, Path | None]]:
        """What is written, by the options that say so."""
        return ((_SAVE, self.path), (_KEYS, self.keys))

    def sign(self, result: "AttestationResult", policy: "AppraisalPolicy") -> bytes:
        """Return a verdict, signed.

        Raises:
            UsageError: It would be over 262,144 bytes.
        """
        from attestkit.verifier.ear.result_token import sign_ear  # late, as all of this: few sign

        return sign_ear(result, self.key, form=self.form, nonce=self.nonce, policy=policy)

    def write(self, token: bytes) -> None:
        """Write a signed verdict; the public key first, without which nobody reads it.

        Raises:
            UsageError: It cannot be written.
        """
        from attestkit.serve.verifier_service.ear import key_set

        if self.keys is not None:
            write_output(_KEYS, self.keys, key_set(self.key) + b"\n")
        write_output(_SAVE, self.path, token)


def _signing(
    *,
    save_ear: Path | None,
    ear_key: Path | None,
    ear_format: str | None,
    nonce: str | None,
    save_ear_keys: Path | None,
) -> Signing | None:
    if save_ear is None or ear_key is None:
        given = {
            _SAVE: save_ear,
            "--ear-key": ear_key,
            "--ear-format": ear_format,
            "--nonce": nonce,
            _KEYS: save_ear_keys,
        }
        if any(value is not None for value in given.values()):
            name = next(name for name, value in given.items() if value is not None)
            raise UsageError(f"{name}: a signed verdict takes both --save-ear and --ear-key")
        return None
    for option, path in ((_SAVE, save_ear), (_KEYS, save_ear_keys)):
        if path is not None and is_stdout(path):
            raise UsageError(f"{option} {path}: stdout has the verdict; name a file")
    from attestkit.serve.verifier_service.ear import read_ear_key  # late: loads keys

    form: Form = "cose" if ear_format == "cose" else "jwt"
    key = read_ear_key("--ear-key", ear_key)
    return Signing(save_ear, save_ear_keys, key, form, nonce_of(nonce), (ear_key,))


def nonce_of(text: str | None) -> bytes | None:
    """Return the nonce that an option gives in hex.

    Raises:
        UsageError: It is not hex, or not 8 to 64 bytes.
    """
    if text is None:
        return None
    from attestkit.verifier.ear.result_token import check_nonce

    nonce = read_hex("--nonce", text)
    check_nonce(nonce)
    return nonce


signing_options: Final = gathered(
    "signing",
    (
        click.option(
            _SAVE,
            metavar="FILE",
            type=PATH,
            help="Of one accepted file: write the verdict, signed, as an EAR; attestkit ear "
            "reads it.",
        ),
        click.option(
            "--ear-key",
            metavar="FILE",
            type=PATH,
            help="The private key that signs it: Ed25519 or P-256 in PEM, or the 32 bytes of an "
            "Ed25519 seed; mode 0600.",
        ),
        click.option(
            "--ear-format",
            type=click.Choice(FORMS),
            help="A JWT, which it is by itself, or COSE_Sign1.",
        ),
        click.option(
            "--nonce",
            metavar="HEX",
            help="8 to 64 bytes of whoever is to read the EAR, to know it for fresh.",
        ),
        click.option(
            _KEYS, metavar="FILE", type=PATH, help="Write the public key, too, as a JWK set."
        ),
    ),
    _signing,
)
