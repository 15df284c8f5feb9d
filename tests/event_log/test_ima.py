"""Tests of the IMA log: all templates and digest sizes, violations, and replay of prefixes."""

import hashlib
import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError
from attestkit.event_log import ima
from attestkit.event_log.ima import ImaLog, ImaMatch
from attestkit.tpm.algorithms import HASH_SIZES
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

QEMU = "vtpm/generic/qemu-swtpm"
FILES = {"sha1": "", "sha256": "_sha256", "sha384": "_sha384"}


def sample(bank: str) -> bytes:
    """Return the list of swtpm under QEMU with the digests of a bank."""
    return data(f"{QEMU}/binary_runtime_measurements{FILES[bank]}")


def sized(*fields: bytes) -> bytes:
    """Return template data of fields with their sizes."""
    return b"".join(struct.pack("<I", len(one)) + one for one in fields)


def record(
    template: str,
    content: bytes,
    *,
    bank: str = "sha1",
    pcr: int = 10,
    violation: bool = False,
    measured: bytes | None = None,
) -> bytes:
    """Return a record; `ima` has no size of its data."""
    hashed = hashlib.new(bank, content if measured is None else measured).digest()
    digest = bytes(len(hashed)) if violation else hashed
    name = template.encode()
    size = b"" if template == "ima" else struct.pack("<I", len(content))
    return struct.pack("<I", pcr) + digest + struct.pack("<I", len(name)) + name + size + content


NG = sized(b"sha256:\0" + bytes(range(32)), b"/usr/bin/true\0")
OLD = bytes(range(20)) + sized(b"/sbin/init")
AGGREGATE = sized(b"sha256:\0" + bytes(32), b"boot_aggregate\0")
SMALL = record("ima-ng", AGGREGATE) + record("ima-sig", NG + sized(b"\3\2signature"))


def replay(log: bytes) -> bytes | None:
    """Return the value that a log replays to; None if it is refused."""
    try:
        return ImaLog.parse(log).replay("sha256")
    except FormatError:
        return None


@needs_shared
@pytest.mark.parametrize("bank", FILES)
def test_ima_log_of_each_file_replays_every_bank(bank: str) -> None:
    """The list of any bank replays to PCR 10 of SHA-256 and SHA-384 (Linux 6.12 in QEMU)."""
    log = ImaLog.parse(sample(bank))
    assert (log.bank, len(log.records), log.pcrs, log.violations) == (bank, 91, (10,), 0)
    assert {one.template for one in log.records} == {"ima-sig"}
    for other in ("sha256", "sha384"):
        value = bytes.fromhex(json.loads(data(f"{QEMU}/pcrs-{other}.json"))["10"])
        assert log.replay(other) == value
        assert log.match(other, value) == ImaMatch(91, 0)


@needs_shared
def test_ima_log_contains_the_boot_aggregate() -> None:
    """The first record has the hash of PCRs 0 to 9 of the SHA-256 bank."""
    values = json.loads(data(f"{QEMU}/pcrs-sha256.json"))
    content = b"".join(bytes.fromhex(values[str(index)]) for index in range(10))
    expected = hashlib.sha256(content).digest()
    assert ImaLog.parse(sample("sha256")).boot_aggregate == ("sha256", expected)


@needs_shared
@pytest.mark.parametrize("bank", FILES)
def test_ima_log_agrees_with_the_text_of_the_kernel(bank: str) -> None:
    """Template digests recomputed in SHA-256 are those of the kernel's text file."""
    text = data(f"{QEMU}/ascii_runtime_measurements_sha256").decode()
    stated = [line.split()[1] for line in text.splitlines()]
    log = ImaLog.parse(sample(bank))
    assert [one.template_digest("sha256").hex() for one in log.records] == stated


@needs_shared
def test_ima_log_cut_at_every_byte_is_refused_or_shorter() -> None:
    """A prefix that ends between records is a shorter log; every other prefix is refused."""
    whole = sample("sha1")[:1200]
    found = [value for size in range(len(whole)) if (value := replay(whole[:size])) is not None]
    log = ImaLog.parse(sample("sha1"))
    assert found == [ImaLog("sha1", log.records[:n]).replay("sha256") for n in range(len(found))]
    assert len(found) > 5


def test_ima_log_changed_in_every_byte_is_refused_or_replays_otherwise() -> None:
    """No changed byte leaves a log that replays to the same value, but in a template's name.

    The kernel's hash covers the template data only.
    """
    expected = ImaLog.parse(SMALL).replay("sha256")
    second = len(record("ima-ng", AGGREGATE))
    names = {*range(28, 34), *range(second + 28, second + 35)}
    for at in sorted(set(range(len(SMALL))) - names):
        changed = SMALL[:at] + bytes([SMALL[at] ^ 1]) + SMALL[at + 1 :]
        assert replay(changed) != expected


