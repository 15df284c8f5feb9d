"""Reads beneath a directory with untrusted content follow only links that stay inside it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attestkit._system import untrusted_files
from attestkit._system.untrusted_files import read_beneath
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import ConfigError
from attestkit.keys import AppKeys
from tests.dstack.test_host_shared_folder import make_compose, make_key_file, write_folder

FILES = ("app-compose.json", ".appkeys.json", ".sys-config.json", ".instance_info")
LEFT = "symbolic link leaves its directory"
LONG = "too many symbolic links or directories"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a shared folder; a file of the guest lies beside it."""
    (tmp_path / "file").write_bytes(b"the guest's own")
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def check_open_descriptors() -> Iterator[None]:
    """Require that every file descriptor opened by a test is closed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def publish_config_map(folder: Path, version: str, name: str) -> None:
    """Publish a version of the app's files the way Kubernetes updates a ConfigMap volume."""
    (folder / version).mkdir()
    keys = make_key_file(AppKeys.from_seed(bytes(32)))
    write_folder(
        folder / version,
        app_compose=make_compose(name=name),
        app_keys=keys,
        sys_config={"vm_config": "{}"},
        instance_info={"instance_id_seed": "01" * 20},
    )
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").replace(folder / "..data")
    for file in FILES:
        if not (folder / file).is_symlink():
            (folder / file).symlink_to(f"..data/{file}")


def test_host_shared_config_map_reads_each_published_version(shared: Path) -> None:
    """A ConfigMap volume is readable, and a new version is seen by the next HostShared."""
    for version in ("..2026_11_26_1", "..2026_11_26_2"):
        publish_config_map(shared, version, version)
        host = HostShared(shared)
        assert host.app_compose.name == version
        assert host.app_keys.k256_key
        assert host.vm_config == "{}"
        assert len(host.instance_id(bytes(20))) == 20
        host.close()


def test_host_shared_symlinked_folder_is_accepted(shared: Path, tmp_path: Path) -> None:
    """The caller may name the shared folder through a symbolic link."""
    publish_config_map(shared, "..1", "app")
    (tmp_path / "named").symlink_to(shared)
    assert HostShared(tmp_path / "named").app_compose.name == "app"


def link_through_links(folder: Path, links: int) -> None:
    """Link `name` to a file through a number of symbolic links."""
    (folder / "0").write_bytes(b"x")
    for number in range(1, links):
        (folder / f"{number}").symlink_to(f"{number - 1}")
    (folder / "name").symlink_to(f"{links - 1}")


def link_through_folders(folder: Path, depth: int) -> None:
    """Link `name` to a file through a number of directories."""
    inner = folder.joinpath(*["d"] * depth)
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(b"x")
    (folder / "name").symlink_to("d/" * depth + "file")


@pytest.mark.parametrize(
    ("make_link", "limit"), [(link_through_links, 8), (link_through_folders, 16)]
)
def test_read_beneath_over_limit_of_links_or_directories_fails(
    shared: Path, make_link: Callable[[Path, int], None], limit: int
) -> None:
    """At most 8 links and 16 directories are followed."""
    for number, folder in ((limit, shared / "a"), (limit + 1, shared / "b")):
        folder.mkdir()
        make_link(folder, number)
    assert read_beneath(shared / "a", "name", 9) == b"x"
    with pytest.raises(OSError, match=LONG):
        read_beneath(shared / "b", "name", 9)


@pytest.mark.parametrize("target", ["sub/../real", "./sub//.././real", "sub/up/real", "real"])
def test_read_beneath_link_inside_folder_is_followed(shared: Path, target: str) -> None:
    """A link may use `..` and other links as long as the path stays inside the directory."""
    (shared / "real").write_bytes(b"x")
    (shared / "sub").mkdir()
    (shared / "sub" / "up").symlink_to("..")
    (shared / "name").symlink_to(target)
    assert read_beneath(shared, "name", 9) == b"x"


@pytest.mark.parametrize(
    ("target", "message"),
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
def test_read_beneath_link_outside_folder_or_to_other_type_fails(
    shared: Path, target: str, message: str
) -> None:
    """A path that leaves the directory is rejected even if it returns to it."""
    (shared / "real").write_bytes(b"x")
    (shared / "sub").mkdir()
    (shared / "up").symlink_to("..")
    (shared / "sub" / "up").symlink_to("../..")
    (shared / "name").symlink_to(str(shared / "real") if target == "ABSOLUTE" else target)
    with pytest.raises(OSError, match=message):
        read_beneath(shared, "name", 9)


@pytest.mark.parametrize(
    ("name", "read", "option"),
    [
        ("app-compose.json", lambda host: host.app_compose, "--app-compose FILE"),
        (".appkeys.json", lambda host: host.app_keys, "--app-keys FILE"),
        (".sys-config.json", lambda host: host.vm_config, "--sys-config FILE"),
        (".instance_info", lambda host: host.instance_id(bytes(20)), ""),
    ],
)
def test_host_shared_link_outside_folder_error_names_remedy(
    shared: Path, name: str, read: Callable[[HostShared], object], option: str
) -> None:
    """The error names the path, and a copy or a server option as remedy."""
    publish_config_map(shared, "..1", "app")
    (shared / name).unlink()
    (shared / name).symlink_to("../file")
    with pytest.raises(ConfigError) as caught:
        read(HostShared(shared))
    text = f"{shared / name}: {LEFT}; replace the symbolic link by a copy of the file"
    assert str(caught.value) == text + (f", or use the server option {option}" if option else "")


# -- concurrent changes of the directory -----------------------------------------------------------


def change_after_lookup(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], None]
) -> None:
    """Call `change` right after `name` has been looked up."""
    look_up = untrusted_files._link_target

    def look_up_and_change(part: str, folder: int) -> str | None:
        found = look_up(part, folder)
        if part == name:
            change()
        return found

    monkeypatch.setattr(untrusted_files, "_link_target", look_up_and_change)


def test_read_beneath_file_replaced_by_link_is_not_followed(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced by a link after its lookup is not followed."""
    (shared / "name").write_bytes(b"x")

    def change() -> None:
        (shared / "name").unlink()
        (shared / "name").symlink_to("../file")

    change_after_lookup(monkeypatch, "name", change)
    with pytest.raises(OSError, match="symbolic link, not followed"):
        read_beneath(shared, "name", 99)


def test_read_beneath_folder_replaced_by_link_is_not_followed(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is replaced by a link after its lookup is not followed."""
    (shared / "sub").mkdir()
    (shared / "name").symlink_to("sub/file")

    def change() -> None:
        (shared / "sub").rmdir()
        (shared / "sub").symlink_to("..")

    change_after_lookup(monkeypatch, "sub", change)
    with pytest.raises(OSError, match="Not a directory"):
        read_beneath(shared, "name", 99)


def test_read_beneath_folder_moved_outside_resolves_parent_by_path(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`..` returns to the directory it was entered from, even if the child was moved outside."""
    (shared / "sub" / "inner").mkdir(parents=True)
    (shared / "file").write_bytes(b"x")
    (shared / "name").symlink_to("sub/inner/../../file")

    def change() -> None:
        (shared / "sub").rename(shared.parent / "sub")

    change_after_lookup(monkeypatch, "inner", change)
    assert read_beneath(shared, "name", 99) == b"x"
