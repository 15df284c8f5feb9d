"""Each command's `--json` is what docs/schemas says, in good and in bad days."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import pytest

from attestkit.__main__ import main
from attestkit.attestation import Encoding
from attestkit.cli import COMMANDS
from tests.cli import evidence_files, schemas
from tests.cli.evidence_files import NONCE_HEX, Files
from tests.cli.test_cli import REAL, tpm_log
from tests.vectors import SHARED, needs_shared
from tests.verifier import parcels

Capture = pytest.CaptureFixture[str]
SIMULATED = ["--backend", "simulator", "--option", f"seed={'11' * 32}"]
# Whose output is no JSON: a script for a shell, and another program's.
WITHOUT = {"completion", "run"}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


def _run(capsys: Capture, command: str, *words: str, code: int = 0) -> Any:
    assert main([command, *words, "--json"]) == code
    return schemas.check(command, capsys.readouterr().out)


def test_every_command_has_a_schema() -> None:
    """Nothing is left out, and nothing is described that is not there."""
    assert schemas.read().keys() == COMMANDS.keys() - WITHOUT


def test_device_commands(tmp_path: Path, capsys: Capture) -> None:
    """Of a quote, evidence, an event and a key, each also written to a file."""
    quote = _run(capsys, "quote", *SIMULATED, "--text", "nonce")
    assert bytes.fromhex(quote["quote"])[568:573] == b"nonce"
    assert _run(capsys, "quote", *SIMULATED, "-o", str(tmp_path / "quote"))["output"]
    for encoding in get_args(Encoding):
        _run(capsys, "attest", *SIMULATED, "--encoding", encoding)
    _run(capsys, "attest", *SIMULATED, "-o", str(tmp_path / "evidence"))
    _run(capsys, "emit", *SIMULATED, "model-loaded", "00ff")
    assert _run(capsys, "key", *SIMULATED, "wallet/eth")["key"]
    assert _run(capsys, "key", *SIMULATED, "wallet/eth", "--public")["key"] is None
    assert _run(capsys, "key", *SIMULATED, "wallet/eth", "-o", str(tmp_path / "key"))["key"] is None
    for algorithm in ("secp256k1", "k256", "ed25519", "p256", "x25519"):
        _run(capsys, "key", *SIMULATED, "x", "--separated", "--algorithm", algorithm)


def test_show_of_what_is_made_here(files: Files, capsys: Capture) -> None:
    """Each form of simulated evidence, evidence that lies included."""
    hostile = files.put("hostile", evidence_files.hostile_evidence().to_bytes())
    for path in (*files[1:], hostile):
        _run(capsys, "show", str(path))
    for log in (
        tpm_log(11, 32, (11, bytes(32))),
        tpm_log(0x100, 8, (4, bytes(20)), (0x100, bytes(8))),
    ):
        _run(capsys, "show", str(files.put("log", log)))
        _run(capsys, "replay", str(files.folder / "log"))


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_show_of_real_files(name: str, capsys: Capture) -> None:
    """A real file of every kind."""
    _run(capsys, "show", str(SHARED / "data" / name))


def test_verdicts(files: Files, capsys: Capture) -> None:
    """Accepted, rejected, refused by policy, not verified and unreadable, alone and together."""
    quote = bytearray(files.quote.read_bytes())
    quote[200] ^= 1
    tampered = str(files.put("tampered", bytes(quote)))
    evidence, trusted = str(files.evidence), files.trusted
    for words, code in (
        ([evidence, *trusted, "--report-data", NONCE_HEX], 0),
        ([str(files.quote), *trusted], 0),
        ([str(files.certificate), *trusted], 0),
        ([str(files.bundle), *files.own_instant], 0),
        ([tampered, *trusted], 2),
        ([evidence, *trusted, "--report-data", "ff"], 4),
        ([evidence, *files.anchored], 3),
        ([str(files.folder / "none"), *trusted], 5),
    ):
        assert _run(capsys, "verify", *words, code=code)["exit_code"] == code
        _run(capsys, "report", *words, "-o", str(files.folder / "page"), code=code)
    _run(capsys, "verify", evidence, tampered, *trusted, code=2)
    _run(capsys, "policy", evidence, *trusted)


def test_replays(files: Files, capsys: Capture) -> None:
    """A log that agrees, one that does not, and one that is held to nothing."""
    log = parcels.evidence().event_log.to_json()
    shorter = json.dumps(json.loads(log)[:-1])
    _run(capsys, "replay", str(files.evidence))
    path = str(files.put("log.json", log.encode()))
    assert _run(capsys, "replay", path)["registers"]["rtmr3"]["agrees"] is None
    words = [str(files.put("shorter.json", shorter.encode())), "--quote", str(files.quote)]
    assert "RTMR3" in _run(capsys, "replay", *words, code=2)["error"]


@pytest.mark.slow
def test_doctor_bench_and_faults(tmp_path: Path, capsys: Capture) -> None:
    """The doctor of this machine and of an empty one, a short bench, the faults of a mount."""
    _run(capsys, "doctor", "--quote")
    _run(capsys, "doctor", "--root", str(tmp_path))
    _run(capsys, "bench", "--seconds", "0.1")
    _run(capsys, "mount", "--list-faults")
    _run(capsys, "mount", "--list-scenarios")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "/nowhere"], 5),
        (["quote", "--backend", "nothing"], 1),
        (["key", "x", "--algorithm", "rsa"], 1),
        (["policy", "/nowhere"], 5),
        (["replay", "/nowhere"], 5),
        (["doctor", "--root", "/nowhere"], 1),
    ],
)
def test_a_command_that_fails_has_no_json(words: list[str], code: int, capsys: Capture) -> None:
    """Nothing is on stdout that could be taken for a result; the line on stderr says why."""
    assert main([*words, "--json"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1


def _objects(schema: object, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield name, schema
        for key, value in schema.items():
            yield from _objects(value, f"{name}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _objects(value, f"{name}/{index}")


def test_no_field_is_left_undocumented() -> None:
    """Every object is closed, but those that another closes around them."""
    open_ones = [
        name
        for command, schema in schemas.read().items()
        for name, found in _objects(schema, command)
        if found.get("additionalProperties", found.get("unevaluatedProperties")) is not False
    ]
    assert open_ones == ["verify/$defs/accepted_fields", "verify/$defs/refused_fields"]


@pytest.mark.parametrize("command", ["verify", "report", "policy"])
def test_a_field_more_is_refused(command: str, files: Files, capsys: Capture) -> None:
    """Also where one schema closes another's object."""
    output = ["-o", str(files.folder / "page")] if command == "report" else []
    found = _run(capsys, command, str(files.evidence), *files.trusted, *output)
    outcome = {"verify": lambda: found["results"][0], "policy": lambda: found["evidence"]}
    outcome.get(command, lambda: found)()["more"] = 1
    with pytest.raises(jsonschema_rs.ValidationError):
        schemas.check(command, json.dumps(found))
