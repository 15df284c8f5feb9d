"""The digest of PCR values is that of the TPM's quote."""

import json

import pytest

from attestkit.errors import FormatError, UsageError
from attestkit.tpm import TpmtSignature, pcr_digest
from attestkit.tpm.algorithms import compute_digest, hash_size
from attestkit.tpm.attest import TpmsAttest
from attestkit.tpm.pcr_selection import PcrSelection
from tests.raising import raises
from tests.runner.cases import every_case
from tests.tpm.samples import QUOTES, QuoteSample, bank
from tests.vectors import data, needs_shared

VALUED = {name: sample for name, sample in QUOTES.items() if sample.values}
ONE = (PcrSelection("sha256", (0, 7)),)
VALUES = {("sha256", 0): bytes(32), ("sha256", 7): bytes([7]) * 32}


@needs_shared
@pytest.mark.parametrize("sample", VALUED.values(), ids=VALUED)
def test_digest_of_real_values_is_quoted(sample: QuoteSample) -> None:
    """Delivered values hash to pcrDigest by SHA-256, also those of the SHA-384 bank."""
    quote = TpmsAttest.parse(sample.message)
    assert pcr_digest(quote.selections, sample.values, "sha256") == quote.pcr_digest
    assert pcr_digest(quote.selections, sample.values, "sha384") != quote.pcr_digest


@needs_shared
def test_digest_over_two_banks_is_quoted() -> None:
    """Banks count in the order of the selection, SHA-256 before SHA-1 in this quote."""
    folder = "vtpm/generic/go-tpm-tools"
    expected = json.loads(data(f"{folder}/expected.json"))["two_banks"]["pcrs"]
    values = bank("sha1", expected["sha1"]) | bank("sha256", expected["sha256"])
    quote = TpmsAttest.parse(data(f"{folder}/extra/two-banks.tpms_attest"))
    signature = TpmtSignature.parse(data(f"{folder}/extra/two-banks.tpmt_signature"))
    assert [selection.bank for selection in quote.selections] == ["sha256", "sha1"]
    assert pcr_digest(quote.selections, values, signature.hash_name) == quote.pcr_digest
    assert pcr_digest(quote.selections[::-1], values, "sha256") != quote.pcr_digest


def test_digest_of_no_values_is_that_of_no_bytes() -> None:
    """A quote without PCRs has the hash of nothing."""
    assert pcr_digest((), {}, "sha256") == compute_digest("sha256", b"")


@every_case(
    ("values", "reason"),
    [
        ({("sha256", 0): bytes(32)}, "missing"),
        ({**VALUES, ("sha256", 1): bytes(32)}, "inconsistent"),
        ({**VALUES, ("sha1", 0): bytes(20)}, "inconsistent"),
        ({**VALUES, ("sha256", 7): bytes(31)}, "wrong_size"),
        ({**VALUES, ("sha256", 7): b""}, "wrong_size"),
    ],
)
def test_values_that_do_not_fit_the_selection_are_refused(
    values: dict[tuple[str, int], bytes], reason: str
) -> None:
    """Exactly the selected values are required, each of its bank's size."""
    with raises(FormatError, reason):
        pcr_digest(ONE, values, "sha256")


def test_unknown_hash_is_usage_error() -> None:
    """The hash is one that TPMs name."""
    with raises(UsageError, "unsupported_algorithm"):
        pcr_digest(ONE, VALUES, "md5")
    with raises(UsageError, "unsupported_algorithm"):
        hash_size("sha3")
