"""A query string is a form: escapes, plus signs, brackets; known keys strictly, others ignored."""

from attestkit.errors import FormatError
from attestkit.serve.rpc.messages import GetKeyArgs, GetTlsKeyArgs, RawQuoteArgs
from attestkit.serve.rpc.query_codec import decode
from tests.raising import raises
from tests.runner.cases import every_case


def test_decode_empty_query_gives_defaults() -> None:
    """An empty query equals one with unknown keys only."""
    assert (
        decode(GetTlsKeyArgs, b"") == decode(GetTlsKeyArgs, b"json&x=1&x=2&&=") == (GetTlsKeyArgs())
    )


def test_decode_form_escapes() -> None:
    """Percent escapes in names and values; `+` is a space; a value may contain `=`."""
    query = b"pat%68=a%2Fb+c%2Bd=e&purpose=%D1%86%D0%B5%D0%BB%D1%8C&algorithm"
    assert decode(GetKeyArgs, query) == GetKeyArgs("a/b c+d=e", "цель", "")


@every_case(
    "query",
    [
        b"alt_names[0]=a&alt_names[1]=b",
        b"alt_names[1]=b&alt_names[0]=a",
        b"alt_names%5B0%5D=a&alt_names%5b1%5d=b",
        b"alt_names[]=a&alt_names[]=b",
        b"alt_names%5B%5D=a&alt_names[]=b",
        b"alt_names[3]=a&alt_names[]=b",
        b"alt_names[02]=a&alt_names[10]=b",
    ],
)
def test_decode_array_notations(query: bytes) -> None:
    """Brackets are literal or escaped, with an index, which determines the order, or without."""
    assert decode(GetTlsKeyArgs, query).alt_names == ("a", "b")


@every_case(
    ("query", "field", "reason"),
    [
        (b"subject=a&subject=a", "subject", "duplicate"),
        (b"subject=a&subj%65ct=b", "subject", "duplicate"),
        (b"alt_names[0]=a&alt_names[00]=b", "alt_names", "duplicate"),
        (b"alt_names=a", "alt_names", "wrong_type"),
        (b"alt_names[x]=a", "alt_names", "wrong_type"),
        (b"alt_names[-1]=a", "alt_names", "wrong_type"),
        (b"alt_names[0][0]=a", "alt_names", "wrong_type"),
        (b"alt_names[0=a", "alt_names", "wrong_type"),
        (b"alt_names[1234567890]=a", "alt_names", "wrong_type"),
        (b"subject[0]=a", "subject", "wrong_type"),
        (b"subject[]=a", "subject", "wrong_type"),
        (b"subject=%FF", "subject", "encoding"),
        (b"usage_ra_tls=", "usage_ra_tls", "wrong_value"),
        (b"usage_ra_tls", "usage_ra_tls", "wrong_value"),
        (b"usage_ra_tls=True", "usage_ra_tls", "wrong_value"),
        (b"usage_ra_tls=1", "usage_ra_tls", "wrong_value"),
        (b"not_before=-1", "not_before", "wrong_value"),
        (b"not_before=1.0", "not_before", "wrong_value"),
        (b"not_before=18446744073709551616", "not_before", "wrong_value"),
        (b"not_before=1_0", "not_before", "wrong_value"),
        (b"not_before=%D9%A3", "not_before", "wrong_value"),
        (b"not_before=1%0A", "not_before", "wrong_value"),
    ],
)
def test_decode_invalid_query_names_field(query: bytes, field: str, reason: str) -> None:
    """Wrong values, repeated names and arrays without brackets are refused."""
    with raises(FormatError, reason, start=f"{field}: "):
        decode(GetTlsKeyArgs, query)


def test_decode_scalars() -> None:
    """Numbers and booleans are their text; an empty optional number is absent; bytes are hex."""
    assert decode(RawQuoteArgs, b"report_data=0xDEad") == RawQuoteArgs(b"\xde\xad")
    with raises(FormatError, "encoding"):
        decode(RawQuoteArgs, b"report_data=de+ad")
    query = b"usage_ra_tls=true&usage_server_auth=false&not_before=&not_after=18446744073709551615"
    assert decode(GetTlsKeyArgs, query) == GetTlsKeyArgs(
        usage_ra_tls=True, not_before=None, not_after=2**64 - 1
    )