@every_case("bank", HASH_SIZES)
@every_case(
    "template",
    ["ima-ng", "ima-sig", "ima-buf", "ima-modsig", "ima-ngv2", "ima-sigv2", "evm-sig", "d-ng|n-ng"],
)
def test_ima_log_reads_each_template_and_bank(template: str, bank: str) -> None:
    """The digest of a record covers exactly its template data."""
    log = ImaLog.parse(record(template, NG, bank=bank))
    assert log.bank == bank
    assert log.records[0].template == template
    assert log.records[0].template_digest("sha512") == hashlib.sha512(NG).digest()


def test_ima_log_reads_the_old_template() -> None:
    """`ima` has no size of its data, and its hash covers the file name padded to 256 bytes."""
    measured = OLD[:20] + b"/sbin/init".ljust(256, b"\0")
    log = ImaLog.parse(record("ima", OLD, measured=measured) + record("ima-ng", NG))
    assert [one.template for one in log.records] == ["ima", "ima-ng"]
    assert log.records[0].template_digest("sha256") == hashlib.sha256(measured).digest()
    first = bytes(20) + sized(b"boot_aggregate")
    padded = first[:20] + b"boot_aggregate".ljust(256, b"\0")
    log = ImaLog.parse(record("ima", first, measured=padded))
    assert log.boot_aggregate == ("sha1", bytes(20))


def test_ima_log_extends_violations_as_ones() -> None:
    """A zero digest marks a violation, which extends every bank with 0xFF bytes."""
    log = ImaLog.parse(record("ima-ng", NG, violation=True))
    assert log.violations == 1
    for bank, size in HASH_SIZES.items():
        extended = hashlib.new(bank, bytes(size) + b"\xff" * size).digest()
        assert log.replay(bank) == extended
        assert log.match(bank, extended) == ImaMatch(1, 0)
    assert log.boot_aggregate is None


def test_ima_log_matches_the_shortest_prefix() -> None:
    """Records that follow the quote are counted; no records match nothing."""
    log = ImaLog.parse(SMALL + record("ima-ng", NG) * 2 + record("ima-ng", NG, pcr=11))
    values = [ImaLog(log.bank, log.records[:count]).replay("sha256") for count in range(5)]
    assert [log.match("sha256", value) for value in values] == [
        None,
        ImaMatch(1, 3),
        ImaMatch(2, 2),
        ImaMatch(3, 1),
        ImaMatch(4, 0),
    ]
    assert log.pcrs == (10, 11)
    assert log.match("sha256", log.replay("sha256", 11), 11) == ImaMatch(1, 0)
    assert ImaLog.parse(b"").match("sha256", bytes(32)) is None


@every_case(
    ("log", "reason"),
    [
        (b"\0" * 100, "unrecognized"),
        (record("ima-ng", NG)[:-1], "truncated"),
        (record("ima-ng", NG) + b"\0", "truncated"),
        (record("ima-ng", NG, pcr=24), "index"),
        (record("ima-ng", NG, measured=b"x"), "inconsistent"),
        (record("ima-ng", NG) + struct.pack("<I20sI", 10, b"x" * 20, 0), "wrong_size"),
        (record("ima-ng", NG) + struct.pack("<I20sI", 10, b"x" * 20, 256), "wrong_size"),
        (record("ima-ng", NG) + struct.pack("<I20sI3s", 10, b"x" * 20, 3, b"i\0a"), "encoding"),
        (
            record("ima-ng", NG)
            + struct.pack("<I20sI6sI", 10, b"x" * 20, 6, b"ima-ng", (1 << 20) + 1),
            "event_size",
        ),
    ],
)
def test_ima_log_refuses_malformed_records(log: bytes, reason: str) -> None:
    """Each rule of the format has its reason."""
    with raises(FormatError, reason):
        ImaLog.parse(log)


def test_ima_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More records or bytes than the limits are refused."""
    monkeypatch.setattr(ima, "MAX_RECORDS", 3)
    with raises(FormatError, "too_many"):
        ImaLog.parse(record("ima-ng", NG) * 4)
    monkeypatch.setattr(ima, "MAX_SIZE", 100)
    with raises(FormatError, "too_large"):
        ImaLog.parse(record("ima-ng", NG) * 2)


def test_ima_log_of_unknown_bank_or_type_is_a_usage_error() -> None:
    """A caller's mistakes are a UsageError."""
    with raises(UsageError, "unknown_name"):
        ImaLog.parse(SMALL).replay("md5")
    with raises(UsageError, "wrong_type"):
        ImaLog.parse(Path())  # type: ignore[arg-type] # the mistake


@given(st.binary(max_size=200))
def test_ima_log_accepts_or_refuses_any_bytes(data: bytes) -> None:
    """Any bytes are a log, or refused by a FormatError."""
    with suppress(FormatError):
        assert ImaLog.parse(SMALL + data).records[:2] == ImaLog.parse(SMALL).records
