"""go-tpm accepts messages `attest.Attestation` that attestkit writes of a TPM's evidence.

go-tpm is Google's library that go-tpm-tools reads quotes, keys and signatures with.
Debian does not package go-tpm-tools itself: `test_go_tpm_tools.py` runs it where Go modules can be
downloaded.
"""

from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.tpm import TpmsAttest
from tests.attestation.go_messages import messages
from tests.rigs.go_programs import missing_for_go
from tests.rigs.go_verifiers.verdicts import build, verify_with_go
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.tpm_samples import GO_TPM_TOOLS, go_cases

_MISSING: Final = missing_for_go(
    ("github.com/google/go-tpm/legacy/tpm2", "golang-github-google-go-tpm-dev"),
    ("google.golang.org/protobuf/encoding/protowire", "golang-google-protobuf-dev"),
)
pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "available"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the verifier."""
    return build(tmp_path_factory.mktemp("go"), "tpm")


def make_case(raw: bytes, nonce: bytes | None = None) -> dict[str, Any]:
    """Return a case; the nonce is that of the first quote unless another one is given."""
    if nonce is None:
        nonce = TpmsAttest.parse(GoTpmToolsMessage.parse(raw).quotes[0].message).extra_data
    return {"Message": b64encode(raw).decode(), "Nonce": b64encode(nonce).decode()}


def alter(raw: bytes, part: str) -> bytes:
    """Return a message whose quote has another last bit of a part, or another first PCR."""
    message = GoTpmToolsMessage.parse(raw)
    quote = message.quotes[0]
    if part == "message":
        quote = quote._replace(message=quote.message[:-1] + bytes([quote.message[-1] ^ 1]))
    elif part == "signature":
        quote = quote._replace(signature=quote.signature[:-1] + bytes([quote.signature[-1] ^ 1]))
    else:
        first, *rest = quote.pcr_values
        quote = quote._replace(pcr_values=(first._replace(value=b"\1" * 32), *rest))
    return message._replace(quotes=(quote,)).encode()


def test_go_tpm_accepts_messages_and_refuses_altered_ones(program: Path) -> None:
    """Of RSA and ECC keys; another nonce, signature, PCR or message is refused."""
    whole = list(messages().values())
    altered = [alter(raw, part) for raw in whole for part in ("message", "signature", "pcrs")]
    cases = [make_case(raw) for raw in whole]
    refused = [make_case(raw, bytes(32)) for raw in whole] + [make_case(raw) for raw in altered]
    errors = verify_with_go(program, [*cases, *refused])
    assert errors[: len(cases)] == [""] * len(cases)
    assert all(errors[len(cases) :])


@needs_shared
def test_go_tpm_accepts_the_messages_of_go_tpm_tools(program: Path) -> None:
    """The program accepts what go-tpm-tools made, so it reads the format as that does."""
    nonce = data(f"{GO_TPM_TOOLS}/nonce.bin")
    raws = [data(f"{GO_TPM_TOOLS}/{case['file']}") for case in go_cases("attestations")]
    assert verify_with_go(program, [make_case(raw, nonce) for raw in raws]) == [""] * len(raws)
