"""Links of a folder that somebody else fills: those that stay in it are followed, no others."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attestkit._system import read_beneath as beneath
from attestkit._system.read_beneath import read_beneath
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import ConfigError
from attestkit.keys import AppKeys
from tests.dstack.test_host_shared_folder import compose, folder_with, key_file

FILES = ("app-compose.json", ".appkeys.json", ".sys-config.json", ".instance_info")
LEFT = "a link that leads out of its folder, which is not followed here"
LONG = "a link that leads on and on, which is not followed here"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder, beside which lies what its filler is not to have read."""
    (tmp_path / "file").write_bytes(b"the guest's own")
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> Iterator[None]:
    """Whatever comes of it, what was opened on the way is closed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def publish(folder: Path, version: str, name: str) -> None:
    """Lay the app's files down as Kubernetes does, in place of those that are there."""
    (folder / version).mkdir()
    keys = key_file(AppKeys.from_seed(bytes(32)))
    folder_with(
        folder / version,
        app_compose=compose(name=name),
        app_keys=keys,
        sys_config={"vm_config": "{}"},
        instance_info={"instance_id_seed": "01" * 20},
    )
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").replace(folder / "..data")
    for file in FILES:
        if not (folder / file).is_symlink():
            (folder / file).symlink_to(f"..data/{file}")


def test_a_config_map(shared: Path) -> None:
    """All four files are read, and those of the next version by whoever comes then."""
    for version in ("..2026_11_26_1", "..2026_11_26_2"):
        publish(shared, version, version)
        host = HostShared(shared)
        assert host.app_compose.name == version
        assert host.app_keys.k256_key
        assert host.vm_config == "{}"
        assert len(host.instance_id(bytes(20))) == 20
        host.close()


def test_the_folder_itself_may_be_a_link(shared: Path, tmp_path: Path) -> None:
    """Whoever names it has chosen it."""
    publish(shared, "..1", "app")
    (tmp_path / "named").symlink_to(shared)
    assert HostShared(tmp_path / "named").app_compose.name == "app"


def chain(folder: Path, links: int) -> None:
    """Make `name` lead over so many links to a file."""
    (folder / "0").write_bytes(b"x")
    for number in range(1, links):
        (folder / f"{number}").symlink_to(f"{number - 1}")
    (folder / "name").symlink_to(f"{links - 1}")


def nested(folder: Path, depth: int) -> None:
    """Make `name` lead through so many folders to a file."""
    inner = folder.joinpath(*["d"] * depth)
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(b"x")
    (folder / "name").symlink_to("d/" * depth + "file")


@pytest.mark.parametrize(("make", "most"), [(chain, 8), (nested, 16)])
def test_the_bounds(shared: Path, make: Callable[[Path, int], None], most: int) -> None:
    """As much as is allowed is read, and no more."""
    for number, folder in ((most, shared / "a"), (most + 1, shared / "b")):
        folder.mkdir()
        make(folder, number)
    assert read_beneath(shared / "a", "name", 9) == b"x"
    with pytest.raises(OSError, match=LONG):
        read_beneath(shared / "b", "name", 9)


@pytest.mark.parametrize("target", ["sub/../real", "./sub//.././real", "sub/up/real", "real"])
def test_what_stays_is_read(shared: Path, target: str) -> None:
    """Back and forth, too, as long as it is beneath."""
    (shared / "real").write_bytes(b"x")
    (shared / "sub").mkdir()
    (shared / "sub" / "up").symlink_to("..")
    (shared / "name").symlink_to(target)
    assert read_beneath(shared, "name", 9) == b"x"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("../file", LEFT),
        ("sub/../../file", LEFT),
        ("up/file", LEFT),
        ("sub/up/file", LEFT),
        ("../shared/real", LEFT),
        ("ABSOLUTE", LEFT),
        ("name", LONG),
        ("sub", "Is a directory"),
        ("sub/", "Is a directory"),
        ("sub/..", "Is a directory"),
        ("real/", "Not a directory"),
        ("gone", "No such file or directory"),
    ],
)
def test_what_leaves_is_not(shared: Path, target: str, told: str) -> None:
    """By any way, and though it came back."""
    (shared / "real").write_bytes(b"x")
    (shared / "sub").mkdir()
    (shared / "up").symlink_to("..")
    (shared / "sub" / "up").symlink_to("../..")
    (shared / "name").symlink_to(str(shared / "real") if target == "ABSOLUTE" else target)
    with pytest.raises(OSError, match=told):
        read_beneath(shared, "name", 9)


@pytest.mark.parametrize(
    ("name", "read", "option"),
    [
        ("app-compose.json", lambda host: host.app_compose, ", or give the server --app-compose"),
        (".appkeys.json", lambda host: host.app_keys, ", or give the server --app-keys FILE"),
        (".sys-config.json", lambda host: host.vm_config, ", or give the server --sys-config FILE"),
        (".instance_info", lambda host: host.instance_id(bytes(20)), ""),
    ],
)
def test_what_helps_is_told(
    shared: Path, name: str, read: Callable[[HostShared], object], option: str
) -> None:
    """A copy always does; most files can be named."""
    publish(shared, "..1", "app")
    (shared / name).unlink()
    (shared / name).symlink_to("../file")
    with pytest.raises(ConfigError) as caught:
        read(HostShared(shared))
    told = f"{shared / name}: {LEFT}: put a copy of the file in its place{option}"
    assert str(caught.value).startswith(told)


# -- somebody changes the folder meanwhile --------------------------------------------------------


def when_at(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], None]) -> None:
    """Have somebody change the folder right behind the look at a name on the way."""
    look = beneath._target

    def looked(part: str, folder: int) -> str | None:
        found = look(part, folder)
        if part == name:
            change()
        return found

    monkeypatch.setattr(beneath, "_target", looked)


def test_a_file_becomes_a_link(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was none when it was looked at; it is not followed all the same."""
    (shared / "name").write_bytes(b"x")

    def change() -> None:
        (shared / "name").unlink()
        (shared / "name").symlink_to("../file")

    when_at(monkeypatch, "name", change)
    with pytest.raises(OSError, match="a link, which is not followed here"):
        read_beneath(shared, "name", 99)


def test_a_folder_becomes_a_link(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on the way that turns into a link is not followed either."""
    (shared / "sub").mkdir()
    (shared / "name").symlink_to("sub/file")

    def change() -> None:
        (shared / "sub").rmdir()
        (shared / "sub").symlink_to("..")

    when_at(monkeypatch, "sub", change)
    with pytest.raises(OSError, match="Not a directory"):
        read_beneath(shared, "name", 99)


def test_a_folder_is_moved_away(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `..` is another one then; the way back is the way that was gone."""
    (shared / "sub" / "inner").mkdir(parents=True)
    (shared / "file").write_bytes(b"x")
    (shared / "name").symlink_to("sub/inner/../../file")

    def change() -> None:
        (shared / "sub").rename(shared.parent / "sub")

    when_at(monkeypatch, "inner", change)
    assert read_beneath(shared, "name", 99) == b"x"
