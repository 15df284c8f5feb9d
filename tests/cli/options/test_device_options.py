"""`--backend`, `--option`, `--record`: which TEE a command asks, and what its backend is told."""

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
from attestkit.cli.options.backend_values import option_types
from attestkit.errors import UsageError
from tests.cli.snp_guest import SnpGuest
from tests.untyped import untyped
from tests.vectors import SHARED, needs_shared

Capture = pytest.CaptureFixture[str]
SEED = "11" * 32
SIMULATED = ["--backend", "simulator", "--option", f"seed={SEED}"]
SAID = "attestkit: SIMULATED: proves nothing about hardware"


def test_nothing_here_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Exit code 3 in one short line; the simulator is named, and never taken."""
    monkeypatch.setattr(backends, "AUTO_ORDER", ())
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    for words in (["quote"], ["attest"], ["emit", "x"], ["key", "x"]):
        assert main(words) == 3
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err == (
            "attestkit: no TEE can be used here: attestkit doctor says what is missing, and what "
            "to do about it; for development there is --backend simulator\n"
        )


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """As for the library, and the option is stronger."""
    monkeypatch.setenv("ATTESTKIT_BACKEND", "simulator")
    assert main(["quote", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["simulated"] is True
    assert told.err.startswith(SAID)
    assert main(["quote", "--backend", "nothing"]) == 1
    assert "no backend is called 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "0x", "0X"])
def test_hex_may_begin_with_0x(prefix: str, capsys: Capture) -> None:
    """Wherever there is hex, in small and in capital letters."""
    words = ["--backend", "simulator", "--option", f"seed={prefix}{SEED}", "--json"]
    assert main(["quote", *words, "--report-data", f"{prefix}AB"]) == 0
    assert json.loads(capsys.readouterr().out)["report_data"] == "ab".ljust(128, "0")
    assert main(["emit", *words, "event", f"{prefix}AB"]) == 0
    assert json.loads(capsys.readouterr().out)["event"]["payload"] == "ab"


def test_a_hardware_backend_that_is_not_here_is_code_3(tmp_path: Path, capsys: Capture) -> None:
    """With the path that was looked at, which its own option moved."""
    for name in ("configfs_tsm", "tdx_ioctl"):
        assert main(["quote", "--backend", name, "--option", f"root={tmp_path}"]) == 3
        assert str(tmp_path) in capsys.readouterr().err


def test_a_recording_answers_as_it_was_answered(tmp_path: Path, capsys: Capture) -> None:
    """Byte for byte, and nothing else: a new nonce was not asked then. It is never written over."""
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
    assert "is not written over" in capsys.readouterr().err


def test_faults_strike(capsys: Capture) -> None:
    """A device that is busy, or gives nothing, is code 3, in one line that names the fault."""
    for fault in ("ebusy", "empty_outblob"):
        assert main(["quote", *SIMULATED, "--option", f"faults={fault}"]) == 3
        [_, line] = capsys.readouterr().err.splitlines()
        assert fault in line


class _Plugin:
    """A backend with an option of every kind."""

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
        del hook
        type(self).taken = {
            "blob": blob,
            "flag": flag,
            "level": level,
            "seconds": seconds,
            "folder": folder,
            "version": version,
            "either": either,
            "anything": anything,
            "unknown": unknown,
        }
        raise UsageError("this one only looks at its options")

    del __init__.__annotations__["unknown"]  # as with an option whose type nobody wrote down


def test_options_become_what_the_signature_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Of any backend: bytes, numbers, switches, choices, paths, text; what is none of it is not."""
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
        ("version=6", "--option version is one of 4, 5"),
        ("flag=maybe", "--option flag is true or false"),
        ("seconds=soon", "--option seconds is a number"),
    ):
        assert main(["quote", "--backend", "plugin", "--option", option]) == 1
        assert text in capsys.readouterr().err


@needs_shared
def test_a_quote_of_snp_is_its_report(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Where there are no quotes users get what their hardware signs, over what they asked."""
    digits = (SHARED / "data/snp/virtee-sev/report_milan.hex").read_text()
    monkeypatch.setattr(SnpGuest, "raw", bytes.fromhex(digits.strip()))
    monkeypatch.setattr(backends, "load", lambda name: {"snp_guest": SnpGuest}[name])
    stdout = SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: False, flush=lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert main(["quote", "--backend", "snp_guest", "--text", "nonce"]) == 0
    raw = stdout.buffer.getvalue()
    assert len(raw) == 1184
    assert raw[0x50:0x90] == b"nonce".ljust(64, b"\0")
    assert main(["quote", "--backend", "snp_guest", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["kind"] == "SEV-SNP report"
    assert told.err == ""
    assert main(["emit", "--backend", "snp_guest", "x"]) == 3
    assert "no run-time registers" in capsys.readouterr().err
