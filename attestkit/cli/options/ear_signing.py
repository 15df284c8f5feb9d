"""Options for signing an attestation result as an EAR."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit.cli.options.click_types import file_option, group_options, section
from attestkit.cli.output.write_output import require_file, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.verifier.ear.envelope import TokenFormat
    from attestkit.verifier.ear.keys import EarKey
    from attestkit.verifier.result import AttestationResult

FORMS: Final = ("jwt", "cose")
_SAVE, _KEYS = "--save-ear", "--save-ear-keys"


class Signing(NamedTuple):
    """The signing key, format and output files of an EAR."""

    path: Path
    keys: Path | None  # for the public key
    key: "EarKey"
    form: "TokenFormat"
    inputs: tuple[Path, ...]

    @property
    def outputs(self) -> Iterable[tuple[str, Path | None]]:
        """The output files, each with its option."""
        return ((_SAVE, self.path), (_KEYS, self.keys))

    def sign(self, result: "AttestationResult") -> bytes:
        """Return a result as a signed EAR.

        Raises:
            UsageError: If the EAR is longer than 262,144 bytes.
        """
        from attestkit.verifier.ear.result_token import sign_ear  # lazy: few runs sign

        return sign_ear(result, self.key, form=self.form)

    def write(self, token: bytes) -> None:
        """Write the public key, then the EAR, which cannot be verified without it.

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


signing_options: Final = group_options(
    "signing",
    section(
        "Signed result (EAR)",
        file_option(_SAVE, "Write the result of one accepted file as an EAR."),
        file_option("--ear-key", "Private key: Ed25519 or P-256 in PEM, or a seed."),
        click.option("--ear-format", type=click.Choice(FORMS), help="JWT (default) or COSE_Sign1."),
        file_option(_KEYS, "Also write the public key, as a JWK set."),
    ),
    _signing,
)
