"""`--backend`, `--option` and `--record` of device commands."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from attestkit import backends
from attestkit.__main__ import main
from attestkit.backends import detection
from attestkit.cli.options.backend import option_types
from attestkit.errors import UsageError
from tests.cli.program import SIMULATED, WARNING
from tests.machines.tees import FakeSnp
from tests.untyped import untyped

Capture = pytest.CaptureFixture[str]


def test_device_commands_without_tee_name_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Without a TEE, the exit code is 3 and the line names the simulator, which is not used."""
    monkeypatch.setattr(detection, "AUTO_ORDER", ())
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    for words in (["quote"], ["attest"], ["emit", "x"], ["key", "x"]):
        assert main(words) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == (
            "attestkit: no usable TEE found; run attestkit doctor for what is missing, or use "
            "--backend simulator for development\n"
        )


def test_backend_option_overrides_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """$ATTESTKIT_BACKEND selects the backend, and --backend overrides it."""
    monkeypatch.setenv("ATTESTKIT_BACKEND", "simulator")
    assert main(["quote", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["simulated"] is True
    assert captured.err.startswith(WARNING)
    assert main(["quote", "--backend", "nothing"]) == 1
    assert "not 'nothing'" in capsys.readouterr().err


def test_quote_without_hardware_is_code_3(tmp_path: Path, capsys: Capture) -> None:
    """A missing hardware backend has exit code 3 and names the path."""
    for name in ("configfs_tsm", "tdx_ioctl"):
        assert main(["quote", "--backend", name, "--option", f"root={tmp_path}"]) == 3
        assert str(tmp_path) in capsys.readouterr().err


def test_recording_replays_recorded_evidence(tmp_path: Path, capsys: Capture) -> None:
    """A recording returns identical evidence, refuses other requests, and is not overwritten."""
    record, root = str(tmp_path / "recording"), str(tmp_path / "root")
    recording = [*SIMULATED, "--record", record, "--text", "x"]
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(["attest", *recording, "-o", str(one), "--save-trust-anchor", root]) == 0
    assert Path(root).read_text().startswith("-----BEGIN CERTIFICATE")
    replayed = ["attest", "--backend", "recording", "--option", f"path={record}"]
    assert main([*replayed, "--text", "x", "-o", str(other)]) == 0
    assert one.read_bytes() == other.read_bytes()
    assert main([*replayed, "--text", "y"]) == 3
    assert "was not recorded" in capsys.readouterr().err
    assert main(["attest", *recording]) == 1
    assert "never overwritten" in capsys.readouterr().err


def test_quote_reports_injected_fault(capsys: Capture) -> None:
    """An injected fault has exit code 3 and one line that names it."""
    for fault in ("ebusy", "empty_outblob"):
        assert main(["quote", *SIMULATED, "--option", f"faults={fault}"]) == 3
        [_, line] = capsys.readouterr().err.splitlines()
        assert fault in line


class _Plugin:
    """A backend with an option of every type."""

    name = "plugin"
    taken: dict[str, object]

    def __init__(
        self,
        *,
        blob: bytes | None = None,
        flag: bool = False,
        level: int | None = None,
        seconds: float = 1.0,
        folder: str | os.PathLike[str] | None = None,
        version: Literal[4, 5] = 4,
        either: int | str = 0,
        anything: object = None,
        unknown: object = None,
        hook: io.BytesIO | None = None,
    ) -> None:
        given = dict(locals())
        type(self).taken = {name: given[name] for name in given.keys() - {"self", "hook"}}
        raise UsageError("this one only looks at its options", reason="wrong_value")

    del __init__.__annotations__["unknown"]  # like an option without a type annotation


def test_backend_options_are_converted_by_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Options are converted to the types of the backend's signature."""
    monkeypatch.setattr(backends, "load", lambda name: {"plugin": _Plugin}[name])
    blob = tmp_path / "blob"
    blob.write_bytes(b"\1\2")
    given = {
        "blob": f"@{blob}",
        "flag": "yes",
        "level": "3",
        "seconds": "0.5",
        "folder": "/tmp",
        "version": "5",
        "either": "x",
        "anything": "7",
        "unknown": "8",
    }
    words = [word for name, text in given.items() for word in ("--option", f"{name}={text}")]
    assert main(["quote", "--backend", "plugin", *words]) == 1
    assert "only looks at its options" in capsys.readouterr().err
    assert _Plugin.taken == {
        **given,
        "blob": b"\1\2",
        "flag": True,
        "level": 3,
        "seconds": 0.5,
        "version": 5,
    }
    assert "hook" not in option_types(untyped(_Plugin))
    for option, text in (
        ("version=6", "--option version: must be one of 4, 5"),
        ("flag=maybe", "--option flag: must be true or false"),
        ("seconds=soon", "--option seconds: must be a number"),
    ):
        assert main(["quote", "--backend", "plugin", "--option", option]) == 1
        assert text in capsys.readouterr().err


def test_quote_on_snp_writes_report(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """On SEV-SNP, `quote` writes the report with the requested report data."""
    monkeypatch.setattr(backends, "load", lambda name: {"fake_snp": FakeSnp}[name])
    stdout = SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: False, flush=lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert main(["quote", "--backend", "fake_snp", "--text", "nonce"]) == 0
    raw = stdout.buffer.getvalue()
    assert len(raw) == 1184
    assert raw[0x50:0x90] == b"nonce".ljust(64, b"\0")
    assert main(["quote", "--backend", "fake_snp", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "SEV-SNP report"
    assert captured.err == ""
    assert main(["emit", "--backend", "fake_snp", "x"]) == 3
    assert "no run-time registers" in capsys.readouterr().err
