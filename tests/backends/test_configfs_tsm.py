"""configfs_tsm backend: platform selection, complete evidence, options, probes."""

import errno
from pathlib import Path
from typing import Any

import pytest

from attestkit import backends
from attestkit.backends.base import Backend, RegisterExtender, SnpEvidence, SnpReporter
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTdx, ConfigfsTsm
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tsm.report import TsmResponse
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from attestkit.factory import make_backend
from tests.backends.tsm.tsm_kernel import (
    CERTIFICATES,
    FOLDER,
    MANIFEST,
    REPORT_DATA,
    SHARED,
    Entry,
    Fault,
    TsmKernel,
    add_shared_entry,
    expected_report,
    snp,
)
from tests.raising import errno_of, raises
from tests.runner.cases import every_case

PATHS = KernelPaths()


def tdx_backend(kernel: TsmKernel, paths: KernelPaths = PATHS) -> ConfigfsTdx:
    """Return the backend of a TDX guest, with the call log empty."""
    backend = ConfigfsTdx(system=kernel.system(), paths=paths)
    kernel.calls.clear()
    return backend


def snp_backend(kernel: TsmKernel, privlevel: int | None = None) -> ConfigfsSnp:
    """Return the backend of an SNP guest, with the call log empty."""
    backend = ConfigfsSnp(system=kernel.system(), paths=PATHS, privlevel=privlevel)
    kernel.calls.clear()
    return backend


# -- platform ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "kind", "able", "unable"),
    [
        (TsmKernel(), ConfigfsTdx, RegisterExtender, SnpReporter),
        (snp(), ConfigfsSnp, SnpReporter, RegisterExtender),
        (TsmKernel(provider="sev-guest"), ConfigfsSnp, SnpReporter, RegisterExtender),
    ],
)
def test_configfs_tsm_selects_class_by_provider(
    kernel: TsmKernel, kind: type[ConfigfsTsm], able: type, unable: type
) -> None:
    """The class of the running platform is constructed, with its protocols only."""
    backend = ConfigfsTsm(system=kernel.system(), paths=PATHS)
    assert type(backend) is kind
    assert isinstance(backend, Backend)
    assert isinstance(backend, able)
    assert not isinstance(backend, unable)
    assert (backend.name, backend.simulated, backend.blocking) == ("configfs_tsm", False, True)
    assert kernel.calls == ["make", "read provider", "remove", "list"]
    assert not kernel.entries


@pytest.mark.parametrize(("kernel", "cls"), [(TsmKernel(), ConfigfsSnp), (snp(), ConfigfsTdx)])
def test_class_of_other_platform_is_rejected(kernel: TsmKernel, cls: type[ConfigfsTsm]) -> None:
    """ConfigfsTdx and ConfigfsSnp need their own platform."""
    with raises(BackendUnavailableError, "wrong_platform", path=FOLDER):
        cls(system=kernel.system(), paths=PATHS)
    with raises(BackendUnavailableError, "wrong_platform", path=FOLDER):
        cls.probe(PATHS, system=kernel.system())
    assert not kernel.entries


def test_open_removes_stale_entries() -> None:
    """Entries of killed processes are removed, and no others."""
    kernel = TsmKernel(time=10000.0)
    old = f"attestkit-5-{'0' * 32}"
    kernel.entries = {old: Entry(made_at=kernel.time - 9999), "com.intel.dcap": Entry()}
    ConfigfsTsm(system=kernel.system(), paths=PATHS)
    assert list(kernel.entries) == ["com.intel.dcap"]


# -- quotes ------------------------------------------------------------------------------------


def test_quote_is_returned_unchanged() -> None:
    """Each call makes a fresh quote over its report data."""
    kernel = TsmKernel()
    backend = tdx_backend(kernel)
    assert backend.get_quote(REPORT_DATA) == expected_report(REPORT_DATA, 0, 4998)
    assert backend.get_quote(bytes(64)) == expected_report(bytes(64), 1, 4998)
    assert backend.get_quote(bytes(64)) == expected_report(bytes(64), 2, 4998)  # not cached


@every_case("kernel", [TsmKernel(), snp()])
@every_case("report_data", [b"", bytes(63), bytes(65), bytearray(64), "x" * 64, None])
def test_report_data_must_be_64_bytes(kernel: TsmKernel, report_data: Any) -> None:
    """Other sizes and types do not reach the kernel."""
    backend = ConfigfsTsm(system=kernel.system(), paths=PATHS)
    kernel.calls.clear()
    with raises(UsageError, "wrong_size"):
        backend.get_quote(report_data)
    assert kernel.calls == []


@pytest.mark.parametrize(("size", "reason"), [(0, "empty"), (1, "too_short"), (1019, "too_short")])
def test_quote_empty_or_short_is_unavailable(size: int, reason: str) -> None:
    """The error names the QGS, and the quote is requested only once."""
    kernel = TsmKernel()
    backend = tdx_backend(kernel)
    kernel.faults = [Fault("read", "outblob", bytes(size))]
    with raises(
        QuoteUnavailableError,
        reason,
        path=FOLDER,
        part=f"{size} bytes; check on the host that the quoting service (QGS)",
    ):
        backend.get_quote(REPORT_DATA)
    assert kernel.calls.count("read outblob") == 1
    assert not kernel.entries
    assert backend.get_quote(REPORT_DATA) == expected_report(REPORT_DATA, 1, 4998)
    assert kernel.calls.count("write inblob") == 2


