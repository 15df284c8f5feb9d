"""A server whose every secret is marked: no log, page, error, file or command line has a mark.

It is asked for everything, rightly and wrongly, at the loudest level of its log; what the methods
that give keys out answer is the one place where a key may be.
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
from tests.secrets.marks import forms, mark, search
from tests.serve.client import Connection, call
from tests.serve.server import PATIENCE, environment, run_to_end, running_server

KEYS = {name: mark(name) for name in ("k256_key", "env_crypt_key", "disk_crypt_key", "ca_key")}
SEED = mark("seed")
PATHS = ("", "a", "vms")
PAGES = (
    *("/", "/metrics", "/docs", "/openapi.json", "/dstack_guest.proto", "/logs/none", "/none"),
    *("/measurements", "/dashboard.js", "/health"),
)
GIVING = frozenset({"GetKey", "DeriveKey", "GetTlsKey", "Tappd.DeriveKey", "Tappd.DeriveK256Key"})
QUIET = (
    *("Info", "Version", "GetQuote", "Attest", "EmitEvent", "Sign", "Verify", "GpuInfo"),
    *("Tappd.Info", "Tappd.TdxQuote", "Tappd.RawQuote", "prpc/Worker.Info", "prpc/Worker.Version"),
    *("prpc/Worker.GetAttestationForAppKey", "Nope"),
)
BODIES: tuple[dict[str, object], ...] = (
    {},
    {"report_data": "00", "algorithm": "ed25519", "data": "00", "path": "a", "purpose": "x"},
    {"report_data": "zz", "algorithm": "nope", "data": 1, "path": [], "purpose": None},
    {"event": "e", "payload": "00", "algorithm": "secp256k1", "data": "00", "signature": "00"},
)


def key_file(**changes: object) -> str:
    """Return a key file with the marked keys, and other fields changed."""
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


def derived() -> dict[str, bytes]:
    """Return what the server derives: the extracted root, keys by path, and the simulator's own."""
    root = KEYS["k256_key"]
    found = {f"key of {path!r}": derive_bytes(root, path.encode()) for path in PATHS}
    found["extracted root"] = hmac.digest(b"RATLS", root, "sha256")
    return found


SECRETS: Mapping[str, bytes] = {**KEYS, "seed": SEED, **derived()}


class Place(NamedTuple):
    """Where was searched, and what lay there."""

    name: str
    content: bytes


def asked_for_everything(endpoint: str) -> Iterator[Place]:
    """Ask for every method and page, rightly and wrongly; return what may have no key in it."""
    with contextlib.closing(Connection(endpoint)) as connection:
        for name in (*QUIET, *sorted(GIVING)):
            answers = [connection.call(name, body) for body in BODIES]
            answers.append(connection.send_request("POST", f"/{name}", b"\x0a\x01a\xff"))
            answers.append(connection.send_request("GET", f"/{name}?path=a&algorithm=nope"))
            for told in answers:
                if name not in GIVING or told.status != 200:
                    yield Place(f"{name} {told.status}", repr(told.headers).encode() + told.body)
        for page in PAGES:
            yield Place(page, connection.send_request("GET", page).body)


def what_the_process_shows(pid: int) -> Iterator[Place]:
    """Return what `/proc` tells of a process, to whoever may read it."""
    for name in ("cmdline", "environ", "status", "stat", "maps", "comm", "mountinfo", "limits"):
        yield Place(f"/proc/PID/{name}", Path(f"/proc/{pid}/{name}").read_bytes())


def files_below(folder: Path, *, but: frozenset[str]) -> Iterator[Place]:
    """Return the files that were left, but those that are there to hold a secret."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in but:
            yield Place(f"file {path.name}", path.read_bytes())


def findings(places: Iterator[Place]) -> tuple[list[str], int]:
    """Return which secrets were found where, and how many places there were."""
    found, count = [], 0
    for place in places:
        count += 1
        found += [
            f"{place.name}: {one.secret} as {one.form}" for one in search(place.content, SECRETS)
        ]
    return found, count


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--log-format", "text", "--json"), id="text"),
        pytest.param(("--log-format", "json"), id="json", marks=pytest.mark.slow),
    ],
)
def test_a_server(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Whatever it is asked, no secret is anywhere but in the answers that give keys out."""
    (tmp_path / "keys.json").write_text(key_file())
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
    places: list[Place] = []
    with running_server(
        *given, "--access-log", *options, folder=tmp_path / "run", environ=environ, seed=None
    ) as server:
        given_out = call(server.dstack, "GetKey", {"path": "a"})
        assert given_out.json()["key"] == SECRETS["key of 'a'"].hex()  # these are the keys
        for endpoint in (server.dstack, server.tappd, server.url):
            places += asked_for_everything(endpoint)
        places += what_the_process_shows(server.process.pid)
        assert server.stop() == 0
        assert server.process.stdout is not None
        places.append(Place("stdout", (server.line + server.process.stdout.read()).encode()))
        places.append(Place("log and access log", server.log().encode()))
    kept = frozenset({"simulator.seed"})
    places += files_below(tmp_path / "run", but=kept)
    places += files_below(tmp_path / "tmp", but=frozenset())
    found, count = findings(iter(places))
    assert not found
    assert count > 300
    [log] = [one.content for one in places if one.name == "log and access log"]
    assert log.count(b"GetKey") > 6


