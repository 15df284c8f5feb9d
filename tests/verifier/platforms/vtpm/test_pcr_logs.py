"""Tests of the replay of firmware and IMA logs against quoted PCRs."""

import hashlib
import struct
from collections.abc import Iterable

import pytest

from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.errors import FormatError, ReplayError
from attestkit.event_log import TpmEventLog
from attestkit.verifier.platforms.vtpm.pcr_logs import ReplayedPcrs, replay_pcr_logs
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.tpm_samples import GO_TPM_TOOLS, go_cases, qemu

Pcrs = list[tuple[str, int, bytes]]
BANKS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
QEMU = "vtpm/generic/qemu-swtpm"


def digest(bank: str, content: bytes) -> bytes:
    """Return a digest of a bank."""
    return hashlib.new(bank, content).digest()


def start(bank: str, index: int = 0) -> bytes:
    """Return the start value of a PCR."""
    return (b"\xff" if 17 <= index <= 22 else b"\0") * len(digest(bank, b""))


def record(banks: Iterable[str], pcr: int, kind: int, content: bytes) -> bytes:
    """Return a record of a crypto-agile log."""
    digests = [struct.pack("<H", BANKS[bank]) + digest(bank, content) for bank in banks]
    head = struct.pack("<III", pcr, kind, len(digests))
    return head + b"".join(digests) + struct.pack("<I", len(content)) + content


def boot_log(
    *events: tuple[int, bytes], banks: Iterable[str] = ("sha256",), locality: int | None = None
) -> bytes:
    """Return a crypto-agile log with a record of each pair of PCR and data."""
    banks = tuple(banks)
    sizes = b"".join(struct.pack("<HH", BANKS[bank], len(start(bank))) for bank in banks)
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + sizes + b"\0"
    log = struct.pack("<II20sI", 0, 3, b"", len(spec)) + spec
    if locality is not None:
        log += record(banks, 0, 3, b"StartupLocality\0" + bytes([locality]))
    return log + b"".join(record(banks, pcr, 0xD, content) for pcr, content in events)


def extended(bank: str, index: int, *contents: bytes, locality: int = 0) -> bytes:
    """Return the value of a PCR after records with these data."""
    value = start(bank, index)
    value = value[:-1] + bytes([locality]) if locality else value
    for content in contents:
        value = digest(bank, value + digest(bank, content))
    return value


def quoted(bank: str = "sha256", **values: bytes) -> Pcrs:
    """Return 24 PCRs: at their start, but for those in `values`, such as `pcr7`."""
    return [(bank, n, values.get(f"pcr{n}", start(bank, n))) for n in range(24)]


def quoted_values(values: dict[str, bytes]) -> Pcrs:
    """Return 24 PCRs of SHA-256, as `quoted`."""
    return quoted("sha256", **values)


def outcomes(found: ReplayedPcrs) -> list[tuple[str, str]]:
    """Return check and outcome of each step."""
    return [(step.check, step.outcome) for step in found.steps]


@needs_shared
@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_logs_of_a_machine_replay_in_each_bank(bank: str) -> None:
    """SeaBIOS's log replays to PCRs 0 to 7, IMA's list to PCR 10; PCR 14 is not explained."""
    pcrs = qemu(bank).verify().pcrs
    boot = data(f"{QEMU}/binary_bios_measurements")
    for name in ("", "_sha256", "_sha384"):
        ima = data(f"{QEMU}/binary_runtime_measurements{name}")
        found = replay_pcr_logs(pcrs, boot, ima)
        assert found.replayed == tuple((bank, index) for index in (*range(8), 10))
        assert outcomes(found) == [
            ("pcr_log", "passed"),
            ("ima_log", "passed"),
            ("pcr_log", "skipped"),
        ]
        assert f"{bank} PCRs 14" in found.steps[-1].text


