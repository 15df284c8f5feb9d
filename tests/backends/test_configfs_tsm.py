"""The configfs-tsm backend is what the kernel says it is, and gives whole evidence or an error."""

import errno
from collections.abc import Callable
from contextlib import closing
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from attestkit import backends
from attestkit.attester import Attester
from attestkit.backends.base import Backend, RegisterExtender, SnpEvidence, SnpReporter
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTdx, ConfigfsTsm
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.simulator import Simulator
from attestkit.backends.tsm.report import TsmAnswer
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from attestkit.factory import make_backend
from tests.backends.tsm.tsm_kernel import (
    ASKED,
    CERTIFICATES,
    FOLDER,
    MANIFEST,
    SHARED,
    Entry,
    Fault,
    TsmKernel,
    answer_to,
    shared_entry,
    snp,
)

PATHS = KernelPaths()


def tdx_backend(kernel: TsmKernel, paths: KernelPaths = PATHS) -> ConfigfsTdx:
    """Return the backend of a TDX guest, with nothing on record of its making."""
    backend = ConfigfsTdx(system=kernel.system(), paths=paths)
    kernel.calls.clear()
    return backend


def snp_backend(kernel: TsmKernel, privlevel: int | None = None) -> ConfigfsSnp:
    """Return the backend of an SNP guest, with nothing on record of its making."""
    backend = ConfigfsSnp(system=kernel.system(), paths=PATHS, privlevel=privlevel)
    kernel.calls.clear()
    return backend


# -- what it is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "kind", "able", "unable"),
    [
        (TsmKernel(), ConfigfsTdx, RegisterExtender, SnpReporter),
        (snp(), ConfigfsSnp, SnpReporter, RegisterExtender),
        (TsmKernel(provider="sev-guest"), ConfigfsSnp, SnpReporter, RegisterExtender),
    ],
)
def test_the_kernel_says_which_tee_it_is(
    kernel: TsmKernel, kind: type[ConfigfsTsm], able: type, unable: type
) -> None:
    """One class for both, and what comes has the abilities of the one that is there."""
    backend = ConfigfsTsm(system=kernel.system(), paths=PATHS)
    assert type(backend) is kind
    assert isinstance(backend, Backend)
    assert isinstance(backend, able)
    assert not isinstance(backend, unable)
    assert (backend.name, backend.simulated, backend.blocking) == ("configfs_tsm", False, True)
    assert kernel.calls == ["make", "read provider", "remove", "list"]
    assert not kernel.entries


