"""`attestkit env seal` and `attestkit env open`: environment variables sealed to an app.

A file of variables has lines NAME=VALUE, or a JSON object.
"""

import hmac
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from attestkit._formats.strict_json import read_object, wrong_json_type
from attestkit._sanitize import shown
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Group, read_hex
from attestkit.cli.options.output import Output, output_options
from attestkit.errors import FormatError, UsageError, VerificationError

_KEY_FILE: Final = 1 << 20  # bytes
_MAX_AGE: Final = 300  # seconds, of the KMS's signature
_MEANINGS: Final = {2: "rejected: key or ciphertext is not authentic"}


@click.group(cls=Group)
def env() -> None:
    """Seal and open environment variables of an app.

    Sealed variables are encrypted to the X25519 key of an app, which alone can open them: in the
    legacy form of dstack, or with --epochs as SealedEnv version 1 of dstack 0.6.4.
    """


def _read_epochs(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    if text is None:
        return None
    root, colon, app = text.partition(":")
    if not colon or not all(one.isascii() and one.isdecimal() for one in (root, app)):
        message = f"--epochs: must be ROOT:APP, two numbers, not {shown(text)}"
        raise UsageError(message, reason="wrong_value")
    if max(len(root), len(app)) > 10:  # digits of 2**32
        message = f"--epochs: each must be below 4294967296: {shown(text)}"
        raise UsageError(message, reason="out_of_range")
    return int(root), int(app)


def _epochs_option(text: str) -> Callable[[Any], Any]:
    return option.value("--epochs", "ROOT:APP", text, callback=_read_epochs)


class _Recipient(NamedTuple):
    """Options for an app's public key: the key, or a KMS's signed response and how to check it.

    Keys and the app id are the hex of the command line; None or empty if not given.
    """

    public_key: str | None
    signed_key: Path | None
    app_id: str | None
    kms_root_keys: tuple[str, ...]


_recipient_options: Final = option.group(
    "recipient",
    (
        option.value("--public-key", "HEX", "X25519 key of the app, from a trusted source."),
        option.file("--signed-key", "The same, as a KMS signed it within 5 minutes."),
        option.value("--app-id", "HEX", "With --signed-key: id of the app, 20 bytes."),
        option.value("--kms-root-key", "HEX", "With it: root key of a KMS, 33 bytes.", many=True),
    ),
    _Recipient,
)


@env.command(
    example="env seal variables.env --public-key $KEY -o sealed --json",
    codes="0125",
    meanings=_MEANINGS,
)
@click.argument("file", type=PATH)
@_recipient_options
@_epochs_option("Seal as SealedEnv version 1 to these epochs. Default: the legacy form.")
@output_options("Write the sealed variables to FILE. Default: stdout.")
def seal(
    *,
    file: Path,
    recipient: _Recipient,
    epochs: tuple[int, int] | None,  # root epoch, app epoch; None: the legacy form
    out: Output,
) -> None:
    """Seal environment variables to an app.

    FILE has lines NAME=VALUE, as docker's --env-file, or a JSON object of strings; - is stdin.
    """
    out.check(filter(None, (file, recipient.signed_key)))
    from attestkit.kms.sealed_env import seal_env  # lazy: --help does not need it

    public_key = _find_public_key(recipient)
    variables = read_variables(read_file(file, MAX_FILE), str(file))
    sealed = seal_env(variables, public_key, epochs=epochs)
    names = list(dict(variables))
    fields = {
        "public_key": public_key.hex(),
        "epochs": epochs,
        "variables": names,
        "sealed": None if out.output else sealed,
        "output": out.name,
    }
    out.write(f"{sealed}\n", fields, f"{len(names)} variables for {public_key.hex()}")


def _find_public_key(recipient: _Recipient) -> bytes:
    """Return the app's X25519 key, 32 bytes, from the options.

    A KMS's signature over it is verified if the options name a signed response.

    Raises:
        UsageError: If options are missing or exclude each other, or a value is not hex.
        VerificationError, FormatError: As `_verify_key`.
    """
    signed = recipient.app_id is not None and bool(recipient.kms_root_keys)
    given = recipient.app_id is not None or bool(recipient.kms_root_keys)
    if (recipient.public_key is None) == (recipient.signed_key is None):
        text = "give either --public-key or --signed-key"
        raise UsageError(text, reason="missing" if recipient.public_key is None else "conflict")
    if recipient.public_key is not None:
        if given:
            text = "--app-id and --kms-root-key: require --signed-key"
            raise UsageError(text, reason="conflict")
        return read_hex("--public-key", recipient.public_key)
    if not signed or recipient.app_id is None or recipient.signed_key is None:
        text = "--signed-key: requires --app-id and --kms-root-key; give both"
        raise UsageError(text, reason="missing")
    roots = [read_hex("--kms-root-key", one) for one in recipient.kms_root_keys]
    return _verify_key(recipient.signed_key, read_hex("--app-id", recipient.app_id), roots)


def _verify_key(file: Path, app_id: bytes, roots: list[bytes]) -> bytes:
    """Return the X25519 key (32 bytes) in a KMS's response that a trusted KMS signed for the app.

    Args:
        file: File with the JSON of the response.
        app_id: Id of the app, 20 bytes.
        roots: Root keys of trusted KMSs, compressed secp256k1 keys of 33 bytes.

    Raises:
        VerificationError: If the signature is of another key, or older than 5 minutes.
        FormatError: If the response is malformed.
    """
    from attestkit._formats.strict_json import from_hex, read_object
    from attestkit.dstack.env_encryption import verify_env_encrypt_public_key

    fields = read_object(read_file(file, _KEY_FILE), str(file))
    public_key = from_hex(fields.get("public_key"), f"{file}: public_key", 32)
    signature = from_hex(fields.get("signature_v1"), f"{file}: signature_v1", 65)
    timestamp = fields.get("timestamp")
    if type(timestamp) is not int:
        raise wrong_json_type(f"{file}: timestamp", "an integer", timestamp)
    signer = verify_env_encrypt_public_key(
        public_key,
        signature,
        app_id.hex(),
        timestamp,
        now=int(datetime.now(timezone.utc).timestamp()),
        max_age_seconds=_MAX_AGE,
    )
    found = b"" if signer is None else bytes.fromhex(signer.removeprefix("0x"))
    if not any(hmac.compare_digest(found, root) for root in roots):
        text = (
            f"{file}: not signed by a trusted KMS for this app within the last {_MAX_AGE} s; check "
            "--app-id and --kms-root-key, and request the key again"
        )
        raise VerificationError(text, reason="bad_signature")
    return public_key


@env.command(
    "open", example="env open sealed --secret-key .appkeys.json", codes="0125", meanings=_MEANINGS
)
@click.argument("file", type=PATH)
@option.file("--secret-key", "X25519 key of the app, in hex, or .appkeys.json.", required=True)
@_epochs_option("Accept only a SealedEnv to these epochs.")
@option.value("--allow", "NAME", "Accept only these variables.", many=True, parameter="allow")
@output_options("Write the variables to FILE as JSON, mode 0600. Default: stdout.")
def open_(
    *,
    file: Path,
    secret_key: Path,
    epochs: tuple[int, int] | None,  # root epoch, app epoch
    allow: tuple[str, ...],
    out: Output,
) -> None:
    """Open environment variables that were sealed to an app.

    FILE is a SealedEnv (JSON), or the legacy form, raw or in hex; - is stdin. The variables are
    printed as a JSON object. They are secrets, and their origin is not authenticated.
    """
    out.check((file, secret_key))
    from attestkit._crypto.zeroize import wipe  # lazy: --help does not need them
    from attestkit.kms.sealed_env import LARGEST_SEALED, open_env

    sealed, secret = read_file(file, LARGEST_SEALED), _read_secret(secret_key)
    try:
        found = open_env(sealed, secret, epochs=epochs, allowed=allow or None)
    except FormatError as error:
        message = f"{file}: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error
    finally:
        wipe(secret)
    variables = None if out.output else found
    fields = {"variables": variables, "names": list(found), "output": out.name}
    text = json.dumps(found, indent=2)
    out.write(f"{text}\n", fields, f"{len(found)} variables", mode=0o600)


def _read_secret(path: Path) -> bytes:
    """Return the X25519 secret key in a file, 32 bytes; errors do not contain it.

    The file has the key in hex, or is the JSON of an app's keys (`.appkeys.json`).

    Raises:
        FormatError: If the file contains no such key.
    """
    from attestkit._crypto.zeroize import wipe
    from attestkit._native import unhex

    data = read_file(path, _KEY_FILE)
    try:
        if data.lstrip()[:1] == b"{":
            from attestkit.keys import AppKeys

            with AppKeys.from_json(data, name=str(path)) as keys:
                found: bytes | None = keys.env_crypt_key
        else:
            found = unhex(data.strip())
    finally:
        wipe(data)
    if found is None or len(found) != 32:
        text = f"{path}: no X25519 secret key: must be 64 hex digits, or a key file with one"
        raise FormatError(text, reason="wrong_size")
    return found


MAX_FILE: Final = 16 << 20
"""Maximum size of a file of variables in bytes; names and values have at most 1 MiB in all."""


def read_variables(data: bytes, name: str) -> list[tuple[str, str]]:
    """Return names and values of environment variables, in the order of a file.

    A file that begins with `{` is a JSON object of strings. In lines, a value is all that follows
    the first `=`, also quotes and spaces; empty lines and lines that begin with `#` are skipped.

    Args:
        data: Content of the file.
        name: Name of the file, for errors, which contain no value.

    Raises:
        FormatError: If the file is not UTF-8 text, a line has no `=`, or the JSON is malformed or
            has a value that is not a string.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        message, offset = f"{name}: must be UTF-8 text", error.start
    else:
        if text.lstrip(" \t\r\n").startswith("{"):
            return _read_json_variables(text, name)
        return _read_variable_lines(text, name)
    # Outside of the handler, because that error holds the values.
    raise FormatError(message, reason="encoding", offset=offset)


def _read_json_variables(text: str, name: str) -> list[tuple[str, str]]:
    found = read_object(text, name)
    if not all(isinstance(value, str) for value in found.values()):
        raise FormatError(f"{name}: every value must be a string, in quotes", reason="wrong_type")
    return list(found.items())


def _read_variable_lines(text: str, name: str) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        variable, equals, value = line.removesuffix("\r").partition("=")
        if not line.strip() or line.startswith("#"):
            continue
        if not equals:
            raise FormatError(f"{name}: line {number}: must be NAME=VALUE", reason="syntax")
        found.append((variable, value))
    return found
