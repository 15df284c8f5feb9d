"""No log, page, error, file or command line of a server contains one of its marked secrets.

Every method and page is requested, validly and invalidly, at log level debug; only successful
responses of key methods may contain keys.
"""

import contextlib
import hmac
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.dstack.env_encryption import decrypt_env_vars, encrypt_env_vars
from attestkit.errors import AttestKitError
from attestkit.keys import AppKeys, derive_bytes
from attestkit.keys.hkdf import derive_v1_bytes
from tests.runner.cases import every_case
from tests.secrets.marks import forms, mark, search
from tests.serve.client import Connection, call
from tests.serve.server import PATIENCE, environment, refusal, running_server

KEYS = {name: mark(name) for name in ("k256_key", "env_crypt_key", "disk_crypt_key", "ca_key")}
SEED = mark("seed")
PATHS = ("", "a", "vms")
PAGES = (
    *("/", "/metrics", "/docs", "/openapi.json", "/dstack_guest.proto", "/logs/none", "/none"),
    "/dstack.guest.v1.proto",
    *("/measurements", "/dashboard.js", "/health"),
)
GIVING = frozenset(
    {
        *("GetKey", "DeriveKey", "GetTlsKey", "Tappd.DeriveKey", "Tappd.DeriveK256Key"),
        *("v0/GetKey", "v1/GetKey", "v1/IssueCert"),
    }
)
QUIET = (
    *("Info", "Version", "GetQuote", "Attest", "EmitEvent", "Sign", "Verify"),
    *("v1/Info", "v1/Version", "v1/Attest", "v1/AttestGpu", "v1/Sign", "prpc/v1/Info"),
    *("prpc/v1/Version", "prpc/v1/Health"),
    *("Tappd.Info", "Tappd.TdxQuote", "Tappd.RawQuote", "prpc/Worker.Info", "prpc/Worker.Version"),
    *("prpc/Worker.GetAttestationForAppKey", "Nope"),
)
BODIES: tuple[dict[str, object], ...] = (
    {},
    {"report_data": "00", "algorithm": "ed25519", "data": "00", "path": "a", "purpose": "x"},
    {"report_data": "zz", "algorithm": "nope", "data": 1, "path": [], "purpose": None},
    {"event": "e", "payload": "00", "algorithm": "secp256k1", "data": "00", "signature": "00"},
)


def make_key_file(**changes: object) -> str:
    """Return a key file with the marked keys and changes of other fields."""
    ca = P256Key.from_scalar(KEYS["ca_key"])
    cert = AppKeys(k256_key=KEYS["k256_key"], ca_cert=None, ca_key=ca).ca_cert
    fields: dict[str, object] = {
        "ca_cert": cert,
        "k256_key": KEYS["k256_key"].hex(),
        "k256_signature": "",
        "env_crypt_key": KEYS["env_crypt_key"].hex(),
        "disk_crypt_key": KEYS["disk_crypt_key"].hex(),
        "gateway_app_id": "",
        "key_provider": {"Local": {"mr": "00" * 32, "key": ca.pkcs8_pem}},
    }
    return json.dumps({**fields, **changes})


def derive_secrets() -> dict[str, bytes]:
    """Return the server's derived secrets: extracted root, keys by path, simulator keys."""
    root = KEYS["k256_key"]
    found = {f"key of {path!r}": derive_bytes(root, path.encode()) for path in PATHS}
    names = [(path, algorithm) for path in PATHS for algorithm in ("secp256k1", "ed25519")]
    found |= {f"v1 key of {name!r}": derive_v1_bytes(root, *name) for name in names}
    for salt in (b"RATLS", b"dstack-guest-v1"):
        found[f"extracted root {salt!r}"] = hmac.digest(salt, root, "sha256")
    return found


SECRETS: Mapping[str, bytes] = {**KEYS, "seed": SEED, **derive_secrets()}


class Output(NamedTuple):
    """An output that was searched."""

    name: str
    content: bytes