def test_it_is_found_by_its_name() -> None:
    """The registry knows it, and an option that it does not have is refused by its signature."""
    assert backends.load("configfs_tsm") is ConfigfsTsm
    signature(ConfigfsTsm).bind(root="/", privlevel=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'seed'"):
        signature(ConfigfsTsm).bind(seed=b"")


@pytest.mark.parametrize(("kernel", "cls"), [(TsmKernel(), ConfigfsSnp), (snp(), ConfigfsTdx)])
def test_the_class_of_another_tee(kernel: TsmKernel, cls: type[ConfigfsTsm]) -> None:
    """Whoever names one of the two gets that, or hears which is there."""
    with pytest.raises(BackendUnavailableError, match="not for Configfs"):
        cls(system=kernel.system(), paths=PATHS)
    with pytest.raises(BackendUnavailableError, match="is for Configfs"):
        cls.probe(PATHS, system=kernel.system())
    assert not kernel.entries


def test_opening_removes_what_killed_processes_left() -> None:
    """And nothing else."""
    kernel = TsmKernel(time=10000.0)
    old = f"attestkit-5-{'0' * 32}"
    kernel.entries = {old: Entry(made_at=kernel.time - 9999), "com.intel.dcap": Entry()}
    ConfigfsTsm(system=kernel.system(), paths=PATHS)
    assert list(kernel.entries) == ["com.intel.dcap"]


# -- quotes ------------------------------------------------------------------------------------


def test_a_quote_comes_as_it_is() -> None:
    """Bytes out, every call over what it was asked."""
    kernel = TsmKernel()
    backend = tdx_backend(kernel)
    assert backend.get_quote(ASKED) == answer_to(ASKED, 0, 4998)
    assert backend.get_quote(bytes(64)) == answer_to(bytes(64), 1, 4998)
    assert backend.get_quote(bytes(64)) == answer_to(bytes(64), 2, 4998)  # fresh, not kept


@pytest.mark.parametrize("kernel", [TsmKernel(), snp()])
@pytest.mark.parametrize("asked", [b"", bytes(63), bytes(65), bytearray(64), "x" * 64, None])
def test_report_data_are_64_bytes(kernel: TsmKernel, asked: Any) -> None:
    """Nothing else reaches the kernel."""
    backend = ConfigfsTsm(system=kernel.system(), paths=PATHS)
    kernel.calls.clear()
    with pytest.raises(UsageError, match="64 bytes"):
        backend.get_quote(asked)
    assert kernel.calls == []


@pytest.mark.parametrize("size", [0, 1, 1019])
def test_a_quote_that_is_none(size: int) -> None:
    """The host's quoting service is named, and it is not read again without being asked again."""
    kernel = TsmKernel()
    backend = tdx_backend(kernel)
    kernel.faults = [Fault("read", "outblob", bytes(size))]
    with pytest.raises(QuoteUnavailableError, match=rf"{size} bytes .*QGS.* on the host") as caught:
        backend.get_quote(ASKED)
    assert FOLDER in str(caught.value)
    assert kernel.calls.count("read outblob") == 1
    assert not kernel.entries
    assert backend.get_quote(ASKED) == answer_to(ASKED, 1, 4998)
    assert kernel.calls.count("write inblob") == 2


def test_the_shortest_quote() -> None:
    """1020 bytes are one."""
    kernel = TsmKernel(faults=[Fault("read", "outblob", bytes(1020))])
    assert tdx_backend(kernel).get_quote(ASKED) == bytes(1020)


def test_an_empty_quote_in_a_shared_entry() -> None:
    """What is kept there is never taken for an answer to the next request."""
    kernel = TsmKernel()
    shared_entry(kernel)
    backend = tdx_backend(kernel, PATHS._replace(tsm_entry=Path(SHARED)))
    kernel.faults = [Fault("read", "outblob", b"")]
    with pytest.raises(QuoteUnavailableError, match=SHARED):
        backend.get_quote(ASKED)
    assert backend.get_quote(ASKED) == answer_to(ASKED, 1, 4998)


def test_an_attester_on_it() -> None:
    """The quotes of a TD whose host answers, through the kernel's files and up."""
    with closing(Simulator(seed=bytes(32))) as td:
        kernel = TsmKernel(make_report=td.get_quote)
        with Attester(tdx_backend(kernel)) as tee:
            assert tee.get_quote(b"nonce").report_data == b"nonce".ljust(64, b"\0")
            assert not tee.simulated
            kernel.make_report = lambda _: td.get_quote(bytes(64))
            with pytest.raises(BackendError, match="over other report data"):
                tee.get_quote(b"nonce")
    assert not kernel.entries


# -- SNP reports -------------------------------------------------------------------------------


def test_a_report_with_its_certificates() -> None:
    """Both are of one request."""
    kernel = snp()
    backend = snp_backend(kernel)
    report = answer_to(ASKED, 0, 1184)
    assert backend.get_snp_report(ASKED) == SnpEvidence(report, CERTIFICATES + report[:72])
    assert backend.get_quote(ASKED) == answer_to(ASKED, 1, 1184)
    assert backend.read_event_log() == b""


@pytest.mark.parametrize("size", [0, 1183, 1185, 4000])
def test_a_report_of_another_size(size: int) -> None:
    """It is 1184 bytes, or an error."""
    kernel = snp()
    backend = snp_backend(kernel)
    kernel.faults = [Fault("read", "outblob", bytes(size))]
    with pytest.raises(BackendError, match=f"{size} bytes in place of an SNP report of 1184"):
        backend.get_snp_report(ASKED)
    assert not kernel.entries


@pytest.mark.parametrize("how", [b"", errno.ENOENT])
def test_a_host_without_certificates(how: int | bytes) -> None:
    """The report is as good."""
    kernel = snp()
    kernel.faults = [Fault("read", "auxblob", how)]
    evidence = snp_backend(kernel).get_snp_report(ASKED)
    assert evidence == SnpEvidence(answer_to(ASKED, 0, 1184), b"")


@pytest.mark.parametrize("call", [ConfigfsSnp.get_quote, ConfigfsSnp.get_snp_report])
def test_snp_is_not_asked_again(call: Callable[[ConfigfsSnp, bytes], object]) -> None:
    """Whichever method failed, none asks again; another object may."""
    kernel = snp()
    backend = snp_backend(kernel)
    kernel.faults = [Fault("read", "outblob", errno.ETIMEDOUT)]
    with pytest.raises(QuoteUnavailableError):
        call(backend, ASKED)
    kernel.calls.clear()
    for again in (backend.get_quote, backend.get_snp_report):
        with pytest.raises(QuoteUnavailableError, match="no report is asked for after this"):
            again(ASKED)
    assert kernel.calls == []
    kernel.key_wiped = False
    assert snp_backend(kernel).get_quote(ASKED)


# -- options -----------------------------------------------------------------------------------


def test_a_privlevel_is_asked_for() -> None:
    """A guest at VMPL 2 names it, and the kernel is told in text."""
    kernel = snp(floor=2, level=2)
    assert snp_backend(kernel, privlevel=2).get_quote(ASKED) == answer_to(ASKED, 0, 1184)
    assert kernel.written == [("inblob", ASKED), ("privlevel", b"2")]


def test_a_privlevel_below_the_floor() -> None:
    """The caller's error, before anything is written."""
    kernel = snp(floor=2)
    backend = snp_backend(kernel, privlevel=1)
    with pytest.raises(UsageError, match="below 2"):
        backend.get_quote(ASKED)
    assert kernel.written == []


def test_a_report_of_an_svsm() -> None:
    """With the manifest that its report data are made of."""
    kernel = snp(svsm=True)
    guid = "C4F2A0E0-1b2c-4d5e-8f90-0123456789ab"
    backend = ConfigfsSnp(
        system=kernel.system(),
        paths=PATHS,
        service_provider="svsm",
        service_guid=guid,
        service_manifest_version=4294967295,
    )
    report = answer_to(ASKED, 0, 1184)
    assert backend.get_service_report(ASKED) == TsmAnswer(
        report, CERTIFICATES + report[:72], MANIFEST
    )
    assert kernel.written == [
        ("inblob", ASKED),
        ("service_provider", b"svsm"),
        ("service_guid", guid.encode()),
        ("service_manifest_version", b"4294967295"),
    ]


def test_without_an_svsm_there_is_no_manifest() -> None:
    """It is neither asked for nor invented; and an SVSM that is not there is not offered."""
    kernel = snp(svsm=True)
    assert snp_backend(kernel).get_service_report(ASKED).manifest == b""
    assert "read manifestblob" not in kernel.calls
    kernel = snp()
    backend = ConfigfsSnp(system=kernel.system(), paths=PATHS, service_provider="svsm")
    with pytest.raises(UnsupportedError, match="service_provider"):
        backend.get_snp_report(ASKED)


@pytest.mark.parametrize(
    "options",
    [
        {"privlevel": -1},
        {"privlevel": 4},
        {"privlevel": True},
        {"privlevel": "1"},
        {"service_provider": "other"},
        {"service_provider": ""},
        {"service_provider": b"svsm"},
        {"service_guid": "c4f2a0e0-1b2c-4d5e-8f90-0123456789ab"},
        {"service_manifest_version": 1},
        {"service_provider": "svsm", "service_guid": "c4f2a0e0"},
        {"service_provider": "svsm", "service_guid": "c4f2a0e0-1b2c-4d5e-8f90-0123456789ab\n"},
        {"service_provider": "svsm", "service_guid": 1},
        {"service_provider": "svsm", "service_manifest_version": -1},
        {"service_provider": "svsm", "service_manifest_version": 2**32},
        {"service_provider": "svsm", "service_manifest_version": False},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    """Refused before the kernel is asked anything."""
    kernel = snp(svsm=True)
    with pytest.raises(UsageError):
        ConfigfsTsm(system=kernel.system(), paths=PATHS, **options)
    assert kernel.calls == []


@pytest.mark.parametrize("options", [{"privlevel": 0}, {"service_provider": "svsm"}])
def test_a_tdx_guest_has_no_options(options: dict[str, Any]) -> None:
    """They are SNP's."""
    kernel = TsmKernel()
    with pytest.raises(UsageError, match="option of SEV-SNP"):
        ConfigfsTsm(system=kernel.system(), paths=PATHS, **options)
    assert not kernel.entries


# -- probes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [TsmKernel(), snp()])
def test_a_probe_leaves_nothing(kernel: TsmKernel) -> None:
    """It makes an entry, looks, and removes it."""
    ConfigfsTsm.probe(PATHS, system=kernel.system())
    assert kernel.calls == ["make", "read provider", "remove"]
    assert not kernel.entries


@pytest.mark.parametrize(
    ("kernel", "fault", "words"),
    [
        (TsmKernel(mounted=False), None, ["not mounted", "mount -t configfs", "ENOENT"]),
        (TsmKernel(loaded=False), None, ["modprobe tsm_report", "ENOENT"]),
        (TsmKernel(provider=None), None, ["modprobe tdx-guest", "ENXIO"]),
        (TsmKernel(provider="arm_cca_guest"), None, ["Arm CCA"]),
        (TsmKernel(), Fault("make", "", errno.EACCES), ["it is there", "uid 1000", "EACCES"]),
        (TsmKernel(), Fault("make", "", errno.EROFS), ["read-only", "bind-mount", "EROFS"]),
        (TsmKernel(), Fault("read", "provider", errno.ENXIO), ["unloaded", "ENXIO"]),
        (TsmKernel(), Fault("remove", "", errno.EPERM), ["no permission", "EPERM"]),
    ],
)
def test_a_probe_says_why_not(kernel: TsmKernel, fault: Fault | None, words: list[str]) -> None:
    """As BackendUnavailableError, with path, errno, and what to do."""
    kernel.faults = [] if fault is None else [fault]
    with pytest.raises(BackendUnavailableError) as caught:
        ConfigfsTsm.probe(PATHS, system=kernel.system())
    for word in (*words, FOLDER):
        assert word in str(caught.value)
    assert len(kernel.entries) == (fault is not None and fault.operation == "remove")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("make", "", errno.ENOMEM), "out of memory"),
        (Fault("make", "", errno.EINTR, times=99), "signal"),
        (Fault("read", "provider", errno.EBUSY), "in use"),
    ],
)
def test_a_kernel_in_trouble_is_no_reason_to_take_another(fault: Fault, words: str) -> None:
    """What says nothing about the TEE is not said to be none."""
    kernel = TsmKernel(faults=[fault])
    with pytest.raises(BackendError, match=words) as caught:
        ConfigfsTsm.probe(PATHS, system=kernel.system())
    assert not isinstance(caught.value, BackendUnavailableError)
    assert not kernel.entries


