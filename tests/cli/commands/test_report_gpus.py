"""`attestkit report` of evidence with GPUs: a picture of each, and what is not proven."""

from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from attestkit.__main__ import main
from attestkit.attestation import Attestation
from attestkit.cli.report.gpu_section import build_strip, draw_connections
from attestkit.gpu import GpuEvidence
from tests.cli.commands.test_gpus import NONCE, trusted
from tests.cli.commands.test_report import Reader, read
from tests.runner.cases import every_case

MATCHED: Final = 33  # measurements with reference values in the simulator


def make(folder: Path, *options: str) -> Path:
    """Write evidence of a simulated TD with GPUs, and what its verifier trusts."""
    words = ["--backend", "simulator", "--nonce", NONCE, "--gpu"]
    for option in options:
        words += ["--option", option]
    for option, name in (
        ("-o", "evidence"),
        ("--save-trust-anchor", "root"),
        ("--save-collateral", "collateral"),
        ("--save-gpu-roots", "gpu-roots"),
        ("--save-gpu-endorsements", "gpu-endorsements"),
    ):
        words += [option, f"{folder / name}"]
    assert main(["attest", *words]) == 0
    return folder


def report(folder: Path, *words: str, name: str = "evidence", code: int = 0) -> tuple[Reader, str]:
    """Run the command; return the page parsed, and its text."""
    page = folder / "page.html"
    verifier = [*trusted(folder), "--nonce", NONCE]
    assert main(["report", f"{folder / name}", *verifier, *words, "-o", f"{page}"]) == code
    return read(page), page.read_text("utf-8")


def cells(text: str, css: str) -> int:
    """Return the number of measurements with a state in the pictures of a page."""
    return text.count(f'<g class="{css}">')


@pytest.fixture(scope="module")
def one_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with evidence of a TD with one GPU."""
    return make(tmp_path_factory.mktemp("one"), "gpus=1")


def test_report_has_a_picture_of_a_gpu(one_gpu: Path) -> None:
    """The card of a GPU has its measurements, certificates, manifests, OCSP and binding."""
    page, text = report(one_gpu)
    assert "gpus" in page.ids
    assert (cells(text, "matched"), cells(text, "unused")) == (MATCHED, 64 - MATCHED)
    for expected in (
        "GH100 (HOPPER)",
        "999.10.01",
        "96.00.9F.00.01",
        "33 measurements match",
        "report data",
        "the CPU's report data commit to the GPU evidence",
        "given, not NVIDIA's",
        "GH100 A01 GSP BROM",
        "attestkit simulated GPU device root",
        "NV_GPU_DRIVER_GH100_999.10.01",
        "Simulated RIM L4 Signer",
        "2049-12-31",
        "the provisioner's CA",
        "good",
        "Not proven",
        "The machine of the GPUs",
    ):
        assert expected in page.text, expected
    assert "unverified" not in page.text
    assert '<svg class="links"' not in text


def test_report_shows_connections_with_switches(tmp_path: Path) -> None:
    """Eight GPUs are connected to four switches, whose measurements are shown, too."""
    page, text = report(make(tmp_path, "gpus=8"))
    assert text.count("<line x1=") == 8 * 4
    assert cells(text, "matched") == 8 * MATCHED + 4 * 31
    assert "Switch 11" in page.text
    assert "protected PCIe" in page.text
    assert "exactly the switches" in page.text


def test_report_marks_measurements_that_were_not_compared_or_differ(tmp_path: Path) -> None:
    """A skipped and an accepted differing measurement have marks of their own."""
    (tmp_path / "off").mkdir()
    _, text = report(make(tmp_path / "off", "scenario=gpu-measurement-35-nvdec-off"))
    assert cells(text, "skipped") == 1
    assert "<title>35: not compared: video decoder 0 is off</title>" in text
    folder = make(tmp_path, "scenario=gpu-measurement-25")
    (folder / "policy.toml").write_text(
        "preset = 'default'\n[gpu]\nrequired = true\naccepted_mismatches = [25]\n"
    )
    page, text = report(folder, "--policy", f"{folder / 'policy.toml'}")
    assert cells(text, "differs") == 1
    assert "32 measurements match, 1 differ" in page.text
    page, text = report(folder, code=2)
    assert cells(text, "unused") == 64
    assert "33 measurements match" not in page.text


def test_report_of_only_a_shared_nonce_names_the_relay(one_gpu: Path, tmp_path: Path) -> None:
    """GPUs that share a nonce with the CPU have a dashed bond and the caution."""
    whole = Attestation.from_bytes((one_gpu / "evidence").read_bytes())
    assert whole.gpu_evidence is not None
    (tmp_path / "gpus.json").write_bytes(whole.gpu_evidence.raw)
    for name in ("gpu-roots", "gpu-endorsements"):
        (tmp_path / name).write_bytes((one_gpu / name).read_bytes())
    words = ["attest", "--backend", "simulator", "--nonce", NONCE, "-o", f"{tmp_path / 'evidence'}"]
    words += ["--save-trust-anchor", f"{tmp_path / 'root'}"]
    assert main([*words, "--save-collateral", f"{tmp_path / 'collateral'}"]) == 0
    page, text = report(tmp_path, "--gpu-evidence", f"{tmp_path / 'gpus.json'}")
    assert "nonce only" in page.text
    assert '<line class="warn"' in text
    assert "whose evidence is relayed" in page.text.partition("Not proven")[2]


def test_report_of_rejected_gpus_is_marked_unverified(one_gpu: Path, tmp_path: Path) -> None:
    """Text of a report without a valid signature is escaped, and nothing counts as compared."""
    whole = Attestation.from_bytes((one_gpu / "evidence").read_bytes())
    assert whole.gpu_evidence is not None
    [device] = whole.gpu_evidence.devices
    changed = device.report.replace(b"999.10.01", b"<script>a")
    assert changed != device.report
    broken = GpuEvidence((type(device)(device.architecture, changed, device.certificates),))
    (tmp_path / "gpus.json").write_bytes(broken.raw)
    for name in ("evidence", "root", "collateral", "gpu-roots", "gpu-endorsements"):
        (tmp_path / name).write_bytes((one_gpu / name).read_bytes())
    page, text = report(tmp_path, "--gpu-evidence", f"{tmp_path / 'gpus.json'}", code=4)
    assert "no signature was verified" in page.text
    assert "<script>a" in page.text  # `read` refuses the tag
    assert "not verified" in page.text
    assert cells(text, "matched") == 0


@every_case("count", [0, 1, 31, 64])
def test_strip_has_a_cell_for_each_measurement(count: int) -> None:
    """The cells are in rows of sixteen, and do not overlap."""
    strip = build_strip(count, matched=range(0, count, 2))
    assert [cell.number for cell in strip.cells] == list(range(count))
    assert len({(cell.x, cell.y) for cell in strip.cells}) == count
    assert all(cell.x < strip.width and cell.y < strip.height for cell in strip.cells)


def test_connections_of_many_devices_do_not_overlap() -> None:
    """Nodes have a distance that is wider than their boxes."""
    picture = draw_connections(range(30), range(30, 64), connected=True)
    for row in (picture.gpus, picture.switches):
        assert min(b.x - a.x for a, b in pairwise(row)) >= 60