def test_quote_of_minimum_size_is_accepted() -> None:
    """The minimum is 1020 bytes."""
    kernel = TsmKernel(faults=[Fault("read", "outblob", bytes(1020))])
    assert tdx_backend(kernel).get_quote(REPORT_DATA) == bytes(1020)


# -- SNP reports -------------------------------------------------------------------------------


def test_snp_report_includes_certificates() -> None:
    """Report and certificates come from one request."""
    kernel = snp()
    backend = snp_backend(kernel)
    report = expected_report(REPORT_DATA, 0, 1184)
    assert backend.get_snp_report(REPORT_DATA) == SnpEvidence(report, CERTIFICATES + report[:72])
    assert backend.get_quote(REPORT_DATA) == expected_report(REPORT_DATA, 1, 1184)
    assert backend.read_event_log() == b""


@every_case("size", [0, 1183, 1185, 4000])
def test_snp_report_size_must_be_1184(size: int) -> None:
    """Other sizes are a malformed response."""
    kernel = snp()
    backend = snp_backend(kernel)
    kernel.faults = [Fault("read", "outblob", bytes(size))]
    with raises(
        BackendError, "malformed_response", path=FOLDER, part=f"{size} bytes, expected 1184"
    ):
        backend.get_snp_report(REPORT_DATA)
    assert not kernel.entries


# -- options -----------------------------------------------------------------------------------


def test_svsm_report_includes_manifest() -> None:
    """All options are written as text; the report data is derived from the manifest."""
    kernel = snp(svsm=True, floor=2, level=2)
    guid = "C4F2A0E0-1b2c-4d5e-8f90-0123456789ab"
    backend = ConfigfsSnp(
        system=kernel.system(),
        paths=PATHS,
        privlevel=2,
        service_provider="svsm",
        service_guid=guid,
        service_manifest_version=4294967295,
    )
    report = expected_report(REPORT_DATA, 0, 1184)
    assert backend.get_service_report(REPORT_DATA) == TsmResponse(
        report, CERTIFICATES + report[:72], MANIFEST
    )
    assert kernel.written == [
        ("inblob", REPORT_DATA),
        ("privlevel", b"2"),
        ("service_provider", b"svsm"),
        ("service_guid", guid.encode()),
        ("service_manifest_version", b"4294967295"),
    ]


def test_svsm_manifest_only_with_service_provider() -> None:
    """Without the option the manifest is not read; without an SVSM the option is unsupported."""
    kernel = snp(svsm=True)
    assert snp_backend(kernel).get_service_report(REPORT_DATA).manifest == b""
    assert "read manifestblob" not in kernel.calls
    kernel = snp()
    backend = ConfigfsSnp(system=kernel.system(), paths=PATHS, service_provider="svsm")
    with raises(UnsupportedError, "feature"):
        backend.get_snp_report(REPORT_DATA)


_GUID = "c4f2a0e0-1b2c-4d5e-8f90-0123456789ab"


@every_case(
    ("options", "reason"),
    [
        ({"privlevel": -1}, "out_of_range"),
        ({"privlevel": 4}, "out_of_range"),
        ({"privlevel": True}, "out_of_range"),
        ({"service_provider": "other"}, "wrong_value"),
        ({"service_provider": b"svsm"}, "wrong_value"),
        ({"service_guid": _GUID}, "missing"),
        ({"service_manifest_version": 1}, "missing"),
        ({"service_provider": "svsm", "service_guid": "c4f2a0e0"}, "encoding"),
        ({"service_provider": "svsm", "service_guid": f"{_GUID}\n"}, "encoding"),
        ({"service_provider": "svsm", "service_manifest_version": -1}, "out_of_range"),
        ({"service_provider": "svsm", "service_manifest_version": 2**32}, "out_of_range"),
    ],
)
def test_snp_invalid_options_are_rejected(options: dict[str, Any], reason: str) -> None:
    """They are rejected before any system call."""
    kernel = snp(svsm=True)
    with raises(UsageError, reason):
        ConfigfsTsm(system=kernel.system(), paths=PATHS, **options)
    assert kernel.calls == []


@pytest.mark.parametrize("options", [{"privlevel": 0}, {"service_provider": "svsm"}])
def test_tdx_rejects_snp_options(options: dict[str, Any]) -> None:
    """The options apply to SEV-SNP only."""
    kernel = TsmKernel()
    with raises(UsageError, "not_applicable"):
        ConfigfsTsm(system=kernel.system(), paths=PATHS, **options)
    assert not kernel.entries