def test_a_probe_of_a_named_entry() -> None:
    """It is looked at; none is made in its place, or beside it."""
    kernel = TsmKernel()
    paths = PATHS._replace(tsm_entry=Path(SHARED))
    with pytest.raises(BackendUnavailableError, match=f"{SHARED}.*DCAP_TDX_QUOTE_CONFIGFS_PATH"):
        ConfigfsTsm.probe(paths, system=kernel.system())
    shared_entry(kernel)
    kernel.calls.clear()
    ConfigfsTsm.probe(paths, system=kernel.system())
    assert kernel.calls == ["read provider"]


# -- real folders ------------------------------------------------------------------------------


def test_on_a_machine_without_it(tmp_path: Path) -> None:
    """`root` moves the folder; where it is not, the text has the path that was looked at."""
    paths = KernelPaths.below(tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"configfs is not mounted.*ENOENT") as caught:
        ConfigfsTsm.probe(paths)
    assert str(paths.tsm_report) in str(caught.value)
    paths.tsm_report.parent.parent.mkdir(parents=True)
    (paths.tsm_report.parent.parent / "nvmet").mkdir()
    with pytest.raises(BackendUnavailableError, match=r"module is not loaded.*ENOENT"):
        ConfigfsTsm(root=tmp_path)


def test_a_folder_that_is_not_the_kernels(tmp_path: Path) -> None:
    """No files appear in what is made there, which is gone again; only other people's stays."""
    paths = KernelPaths.below(tmp_path)
    (paths.tsm_report / "com.intel.dcap").mkdir(parents=True)
    with pytest.raises(BackendUnavailableError, match=r"provider: .*not configfs.*ENOENT"):
        ConfigfsTsm.probe(paths)
    with pytest.raises(BackendUnavailableError, match=r"provider: .*not configfs.*ENOENT"):
        ConfigfsTsm(paths=paths)
    assert [path.name for path in paths.tsm_report.iterdir()] == ["com.intel.dcap"]
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(BackendUnavailableError, match="DCAP_TDX_QUOTE_CONFIGFS_PATH"):
        ConfigfsTsm.probe(paths._replace(tsm_entry=paths.tsm_report / "com.intel.dcap"))
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_the_environment_names_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong one is an error, for a probe as for whoever opens it, and no fresh one is made."""
    monkeypatch.setenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", str(tmp_path / "entry"))
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    for look in (ConfigfsTsm.probe, ConfigfsTsm, lambda: make_backend("configfs_tsm", {})):
        with pytest.raises(BackendUnavailableError, match="entry: the report entry that was named"):
            look()
    (tmp_path / "entry").touch()
    with pytest.raises(BackendUnavailableError, match="ENOTDIR"):
        ConfigfsTsm.probe()
    with pytest.raises(UsageError, match=r"\$DCAP_TDX_QUOTE_CONFIGFS_PATH: .*ENOTDIR"):
        backends.detect(leave_out=("dstack_agent",))
    monkeypatch.setenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", "entry")
    with pytest.raises(UsageError, match="absolute"):
        ConfigfsTsm.probe()


def test_nobody_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a machine without it has it not, and the next may be asked."""
    monkeypatch.delenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", raising=False)
    missing = PATHS._replace(tsm_report=Path("/nonexistent/tsm/report"))
    monkeypatch.setattr(backends, "find_kernel_paths", lambda: missing)
    with pytest.raises(BackendUnavailableError, match="nonexistent"):
        ConfigfsTsm.probe_unnamed()


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [TsmKernel(), snp()])
def test_a_closed_one_asks_nothing(kernel: TsmKernel) -> None:
    """Closing twice is closing."""
    backend = ConfigfsTsm(system=kernel.system(), paths=PATHS)
    backend.close()
    backend.close()
    kernel.calls.clear()
    with pytest.raises(UsageError, match="closed"):
        backend.get_quote(ASKED)
    assert kernel.calls == []


def test_closing_ends_the_journal(tmp_path: Path) -> None:
    """What the guest's registers have beside the quotes ends with it."""
    kernel = TsmKernel()
    backend = ConfigfsTdx(
        system=kernel.system(), paths=KernelPaths.below(tmp_path)._replace(tsm_report=Path(FOLDER))
    )
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        backend.open_journal()
