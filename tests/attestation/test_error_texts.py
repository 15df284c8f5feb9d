"""Error texts of attestations: subject, problem, place and remedy."""

from collections.abc import Callable
from typing import get_args

import cbor2
import pytest

from attestkit._formats import strict_json
from attestkit._formats.cbor import read_value
from attestkit.attestation import Attestation, Encoding
from attestkit.attestation.launch.mr_config import MrConfig
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.nitro_document import read_nitro_document
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import AttestKitError
from tests.attestation.samples import KINDS
from tests.untyped import untyped

TEXTS: list[tuple[Callable[[], object], str]] = [
    (lambda: read_value(b"\x43ab"), "CBOR: truncated: 3 bytes expected, 2 left (byte 1)"),
    (lambda: read_value(b"\x00\x00"), "CBOR: 1 bytes after the value (byte 1)"),
    (
        lambda: ScaleReader(b"\x0cab").blob(),
        "SCALE: truncated: 3 bytes expected, 2 left (byte 1)",
    ),
    (lambda: strict_json.from_hex("0g", "app_id"), "app_id: not hex"),
    (lambda: strict_json.from_hex("00", "app_id", 20), "app_id: must be 20 bytes, not 1"),
    (lambda: VmConfig.parse("[]"), "vm_config: must be a JSON object"),
    (lambda: MrConfig.parse('{"x":1}'), "mr_config: unknown key 'x'"),
    (lambda: read_nitro_document(cbor2.dumps(1)), "Nitro document: not a COSE_Sign1 structure"),
    (
        lambda: Attestation(KINDS[0]).to_bytes(untyped("xml")),
        f"encoding: unknown: 'xml'; use one of {', '.join(get_args(Encoding))}",
    ),
]


@pytest.mark.parametrize(("call", "text"), TEXTS, ids=[text for _, text in TEXTS])
def test_error_text_names_subject_place_and_remedy(call: Callable[[], object], text: str) -> None:
    """Each text is understandable without the source code."""
    with pytest.raises(AttestKitError) as caught:
        call()
    assert str(caught.value) == text
