"""Targets: files and answers that a simulated KMS reads."""

from attestkit.errors import FormatError
from attestkit.kms.release.state_folder import BootstrapInfo, read_bootstrap_info
from fuzz.parser_contract import ParserTarget, check, check_same, obeys


def _bootstrap(_raw: bytes, found: BootstrapInfo) -> None:
    check("sizes of keys", (len(found.ca_pubkey), len(found.k256_pubkey)) == (91, 33))
    check_same("written and read again", read_bootstrap_info(found.to_json().encode()), found)


def bootstrap_samples() -> list[bytes]:
    """Return the file of a KMS that attested itself, and of one that did not."""
    keys = bytes(91), bytes(33)
    return [BootstrapInfo(*keys, evidence).to_json().encode() for evidence in (b"", b"evidence")]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "kms_bootstrap",
            obeys(read_bootstrap_info, FormatError, accepted=_bootstrap),
            bootstrap_samples,
            "json.dict",
            1024,
        ),
    ]
