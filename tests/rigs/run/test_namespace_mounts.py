"""Mounts of `attestkit run` where the machine has some of the emulated files already."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.emulator import PATIENCE, environment
from tests.rigs.run.attestkit_run import requires_run

pytestmark = pytest.mark.slow

SCRIPT = """if True:
    import sys
    from pathlib import Path
    from attestkit.emulator.namespaces import NamespaceMounts, enter
    base, order = Path(sys.argv[1]), sys.argv[2].split()
    device, source = base / "device", base / "source"
    enter()
    mounts = NamespaceMounts([device / name for name in ("real", "folder", "new", "hidden")])
    for name in order:
        if name == "hidden":
            mounts.hide(device / name)
        else:
            mounts.show(source / name, device / name)
    mounts.restore_modes()
    for path in sorted(device.rglob("*")):
        if path.is_file():
            print(path.relative_to(device), path.read_text())
"""


@pytest.mark.slow
@pytest.mark.rig
@requires_run
@pytest.mark.parametrize(
    "order", ["real folder new hidden", "hidden new folder real", "real folder hidden new"]
)
def test_shown_files_stay_when_their_folder_is_covered(order: str, tmp_path: Path) -> None:
    """As on a TDX guest with a TPM: its device is replaced, then the TPM is hidden."""
    for folder, names in (("device", "real hidden other"), ("source", "real new")):
        (tmp_path / folder / "folder").mkdir(parents=True)
        (tmp_path / folder / "folder/inner").write_text(folder)
        for name in names.split():
            (tmp_path / folder / name).write_text(folder)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, order],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    expected = ["folder/inner source", "new source", "other device", "real source"]
    assert done.stdout.splitlines() == expected
    assert (tmp_path / "device/real").read_text() == "device"
