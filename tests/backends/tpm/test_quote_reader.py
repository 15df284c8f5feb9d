"""A quote is read with the values and logs that belong to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.attestation.wire.evidence_parts import VtpmQuote
from attestkit.backends.tpm.client import QuoteResponse, TpmClient
from attestkit.backends.tpm.frames import password
from attestkit.backends.tpm.quote_reader import ATTEMPTS, TpmLogs, collect_quote
from attestkit.errors import BackendError, UnsupportedError
from attestkit.tpm import PcrSelection, TpmsAttest, pcr_digest
from attestkit.tpm.handles import ENDORSEMENT
from tests.backends.tpm.templates import ECC_AK, EVERY_PCR, P384_AK, SHA256
from tests.backends.tpm.tpm_peer import AnsweringTpm, exchange_with
from tests.machines.software_tpm import needs_swtpm, opened_swtpm
from tests.raising import raises

LOGS = TpmLogs(b"boot log", b"IMA list")
PLATFORM = 0x4000000C
PCR_ALLOCATE = 0x012B

pytestmark = needs_swtpm


@pytest.fixture
def key(software_tpm: TpmClient) -> Iterator[int]:
    """Return the handle of an attestation key."""
    with software_tpm.primary_key(ENDORSEMENT, ECC_AK) as made:
        yield made.handle


def test_collected_quote_has_values_and_logs(software_tpm: TpmClient, key: int) -> None:
    """Values are in the order of the selection, and their digest is the quoted one."""
    banks = (PcrSelection("sha384", (8, 14)), PcrSelection("sha256", EVERY_PCR))
    software_tpm.pcr_extend(8, {"sha384": bytes(48)})
    found = collect_quote(software_tpm, key, b"data", banks, read_logs=lambda: LOGS)
    assert found.quote == TpmsAttest.parse(found.message)
    assert found.quote.extra_data == b"data"
    assert found.quote.pcr_digest == pcr_digest(banks, found.values, "sha256")
    order = [(value.algorithm, value.number) for value in found.pcr_values]
    assert order == [("sha384", 8), ("sha384", 14), *(("sha256", pcr) for pcr in EVERY_PCR)]
    part = found.to_vtpm_quote(b"public", (b"certificate",))
    assert part[:3] == (found.message, found.signature, found.pcr_values)
    assert part[3:] == (b"public", (b"certificate",), LOGS.boot_log, LOGS.ima_log)
    assert isinstance(part, VtpmQuote)


def test_digest_is_by_the_hash_of_the_signature(software_tpm: TpmClient) -> None:
    """A P-384 key with SHA-384 digests the values of the SHA-256 bank by SHA-384."""
    with software_tpm.primary_key(ENDORSEMENT, P384_AK) as key:
        found = collect_quote(software_tpm, key.handle, b"", SHA256)
    assert len(found.quote.pcr_digest) == 48


class ExtendingTpm(TpmClient):
    """A client of a machine on which a program extends PCR 10 after each of the first quotes."""

    extensions = 0
    quotes = 0

    def quote(
        self, key: int, qualifying_data: bytes, selections: tuple[PcrSelection, ...]
    ) -> QuoteResponse:
        """Return a quote, after which the program extends the PCR."""
        response = super().quote(key, qualifying_data, selections)
        self.quotes += 1
        if self.quotes <= self.extensions:
            self.pcr_extend(10, {"sha256": bytes(32)})
        return response


@pytest.mark.parametrize("extensions", [1, ATTEMPTS - 1])
def test_extended_pcr_is_quoted_again(software_tpm: TpmClient, key: int, extensions: int) -> None:
    """If a PCR is extended between quote and values, quote, values and logs are read again."""
    busy = ExtendingTpm(software_tpm.transport)
    busy.extensions = extensions
    logs: list[TpmLogs] = []

    def read_logs() -> TpmLogs:
        logs.append(TpmLogs(b"boot log", bytes(len(logs))))
        return logs[-1]

    found = collect_quote(busy, key, b"data", SHA256, read_logs=read_logs)
    assert busy.quotes == len(logs) == extensions + 1
    assert found.logs == logs[-1]
    assert found.quote.pcr_digest == pcr_digest(SHA256, found.values, "sha256")


def test_pcr_extended_in_each_attempt_is_an_error(software_tpm: TpmClient, key: int) -> None:
    """After five attempts the caller gets an error, and no quote without its values."""
    busy = ExtendingTpm(software_tpm.transport)
    busy.extensions = ATTEMPTS
    with raises(BackendError, "register_conflict", part="5 attempts"):
        collect_quote(busy, key, b"data", SHA256)
    assert busy.quotes == ATTEMPTS


def test_bank_that_is_not_allocated_is_unsupported(tmp_path: Path) -> None:
    """A TPM leaves out a bank that is not allocated; that is noticed in the quote."""
    with opened_swtpm(tmp_path) as tpm:
        allocation = b"\0\0\0\2\0\x04\3\0\0\0\0\x0b\3\xff\xff\xff"
        tpm.execute(PCR_ALLOCATE, (PLATFORM,), allocation, [password()])
    with opened_swtpm(tmp_path) as tpm:
        both = (PcrSelection("sha1", (0,)), PcrSelection("sha256", (0,)))
        assert tpm.pcr_read(both) == {("sha256", 0): bytes(32)}
        with tpm.primary_key(ENDORSEMENT, ECC_AK) as key:
            with raises(UnsupportedError, "feature", part="bank sha1 is not allocated"):
                collect_quote(tpm, key.handle, b"data", both)
            with raises(UnsupportedError, "feature"):
                collect_quote(tpm, key.handle, b"data", both[:1])
            assert collect_quote(tpm, key.handle, b"data", both[1:]).values


def test_quote_over_other_data_is_refused(software_tpm: TpmClient, key: int) -> None:
    """A TPM that answers with the quote of another request is not believed."""
    frames = exchange_with(software_tpm, lambda tpm: tpm.quote(key, b"other", SHA256))
    frames += exchange_with(software_tpm, lambda tpm: tpm.pcr_read(SHA256))
    with AnsweringTpm(frames) as replaying, raises(BackendError, "wrong_report_data"):
        collect_quote(TpmClient(replaying.transport), key, b"data", SHA256)


def test_quote_over_other_pcrs_is_refused(software_tpm: TpmClient, key: int) -> None:
    """The selection that comes back must be the one that was sent."""
    fewer = (PcrSelection("sha256", (0, 1)),)
    frames = exchange_with(software_tpm, lambda tpm: tpm.quote(key, b"data", fewer))
    frames += exchange_with(software_tpm, lambda tpm: tpm.pcr_read(SHA256))
    with AnsweringTpm(frames) as replaying, raises(BackendError, "malformed_response"):
        collect_quote(TpmClient(replaying.transport), key, b"data", SHA256)


def test_malformed_quote_is_refused(software_tpm: TpmClient, key: int) -> None:
    """A quote that breaks its format is an error of the platform."""
    frames = exchange_with(software_tpm, lambda tpm: tpm.quote(key, b"data", SHA256))
    broken = frames[-1].replace(b"\xffTCG", b"\xffTCX")  # the first may be TPM_RC_RETRY
    frames = [broken, *exchange_with(software_tpm, lambda tpm: tpm.pcr_read(SHA256))]
    with AnsweringTpm(frames) as replaying, raises(BackendError, "malformed_response"):
        collect_quote(TpmClient(replaying.transport), key, b"data", SHA256)
