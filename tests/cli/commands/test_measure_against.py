"""`attestkit measure --against`: what differs in evidence, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.__main__ import main
from attestkit.attestation import Attestation
from attestkit.event_log import EventLog
from attestkit.measure import dstack_image, find_differences, snp
from tests.cli import program, schemas
from tests.measure.image_samples import write_folder
from tests.measure.kernel.samples import linux_kernel
from tests.measure.measured_guest import VM_CONFIG, evidence_of, image_files
from tests.measure.sev_snp.images import sev_image

pytestmark = pytest.mark.usefixtures("folder")

Capture = pytest.CaptureFixture[str]
IMAGE = ("--image", "image")
FULL = (*IMAGE, "--vm-config", "vm.json")


def stating(evidence: Attestation, config: str) -> Attestation:
    """Return evidence with a VM configuration."""
    assert evidence.quote is not None
    return Attestation.for_tdx(evidence.quote, evidence.event_log, config)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image and evidence, which is the current one."""
    image = write_folder(tmp_path / "image", image_files())
    other = write_folder(tmp_path / "other-image", image_files(b"another initrd"))
    bigger = VM_CONFIG | {"cpu_count": 4, "memory_size": 16 << 30}
    stated = json.dumps(VM_CONFIG)
    files = {
        "same": stating(evidence_of(dstack_image(image, VM_CONFIG)), stated).to_bytes(),
        "other": evidence_of(dstack_image(other, VM_CONFIG)).to_bytes(),
        "bigger": evidence_of(dstack_image(image, bigger)).to_bytes(),
        "stated": stating(evidence_of(dstack_image(image, bigger)), stated).to_bytes(),
        "vm.json": stated.encode(),
        "sev.fd": sev_image(),
        "bzImage": linux_kernel(),
    }
    write_folder(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(capsys: Capture, *words: str, code: int = 0) -> str:
    """Run the command; return its output."""
    assert main(["measure", *words]) == code
    captured = capsys.readouterr()
    assert bool(captured.err) == (code not in {0, 2}), captured.err
    return captured.out


def compared(capsys: Capture, *words: str, code: int = 2) -> dict[str, Any]:
    """Return the comparison in JSON, which is valid by the schema."""
    found = schemas.check("measure", run(capsys, *words, "--json", code=code))
    comparison: dict[str, Any] = found["against"]
    return comparison


def test_evidence_as_expected(capsys: Capture) -> None:
    """Evidence of the image ends with 0, and says that nothing was verified."""
    text = run(capsys, *FULL, "--against", "same")
    assert text.startswith("[ok] same: as expected\n")
    assert "not verified" in text
    found = compared(capsys, *FULL, "--against", "same", code=0)
    assert found == {"evidence": "same", "shape": None, "differences": [], "not_compared": []}


def test_register_that_is_not_compared_is_named(folder: Path, capsys: Capture) -> None:
    """A shortened log has no digests of ACPI tables, so that RTMR0 may be any."""
    unknown = json.dumps(VM_CONFIG | {"cpu_count": 201})
    (folder / "unknown.json").write_text(unknown)
    evidence = Attestation.from_bytes((folder / "bigger").read_bytes())
    assert evidence.quote is not None
    runtime = EventLog([event for event in evidence.event_log.events if event.register == 3])
    short = Attestation.for_tdx(evidence.quote, runtime, unknown)
    (folder / "short").write_bytes(short.to_bytes())
    options = (*IMAGE, "--vm-config", "unknown.json", "--against", "short")
    found = compared(capsys, *options, code=0)
    assert (found["differences"], found["not_compared"]) == ([], ["rtmr0"])
    text = run(capsys, *options)
    assert text.startswith("[ok] short: as expected; not compared: rtmr0\n")


def test_difference_is_named(folder: Path, capsys: Capture) -> None:
    """Another initrd ends with 2; table and JSON have event, values and cause."""
    text = run(capsys, *FULL, "--against", "other", code=2)
    (found,) = compared(capsys, *FULL, "--against", "other")["differences"]
    assert (found["register"], found["event"], found["kind"]) == ("rtmr2", "initrd", "changed")
    assert (found["cause"]["name"], found["cause"]["proven"]) == ("initrd", False)
    for part in (found["expected"], found["actual"], "likely cause  initrd: "):
        assert part in text
    expected = dstack_image(folder / "image", VM_CONFIG)
    evidence = Attestation.from_bytes((folder / "other").read_bytes())
    assert [one.to_dict() for one in find_differences(expected, evidence)] == [found]


def test_closed_pipe_does_not_hide_a_difference() -> None:
    """A closed pipe at stdout does not change the exit code of the comparison."""
    for name, code in (("same", 0), ("other", 2)):
        for form in ((), ("--json",)):
            with program.closed_pipe() as writer:
                done = program.run("measure", *FULL, "--against", name, *form, stdout=writer)
            assert (done.returncode, done.stderr) == (code, "")


def test_machine_of_the_evidence_is_named(capsys: Capture) -> None:
    """Another memory size and number of vCPUs are found; the first event is the TD HOB."""
    found = compared(capsys, *FULL, "--against", "bigger")["differences"]
    assert [one["register"] for one in found] == ["rtmr0"]
    assert found[0]["cause"]["name"] == "memory_size"
    assert found[0]["cause"]["value"] == 16 << 30
    text = run(capsys, *FULL, "--against", "bigger", code=2)
    assert "cause       memory_size: the guest has 16 GiB of memory, expected 2 GiB" in text


def test_shape_is_searched_without_options(capsys: Capture) -> None:
    """Without a shape, it is that of the evidence: stated, else found from the digests."""
    found = compared(capsys, *IMAGE, "--against", "bigger", code=0)
    assert (found["shape"], found["differences"]) == ("search", [])
    assert "found from digests" in run(capsys, *IMAGE, "--against", "bigger")
    found = compared(capsys, *IMAGE, "--against", "same", code=0)
    assert found["shape"] == "vm_config"
    found = compared(capsys, *IMAGE, "--against", "stated")
    assert found["shape"] == "vm_config"
    assert found["differences"][0]["cause"]["name"] == "memory_size"
    found = compared(capsys, *IMAGE, "--num-nics", "2", "--against", "same")
    assert found["differences"][0]["event"] == "acpi-loader"
    assert found["differences"][0]["cause"]["name"] == "pci_slots"


def test_log_of_another_boot_is_the_answer(folder: Path, capsys: Capture) -> None:
    """A log that does not replay to the quote ends with 2, and is the only difference."""
    same, other = (
        Attestation.from_bytes((folder / name).read_bytes()) for name in ("same", "other")
    )
    assert same.quote is not None
    mixed = Attestation.for_tdx(same.quote, other.event_log)
    (folder / "mixed").write_bytes(mixed.to_bytes())
    (found,) = compared(capsys, *FULL, "--against", "mixed")["differences"]
    assert (found["kind"], found["cause"]["name"]) == ("log", "log_not_of_quote")


def test_snp_evidence(folder: Path, capsys: Capture) -> None:
    """The launch digest of evidence is compared, and its cause found."""
    with attestkit.open("simulator", platform="snp") as tee:
        (folder / "snp").write_bytes(tee.attest(report_data=bytes(64)).to_bytes())
    words = ("--snp", "--firmware", "sev.fd", "--cpu-count", "2", "--cpu-type", "EPYC-v4")
    (found,) = compared(capsys, *words, "--against", "snp")["differences"]
    assert (found["register"], found["cause"]["name"]) == ("launch_digest", "launch_inputs")
    assert snp(firmware=sev_image(), vcpus=2, cpu_type="EPYC-v4").launch_digest is not None
    (found,) = compared(capsys, *words, "--kernel", "bzImage", "--against", "same")["differences"]
    assert found["cause"]["name"] == "other_platform"


def test_output_goes_to_a_file(folder: Path, capsys: Capture) -> None:
    """JSON can be written to a file; the exit code stays."""
    words = (*FULL, "--against", "other", "--json", "-o", "found.json")
    run(capsys, *words, code=2)
    found = schemas.check("measure", (folder / "found.json").read_text())
    assert len(found["against"]["differences"]) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((*FULL, "--against", "same", "--log", "same"), 1),
        ((*FULL, "--against", "same", "--format", "toml"), 1),
        ((*FULL, "--against", "vm.json"), 5),
        ((*FULL, "--against", "missing"), 5),
        ((*FULL, "--against", "bzImage"), 5),
        ((*IMAGE, "--against", "silent"), 5),
    ],
)
def test_wrong_use(words: tuple[str, ...], code: int, folder: Path, capsys: Capture) -> None:
    """Conflicting options end with 1, what is not evidence, or reveals no machine, with 5."""
    silent = evidence_of(dstack_image(folder / "image", VM_CONFIG))
    (folder / "silent").write_bytes(silent.stripped().to_bytes())
    assert run(capsys, *words, code=code) == ""


def test_evidence_is_not_overwritten(folder: Path, capsys: Capture) -> None:
    """The output must not replace the evidence."""
    before = (folder / "same").read_bytes()
    run(capsys, *FULL, "--against", "same", "--json", "-o", "same", code=1)
    assert (folder / "same").read_bytes() == before