# -- probes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (Fault("make", "", errno.ENOMEM), BackendError, "io_error"),
        (Fault("make", "", errno.EINTR, times=99), BackendBusyError, "interrupted"),
        (Fault("read", "provider", errno.EBUSY), BackendBusyError, "device"),
    ],
)
def test_probe_transient_error_is_not_unavailable(
    fault: Fault, kind: type[BackendError], reason: str
) -> None:
    """An error that does not prove a missing TEE stops detection."""
    kernel = TsmKernel(faults=[fault])
    with raises(kind, reason) as caught:
        ConfigfsTsm.probe(PATHS, system=kernel.system())
    assert errno_of(caught.value) == fault.effect
    assert not kernel.entries


def test_probe_uses_shared_entry() -> None:
    """The probe reads the shared entry and creates none."""
    kernel = TsmKernel()
    paths = PATHS._replace(tsm_entry=Path(SHARED))
    with raises(
        BackendUnavailableError, "missing", path=SHARED, part="unset DCAP_TDX_QUOTE_CONFIGFS_PATH"
    ):
        ConfigfsTsm.probe(paths, system=kernel.system())
    add_shared_entry(kernel)
    kernel.calls.clear()
    ConfigfsTsm.probe(paths, system=kernel.system())
    assert kernel.calls == ["read provider"]


# -- real directories --------------------------------------------------------------------------


def test_probe_without_tsm_directory_names_the_path(tmp_path: Path) -> None:
    """`root` relocates the directory."""
    paths = KernelPaths.below(tmp_path)
    with raises(
        BackendUnavailableError, "missing", path=str(paths.tsm_report), part="mount -t configfs"
    ) as caught:
        ConfigfsTsm.probe(paths)
    assert errno_of(caught.value) == errno.ENOENT
    paths.tsm_report.parent.parent.mkdir(parents=True)
    (paths.tsm_report.parent.parent / "nvmet").mkdir()
    with raises(
        BackendUnavailableError, "missing", path=str(paths.tsm_report), part="modprobe tsm_report"
    ):
        ConfigfsTsm(root=tmp_path)


def test_ordinary_directory_is_rejected_and_cleaned_up(tmp_path: Path) -> None:
    """Created entries are removed; others stay."""
    paths = KernelPaths.below(tmp_path)
    (paths.tsm_report / "com.intel.dcap").mkdir(parents=True)
    for use in (ConfigfsTsm.probe, lambda where: ConfigfsTsm(paths=where)):
        with raises(BackendUnavailableError, "missing") as caught:
            use(paths)
        assert caught.value.path.endswith("/provider")
        assert errno_of(caught.value) == errno.ENOENT
    assert [path.name for path in paths.tsm_report.iterdir()] == ["com.intel.dcap"]
    before = sorted(Path("/proc/self/fd").iterdir())
    entry = paths.tsm_report / "com.intel.dcap"
    with raises(BackendUnavailableError, "missing", path=str(entry)):
        ConfigfsTsm.probe(paths._replace(tsm_entry=entry))
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_environment_selects_shared_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid path is an error for every caller, and no entry is created."""
    monkeypatch.setenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", str(tmp_path / "entry"))
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    for look in (ConfigfsTsm.probe, ConfigfsTsm, lambda: make_backend("configfs_tsm", {})):
        with raises(BackendUnavailableError, "missing", path=f"{tmp_path}/entry"):
            look()
    (tmp_path / "entry").touch()
    with raises(BackendUnavailableError, "missing", path=f"{tmp_path}/entry") as caught:
        ConfigfsTsm.probe()
    assert errno_of(caught.value) == errno.ENOTDIR
    with raises(UsageError, "wrong_value") as detected:
        backends.detect(leave_out=("dstack_agent",))
    assert isinstance(detected.value.__cause__, BackendUnavailableError)
    monkeypatch.setenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", "entry")
    with raises(UsageError, "wrong_value") as relative:
        ConfigfsTsm.probe()
    assert relative.value.__cause__ is None


def test_probe_for_detection_without_tsm_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection then tries the next backend."""
    monkeypatch.delenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", raising=False)
    missing = PATHS._replace(tsm_report=Path("/nonexistent/tsm/report"))
    monkeypatch.setattr("attestkit.backends.configfs_tsm.find_kernel_paths", lambda: missing)
    with raises(BackendUnavailableError, "missing", path="/nonexistent/tsm/report"):
        ConfigfsTsm.probe_for_detection()


# -- close -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [TsmKernel(), snp()])
def test_closed_backend_rejects_requests(kernel: TsmKernel) -> None:
    """Close is idempotent."""
    backend = ConfigfsTsm(system=kernel.system(), paths=PATHS)
    backend.close()
    backend.close()
    kernel.calls.clear()
    with raises(UsageError, "closed"):
        backend.get_quote(REPORT_DATA)
    assert kernel.calls == []


def test_close_closes_the_journal(tmp_path: Path) -> None:
    """The journal cannot be opened after close."""
    kernel = TsmKernel()
    backend = ConfigfsTdx(
        system=kernel.system(), paths=KernelPaths.below(tmp_path)._replace(tsm_report=Path(FOLDER))
    )
    backend.close()
    with raises(UsageError, "closed"):
        backend.open_journal()
