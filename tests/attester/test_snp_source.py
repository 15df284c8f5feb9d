"""Evidence of an SEV-SNP guest: a report over what was asked, and the host's own documents."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.snp_certificates import SnpCertificates
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.attester import Attester
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigError,
    QuoteUnavailableError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import EventLog
from tests.attester.host_files import app_compose, sys_config
from tests.tees import CHIP, FakeSnp
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


def test_evidence_holds_what_the_wire_format_wants(shared: Path) -> None:
    """Report, ASK and VCEK, both documents of the host, and no events."""
    vm_config = json.dumps({"os_image_hash": "ab" * 32, "sev_snp_measurement": "{}"})
    sys_config(shared, vm_config, mr_config=DOCUMENT)
    with Attester(FakeSnp(host_data=host_data(DOCUMENT))) as tee:
        evidence = Attestation.from_bytes(tee.attest(b"nonce").to_bytes())
        info = tee.info()
        assert not tee.has_quotes
    assert evidence.platform == "dstack-amd-sev-snp"
    assert evidence.encoding == "v0"
    assert evidence.report_data == b"nonce".ljust(64, b"\0")
    assert evidence.snp_report is not None
    assert evidence.snp_report.report_data == evidence.report_data
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    assert platform.cert_chain == (CHIP.ask_der, CHIP.vcek_der)
    assert platform.mr_config == DOCUMENT
    assert evidence.config == vm_config
    assert evidence.runtime_events == ()
    assert (info.app_id, info.compose_hash) == (b"\x11" * 20, b"\x22" * 32)
    assert info.instance_id == b"\x33" * 20
    assert info.os_image_hash == b"\xab" * 32
    assert info == evidence.app_info()


def test_another_document_than_at_launch_is_found(shared: Path) -> None:
    """The evidence would contradict itself, so it does not leave."""
    sys_config(shared, mr_config=DOCUMENT)
    backend = FakeSnp(host_data=host_data(DOCUMENT + " "))
    with Attester(backend) as tee, pytest.raises(ReplayError) as caught:
        tee.attest(b"")
    for value in (backend.host_data, host_data(DOCUMENT)):
        assert value.hex() in str(caught.value)
    assert caught.value.reason == "host_data_mismatch"


def test_a_host_without_a_document(shared: Path) -> None:
    """There is evidence, and nobody knows whose: that is told with what is missing."""
    app_compose(shared)
    with Attester(FakeSnp()) as tee:
        platform = tee.attest(b"").evidence.platform
        assert isinstance(platform, SevSnp)
        assert platform.mr_config == ""
        with pytest.raises(UnsupportedError, match=r"mr_config.*\.sys-config\.json"):
            tee.info()


def test_the_document_of_another_host(shared: Path) -> None:
    """Whoever hands in who knows the app has the document in the machine's configuration."""

    class Host:
        """Somebody who knows the app."""

        app_compose = app_keys = None
        vm_config = json.dumps({"mr_config": DOCUMENT})

    assert not list(shared.iterdir())
    host = Host()
    with Attester(FakeSnp(host_data=host_data(DOCUMENT)), untyped(host)) as tee:
        assert tee.info().app_id == b"\x11" * 20
        host.vm_config = "{"
        with pytest.raises(ConfigError, match="vm_config"):
            tee.attest(b"")


@pytest.mark.parametrize(("kept", "count"), [(("vcek",), 1), (("ask", "ark"), 1), ((), 0)])
def test_a_table_with_other_certificates(shared: Path, kept: tuple[str, ...], count: int) -> None:
    """Without ASK and VCEK the host's table goes along as it came, if there is anything in it."""
    assert shared.is_dir()
    guids = {"vcek": "63da758d", "ask": "4ab7b379", "ark": "c0b406a4"}
    table = bytearray(FakeSnp().table)
    for name, start in guids.items():
        if name not in kept:
            at = table.index(bytes.fromhex(start))
            table[at : at + 4] = b"\1\2\3\4" if kept else table[at : at + 4]
            table[at + 20 : at + 24] = bytes(4)  # an entry without a byte
    with Attester(FakeSnp(table=bytes(table))) as tee:
        platform = tee.attest(b"").evidence.platform
    assert isinstance(platform, SevSnp)
    assert platform.cert_chain == (bytes(table),) * count
    for chain in platform.cert_chain:
        assert SnpCertificates.parse(chain) != SnpCertificates()


def test_a_host_without_certificates(shared: Path) -> None:
    """Verifiers fetch them then."""
    assert shared.is_dir()
    with Attester(FakeSnp(table=b"")) as tee:
        platform = tee.attest(b"").evidence.platform
        assert isinstance(platform, SevSnp)
        assert platform.cert_chain == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda report: report[:-1], "1183 bytes"),
        (lambda report: report + b"\0", "1185 bytes"),
        (lambda _: b"", "0 bytes"),
        (lambda report: b"\x09" + report[1:], "malformed report"),
        (lambda report: report[:0x50] + bytes(64) + report[0x90:], "other report data"),
    ],
)
def test_a_wrong_report_is_the_platforms_fault(
    shared: Path, change: Callable[[bytes], bytes], told: str
) -> None:
    """It never leaves."""
    assert shared.is_dir()
    backend = FakeSnp()
    backend.change = change
    with Attester(backend) as tee, pytest.raises(BackendError, match=told) as caught:
        tee.attest(b"\1")
    assert type(caught.value) is BackendError


def test_a_malformed_table_is_the_platforms_fault(shared: Path) -> None:
    """So is what the host says of certificates."""
    assert shared.is_dir()
    with Attester(FakeSnp(table=b"\1" * 24)) as tee, pytest.raises(BackendError, match="table"):
        tee.attest(b"")


def test_the_platforms_own_errors_come_through(shared: Path) -> None:
    """A backend says best what is wrong with it."""
    assert shared.is_dir()
    backend = FakeSnp()
    with Attester(backend) as tee:
        for refusal in (QuoteUnavailableError("no"), BackendUnavailableError("gone")):
            backend.refusal = refusal
            with pytest.raises(type(refusal)):
                tee.attest(b"")


def test_what_snp_cannot_do_is_named(shared: Path) -> None:
    """No quotes, no registers, no events; and what to do in place of it."""
    app_compose(shared)
    with Attester(FakeSnp()) as tee:
        for quote in (lambda: tee.get_quote(b""), lambda: tee.quote_and_log(bytes(64))):
            with pytest.raises(UnsupportedError, match=r"attest\(\)"):
                quote()
        calls = (tee.registers, lambda: tee.emit_event("a", b""), tee.measure_app)
        for call in calls:
            with pytest.raises(UnsupportedError, match="registers"):
                call()
        assert tee.event_log() == EventLog()
        with pytest.raises(UsageError, match="too long"):
            tee.attest(bytes(65))
        assert tee.backend.asked == 0


def test_closed_is_closed(shared: Path) -> None:
    """Nothing can be asked afterwards."""
    assert shared.is_dir()
    tee = Attester(FakeSnp())
    tee.close()
    for call in (lambda: tee.attest(b""), tee.event_log, tee.info, tee.registers):
        with pytest.raises(UsageError, match="closed"):
            call()
