"""Small evidence of the platforms with a TPM that dstack does not define, and strategies for it."""

from typing import Final

from hypothesis import strategies as st

from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence
from tests.attestation.samples import STACK

VTPM_QUOTE: Final = parts.VtpmQuote(
    b"message",
    b"signature",
    (parts.PcrValue(0, "sha256", b"\1" * 32), parts.PcrValue(7, "sha384", b"\2" * 48)),
    b"key",
    (b"leaf", b"issuer"),
    b"boot log",
    b"ima log",
)
VTPM_KINDS: Final = [
    Evidence(parts.GcpSnp(b"\xff" * 1184, (b"ask", b"vcek"), VTPM_QUOTE), STACK),
    Evidence(parts.AzureSnp(b"HCLA" + bytes(2596), VTPM_QUOTE, (b"vcek",)), STACK),
    Evidence(parts.AzureTdx(b"HCLA" + bytes(2596), VTPM_QUOTE, b"\4\0quote"), STACK),
    Evidence(parts.Tpm(VTPM_QUOTE), STACK),
    Evidence(parts.GoTpmTools(b"\x0a\x00"), STACK),
]
"""One piece of evidence of each platform."""

_SHORT: Final = st.binary(max_size=20)
_TEXT: Final = st.text(max_size=8)
_PCRS: Final = st.lists(
    st.builds(parts.PcrValue, st.integers(0, 2**32 - 1), _TEXT, _SHORT), max_size=3
).map(tuple)
_BLOBS: Final = st.lists(_SHORT, max_size=3).map(tuple)


def vtpm_platforms() -> st.SearchStrategy[parts.Platform]:
    """Return a strategy of the platforms; their parts are short and meaningless."""
    quotes = st.builds(parts.VtpmQuote, *(_SHORT, _SHORT), _PCRS, _SHORT, _BLOBS, *(_SHORT, _SHORT))
    return st.one_of(
        st.builds(parts.GcpSnp, _SHORT, _BLOBS, quotes),
        st.builds(parts.AzureSnp, _SHORT, quotes, _BLOBS),
        st.builds(parts.AzureTdx, _SHORT, quotes, _SHORT),
        st.builds(parts.Tpm, quotes),
        st.builds(parts.GoTpmTools, _SHORT),
    )
