"""Backend registry: lookup by name, plugins, and detection, which never selects the simulator."""

import errno
from importlib import metadata
from pathlib import Path

import pytest

from attestkit import _native, backends
from attestkit.__main__ import main
from attestkit.backends import detection, hardware_signs, registry
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError, BackendUnavailableError, UsageError
from attestkit.factory import open as open_attester
from tests.backends.linux.machines import make, make_hyper_v_cpuid, unavailable_cpuid
from tests.raising import raises


class Plugin:
    """Plugin backend without a device."""

    @classmethod
    def probe(cls) -> None:
        """Report a missing device."""
        raise BackendUnavailableError("no such device", reason="missing")


def install(
    monkeypatch: pytest.MonkeyPatch, *names: str, value: str = f"{__name__}:Plugin"
) -> None:
    """Install entry points for these backends."""
    found = [metadata.EntryPoint(name, value, registry.GROUP) for name in names]
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group else [])


def make_machine(
    root: Path, *, cpu_flags: str = "fpu hypervisor", paths: tuple[str, ...] = ()
) -> Path:
    """Create a machine root with these CPU flags and files."""
    (root / "proc").mkdir(parents=True)
    text = f"processor\t: 0\nflags\t\t: {cpu_flags}\nvmx flags\t: tdx_guest\n\n" * 2
    (root / "proc/cpuinfo").write_text(text, encoding="utf-8")
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


def test_load_simulator_by_name() -> None:
    """Built-in names are resolved without installed plugins."""
    assert backends.load("simulator") is Simulator
    assert backends.names()[: len(backends.BUILTIN)] == tuple(backends.BUILTIN)
    assert backends.probe_all()["simulator"] is None


def test_load_unknown_name_lists_known_names() -> None:
    """The error for an unknown name lists the valid ones."""
    with raises(
        UsageError,
        "unknown_name",
        part="must be one of gcp, configfs_tsm, tdx_ioctl, nitro_tpm, dstack_agent, simulator",
    ):
        backends.load("simulater")


def test_plugin_is_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of the group are backends, and `probe_all` includes them."""
    install(monkeypatch, "other_tee")
    assert backends.names() == (*backends.BUILTIN, "other_tee")
    assert backends.load("other_tee").__name__ == "Plugin"
    assert backends.probe_all()["other_tee"] == "no such device"
    with raises(BackendUnavailableError, "missing"):
        open_attester("other_tee")


def test_plugin_cannot_replace_builtin_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in name always loads the built-in backend."""
    install(monkeypatch, "simulator")
    assert backends.load("simulator") is Simulator
    assert backends.names() == tuple(backends.BUILTIN)


