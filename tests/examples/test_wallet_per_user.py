"""Tests of the wallet_per_user example: one wallet per user, with a chain of signatures."""

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

import attestkit
from attestkit.keys import separated_path
from tests.examples.reader import Done, Reader

# find_spec, for the example's dependency need not be imported here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("eth_account") is None, reason="the example needs eth-account"),
]

NONCE = "5a" * 32
OPTIONS = "--backend simulator --seed-file sim/seed"
TRUST_OPTIONS = (
    "--policy sim/policy.toml --trust-anchor sim/trust-anchor.der --collateral sim/collateral.json"
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, Done]]:
    """Return a copy of the example in which all commands have run, and the last one's result."""
    with Reader("wallet_per_user", tmp_path_factory.mktemp("example")) as reader:
        yield reader, reader.run_all()[-1]


@pytest.fixture(scope="module")
def reader(ran: tuple[Reader, Done]) -> Reader:
    """Return the copy."""
    return ran[0]


@pytest.fixture(scope="module")
def signed(reader: Reader) -> dict[str, Any]:
    """Return a message signed by alice's wallet."""
    return sign(reader, "alice")


def call(reader: Reader, program: str, command: str) -> Done:
    """Run a program of the example in this process, which has imported eth already."""
    arguments = [f"{program}.py", *shlex.split(command)]
    printed, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(reader.folder)
        patch.setattr("sys.argv", arguments)
        try:
            reader.load(program).main()
        except SystemExit as ended:  # its text goes to stderr, and the code is 1
            printed.write(str(ended.code))
            code = 1
    return Done(code, printed.getvalue())


def sign(reader: Reader, user: str, options: str = OPTIONS, nonce: str = NONCE) -> dict[str, Any]:
    """Return a message signed by a user's wallet."""
    done = call(reader, "wallet", f"{user} 'pay 1 to bob' --nonce {nonce} {options}")
    assert done.code == 0, done.printed
    found: dict[str, Any] = json.loads(done.printed)
    return found


def run_relying_party(
    reader: Reader, signed: dict[str, Any], user: str = "alice", nonce: str = NONCE
) -> Done:
    """Run the relying party on a signed message."""
    (reader.folder / "given.json").write_text(json.dumps(signed))
    return call(reader, "relying_party", f"given.json {user} --nonce {nonce} {TRUST_OPTIONS}")


def test_wallet_per_user_readme_commands_succeed(ran: tuple[Reader, Done]) -> None:
    """The relying party accepts the wallet as alice's, and as simulated."""
    reader, last = ran
    address = json.loads((reader.folder / "signed.json").read_text())["address"]
    assert last == Done(0, f"alice's wallet {address} says 'pay 1 to bob' (SIMULATED)\n")


def test_wallet_is_stable_and_per_user(reader: Reader, signed: dict[str, Any]) -> None:
    """A user's wallet is the same at each start, and differs from other users'."""
    assert sign(reader, "alice")["address"] == signed["address"]
    assert sign(reader, "bob")["address"] != signed["address"]


def test_wallet_key_is_not_printed(reader: Reader, signed: dict[str, Any]) -> None:
    """Neither the wallet's key nor the root key is printed."""
    seed = (reader.folder / "sim" / "seed").read_bytes()
    with attestkit.open("simulator", seed=seed) as tee:
        path = separated_path("wallet/eth/alice", "secp256k1")
        key = tee.keys.derive_compat(path, "wallet/eth/alice")
        assert key.public_key.hex() == signed["public_key"], "the test looks for the right key"
        assert tee.host is not None
        secrets = (key.key, tee.host.app_keys.k256_key, seed)
    assert not [secret for secret in secrets if secret.hex() in json.dumps(signed)]


@pytest.mark.parametrize(
    ("user", "nonce", "fragment"),
    [
        ("bob", NONCE, "does not certify this wallet for bob"),
        ("alice", "5b" * 32, "report data"),
        ("alice", NONCE + "5a", "32 bytes"),
    ],
)
def test_wallet_signature_for_other_user_or_nonce_is_rejected(
    reader: Reader, signed: dict[str, Any], user: str, nonce: str, fragment: str
) -> None:
    """A signed message is valid for its user and nonce only."""
    done = run_relying_party(reader, signed, user, nonce)
    assert done.code == 1
    assert done.printed.startswith("refused: ")
    assert fragment in done.printed


@pytest.mark.parametrize(
    ("field", "fragment"),
    [
        ("address", "another key's"),
        ("text", "another user or nonce"),
        ("signature", "has not signed"),
        ("public_key", "does not certify"),
        ("signed_by_app_key", "does not certify"),
        ("app_key", "report data"),
        ("evidence", "report data"),
    ],
)
def test_wallet_message_with_foreign_field_is_rejected(
    reader: Reader, signed: dict[str, Any], field: str, fragment: str
) -> None:
    """A message with one field of another app's wallet, or altered text, is rejected."""
    (reader.folder / "other-seed").write_bytes(bytes(32))
    other = sign(reader, "alice", "--backend simulator --seed-file other-seed")
    other["text"] = signed["text"].replace("alice", "bob")
    other["evidence"] = signed["evidence"].replace(signed["app_key"], other["app_key"])
    if field == "evidence":  # of the same TEE, for another nonce
        other = sign(reader, "alice", nonce="5b" * 32)
    done = run_relying_party(reader, {**signed, field: other[field]})
    assert done.code == 1
    assert done.printed.startswith("refused: ")
    assert fragment in done.printed


def test_wallet_of_other_app_is_rejected(reader: Reader) -> None:
    """A consistent message under another root is rejected."""
    (reader.folder / "other-seed").write_bytes(bytes(32))
    done = run_relying_party(
        reader, sign(reader, "alice", "--backend simulator --seed-file other-seed")
    )
    assert done.code == 1
    assert "root" in done.printed


@pytest.mark.parametrize("field", ["address", "text", "signature", "public_key", "evidence"])
@pytest.mark.parametrize("value", ["", "zz", 5])
def test_wallet_malformed_message_is_rejected(
    reader: Reader, signed: dict[str, Any], field: str, value: object
) -> None:
    """A malformed message is rejected in one line, without a traceback."""
    done = run_relying_party(reader, {**signed, field: value})
    assert done.code == 1
    assert done.printed.startswith("refused: ")


def test_wallet_invalid_user_name_is_rejected(reader: Reader) -> None:
    """A user name with a path separator is rejected."""
    done = call(reader, "wallet", f"alice/bob x --nonce {NONCE} {OPTIONS}")
    assert done.code == 1
    assert "a-z" in done.printed
