"""`attest`, `verify`, `show` and `ear` of evidence with GPUs, by the simulator."""

import json
import warnings
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from attestkit.attestation import Attestation
from attestkit.backends.simulator.gpu.gpu_host import GpuHost
from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuModeWarning, GpuServices
from attestkit.gpu.endorsement_fetcher import NVIDIA_OCSP_URL
from tests.cli import schemas
from tests.runner.cases import every_case
from tests.vectors import SHARED, needs_shared

Capture = pytest.CaptureFixture[str]
NONCE: Final = bytes(range(16)).hex()
SAMPLES: Final = {
    "reports/hopper-550.90.07/report.bin": "GPU report",
    "reports/ls10-96.10.55.00.01/report.bin": "GPU report",
    "evidence/ppcie-gpus.json": "GPU evidence",
    "evidence/ppcie-switches.json": "GPU evidence",
    "rims/NV_GPU_DRIVER_GH100_550.90.07.xml": "GPU reference manifest (RIM)",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with evidence of a TD and two GPUs, and what its verifier trusts."""
    options = ("--backend", "simulator", "--option", "gpus=2", "--nonce", NONCE)
    outputs = [
        *("-o", f"{tmp_path / 'evidence'}"),
        *("--save-trust-anchor", f"{tmp_path / 'root'}"),
        *("--save-collateral", f"{tmp_path / 'collateral'}"),
        *("--save-gpu-roots", f"{tmp_path / 'gpu-roots'}"),
        *("--save-gpu-endorsements", f"{tmp_path / 'gpu-endorsements'}"),
    ]
    assert main(["attest", *options, "--gpu", *outputs]) == 0
    return tmp_path


def trusted(folder: Path, *left_out: str) -> list[str]:
    """Return the options of a verifier that trusts the simulator."""
    names = {
        "--trust-anchor": "root",
        "--collateral": "collateral",
        "--gpu-roots": "gpu-roots",
        "--gpu-endorsements": "gpu-endorsements",
    }
    return [
        word
        for option, name in names.items()
        if option not in left_out
        for word in (option, f"{folder / name}")
    ]


def run_json(capsys: Capture, *words: str, code: int = 0) -> Any:
    """Run a command with --json; return its output, which matches the schema of the command."""
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    return schemas.check(words[0], capsys.readouterr().out)


def test_attest_encloses_gpus_in_cbor(files: Path) -> None:
    """The encoding is one that can contain the evidence of GPUs."""
    evidence = Attestation.from_bytes((files / "evidence").read_bytes())
    assert evidence.encoding == "cbor"
    assert evidence.gpu_evidence is not None


def test_json_of_simulated_roots_is_one_trust_anchor(
    files: Path, tmp_path: Path, capsys: Capture
) -> None:
    """--save-trust-anchor NAME.json writes every root, and --trust-anchor takes all of them."""
    roots = tmp_path / "roots.json"
    options = ("--backend", "simulator", "--option", "gpus=2", "--nonce", NONCE, "--gpu")
    outputs = ["--save-trust-anchor", f"{roots}", "--save-collateral", f"{files / 'collateral'}"]
    outputs += ["--save-gpu-endorsements", f"{files / 'gpu-endorsements'}"]
    assert main(["attest", *options, *outputs, "-o", f"{files / 'evidence'}"]) == 0
    words = ["verify", f"{files / 'evidence'}", "--nonce", NONCE, "--trust-anchor", f"{roots}"]
    words += trusted(files, "--trust-anchor", "--gpu-roots")
    [found] = run_json(capsys, *words)["results"]
    assert found["simulated"]
    assert len(found["gpu"]["devices"]) == 2
    assert main([*words, "--gpu-roots", f"{files / 'gpu-roots'}"]) == 1
    roots.write_bytes(b"{}")
    assert main(words) == 1


def test_attest_prints_warnings_about_gpus_on_stderr(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning about the mode of the GPUs is one line on stderr, and the evidence is written."""
    collect = GpuHost.gpu_evidence

    def collect_in_devtools_mode(host: GpuHost, nonce: bytes) -> GpuEvidence:
        warnings.warn("GPUs in DevTools mode", GpuModeWarning, stacklevel=2)
        return collect(host, nonce)

    monkeypatch.setattr(GpuHost, "gpu_evidence", collect_in_devtools_mode)
    options = ("--backend", "simulator", "--option", "gpus=1", "--nonce", NONCE)
    assert main(["attest", *options, "--gpu", "-o", f"{tmp_path / 'evidence'}"]) == 0
    _, warning = capsys.readouterr().err.splitlines()  # after that of the simulator
    assert warning == "attestkit: warning: GPUs in DevTools mode"
    assert (tmp_path / "evidence").exists()


def test_verify_accepts_enclosed_gpus(files: Path, capsys: Capture) -> None:
    """The result names the GPUs, and what binds them to the CPU."""
    words = ["verify", f"{files / 'evidence'}", *trusted(files), "--nonce", NONCE]
    [found] = run_json(capsys, *words)["results"]
    assert found["gpu"]["binding"] == "report_data"
    assert [device["chip"] for device in found["gpu"]["devices"]] == ["GH100", "GH100"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "2 x GH100" in printed
    assert "report data" in printed


def test_verify_takes_gpu_evidence_of_a_file(files: Path, capsys: Capture) -> None:
    """Evidence of GPUs may be beside that of the CPU; another one is refused."""
    evidence = Attestation.from_bytes((files / "evidence").read_bytes())
    assert evidence.gpu_evidence is not None
    (files / "plain").write_bytes(evidence.with_gpu_evidence(None).to_bytes("v0"))
    (files / "gpus.json").write_bytes(evidence.gpu_evidence.raw)
    words = ["verify", f"{files / 'plain'}", *trusted(files), "--nonce", NONCE]
    with_gpus = [*words, "--gpu-evidence", f"{files / 'gpus.json'}"]
    [found] = run_json(capsys, *with_gpus)["results"]
    assert found["gpu"]["binding"] == "report_data"
    [found] = run_json(capsys, *words, code=4)["results"]
    assert found["reason"] == "report_data"
    one = GpuEvidence(evidence.gpu_evidence.devices[:1])
    (files / "gpus.json").write_bytes(one.raw)
    assert main(with_gpus) == 4


@pytest.mark.parametrize(
    ("option", "code"), [("--gpu-roots", 2), ("--gpu-endorsements", 3), ("--trust-anchor", 2)]
)
def test_verify_without_trust_in_gpus_fails(
    option: str, code: int, files: Path, capsys: Capture
) -> None:
    """Other roots reject the evidence; missing endorsements do not, and have another code."""
    words = ["verify", f"{files / 'evidence'}", *trusted(files, option), "--nonce", NONCE]
    [found] = run_json(capsys, *words, code=code)["results"]
    assert found["exit_code"] == code


def test_policy_about_gpus(files: Path, capsys: Capture) -> None:
    """Rules of the table gpu are appraised."""
    policy = files / "policy.toml"
    words = ["verify", f"{files / 'evidence'}", *trusted(files), "--nonce", NONCE]
    for rules, code in (
        ("count = 2\nbinding = 'report_data'", 0),
        ("count = 8", 4),
        ("chips = ['GB100']", 4),
        ("min_driver = '1000'", 4),
        ("protected_pcie = true", 4),
    ):
        policy.write_text(f"preset = 'default'\n[gpu]\n{rules}\n")
        run_json(capsys, *words, "--policy", f"{policy}", code=code)


def test_bundle_and_ear_have_the_gpus(files: Path, capsys: Capture) -> None:
    """A saved bundle suffices for a later verification, and the EAR has a submodule a device."""
    bundle, ear, key = files / "bundle.json", files / "verdict", files / "ear.key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    keys = files / "keys.json"
    words = ["verify", f"{files / 'evidence'}", *trusted(files), "--nonce", NONCE]
    outputs = ["--save-bundle", f"{bundle}", "--save-ear", f"{ear}", "--save-ear-keys", f"{keys}"]
    assert main([*words, *outputs, "--ear-key", f"{key}"]) == 0
    later = ["verify", f"{bundle}", *trusted(files, "--collateral", "--gpu-endorsements")]
    [found] = run_json(capsys, *later, "--nonce", NONCE)["results"]
    assert found["gpu"]["binding"] == "report_data"
    shown = run_json(capsys, "ear", f"{ear}", "--key", f"{keys}", "--nonce", NONCE, code=4)
    assert shown["gpus"].keys() == {"nvidia-gpu-0", "nvidia-gpu-1"}


@every_case(
    "words",
    [
        ["--gpu"],
        ["--gpu", "--report-data", "00"],
        ["--gpu", "--nonce", NONCE, "--encoding", "v1"],
        ["--gpu", "--nonce", NONCE, "--save-gpu-roots", "-"],
    ],
)
def test_attest_refuses_wrong_options(words: list[str]) -> None:
    """GPUs need a nonce, and an encoding that can contain their evidence."""
    assert main(["attest", "--backend", "simulator", "--option", "gpus=1", *words]) == 1


@pytest.mark.parametrize("option", ["--save-gpu-roots", "--save-gpu-endorsements"])
def test_attest_overwrites_no_input_and_no_other_output(option: str, tmp_path: Path) -> None:
    """The file of an option is neither the seed of the simulator nor that of another option."""
    seed, one = tmp_path / "seed", tmp_path / "one"
    seed.write_bytes(bytes(32))
    words = ["attest", "--backend", "simulator", "--option", "gpus=1", "--nonce", NONCE, "--gpu"]
    words += ["-o", f"{tmp_path / 'evidence'}", "--option", f"seed=@{seed}"]
    assert main([*words, option, f"{seed}"]) == 1
    assert seed.read_bytes() == bytes(32)
    for other in ("--save-trust-anchor", "--save-collateral", "--record"):
        assert main([*words, option, f"{one}", other, f"{one}"]) == 1
        assert not one.exists()
    assert main([*words, option, f"{one}"]) == 0


@pytest.mark.parametrize("content", ["", "-----BEGIN CERTIFICATE-----", "{}", "\x80"])
@pytest.mark.parametrize("option", ["--gpu-roots", "--gpu-endorsements", "--gpu-evidence"])
def test_malformed_file_of_an_option_is_named(
    option: str, content: str, tmp_path: Path, capsys: Capture
) -> None:
    """A malformed file is a configuration error that names the option."""
    (tmp_path / "wrong").write_text(content, encoding="latin-1")
    words = ["verify", f"{tmp_path / 'evidence'}", "--nonce", NONCE]
    assert main([*words, option, f"{tmp_path / 'wrong'}"]) == 1
    assert option in capsys.readouterr().err


@needs_shared
@pytest.mark.parametrize("name", SAMPLES)
def test_show_recognises_files_of_gpus(name: str, capsys: Capture) -> None:
    """Reports, evidence and manifests are recognised by content."""
    path = f"{SHARED / 'data/gpu' / name}"
    assert run_json(capsys, "show", path)["kind"] == SAMPLES[name]
    assert main(["show", path]) == 0


def test_show_of_endorsements_and_enclosed_gpus(files: Path, capsys: Capture) -> None:
    """Endorsements list their manifests, and evidence the GPUs that it encloses."""
    found = run_json(capsys, "show", f"{files / 'gpu-endorsements'}")
    endorsements = GpuEndorsements.load(files / "gpu-endorsements")
    assert [rim["identifier"] for rim in found["rims"]] == list(endorsements.rims)
    assert found["ocsp_answers"] == len(endorsements.ocsp)
    found = run_json(capsys, "show", f"{files / 'evidence'}")
    assert [device["chip"] for device in found["gpu_evidence"]["devices"]] == ["GH100", "GH100"]


def test_show_of_a_malformed_report_shows_its_device(files: Path, capsys: Capture) -> None:
    """A malformed report does not hide the rest of its device, and the other devices."""
    evidence = Attestation.from_bytes((files / "evidence").read_bytes()).gpu_evidence
    assert evidence is not None
    devices = json.loads(evidence.raw)
    devices[0]["evidence"] = "AAAA"
    path = files / "gpus.json"
    path.write_text(json.dumps(devices))
    first, second = run_json(capsys, "show", f"{path}")["devices"]
    assert first["error"]
    assert first["chip"] == second["chip"]
    assert first["driver_version"] is None
    assert second["error"] is None


def test_endorsements_are_fetched_on_request(
    files: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the option missing endorsements are fetched once; without GPUs nothing is."""
    fetched = []

    def fetch(evidence: GpuEvidence, services: GpuServices | None, **_: object) -> GpuEndorsements:
        fetched.append((len(evidence.devices), services and (services.rim_url, services.ocsp_url)))
        return GpuEndorsements.load(files / "gpu-endorsements")

    monkeypatch.setattr(GpuEndorsements, "fetch", fetch)
    words = ["verify", f"{files / 'evidence'}", "--nonce", NONCE, "--fetch-gpu-endorsements"]
    [found] = run_json(capsys, *words, *trusted(files, "--gpu-endorsements"))["results"]
    assert found["gpu"]["binding"] == "report_data"
    assert main([*words, *trusted(files)]) == 0
    assert fetched == [(2, None)]
    mirror = ("http://mirror.example", NVIDIA_OCSP_URL)
    fetched.clear()
    own = [*words, *trusted(files, "--gpu-endorsements"), "--gpu-rim-url", mirror[0]]
    assert main(own) == 0
    assert fetched == [(2, mirror)]
    assert main([*own, "--gpu-ocsp-url", "ftp://responder.example"]) == 1
    assert main([word for word in own if word != "--fetch-gpu-endorsements"]) == 1
    assert len(fetched) == 1
