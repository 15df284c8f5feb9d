"""A program that verifies a hardware quote with a freshly installed package, without extras.

    python verify_offline.py QUOTE COLLATERAL TIME

TIME is in Unix seconds, in the validity period of the collateral. It prints the TCB status.
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

import attestkit
from attestkit.errors import SignatureError

OTHER_VERIFIERS = {"dcap-qvl", "dcap_qvl"}


def refusal(raw: bytes, collateral: Path, now: int) -> str | None:
    """Return the reason for which a quote is rejected; None if it is accepted."""
    try:
        attestkit.verify(raw, report_data=None, collateral=collateral, now=now)
    except SignatureError as error:
        return error.reason
    return None


def main(quote: Path, collateral: Path, now: int) -> str:
    """Verify the quote, and reject it altered; return the TCB status."""
    assert "site-packages" in Path(attestkit.__file__).parts, attestkit.__file__
    assert not OTHER_VERIFIERS & {found.metadata["Name"] for found in distributions()}
    raw = quote.read_bytes()
    report_data = attestkit.Quote.parse(raw).report_data
    result = attestkit.verify(raw, report_data=report_data, collateral=collateral, now=now)
    assert not result.simulated
    assert result.tcb.collateral is not None
    altered = raw[:200] + bytes([raw[200] ^ 1]) + raw[201:]
    assert refusal(altered, collateral, now) == "quote_bad_signature"
    return str(result.tcb.status)


if __name__ == "__main__":
    sys.stdout.write(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
