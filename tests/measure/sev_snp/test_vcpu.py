"""Virtual CPUs of SEV-SNP guests."""

from typing import Any

import pytest

from attestkit._crypto.hashes import sha384
from attestkit.errors import UsageError
from attestkit.measure.sev_snp.launch_digest import find_cpu_signature, initial_vmsa, svsm_vmsa
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, load

VECTORS: dict[str, Any] = load("measurement.json")
ROWS: list[dict[str, Any]] = VECTORS.get("vmsa", [])


@every_case("row", ROWS, ids=lambda row: f"{row['vmm']}-{row['eip']:x}")
def test_vmsa_vectors(row: dict[str, Any]) -> None:
    """Each save area has the published bytes, and zeros elsewhere."""
    signature = find_cpu_signature(row["cpu_type"])
    vmsa = initial_vmsa(row["eip"], signature, row["guest_features"], row["vmm"])
    words = [vmsa[at : at + 8] for at in range(0, 4096, 8)]
    assert [[8 * at, word.hex()] for at, word in enumerate(words) if any(word)] == row["nonzero"]
    assert sha384(vmsa).hex() == row["sha384"]


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_vmsa_vectors_are_complete() -> None:
    """All six rows are known."""
    assert len(ROWS) == 6


@every_case(
    ("cpu_type", "signature"),
    [("EPYC", 0x800F12), ("epyc-rome", 0x830F10), (" EPYC-Milan-v2 ", 0xA00F11),
     ("EPYC-Genoa", 0xA10F10), ("EPYC-Turin", 0xB00F00),
     # QEMU 8.2 (Rome v4) and 10.1
     ("EPYC-v5", 0x800F12), ("EPYC-Rome-v4", 0x830F10), ("EPYC-Rome-v5", 0x830F10),
     ("EPYC-Milan-v3", 0xA00F11), ("EPYC-Genoa-v2", 0xA10F10), ("EPYC-Turin-v1", 0xB00F00)],
)  # fmt: skip
def test_find_cpu_signature(cpu_type: str, signature: int) -> None:
    """A type of QEMU has family, model and stepping, whatever the case of its name."""
    assert find_cpu_signature(cpu_type) == signature


def test_find_cpu_signature_refuses_unknown_type() -> None:
    """A name that QEMU does not have is refused."""
    with pytest.raises(UsageError) as caught:
        find_cpu_signature("Skylake-Server")
    assert caught.value.reason == "unknown_name"


def test_svsm_vmsa_is_in_protected_mode() -> None:
    """A service module starts with flat segments, at its entry point, without x87 control word."""
    vmsa = svsm_vmsa(0xFF800010, 0xA00F11)
    assert vmsa[0x178:0x180] == (0xFF800010).to_bytes(8, "little")
    assert vmsa[0x158:0x160] == (0x11).to_bytes(8, "little")
    assert vmsa[0x10:0x18] == bytes.fromhex("0800 9b0c ffffffff")
    assert vmsa[:8] == vmsa[0x20:0x28] == vmsa[0x30:0x38] == bytes.fromhex("1000 930c ffffffff")
    assert vmsa[0x50:0x58] == bytes.fromhex("0000 9300 ffff0000")
    assert not any(vmsa[0x410:0x412])