def test_duplicate_plugin_name_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plugins of one name are an error."""
    install(monkeypatch, "twice", "twice")
    with raises(BackendError, "plugin", part="2 installed packages"):
        backends.load("twice")


def test_plugin_import_error_is_one_printable_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line and doctor show one line without control characters."""
    text = "raise RuntimeError('no device\\n\\x1b[31m' + 'x' * 1000)"
    (tmp_path / "raising_backend.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(monkeypatch, "raising", value="raising_backend:Backend")
    why = "cannot import the plugin raising_backend:Backend: RuntimeError: no device [31mxxx"
    assert main(["quote", "--backend", "raising"]) == 3
    stderr = capsys.readouterr().err
    for text in (stderr.removesuffix("\n"), str(backends.probe_all()["raising"])):
        assert why in text
        assert text.isprintable()
        assert len(text) < 400


# -- detection ---------------------------------------------------------------------------------


def test_open_without_name_never_uses_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hardware, the error lists the signs that were checked and the remedy."""
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    assert "simulator" not in backends.AUTO_ORDER
    with raises(BackendUnavailableError, "no_backend") as caught:
        open_attester()
    text = str(caught.value)
    for sign in ("CPU flag", "CCEL table", "/dev/tdx_guest", "/dev/sev-guest", "tsm report"):
        assert sign in text
    assert 'attestkit.open("simulator")' in text
    assert "ATTESTKIT_BACKEND=simulator" in text


def probed(error: Exception | None = None) -> type:
    """Return a backend whose probe records its arguments, and raises `error` if it is given."""

    class Probed:
        probe_arguments: tuple[object, ...] = ()

        @classmethod
        def probe(cls, *paths: object) -> None:
            cls.probe_arguments = paths
            if error is not None:
                raise error

    return Probed


class ExplicitOnlyBackend:
    """Backend that must be selected by name."""

    @classmethod
    def probe(cls) -> None:
        """Succeed."""

    @classmethod
    def probe_for_detection(cls) -> None:
        """Refuse detection."""
        raise BackendUnavailableError("name me to have me", reason="simulated")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Return the classes that the built-in names load: initially none is available."""
    classes: dict[str, type] = dict.fromkeys(backends.BUILTIN, Plugin)
    for module in (detection, hardware_signs):
        monkeypatch.setattr(module, "load", classes.__getitem__)
    return classes


@pytest.mark.parametrize("name", backends.AUTO_ORDER)
def test_detect_selects_the_only_available_backend(found: dict[str, type], name: str) -> None:
    """Each backend of AUTO_ORDER is selected if no other is available."""
    found[name] = probed()
    found["simulator"] = ExplicitOnlyBackend
    assert backends.detect() is found[name]


def test_detect_follows_auto_order(found: dict[str, type]) -> None:
    """The first available backend of AUTO_ORDER is selected."""
    assert backends.AUTO_ORDER == (
        "dstack_agent",
        "azure",
        "gcp",
        "configfs_tsm",
        "tdx_ioctl",
        "nitro_tpm",
    )
    found["configfs_tsm"], found["tdx_ioctl"] = probed(), ExplicitOnlyBackend
    assert backends.detect() is found["configfs_tsm"]


def test_detect_error_lists_each_probe_and_remedy(found: dict[str, type]) -> None:
    """The error has each backend's probe error and the next step."""
    found["dstack_agent"] = ExplicitOnlyBackend
    saw = "dstack_agent: name me to have me; azure: no such device; gcp: no such device"
    with raises(BackendUnavailableError, "no_backend", part=saw) as caught:
        backends.detect()
    assert "ATTESTKIT_BACKEND=simulator" in str(caught.value)


def test_detect_leaves_out_given_backends(found: dict[str, type]) -> None:
    """The server excludes the agent, which may be itself; excluded backends are not probed."""
    found["dstack_agent"], found["configfs_tsm"] = probed(ZeroDivisionError()), probed()
    assert backends.detect(leave_out=["dstack_agent"]) is found["configfs_tsm"]
    with raises(BackendUnavailableError, "no_backend") as caught:
        backends.detect(leave_out={"dstack_agent", "configfs_tsm"})
    assert "configfs_tsm" not in str(caught.value)
    assert "tdx_ioctl: no such device" in str(caught.value)


def test_detect_does_not_skip_malformed_backend(found: dict[str, type]) -> None:
    """A backend that responds incorrectly ends detection, so that its error is visible."""
    malformed = BackendError("the device says nonsense", reason="malformed_response")
    found["configfs_tsm"], found["tdx_ioctl"] = probed(malformed), probed()
    with raises(BackendError, "malformed_response"):
        backends.detect()


def test_probe_all_passes_paths_to_hardware_backends(found: dict[str, type]) -> None:
    """Only the backends in HARDWARE receive the paths."""
    assert set(registry.HARDWARE) - {"tpm"} <= set(backends.AUTO_ORDER)
    paths = KernelPaths.below("/somewhere")
    found.update({name: probed() for name in backends.BUILTIN})
    assert set(backends.probe_all(paths).values()) == {None}
    given = {name: vars(cls).get("probe_arguments") for name, cls in found.items()}
    assert given == {
        "azure": (paths,),
        "gcp": (paths,),
        "configfs_tsm": (paths,),
        "tdx_ioctl": (paths,),
        "nitro_tpm": (paths,),
        "dstack_agent": (),
        "simulator": (),
        "recording": (),
        "tpm": (paths,),
    }


def test_probe_all_reports_unexpected_exceptions(found: dict[str, type]) -> None:
    """A bug in one probe is reported with its type; the others still run."""
    found["dstack_agent"] = probed(ZeroDivisionError("by zero"))
    seen = backends.probe_all()
    assert seen["dstack_agent"] == "probe failed: ZeroDivisionError: by zero"
    assert seen["tdx_ioctl"] == "no such device"


def test_detect_names_unsupported_platform(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, type], tmp_path: Path
) -> None:
    """If the platform is recognised but unsupported, the error names it."""
    from attestkit.backends.linux import host_inspection

    del found
    make(tmp_path, {"dev/nsm": ""})
    seen = host_inspection.detect_platforms(tmp_path, make_hyper_v_cpuid(3))
    monkeypatch.setattr(host_inspection, "detect_platforms", lambda: seen)
    with raises(
        BackendUnavailableError,
        "no_backend",
        part="Azure TDX guest behind the paravisor (CPUID: Hyper-V",
    ) as caught:
        backends.detect()
    assert "AWS Nitro enclave (/dev/nsm exists): not supported yet" in str(caught.value)