@needs_shared
def test_logs_of_google_machines_replay_in_each_bank() -> None:
    """Logs in messages of go-tpm-tools replay to PCRs 0 to 9 and 14, SHA-512 to nothing."""
    for case in go_cases("attestations"):
        message = GoTpmToolsMessage.parse(data(f"{GO_TPM_TOOLS}/{case['file']}"))
        pcrs = [(one.algorithm, one.number, one.value) for q in message.quotes for one in q[2]]
        found = replay_pcr_logs(sorted(pcrs), message.event_log, b"")
        indices = (*range(10), 14)
        expected = [(b, i) for b in ("sha1", "sha256", "sha384") for i in indices]
        assert list(found.replayed) == expected
        assert outcomes(found) == [("pcr_log", "passed")]
    message = GoTpmToolsMessage.parse(data("vtpm/gcp/go-tpm-tools/gce-cos-85-nonce9009.pb"))
    for quote in message.quotes:
        pcrs = [(one.algorithm, one.number, one.value) for one in sorted(quote.pcr_values)]
        found = replay_pcr_logs(pcrs, message.event_log, b"")
        assert [index for _, index in found.replayed] == [*range(10)]
        assert "PCRs 10," in found.steps[-1].text


@needs_shared
def test_replay_changed_pcr_is_named_with_both_values() -> None:
    """A firmware PCR that the log does not replay to is refused, with both values in the text."""
    pcrs = qemu("sha256").verify().pcrs
    boot = data(f"{QEMU}/binary_bios_measurements")
    expected = TpmEventLog.parse(boot).replay("sha256")
    for index in range(8):
        other = tuple((b, n, bytes(31) + b"\7" if n == index else v) for b, n, v in pcrs)
        with raises(ReplayError, "pcr_mismatch", part=expected[index].hex()) as caught:
            replay_pcr_logs(other, boot, b"")
        assert f"the quoted one is {'00' * 31}07" in str(caught.value)


@needs_shared
def test_replay_log_changed_in_any_digest_is_refused() -> None:
    """A changed digest of the quoted bank is a malformed log or a replay to another value."""
    pcrs = qemu("sha256").verify().pcrs
    boot = data(f"{QEMU}/binary_bios_measurements")
    for event in TpmEventLog.parse(boot).events:
        if event.event_type == 3:
            continue
        at = boot.index(event.digest("sha256"))
        changed = boot[:at] + bytes([boot[at] ^ 1]) + boot[at + 1 :]
        with raises(ReplayError, "pcr_mismatch"):
            replay_pcr_logs(pcrs, changed, b"")


@needs_shared
def test_replay_truncated_logs_are_refused() -> None:
    """A log without its last record, or cut inside one, does not replay."""
    pcrs = qemu("sha256").verify().pcrs
    boot = data(f"{QEMU}/binary_bios_measurements")
    for size in range(1, len(boot), 13):
        with pytest.raises((FormatError, ReplayError)):
            replay_pcr_logs(pcrs, boot[:size], b"")
    ima = data(f"{QEMU}/binary_runtime_measurements")
    for size in range(1, len(ima), 997):
        with pytest.raises((FormatError, ReplayError)):
            replay_pcr_logs(pcrs, b"", ima[:size])


@every_case("locality", [None, 0, 3, 4])
def test_replay_starts_pcr0_at_the_startup_locality(locality: int | None) -> None:
    """PCR 0 starts with the locality of the TPM's start as its last byte."""
    log = boot_log((0, b"firmware"), locality=locality)
    value = extended("sha256", 0, b"firmware", locality=locality or 0)
    found = replay_pcr_logs(quoted(pcr0=value), log, b"")
    assert found.replayed == (("sha256", 0),)
    assert outcomes(found) == [("pcr_log", "passed")]
    other = extended("sha256", 0, b"firmware", locality=2)
    with raises(ReplayError, "pcr_mismatch"):
        replay_pcr_logs(quoted(pcr0=other), log, b"")


def test_replay_explains_dynamic_pcrs_from_ones() -> None:
    """PCRs 17 to 22 start as 0xFF, which is not an extension."""
    log = boot_log((7, b"policy"), (17, b"launch"))
    pcr7 = extended("sha256", 7, b"policy")
    pcr17 = extended("sha256", 17, b"launch")
    found = replay_pcr_logs(quoted(pcr7=pcr7, pcr17=pcr17), log, b"")
    assert found.replayed == (("sha256", 7), ("sha256", 17))
    assert outcomes(found) == [("pcr_log", "passed")]


@every_case("index", range(8))
def test_replay_firmware_pcr_without_records_is_refused(index: int) -> None:
    """A log without the records of an extended firmware PCR does not pass."""
    values = {"pcr0": extended("sha256", 0, b"x"), f"pcr{index}": b"\7" * 32}
    log = boot_log(*(() if index == 0 else ((0, b"x"),)), (9, b"y"))
    values["pcr9"] = extended("sha256", 9, b"y")
    with raises(ReplayError, "pcr_mismatch"):
        replay_pcr_logs(quoted_values(values), log, b"")


