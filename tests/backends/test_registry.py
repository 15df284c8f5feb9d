"""A backend is found by its name; nobody named means hardware, and never a simulated one."""

import errno
from importlib import metadata
from pathlib import Path

import pytest

from attestkit import backends
from attestkit.attester import open as open_attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError, BackendUnavailableError, UsageError


class Plugin:
    """A backend from another package, of which only the registry's part is here."""

    @classmethod
    def probe(cls) -> None:
        """Say that the device is not there."""
        raise BackendUnavailableError("no such device")


def install(
    monkeypatch: pytest.MonkeyPatch, *names: str, value: str = f"{__name__}:Plugin"
) -> None:
    """Let packages have these backends."""
    found = [metadata.EntryPoint(name, value, backends.GROUP) for name in names]
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group else [])


def guest(root: Path, *, cpu_flags: str = "fpu hypervisor", paths: tuple[str, ...] = ()) -> Path:
    """Make a machine with these CPU flags and files."""
    (root / "proc").mkdir(parents=True)
    text = f"processor\t: 0\nflags\t\t: {cpu_flags}\nvmx flags\t: tdx_guest\n\n" * 2
    (root / "proc/cpuinfo").write_text(text, encoding="utf-8")
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


def test_the_simulator_is_found_by_its_name() -> None:
    """Names lead to classes, without asking installed packages."""
    assert backends.load("simulator") is Simulator
    assert backends.names()[0] == "simulator"
    assert backends.probe_all()["simulator"] is None


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A slip of the pen is told what there is."""
    with pytest.raises(UsageError, match=r"'simulater'; there are: .*simulator"):
        backends.load("simulater")


def test_a_plugin_is_used_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of the group are backends too, and `probe_all` asks them."""
    install(monkeypatch, "other_tee")
    assert backends.names() == (*backends.BUILTIN, "other_tee")
    assert backends.load("other_tee").__name__ == "Plugin"
    assert backends.probe_all()["other_tee"] == "no such device"
    with pytest.raises(BackendUnavailableError, match="no such device"):
        open_attester("other_tee")


def test_a_plugin_cannot_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names the simulator gets ours, not somebody else's."""
    install(monkeypatch, "simulator")
    assert backends.load("simulator") is Simulator
    assert backends.names() == tuple(backends.BUILTIN)


def test_two_plugins_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance does not decide who makes evidence."""
    install(monkeypatch, "twice", "twice")
    with pytest.raises(BackendError, match="2 installed packages"):
        backends.load("twice")


def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error becomes ours, with the cause behind it, and does not hide the others."""
    install(monkeypatch, "broken", value="no_such_package.backend:Backend")
    with pytest.raises(BackendError, match="'broken'") as caught:
        backends.load("broken")
    assert isinstance(caught.value.__cause__, ImportError)
    assert backends.probe_all()["simulator"] is None
    assert "cannot be loaded" in str(backends.probe_all()["broken"])


# -- detection ---------------------------------------------------------------------------------


def test_nobody_named_is_never_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hardware it is an error, which lists what was seen and what to do."""
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    assert "simulator" not in backends.AUTO_ORDER
    with pytest.raises(BackendUnavailableError) as caught:
        open_attester()
    text = str(caught.value)
    for sign in ("CPU flag", "CCEL table", "/dev/tdx_guest", "/dev/sev-guest", "tsm report"):
        assert sign in text
    assert 'attestkit.open("simulator")' in text
    assert "ATTESTKIT_BACKEND=simulator" in text


def test_detection_takes_the_first_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of AUTO_ORDER; what the others saw is in the error if none can."""
    found = {"configfs_tsm": Simulator, "tdx_ioctl": Plugin}
    monkeypatch.setattr(backends, "BUILTIN", dict.fromkeys(found, "X"))
    monkeypatch.setattr(backends, "load", found.__getitem__)
    assert backends.detect() is Simulator
    found["configfs_tsm"] = Plugin
    with pytest.raises(BackendUnavailableError, match="configfs_tsm: no such device; tdx_ioctl"):
        backends.detect()


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$ATTESTKIT_BACKEND` counts when no argument does; empty is unset."""
    monkeypatch.setenv("ATTESTKIT_BACKEND", "simulator")
    with open_attester() as tee:
        assert tee.simulated
    monkeypatch.setenv("ATTESTKIT_BACKEND", "nobody")
    with pytest.raises(UsageError, match="nobody"):
        open_attester()
    with open_attester("simulator") as tee:
        assert tee.simulated
    monkeypatch.setenv("ATTESTKIT_BACKEND", "")
    with pytest.raises(BackendUnavailableError):
        open_attester()


def test_an_ordinary_machine_shows_no_sign(tmp_path: Path) -> None:
    """Virtual or not: without a TEE there is nothing to see, and each place says so."""
    machine = guest(tmp_path)
    assert backends.signs_of_hardware(machine) == ()
    seen = backends.look_for_hardware(machine)
    assert [sign.what for sign in seen] == [
        "CPU flags",
        "CCEL table",
        "/dev/tdx_guest",
        "/dev/sev-guest",
        "tsm report folder",
    ]
    assert {sign.saw for sign in seen[1:]} == {"no such file or directory"}
    assert backends.signs_of_hardware(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("flags", "paths", "signs"),
    [
        ("fpu tdx_guest", (), ("CPU flag tdx_guest",)),
        ("fpu hypervisor sev_snp", (), ("CPU flag sev_snp",)),
        ("fpu sev_snp", (), ()),  # an SNP host is no guest
        ("fpu", ("sys/firmware/acpi/tables/CCEL",), ("CCEL table",)),
        ("fpu", ("dev/tdx_guest",), ("/dev/tdx_guest",)),
        ("fpu", ("dev/sev-guest",), ("/dev/sev-guest",)),
        ("fpu", ("sys/kernel/config/tsm/report",), ("tsm report folder",)),
        ("tdx_guest", ("dev/tdx_guest",), ("CPU flag tdx_guest", "/dev/tdx_guest")),
    ],
)
def test_each_sign_of_a_tee_is_seen(
    tmp_path: Path, flags: str, paths: tuple[str, ...], signs: tuple[str, ...]
) -> None:
    """Any one of them is enough for the server to leave the simulator alone."""
    assert backends.signs_of_hardware(guest(tmp_path, cpu_flags=flags, paths=paths)) == signs


def test_hardware_without_a_backend_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of a TEE, and nothing to use it with: the error says that it is not the machine."""
    sign = backends.Sign("/dev/tdx_guest", positive=True, saw="present")
    monkeypatch.setattr(backends, "look_for_hardware", lambda: (sign,))
    with pytest.raises(BackendUnavailableError, match="no backend for"):
        backends.detect()


def test_a_hidden_place_is_no_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be looked at is reported with its reason, and is not taken for a TEE."""
    machine = guest(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    seen = backends.look_for_hardware(machine)
    assert {sign.saw for sign in seen[1:]} == {"permission denied"}
    assert not any(sign.positive for sign in seen)
