"""Evidence of SEV-SNP guests: reports, certificates and the host's documents."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.snp import SnpCertificates
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.attester import Attester
from attestkit.errors import (
    BackendError,
    ConfigError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import EventLog
from tests.attester.host_files import write_app_compose, write_sys_config
from tests.machines.tees import CHIP, FakeSnp
from tests.raising import raises
from tests.untyped import untyped

DOCUMENT = json.dumps(
    {
        "app_id": "11" * 20,
        "compose_hash": "22" * 32,
        "instance_id": "33" * 20,
        "key_provider": "kms",
        "key_provider_id": "44",
        "version": 3,
    }
)


def test_snp_evidence_has_all_parts(shared: Path) -> None:
    """Report, ASK and VCEK, both documents of the host, and no events."""
    vm_config = json.dumps({"os_image_hash": "ab" * 32, "sev_snp_measurement": "{}"})
    write_sys_config(shared, vm_config, mr_config=DOCUMENT)
    with Attester(FakeSnp(host_data=host_data(DOCUMENT))) as tee:
        evidence = Attestation.from_bytes(tee.attest(report_data=b"nonce", pad=True).to_bytes())
        info = tee.app_info
        assert not tee.has_quotes
    assert evidence.platform == "dstack-amd-sev-snp"
    assert evidence.encoding == "v0"
    assert evidence.report_data == b"nonce".ljust(64, b"\0")
    assert evidence.snp_report is not None
    assert evidence.snp_report.report_data == evidence.report_data
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    assert platform.cert_chain == (CHIP.ask_der, CHIP.leaf_der)
    assert platform.mr_config == DOCUMENT
    assert evidence.config == vm_config
    assert evidence.runtime_events == ()
    assert (info.app_id, info.compose_hash) == (b"\x11" * 20, b"\x22" * 32)
    assert info.instance_id == b"\x33" * 20
    assert info.os_image_hash == b"\xab" * 32
    assert info == evidence.app_info


def test_snp_launch_document_must_match_host_data(shared: Path) -> None:
    """Evidence with another document is rejected."""
    write_sys_config(shared, mr_config=DOCUMENT)
    backend = FakeSnp(host_data=host_data(DOCUMENT + " "))
    with Attester(backend) as tee, raises(ReplayError, "host_data_mismatch") as caught:
        tee.attest(report_data=bytes(64))
    for value in (backend.host_data, host_data(DOCUMENT)):
        assert value.hex() in str(caught.value)


def test_snp_evidence_without_launch_document_has_no_app(shared: Path) -> None:
    """The error names the missing file."""
    write_app_compose(shared)
    with Attester(FakeSnp()) as tee:
        platform = tee.attest(report_data=bytes(64)).evidence.platform
        assert isinstance(platform, SevSnp)
        assert platform.mr_config == ""
        with raises(UnsupportedError, "no_app", part=".sys-config.json"):
            _ = tee.app_info


def test_snp_given_host_provides_the_launch_document(shared: Path) -> None:
    """A host object has the document in its vm_config."""

    class FakeHost:
        """Host with a launch document."""

        write_app_compose = app_keys = None
        vm_config = json.dumps({"mr_config": DOCUMENT})

    assert not list(shared.iterdir())
    host = FakeHost()
    with Attester(FakeSnp(host_data=host_data(DOCUMENT)), untyped(host)) as tee:
        assert tee.app_info.app_id == b"\x11" * 20
        host.vm_config = "{"
        with raises(ConfigError, "wrong_value"):
            tee.attest(report_data=bytes(64))


@pytest.mark.parametrize(("kept", "count"), [(("vcek",), 1), (("ask", "ark"), 1), ((), 0)])
def test_snp_other_certificate_table_is_passed_unchanged(
    shared: Path, kept: tuple[str, ...], count: int
) -> None:
    """Without ASK and VCEK a nonempty table is part of the evidence as it is."""
    assert shared.is_dir()
    guids = {"vcek": "63da758d", "ask": "4ab7b379", "ark": "c0b406a4"}
    table = bytearray(FakeSnp().table)
    for name, start in guids.items():
        if name not in kept:
            at = table.index(bytes.fromhex(start))
            table[at : at + 4] = b"\1\2\3\4" if kept else table[at : at + 4]
            table[at + 20 : at + 24] = bytes(4)  # an empty entry
    with Attester(FakeSnp(table=bytes(table))) as tee:
        platform = tee.attest(report_data=bytes(64)).evidence.platform
    assert isinstance(platform, SevSnp)
    assert platform.cert_chain == (bytes(table),) * count
    for chain in platform.cert_chain:
        assert SnpCertificates.parse(chain) != SnpCertificates()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda report: report[:-1], "truncated"),
        (lambda report: report + b"\0", "too_large"),
        (lambda _: b"", "truncated"),
        (lambda report: b"\x09" + report[1:], "malformed_response"),
        (lambda report: report[:0x50] + bytes(64) + report[0x90:], "wrong_report_data"),
    ],
)
def test_snp_malformed_report_is_a_backend_error(
    shared: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """The size, the version and the report data are checked."""
    assert shared.is_dir()
    backend = FakeSnp()
    backend.change = change
    with Attester(backend) as tee, raises(BackendError, reason):
        tee.attest(report_data=b"\1", pad=True)


def test_snp_malformed_certificate_table_is_a_backend_error(shared: Path) -> None:
    """The host provides the table."""
    assert shared.is_dir()
    with Attester(FakeSnp(table=b"\1" * 24)) as tee, raises(BackendError, "malformed_response"):
        tee.attest(report_data=bytes(64))


def test_snp_unsupported_calls_name_the_alternative(shared: Path) -> None:
    """Quotes, registers and events are unsupported."""
    write_app_compose(shared)
    with Attester(FakeSnp()) as tee:
        for quote in (
            lambda: tee.get_quote(b""),
            lambda: tee.evidence_source.quote_and_log(bytes(64)),
        ):
            with raises(UnsupportedError, "no_quote", part="attest()"):
                quote()
        calls = (tee.registers, lambda: tee.emit_event("a", b""), tee.measure_app)
        for call in calls:
            with raises(UnsupportedError, "no_registers"):
                call()
        assert tee.event_log() == EventLog()
        with raises(UsageError, "too_large"):
            tee.attest(report_data=bytes(65), pad=True)
        assert tee.backend.asked == 0