def request_everything(endpoint: str) -> Iterator[Output]:
    """Request every method and page; yield the outputs that may not contain keys."""
    with contextlib.closing(Connection(endpoint)) as connection:
        for name in (*QUIET, *sorted(GIVING)):
            responses = [connection.call(name, body) for body in BODIES]
            responses.append(connection.send_request("POST", f"/{name}", b"\x0a\x01a\xff"))
            responses.append(connection.send_request("GET", f"/{name}?path=a&algorithm=nope"))
            for response in responses:
                if name not in GIVING or response.status != 200:
                    content = repr(response.headers).encode() + response.body
                    yield Output(f"{name} {response.status}", content)
        for page in PAGES:
            yield Output(page, connection.send_request("GET", page).body)


def read_proc(pid: int) -> Iterator[Output]:
    """Yield what `/proc` discloses about a process."""
    for name in ("cmdline", "environ", "status", "stat", "maps", "comm", "mountinfo", "limits"):
        yield Output(f"/proc/PID/{name}", Path(f"/proc/{pid}/{name}").read_bytes())


def read_files(folder: Path, *, except_names: frozenset[str]) -> Iterator[Output]:
    """Yield remaining files, except those that must contain a secret."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in except_names:
            yield Output(f"file {path.name}", path.read_bytes())


def find_secrets(outputs: Iterator[Output]) -> tuple[list[str], int]:
    """Return the secrets found in the outputs, and the number of outputs."""
    found, count = [], 0
    for output in outputs:
        count += 1
        found += [
            f"{output.name}: {one.secret} as {one.form}" for one in search(output.content, SECRETS)
        ]
    return found, count


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--log-format", "text", "--json"), id="text"),
        pytest.param(("--log-format", "json"), id="json", marks=pytest.mark.slow),
    ],
)
def test_server_outputs_contain_no_secret(tmp_path: Path, options: tuple[str, ...]) -> None:
    """After any requests no secret is in any output except responses that return keys."""
    (tmp_path / "keys.json").write_text(make_key_file())
    (tmp_path / "seed").write_text(SEED.hex())
    (tmp_path / "run").mkdir()
    (tmp_path / "tmp").mkdir()
    given = (
        "--app-keys",
        str(tmp_path / "keys.json"),
        "--seed",
        SEED.hex(),
        "--log-level",
        "debug",
    )
    environ = environment(TMPDIR=str(tmp_path / "tmp"))
    outputs: list[Output] = []
    with running_server(
        *given, "--access-log", *options, folder=tmp_path / "run", environ=environ, seed=None
    ) as server:
        given_out = call(server.dstack, "GetKey", {"path": "a"})
        assert given_out.json()["key"] == SECRETS["key of 'a'"].hex()  # the key file is in use
        for endpoint in (server.dstack, server.tappd, server.url):
            outputs += request_everything(endpoint)
        outputs += read_proc(server.process.pid)
        assert server.stop() == 0
        assert server.process.stdout is not None
        outputs.append(Output("stdout", (server.line + server.process.stdout.read()).encode()))
        outputs.append(Output("log and access log", server.log().encode()))
    seed_file = frozenset({"simulator.seed"})
    outputs += read_files(tmp_path / "run", except_names=seed_file)
    outputs += read_files(tmp_path / "tmp", except_names=frozenset())
    found, count = find_secrets(iter(outputs))
    assert not found
    assert count > 300
    [log] = [one.content for one in outputs if one.name == "log and access log"]
    assert log.count(b"GetKey") > 6


INVALID = {
    "truncated": make_key_file()[:-400],
    "truncated inside a key": make_key_file()[
        : make_key_file().index(KEYS["disk_crypt_key"].hex()) + 20
    ],
    "not hex": make_key_file(k256_key=KEYS["k256_key"].hex()[:-1] + "g"),
    "too long": make_key_file(k256_key=KEYS["k256_key"].hex() + "00"),
    "a number": make_key_file(env_crypt_key=int.from_bytes(KEYS["env_crypt_key"], "big")),
    "a list": make_key_file(env_crypt_key=list(KEYS["env_crypt_key"])),
    "a provider": make_key_file(key_provider={KEYS["ca_key"].hex(): 1}),
    "not PEM": make_key_file(key_provider={"Local": {"mr": "", "key": KEYS["ca_key"].hex()}}),
    "truncated PEM": make_key_file(
        key_provider={
            "Local": {"mr": "", "key": P256Key.from_scalar(KEYS["ca_key"]).pkcs8_pem[:-60]}
        }
    ),
    "duplicate": make_key_file()[:-1] + f', "k256_key": "{KEYS["k256_key"].hex()}"}}',
    "an invalid escape": make_key_file().replace(
        KEYS["k256_key"].hex(), KEYS["k256_key"].hex() + "\\x"
    ),
    "not UTF-8": make_key_file() + "\udcff",
}


def program_printing_error(path: Path) -> str:
    """Return a program that prints an error in every way that Python has."""
    return f"""if True:
        import logging, sys, traceback, warnings
        from attestkit.keys import AppKeys
        try:
            AppKeys.load({str(path)!r})
        except Exception as error:
            logging.exception("text %r", error)
            while error is not None:
                print(repr(error), str(error), error.args, vars(error))
                error = error.__cause__ or error.__context__
        AppKeys.load({str(path)!r})
    """


@pytest.mark.slow
@pytest.mark.parametrize("name", INVALID)
def test_invalid_key_file_error_contains_no_secret(tmp_path: Path, name: str) -> None:
    """Log, traceback, causes and contexts of the error contain no value."""
    path = tmp_path / "keys.json"
    path.write_text(INVALID[name], errors="surrogateescape")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program_printing_error(path)],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert b"ConfigError" in done.stderr
    assert not find_secrets(iter([Output("stderr", done.stderr), Output("stdout", done.stdout)]))[0]


@pytest.mark.parametrize("name", INVALID)
def test_server_with_invalid_key_file_logs_no_secret(tmp_path: Path, name: str) -> None:
    """The server exits with one line that contains no value."""
    (tmp_path / "keys.json").write_text(INVALID[name], errors="surrogateescape")
    given = ("--backend", "simulator", "--dir", str(tmp_path), "--http", "none")
    options = (*given, "--app-keys", "keys.json", "--log-level", "debug")
    line = refusal(*options, folder=tmp_path, code=1)
    assert "keys.json" in line
    assert not find_secrets(iter([Output("output", line.encode())]))[0]


@pytest.mark.parametrize("seed", [SEED.hex()[:-1], SEED.hex() + "00", SEED.hex()[:-2] + "zz"])
@pytest.mark.parametrize("source", ["option", "file"])
def test_server_with_invalid_seed_logs_no_seed(tmp_path: Path, seed: str, source: str) -> None:
    """An invalid seed is not in the error."""
    (tmp_path / "seed").write_text(seed)
    option = ("--seed", seed) if source == "option" else ("--seed-file", "seed")
    options = ("--backend", "simulator", *option, "--http", "none")
    line = refusal(*options, folder=tmp_path, code=1)
    assert "seed" in line
    assert not find_secrets(iter([Output("output", line.encode())]))[0]


def make_commands(folder: Path) -> list[tuple[str, ...]]:
    """Return commands on files with marked keys, none of which prints a key."""
    seed = f"seed={SEED.hex()}"
    key = ("key", "a", "--backend", "simulator", "--option", seed)
    return [
        (*key, "--public"),
        (*key, "--public", "--json"),
        (*key, "-o", str(folder / "out"), "--json"),
        (*key, "-o", str(folder / "nowhere" / "out")),
        ("key", "a", "--backend", "simulator", "--option", f"{seed}zz"),
        ("quote", "--backend", "simulator", "--option", seed, "--json"),
        ("attest", "--backend", "simulator", "--option", seed, "--json"),
        ("show", str(folder / "keys.json")),
        ("verify", str(folder / "keys.json"), "--json"),
        ("replay", str(folder / "keys.json")),
        ("serve", "--app-keys", str(folder / "keys.json"), "--seed", f"{SEED.hex()}zz"),
    ]


@pytest.mark.slow
def test_command_output_contains_no_secret(tmp_path: Path) -> None:
    """Commands with the same files, including invalid ones, print no key."""
    (tmp_path / "keys.json").write_text(make_key_file())
    pki = {"key of a simulated app": AppKeys.from_seed(SEED).k256_key}
    for words in make_commands(tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "attestkit", *words],
            env=environment(),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        shown = done.stdout + done.stderr
        assert shown, words
        assert b"Traceback" not in shown, words
        assert not find_secrets(iter([Output(words[0], shown)]))[0], words
        assert not search(shown, pki), words
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def error_chain_text(error: BaseException | None) -> str:
    """Return all texts of an error, its causes and contexts."""
    if error is None:
        return ""
    shown = f"{error} {error!r} {error.args} {vars(error)} "
    return shown + error_chain_text(error.__cause__) + error_chain_text(error.__context__)


def test_decryption_error_contains_no_secret() -> None:
    """An error about an encrypted environment contains none of it, nor do its causes."""
    secret, value = KEYS["env_crypt_key"], SEED.hex()
    public = x25519_public_key(secret).hex()
    sealed = bytes.fromhex(encrypt_env_vars([("1NAME", value)], public))
    for damaged in (sealed, sealed[:-1], sealed[:-1] + b"\0", sealed[:40]):
        with pytest.raises(AttestKitError) as caught:
            decrypt_env_vars(secret, damaged, ["1NAME"])
        assert not search(error_chain_text(caught.value).encode(), SECRETS)


def test_object_repr_contains_no_secret() -> None:
    """No string representation of an object with a secret contains the secret."""
    from attestkit._crypto.ecdsa import K256Key
    from attestkit._crypto.ed25519 import Ed25519Key
    from attestkit.keys import LocalKeys

    secret = KEYS["k256_key"]
    app_keys = AppKeys.from_json(make_key_file())
    keys = LocalKeys(app_keys)
    objects = (
        *(app_keys, keys, keys.derive_compat("a"), keys.derive_compat("a", algorithm="ed25519")),
        *(keys.derive_v1("a", "secp256k1"), keys.derive_v1("a", "ed25519")),
        *(
            keys.sign(b"x", "ed25519"),
            K256Key(secret),
            Ed25519Key(secret),
            P256Key.from_scalar(secret),
        ),
    )
    for one in objects:
        for shown in (repr(one), str(one), f"{one}", f"{[one]!r}", ascii({"key": one})):
            assert not search(shown.encode(), SECRETS), type(one)


# -- the search itself ----------------------------------------------------------------------------


def test_search_finds_key_in_pem_and_wrapped_text() -> None:
    """PEM, DER, JSON of PEM, wrapped upper-case hex, and Python literals are found."""
    key = P256Key.from_scalar(SEED)
    number = int.from_bytes(SEED, "big")
    lines = "\n".join(SEED.hex()[at : at + 10] for at in range(0, 64, 10))
    planted = (
        *(key.pkcs8_pem, json.dumps(key.pkcs8_pem), repr(key.pkcs8_pem), lines, str(number)),
        *(repr(SEED), repr(bytearray(SEED)), str(list(SEED)), json.dumps({"k": number})),
    )
    for text in planted:
        assert search(text.encode(), {"seed": SEED}), text
    assert search(key.pkcs8_der, {"seed": SEED})
    assert not search(os.urandom(1 << 16) + AppKeys.generate().ca_cert.encode(), SECRETS)


@every_case("form", sorted(forms(SEED)))
def test_search_finds_each_encoding(form: str) -> None:
    """A secret is found in each encoding, inside other text."""
    needle = forms(SEED)[form]
    planted = b'{"time":"x","message":"' + needle + b'"}\n'
    [found] = search(planted, {"other": mark("other"), "seed": SEED})
    assert (found.secret, forms(SEED)[found.form]) == ("seed", needle)
