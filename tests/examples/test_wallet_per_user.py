"""Wallets of the example are per user, the same at every start, and vouched for link by link."""

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.keys import separated_path
from tests.examples.reader import Done, Reader

# Asked for, not imported: the example is a program of its own.
pytestmark = pytest.mark.skipif(
    find_spec("eth_account") is None, reason="the example needs eth-account"
)

NONCE = "5a" * 32
OPTIONS = "--backend simulator --seed-file sim/seed"
BELIEF = (
    "--policy sim/policy.toml --trust-anchor sim/trust-anchor.der --collateral sim/collateral.json"
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a reader who has the trust of a simulator, and something signed by alice."""
    with Reader("wallet_per_user", tmp_path_factory.mktemp("example")) as reader:
        assert reader.run(reader.commands()[0]).code == 0
        yield reader


@pytest.fixture(scope="module")
def signed(reader: Reader) -> dict[str, Any]:
    """Return what alice's wallet has signed."""
    return sign(reader, "alice")


def call(reader: Reader, program: str, command: str) -> Done:
    """Run a program of the example in this process, which need not import all of eth again."""
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
    """Return what a user's wallet signs."""
    done = call(reader, "wallet", f"{user} 'pay 1 to bob' --nonce {nonce} {options}")
    assert done.code == 0, done.printed
    found: dict[str, Any] = json.loads(done.printed)
    return found


def check(reader: Reader, signed: dict[str, Any], user: str = "alice", nonce: str = NONCE) -> Done:
    """Have the relying party judge."""
    (reader.folder / "given.json").write_text(json.dumps(signed))
    return call(reader, "relying_party", f"given.json {user} --nonce {nonce} {BELIEF}")


def test_the_readme_s_commands_do_what_it_says(tmp_path: Path) -> None:
    """The wallet is told to be alice's, and simulated."""
    with Reader("wallet_per_user", tmp_path) as reader:
        *_, last = reader.run_all()
        address = json.loads((reader.folder / "signed.json").read_text())["address"]
        said = f"alice's wallet {address} says 'pay 1 to bob' (SIMULATED)\n"
        assert last == Done(0, said)


def test_each_user_has_one_wallet(reader: Reader, signed: dict[str, Any]) -> None:
    """Another start of the same app gives the same, another user another."""
    assert sign(reader, "alice")["address"] == signed["address"]
    assert sign(reader, "bob")["address"] != signed["address"]


def test_the_key_stays_inside(reader: Reader, signed: dict[str, Any]) -> None:
    """Nothing that is printed has the wallet's key, or the root's."""
    seed = (reader.folder / "sim" / "seed").read_bytes()
    with attestkit.open("simulator", seed=seed) as tee:
        path = separated_path("wallet/eth/alice", "secp256k1")
        key = tee.keys.derive(path, "wallet/eth/alice")
        assert key.public_key.hex() == signed["public_key"], "the test looks for the right key"
        assert tee.host is not None
        secrets = (key.key, tee.host.app_keys.k256_key, seed)
    assert not [secret for secret in secrets if secret.hex() in json.dumps(signed)]


@pytest.mark.parametrize(
    ("user", "nonce", "why"),
    [
        ("bob", NONCE, "does not vouch for this wallet as bob's"),
        ("alice", "5b" * 32, "report data"),
        ("alice", NONCE + "5a", "32 bytes"),
    ],
)
def test_another_user_or_nonce(
    reader: Reader, signed: dict[str, Any], user: str, nonce: str, why: str
) -> None:
    """What was signed counts for its own user and nonce alone."""
    done = check(reader, signed, user, nonce)
    assert done.code == 1
    assert done.printed.startswith("refused: ")
    assert why in done.printed


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("address", "another key's"),
        ("text", "another user or nonce"),
        ("signature", "has not signed"),
        ("public_key", "does not vouch"),
        ("signed_by_app_key", "does not vouch"),
        ("app_key", "report data"),
        ("evidence", "report data"),
    ],
)
def test_every_link_counts(reader: Reader, signed: dict[str, Any], field: str, why: str) -> None:
    """One field of another app's wallet, or a text changed a little, and it is refused."""
    (reader.folder / "other-seed").write_bytes(bytes(32))
    foreign = sign(reader, "alice", "--backend simulator --seed-file other-seed")
    foreign["text"] = signed["text"].replace("alice", "bob")
    foreign["evidence"] = signed["evidence"].replace(signed["app_key"], foreign["app_key"])
    if field == "evidence":  # the same TEE's, for another nonce
        foreign = sign(reader, "alice", nonce="5b" * 32)
    done = check(reader, {**signed, field: foreign[field]})
    assert done.code == 1
    assert done.printed.startswith("refused: ")
    assert why in done.printed


def test_another_app_s_whole_word_is_refused(reader: Reader) -> None:
    """All links hold among themselves, and its root is not the one that is believed."""
    (reader.folder / "other-seed").write_bytes(bytes(32))
    done = check(reader, sign(reader, "alice", "--backend simulator --seed-file other-seed"))
    assert done.code == 1
    assert "root" in done.printed


@pytest.mark.parametrize("field", ["address", "text", "signature", "public_key", "evidence"])
@pytest.mark.parametrize("value", ["", "zz", 5])
def test_malformed_is_refused(
    reader: Reader, signed: dict[str, Any], field: str, value: object
) -> None:
    """In one line, not with a traceback."""
    done = check(reader, {**signed, field: value})
    assert done.code == 1
    assert done.printed.startswith("refused: ")


def test_a_user_is_a_plain_name(reader: Reader) -> None:
    """A name that could be part of another path or purpose gets no key."""
    done = call(reader, "wallet", f"alice/bob x --nonce {NONCE} {OPTIONS}")
    assert done.code == 1
    assert "a-z" in done.printed
