"""`attestkit verify-key FILE`: verification of a derived key's signature chain."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from attestkit.cli.input.read_input import name_file_in_errors, read_file
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command, read_hex
from attestkit.cli.output import console
from attestkit.errors import FormatError, UsageError


class _Expected(NamedTuple):
    """The values that the caller expects; None for those not given.

    Attributes:
        app_id: Id of the app, 20 bytes.
        kms_roots: Root keys of trusted KMSs, compressed secp256k1 keys.
        app_root: Root key of the app, a compressed secp256k1 key.
        purpose: Purpose of a v0 key.
        domain: Domain of a v1 key.
        algorithm: Algorithm of a v1 key, `secp256k1` or `ed25519`.
    """

    app_id: bytes | None
    kms_roots: tuple[bytes, ...] | None
    app_root: bytes | None
    purpose: str | None
    domain: str | None
    algorithm: str | None


def _read_expected(
    *,
    app_id: str | None,
    kms_root_keys: tuple[str, ...],
    app_root_key: str | None,
    purpose: str | None,
    domain: str | None,
    algorithm: str | None,
) -> _Expected:
    of_kms = app_id is not None and bool(kms_root_keys)
    if of_kms == (app_root_key is not None) or (app_id is not None) != bool(kms_root_keys):
        text = "give either --app-id and --kms-root-key, or --app-root-key"
        raise UsageError(text, reason="conflict" if of_kms else "missing")
    v1 = domain is not None and algorithm is not None
    if v1 == (purpose is not None) or (domain is None) != (algorithm is None):
        text = "give either --purpose (v0 key), or --domain and --algorithm (v1 key)"
        raise UsageError(text, reason="conflict" if v1 else "missing")
    roots = tuple(read_hex("--kms-root-key", one) for one in kms_root_keys)
    return _Expected(
        None if app_id is None else read_hex("--app-id", app_id),
        roots or None,
        None if app_root_key is None else read_hex("--app-root-key", app_root_key),
        purpose,
        domain,
        algorithm,
    )


_expected_options: Final = option.group(
    "expected",
    (
        option.value("--app-id", "HEX", "Id of the expected app, 20 bytes."),
        option.value("--kms-root-key", "HEX", "Root key of a trusted KMS, 33 bytes.", many=True),
        option.value("--app-root-key", "HEX", "Instead of both: root key of the app, 33 bytes."),
        option.value("--purpose", "TEXT", "Expected purpose of a v0 key; may be empty."),
        option.value("--domain", "TEXT", "Expected domain of a v1 key; may be empty."),
        option.value("--algorithm", "NAME", "That of a v1 key: secp256k1 or ed25519."),
    ),
    _read_expected,
)


@click.command(
    "verify-key",
    cls=Command,
    example="verify-key key.json --app-id $APP_ID --kms-root-key $KMS_KEY "
    "--domain wallet/eth --algorithm secp256k1",
    codes="0125",
    meanings={0: "valid", 2: "rejected: the chain does not lead to the trusted key"},
)
@click.argument("file", type=PATH)
@_expected_options
@option.json
def verify_key(*, file: Path, expected: _Expected, as_json: bool) -> None:
    """Verify that a derived key is a key of an app.

    FILE is the JSON of attestkit key --public --json, or the response to GetKey of an agent's v1
    API; - is stdin. Only its public key and signature chain are used.
    """
    from attestkit.keys import verify_key_chain  # lazy: --help does not need it

    data = read_file(file)
    with name_file_in_errors(file):
        public_key, chain = parse_key(data)
    verify: Any = verify_key_chain  # its overloads have no optional arguments
    verify(public_key, chain, **expected._asdict())
    found: dict[str, object] = {
        "public_key": public_key,
        "app_id": expected.app_id,
        "app_root_key": expected.app_root,
        "purpose": expected.purpose,
        "domain": expected.domain,
        "algorithm": expected.algorithm,
    }
    if as_json:
        console.as_json({"file": str(file), **found})
    else:
        issuer = "the trusted KMS" if expected.app_root is None else "the app's root key"
        console.verdict(f"{file}: valid; certified by {issuer}", good=True)
        texts = {name: one.hex() if isinstance(one, bytes) else one for name, one in found.items()}
        console.fields(None, {name.replace("_", " "): text for name, text in texts.items()})


def parse_key(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the public key and the signatures of its chain, decoded from hex.

    `data` is the JSON of a key, with `public_key` and `signature_chain`.

    Raises:
        FormatError: If the JSON is malformed, or lacks the public key or the chain.
    """
    from attestkit._formats import strict_json  # lazy: --help does not need it

    fields = strict_json.read_object(data, "the key")
    chain = fields.get("signature_chain")
    if not isinstance(chain, list):
        message = "signature_chain: must be an array of hex"
        raise FormatError(message, reason="missing" if chain is None else "wrong_type")
    links = tuple(_read_hex(f"signature_chain[{n}]", link) for n, link in enumerate(chain))
    return _read_hex("public_key", fields.get("public_key")), links


def _read_hex(name: str, value: object) -> bytes:
    from attestkit._formats.strict_json import from_hex

    return from_hex(value.removeprefix("0x") if isinstance(value, str) else value, name)