@pytest.mark.parametrize("index", [8, 9, 14])
def test_replay_boot_loader_pcr_must_match_its_records(index: int) -> None:
    """PCRs 8, 9 and 14 match their records; without records, they are not explained."""
    log = boot_log((0, b"x"), (index, b"loader"))
    values = {"pcr0": extended("sha256", 0, b"x"), f"pcr{index}": b"\7" * 32}
    with raises(ReplayError, "pcr_mismatch"):
        replay_pcr_logs(quoted_values(values), log, b"")
    found = replay_pcr_logs(quoted_values(values), log, b"", extended_later=[index])
    assert outcomes(found) == [("pcr_log", "passed"), ("pcr_log", "skipped")]
    found = replay_pcr_logs(quoted_values(values), boot_log((0, b"x")), b"")
    assert found.replayed == (("sha256", 0),)
    assert outcomes(found) == [("pcr_log", "passed"), ("pcr_log", "skipped")]
    assert f"PCRs {index}," in found.steps[-1].text


@every_case("index", [10, 11, 12, 13, 15, 16, 23])
def test_replay_pcr_of_the_system_may_be_further_than_its_records(index: int) -> None:
    """Programs extend these PCRs without a record, so a difference is named, not refused."""
    log = boot_log((0, b"x"), (index, b"stub"))
    values = {"pcr0": extended("sha256", 0, b"x"), f"pcr{index}": b"\7" * 32}
    found = replay_pcr_logs(quoted_values(values), log, b"")
    assert found.replayed == (("sha256", 0),)
    assert outcomes(found) == [("pcr_log", "passed"), ("pcr_log", "skipped")]
    text = found.steps[-1].text
    assert f"sha256 PCR {index} is {'07' * 32}, " in text
    assert f"replay to {extended('sha256', index, b'stub').hex()}: " in text


def test_replay_names_each_pcr_once() -> None:
    """A PCR that is further than its records is not also listed as one without a log."""
    log = boot_log((0, b"x"), (11, b"stub"))
    values = {"pcr0": extended("sha256", 0, b"x"), "pcr11": b"\7" * 32, "pcr12": b"\1" * 32}
    found = replay_pcr_logs(quoted_values(values), log, b"")
    assert outcomes(found) == [
        ("pcr_log", "passed"),
        ("pcr_log", "skipped"),
        ("pcr_log", "skipped"),
    ]
    assert found.steps[-1].text == "no log explains sha256 PCRs 12, which are extended"


def test_replay_of_bank_without_digests_explains_nothing() -> None:
    """A quoted bank that the log lacks is not explained by another bank of it."""
    log = boot_log((0, b"x"), banks=("sha256", "sha384"))
    pcrs = quoted(pcr0=extended("sha256", 0, b"x")) + quoted("sha512", pcr0=b"\7" * 64)
    found = replay_pcr_logs(pcrs, log, b"")
    assert found.replayed == (("sha256", 0),)
    assert found.steps[-1].outcome == "skipped"
    assert "sha512 PCRs 0," in found.steps[-1].text


def test_replay_without_logs_explains_nothing() -> None:
    """Without a log, extended PCRs are named, and no step passes."""
    found = replay_pcr_logs(quoted(pcr4=b"\7" * 32, pcr5=b"\7" * 32, pcr9=b"\7" * 32), b"", b"")
    assert found.replayed == ()
    assert outcomes(found) == [("pcr_log", "skipped"), ("pcr_log", "skipped")]
    assert "sha256 PCRs 4-5, 9," in found.steps[-1].text


def ima_record(content: bytes, pcr: int = 10, *, violation: bool = False) -> bytes:
    """Return a record of the template `ima-ng` with digests of SHA-1."""
    found = bytes(20) if violation else hashlib.sha1(content, usedforsecurity=False).digest()
    head = struct.pack("<I", pcr) + found + struct.pack("<I", 6) + b"ima-ng"
    return head + struct.pack("<I", len(content)) + content


def aggregate(value: bytes) -> bytes:
    """Return template data of `boot_aggregate`."""
    fields = (b"sha256:\0" + value, b"boot_aggregate\0")
    return b"".join(struct.pack("<I", len(one)) + one for one in fields)


def pcr10(*contents: bytes, bank: str = "sha256") -> bytes:
    """Return PCR 10 after records with these template data; None is a violation."""
    return extended(bank, 10, *contents)


