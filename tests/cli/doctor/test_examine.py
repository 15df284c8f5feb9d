"""The doctor compares the runtime log with the register of the machine that was found."""

from pathlib import Path

import pytest

from attestkit import backends
from attestkit.cli.doctor.examine import examine


@pytest.mark.parametrize(
    ("usable", "register"),
    [
        ({"nitro_tpm": None, "tpm": None}, "PCR 14"),
        ({"configfs_tsm": None, "nitro_tpm": None}, "PCR 14"),
        ({"configfs_tsm": None, "nitro_tpm": "no EC2 instance"}, "RTMR3"),
        ({}, "RTMR3"),
    ],
)
def test_examine_names_the_register_of_events(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    usable: dict[str, str | None],
    register: str,
) -> None:
    """It is PCR 14 where a NitroTPM is usable, and RTMR3 elsewhere."""
    monkeypatch.setattr(backends, "probe_all", lambda _: usable)
    found = examine(tmp_path).runtime_log
    assert found.state == "unknown"
    assert found.says == f"0 events; {register} is unreadable here, so they are not compared"