def test_environment_selects_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$ATTESTKIT_BACKEND` is used without an argument; empty means unset."""
    monkeypatch.setenv("ATTESTKIT_BACKEND", "simulator")
    with open_attester() as tee:
        assert tee.simulated
    monkeypatch.setenv("ATTESTKIT_BACKEND", "no_such_backend")
    with raises(UsageError, "unknown_name"):
        open_attester()
    with open_attester("simulator") as tee:
        assert tee.simulated
    monkeypatch.setenv("ATTESTKIT_BACKEND", "")
    with pytest.raises(BackendUnavailableError):
        open_attester()


def test_hardware_signs_absent_on_ordinary_machine(tmp_path: Path) -> None:
    """Without a TEE, each sign is listed as absent."""
    machine = make_machine(tmp_path)
    assert backends.detect_hardware(machine) == ()
    seen = backends.check_hardware_signs(machine)
    assert [sign.what for sign in seen] == [
        "CPU flags",
        "CCEL table",
        "/dev/tdx_guest",
        "/dev/sev-guest",
        "tsm report folder",
    ]
    assert {sign.saw for sign in seen[1:]} == {"no such file or directory"}
    assert backends.detect_hardware(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("flags", "paths", "signs"),
    [
        ("fpu tdx_guest", (), ("CPU flag tdx_guest",)),
        ("fpu hypervisor sev_snp", (), ("CPU flag sev_snp",)),
        ("fpu sev_snp", (), ()),  # an SNP host, not a guest
        ("fpu", ("sys/firmware/acpi/tables/CCEL",), ("CCEL table",)),
        ("fpu", ("dev/tdx_guest",), ("/dev/tdx_guest",)),
        ("fpu", ("dev/sev-guest",), ("/dev/sev-guest",)),
        ("fpu", ("sys/kernel/config/tsm/report",), ("tsm report folder",)),
        ("tdx_guest", ("dev/tdx_guest",), ("CPU flag tdx_guest", "/dev/tdx_guest")),
    ],
)
def test_hardware_sign_is_detected(
    tmp_path: Path, flags: str, paths: tuple[str, ...], signs: tuple[str, ...]
) -> None:
    """Each sign alone is sufficient."""
    assert backends.detect_hardware(make_machine(tmp_path, cpu_flags=flags, paths=paths)) == signs


@pytest.mark.parametrize("isolation", [0, 1, 2, 3])
def test_hyper_v_isolation_is_a_hardware_sign(
    monkeypatch: pytest.MonkeyPatch, isolation: int
) -> None:
    """A guest behind a paravisor hides other signs; only isolation by SEV-SNP or TDX counts."""
    monkeypatch.setattr(_native, "cpuid", make_hyper_v_cpuid(isolation))
    sign = backends.check_hardware_signs()[-2]
    assert sign.positive is (isolation in {2, 3})
    names = {2: "Hyper-V isolation SNP", 3: "Hyper-V isolation TDX"}
    assert sign.what == names.get(isolation, "Hyper-V isolation")


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize(
    ("platform", "backend", "what"),
    [
        ("Azure, perhaps", "azure", "HCL report"),
        ("Google Cloud", "gcp", "key of Google"),
        ("AWS EC2", "nitro_tpm", "NitroTPM"),
    ],
)
def test_evidence_in_the_tpm_of_a_cloud_is_a_hardware_sign(
    monkeypatch: pytest.MonkeyPatch,
    found: dict[str, type],
    platform: str,
    backend: str,
    what: str,
    *,
    reported: bool,
) -> None:
    """The TPM of a machine that names a cloud is probed; that of other machines is not."""
    from attestkit.backends.linux import host_inspection

    monkeypatch.setattr(_native, "cpuid", unavailable_cpuid)
    absent = BackendUnavailableError("nothing in the TPM", reason="missing")
    found[backend] = probed(None if reported else absent)
    monkeypatch.setattr(host_inspection, "detect_platforms", lambda *_: ())
    assert not backends.check_hardware_signs()[-1].positive
    cloud = host_inspection.Platform(platform, "DMI", supported=True, advice="")
    monkeypatch.setattr(host_inspection, "detect_platforms", lambda *_: (cloud,))
    sign = backends.check_hardware_signs()[-1]
    assert (sign.positive, sign.what) == (reported, what if reported else "TPM of a cloud")


def test_detect_error_with_hardware_signs_mentions_doctor(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, type]
) -> None:
    """With signs of a TEE but no usable backend, the error recommends `attestkit doctor`."""
    del found
    sign = backends.HardwareSign("/dev/tdx_guest", positive=True, saw="present")
    monkeypatch.setattr(detection, "check_hardware_signs", lambda: (sign,))
    with raises(BackendUnavailableError, "no_backend", part="attestkit doctor"):
        backends.detect()
    monkeypatch.setattr(detection, "check_hardware_signs", lambda: (sign._replace(positive=False),))
    with raises(BackendUnavailableError, "no_backend") as caught:
        backends.detect()
    assert "attestkit doctor" not in str(caught.value)


def test_cpu_flags_are_read_from_first_cpu(tmp_path: Path) -> None:
    """/proc/cpuinfo is not read to its end."""
    machine = make_machine(tmp_path, cpu_flags="fpu tdx_guest")
    with (machine / "proc/cpuinfo").open("ab") as file:
        file.truncate(1 << 40)  # a hole: reading it whole would fill the memory
    assert backends.detect_hardware(machine) == ("CPU flag tdx_guest",)


def test_inaccessible_path_is_not_a_hardware_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that cannot be inspected is reported with the reason, and not as a TEE."""
    machine = make_machine(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    seen = backends.check_hardware_signs(machine)
    assert {sign.saw for sign in seen[1:]} == {"permission denied"}
    assert not any(sign.positive for sign in seen)