BROKEN = {
    "cut": key_file()[:-400],
    "cut in a key": key_file()[: key_file().index(KEYS["disk_crypt_key"].hex()) + 20],
    "not hex": key_file(k256_key=KEYS["k256_key"].hex()[:-1] + "g"),
    "too long": key_file(k256_key=KEYS["k256_key"].hex() + "00"),
    "a number": key_file(env_crypt_key=int.from_bytes(KEYS["env_crypt_key"], "big")),
    "a list": key_file(env_crypt_key=list(KEYS["env_crypt_key"])),
    "a provider": key_file(key_provider={KEYS["ca_key"].hex(): 1}),
    "no PEM": key_file(key_provider={"Local": {"mr": "", "key": KEYS["ca_key"].hex()}}),
    "broken PEM": key_file(
        key_provider={
            "Local": {"mr": "", "key": P256Key.from_scalar(KEYS["ca_key"]).pkcs8_pem[:-60]}
        }
    ),
    "twice": key_file()[:-1] + f', "k256_key": "{KEYS["k256_key"].hex()}"}}',
    "a bad escape": key_file().replace(KEYS["k256_key"].hex(), KEYS["k256_key"].hex() + "\\x"),
    "not UTF-8": key_file() + "\udcff",
}


def program_that_shows_all(path: Path) -> str:
    """Return a program that tells an error in every way that Python has."""
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
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_key_file(tmp_path: Path, name: str) -> None:
    """What is wrong is told, in the log, a traceback, causes and contexts, without a value."""
    path = tmp_path / "keys.json"
    path.write_text(BROKEN[name], errors="surrogateescape")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program_that_shows_all(path)],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert b"ConfigError" in done.stderr
    assert not findings(iter([Place("stderr", done.stderr), Place("stdout", done.stdout)]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_server_with_a_broken_key_file(tmp_path: Path, name: str) -> None:
    """The server tells the same in one line, and ends."""
    (tmp_path / "keys.json").write_text(BROKEN[name], errors="surrogateescape")
    given = ("--backend", "simulator", "--dir", str(tmp_path), "--http", "none")
    done = run_to_end(*given, "--app-keys", "keys.json", "--log-level", "debug", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "keys.json" in done.stderr
    assert not findings(iter([Place("stderr", done.stderr.encode())]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED.hex()[:-1], SEED.hex() + "00", SEED.hex()[:-2] + "zz"])
@pytest.mark.parametrize("how", ["option", "file"])
def test_a_broken_seed(tmp_path: Path, seed: str, how: str) -> None:
    """A seed that is none is not told either."""
    (tmp_path / "seed").write_text(seed)
    option = ("--seed", seed) if how == "option" else ("--seed-file", "seed")
    done = run_to_end("--backend", "simulator", *option, "--http", "none", folder=tmp_path)
    assert done.returncode == 1
    assert "seed" in done.stderr
    assert not findings(iter([Place("stderr", done.stderr.encode())]))[0]


def commands(folder: Path) -> list[tuple[str, ...]]:
    """Return commands on files with marked keys, none of which shows a key."""
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
def test_the_command_line(tmp_path: Path) -> None:
    """Commands on the same files, also those that make no sense, show none."""
    (tmp_path / "keys.json").write_text(key_file())
    pki = {"key of a simulated app": AppKeys.from_seed(SEED).k256_key}
    for words in commands(tmp_path):
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
        assert not findings(iter([Place(words[0], shown)]))[0], words
        assert not search(shown, pki), words
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def told(error: BaseException | None) -> str:
    """Return what an error and all behind it show."""
    if error is None:
        return ""
    shown = f"{error} {error!r} {error.args} {vars(error)} "
    return shown + told(error.__cause__) + told(error.__context__)


def test_an_environment_that_cannot_be_read() -> None:
    """Neither an error about a decrypted environment nor its causes show any of it."""
    secret, value = KEYS["env_crypt_key"], SEED.hex()
    public = x25519_public_key(secret).hex()
    sealed = bytes.fromhex(encrypt_env_vars([("1NAME", value)], public))
    for damaged in (sealed, sealed[:-1], sealed[:-1] + b"\0", sealed[:40]):
        with pytest.raises(AttestKitError) as caught:
            decrypt_env_vars(secret, damaged, ["1NAME"])
        assert not search(told(caught.value).encode(), SECRETS)


def test_objects() -> None:
    """No object with a secret shows it, in whatever way it is written."""
    from attestkit._crypto.ecdsa import K256Key
    from attestkit._crypto.ed25519 import Ed25519Key
    from attestkit.keys import LocalKeys

    secret = KEYS["k256_key"]
    app_keys = AppKeys.from_json(key_file())
    keys = LocalKeys(app_keys)
    objects = (
        *(app_keys, keys, keys.derive("a"), keys.derive("a", algorithm="ed25519")),
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


@pytest.mark.parametrize("form", sorted(forms(SEED)))
def test_each_form_is_found(form: str) -> None:
    """A planted secret is found in each form, in the midst of other things."""
    needle = forms(SEED)[form]
    planted = b'{"time":"x","message":"' + needle + b'"}\n'
    [found] = search(planted, {"other": mark("other"), "seed": SEED})
    assert (found.secret, forms(SEED)[found.form]) == ("seed", needle)


def test_pem_and_what_is_broken_into_lines() -> None:
    """So is a key in PEM, raw DER, JSON of PEM, upper hex in lines, and Python's forms of it."""
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