FIRST = aggregate(hashlib.sha256(bytes(320)).digest())


def test_ima_replay_passes_without_notes() -> None:
    """A list that replays as a whole, with the boot aggregate of the quoted PCRs, passes."""
    log = ima_record(FIRST) + ima_record(b"one")
    found = replay_pcr_logs(quoted(pcr10=pcr10(FIRST, b"one")), b"", log)
    assert found.replayed == (("sha256", 10),)
    assert outcomes(found) == [("pcr_log", "skipped"), ("ima_log", "passed")]


def test_ima_replay_accepts_the_old_boot_aggregate() -> None:
    """Older kernels hash PCRs 0 to 7."""
    first = aggregate(hashlib.sha256(bytes(256)).digest())
    pcrs = quoted(pcr10=pcr10(first), pcr8=b"\7" * 32)
    assert outcomes(replay_pcr_logs(pcrs, b"", ima_record(first)))[1] == ("ima_log", "passed")


def test_ima_replay_reports_records_that_follow() -> None:
    """Records after the quote are counted in a caution."""
    log = ima_record(FIRST) + ima_record(b"one") + ima_record(b"two") * 2
    found = replay_pcr_logs(quoted(pcr10=pcr10(FIRST, b"one")), b"", log)
    assert found.steps[1].outcome == "caution"
    assert "2 records follow" in found.steps[1].text


def test_ima_replay_reports_violations() -> None:
    """A violation is extended as 0xFF bytes, and noted."""
    value = digest("sha256", pcr10(FIRST) + b"\xff" * 32)
    log = ima_record(FIRST) + ima_record(b"one", violation=True)
    found = replay_pcr_logs(quoted(pcr10=value), b"", log)
    assert found.steps[1].outcome == "caution"
    assert "1 records are violations" in found.steps[1].text


def test_ima_replay_reports_another_boot_aggregate() -> None:
    """A boot aggregate of other PCRs, or a list without one, is a caution."""
    other = aggregate(b"\7" * 32)
    for first in (other, b"one"):
        found = replay_pcr_logs(quoted(pcr10=pcr10(first)), b"", ima_record(first))
        assert outcomes(found)[1] == ("ima_log", "caution")


def test_ima_replay_of_another_value_is_refused() -> None:
    """A list of which no prefix replays to PCR 10 is refused, in every quoted bank."""
    log = ima_record(FIRST) + ima_record(b"one")
    good = pcr10(FIRST, b"one")
    for value in (bytes(32), b"\7" * 32, pcr10(b"one")):
        with raises(ReplayError, "ima_mismatch", part=good.hex()):
            replay_pcr_logs(quoted(pcr10=value), b"", log)
    both = quoted(pcr10=good) + quoted("sha384", pcr10=b"\7" * 48)
    with raises(ReplayError, "ima_mismatch", part="sha384"):
        replay_pcr_logs(both, b"", log)


def test_ima_replay_without_quoted_pcr_is_skipped() -> None:
    """A list whose PCR is not quoted is not a proof of anything."""
    pcrs = [one for one in quoted() if one[1] != 10]
    found = replay_pcr_logs(pcrs, b"", ima_record(FIRST))
    assert outcomes(found)[1] == ("ima_log", "skipped")


def test_ima_records_do_not_explain_what_the_firmware_extends() -> None:
    """PCRs 0 to 7 need the firmware's log: records of IMA for them, which replay, are ignored."""
    pcrs = quoted(pcr7=extended("sha256", 7, b"any"))
    found = replay_pcr_logs(pcrs, b"", ima_record(b"any", 7))
    assert found.replayed == ()
    assert {outcome for _, outcome in outcomes(found)} == {"skipped"}


def test_ima_replay_of_another_pcr_than_10() -> None:
    """A rule of IMA may name another PCR; it is replayed if it starts at zeros."""
    log = ima_record(FIRST) + ima_record(b"key", 11)
    pcrs = quoted(pcr10=pcr10(FIRST), pcr11=extended("sha256", 11, b"key"))
    assert replay_pcr_logs(pcrs, b"", log).replayed == (("sha256", 10), ("sha256", 11))
    pcrs = quoted(pcr10=pcr10(FIRST), pcr11=b"\7" * 32)
    found = replay_pcr_logs(pcrs, b"", log)
    assert found.replayed == (("sha256", 10),)
    assert "PCRs 11," in found.steps[-1].text
