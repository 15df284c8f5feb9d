"""`--json` output of each command matches docs/schemas."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from attestkit.__main__ import main
from attestkit.cli import COMMANDS
from attestkit.verifier import StepCheck, StepOutcome
from tests.attestation.samples import DSTACK_ENCODINGS
from tests.cli import evidence_files, schemas
from tests.cli.commands.test_show import tpm_log
from tests.cli.evidence_files import NONCE_HEX, Files
from tests.cli.program import SIMULATED
from tests.verifier.platforms import intel

Capture = pytest.CaptureFixture[str]
# Without JSON output: a shell script, an answer, and the output of another program.
WITHOUT = {"completion", "curl", "run"}


def _run(capsys: Capture, command: str, *words: str, code: int = 0) -> Any:
    assert main([command, *words, "--json"]) == code
    return schemas.check(command, capsys.readouterr().out)


def test_schemas_cover_every_command() -> None:
    """Every command with JSON output has a schema, and no schema is unused."""
    assert schemas.read().keys() == COMMANDS.keys() - WITHOUT


def test_device_commands_json_matches_schema(tmp_path: Path, capsys: Capture) -> None:
    """quote, attest, emit and key match their schemas, with and without output files."""
    quote = _run(capsys, "quote", *SIMULATED, "--text", "nonce")
    assert bytes.fromhex(quote["quote"])[568:573] == b"nonce"
    assert _run(capsys, "quote", *SIMULATED, "-o", str(tmp_path / "quote"))["output"]
    for encoding in DSTACK_ENCODINGS:
        _run(capsys, "attest", *SIMULATED, "--encoding", encoding)
    _run(capsys, "attest", *SIMULATED, "-o", str(tmp_path / "evidence"))
    _run(capsys, "emit", *SIMULATED, "model-loaded", "00ff")
    assert _run(capsys, "key", *SIMULATED, "wallet/eth")["key"]
    assert _run(capsys, "key", *SIMULATED, "wallet/eth", "--public")["key"] is None
    assert _run(capsys, "key", *SIMULATED, "wallet/eth", "-o", str(tmp_path / "key"))["key"] is None
    for algorithm in ("secp256k1", "k256", "ed25519", "p256", "x25519"):
        _run(capsys, "key", *SIMULATED, "x", "--separated", "--algorithm", algorithm)


def test_show_simulated_files_json_matches_schema(files: Files, capsys: Capture) -> None:
    """Simulated evidence in every format, including hostile, matches the schema."""
    hostile = files.put("hostile", evidence_files.hostile_evidence().to_bytes())
    for path in (*files[1:], hostile):
        _run(capsys, "show", str(path))
    for log in (
        tpm_log(11, 32, (11, bytes(32))),
        tpm_log(0x100, 8, (4, bytes(20)), (0x100, bytes(8))),
    ):
        _run(capsys, "show", str(files.put("log", log)))
        _run(capsys, "replay", str(files.folder / "log"))


def test_verify_and_report_json_matches_schema(files: Files, capsys: Capture) -> None:
    """Every outcome matches the schemas of verify, report and policy."""
    evidence, tampered, trusted = str(files.evidence), str(files.tampered()), files.trusted
    for words, code in (
        ([evidence, *trusted, "--nonce", NONCE_HEX], 0),
        ([str(files.quote), *trusted], 0),
        ([str(files.certificate), *trusted], 0),
        ([str(files.bundle), *files.own_instant], 0),
        ([tampered, *trusted], 2),
        ([evidence, *trusted, "--report-data", "ff"], 4),
        ([evidence, *files.anchored], 3),
        ([str(files.folder / "none"), *trusted], 5),
    ):
        more = ["--any-freshness", *words]
        assert _run(capsys, "verify", *more, code=code)["exit_code"] == code
        _run(capsys, "report", *words, "-o", str(files.folder / "page"), code=code)
    _run(capsys, "verify", "--any-freshness", evidence, tampered, *trusted, code=2)
    _run(capsys, "policy", evidence, *trusted)


def test_replay_json_matches_schema(files: Files, capsys: Capture) -> None:
    """Agreement, disagreement and no comparison match the schema."""
    log = intel.evidence().event_log.to_json()
    shorter = json.dumps(json.loads(log)[:-1])
    _run(capsys, "replay", str(files.evidence))
    path = str(files.put("log.json", log.encode()))
    assert _run(capsys, "replay", path)["registers"]["rtmr3"]["agrees"] is None
    words = [str(files.put("shorter.json", shorter.encode())), "--against", str(files.quote)]
    assert "RTMR3" in _run(capsys, "replay", *words, code=2)["error"]


@pytest.mark.slow
def test_machine_commands_json_matches_schema(tmp_path: Path, capsys: Capture) -> None:
    """Doctor and the lists of mount match their schemas."""
    _run(capsys, "doctor", "--quote")
    _run(capsys, "doctor", "--root", str(tmp_path))
    _run(capsys, "mount", "--list-faults")
    _run(capsys, "mount", "--list-scenarios")


def _objects(schema: object, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield name, schema
        for key, value in schema.items():
            yield from _objects(value, f"{name}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _objects(value, f"{name}/{index}")


def test_schema_of_steps_has_every_check() -> None:
    """The closed lists of a step's check and outcome are those of the code."""
    properties = schemas.read()["verify"]["$defs"]["step"]["properties"]
    assert tuple(properties["check"]["enum"]) == get_args(StepCheck)
    assert tuple(properties["outcome"]["enum"]) == get_args(StepOutcome)


def test_schemas_close_every_object() -> None:
    """Every object is closed, except those closed by a referring schema."""
    open_ones = [
        name
        for command, schema in schemas.read().items()
        for name, found in _objects(schema, command)
        if found.get("additionalProperties", found.get("unevaluatedProperties")) is not False
    ]
    assert open_ones == ["verify/$defs/accepted_fields", "verify/$defs/refused_fields"]
