"""No secret is compared with `==`, `in` or a look-up, which end at the first byte that differs.

What a secret is, and what was attested, is told by its name, also as an attribute and in another
form, such as its hex. What has another name is not seen, but where it is compared in constant time
already and would no longer be; nor is what C and libraries compare.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "attestkit"
# A name, or an attribute, that ends so means bytes, or their hex, that a stranger could try to hit.
# No `tag`: all of them here are of DER and CBOR, and those of AES-GCM stay inside of its library.
GUESSED = (
    *("secret", "seed", "mac", "hmac", "token", "password", "scalar", "nonce"),
    *("private_key", "k256_key", "ca_key", "env_crypt_key", "disk_crypt_key"),
    *("report_data", "host_data", "chip_id", "digest", "hash", "spki_der", "signature"),
)
# What is public on both sides, so that its comparison tells nothing; each with the reason.
PUBLIC = {
    (
        "_crypto/x509/app_certificates.py",
        "certificate.spki_der != spki_der",
    ): "public keys of one certificate chain",
    (
        "_crypto/x509/vendor_roots.py",
        "leaf.spki_der.startswith(P256_SPKI_HEAD)",
    ): "the form of a public key",
    (
        "_native/_python_quote.py",
        "vouched != sha256(key + data[auth:auth + auth_size]).digest() + bytes(32)",
    ): "a quote and itself",
    (
        "attestation/launch/os_image.py",
        "(actual := sha256(checksums)) != os_image_hash",
    ): "evidence and itself",
    ("backends/dstack_agent/__init__.py", "len(report_data) != _REPORT_DATA"): "a length",
    ("collateral/intel_collateral.py", "len(value) != _SIGNATURE"): "a length",
    (
        "event_log/__init__.py",
        "wire.digest != event.digest",
    ): "a log and itself: nothing is kept from whoever wrote it",
    ("event_log/__init__.py", "event.digest not in (own, b'')"): "as above",
    ("event_log/runtime_events.py", "hashlib.sha384(preimage).digest() != wire.digest"): "as above",
    ("keys/agent_keys.py", "first != signature"): "an agent's answer and itself",
    ("serve/verifier_service/ear.py", "nonce.hex() != text.lower()"): "a request and itself",
    (
        "serve/listener_apps.py",
        "asked.query == b'v=%s' % digest.encode('ascii')",
    ): "a file that everybody may have",
    (
        "td_report.py",
        "sha384(report.raw[_TCB_INFO]).digest() != report.tee_tcb_info_hash",
    ): "a report and itself",
    (
        "td_report.py",
        "sha384(report.raw[_TD_INFO]).digest() != report.tee_info_hash",
    ): "a report and itself",
    ("testing/contract.py", "Quote.parse(raw).report_data == asked"): "assertions of tests",
    (
        "testing/contract.py",
        "SnpReport.parse(evidence.report).report_data == _ASKED",
    ): "assertions of tests",
    ("testing/contract.py", "SnpReport.parse(raw).report_data == asked"): "assertions of tests",
    ("testing/contract.py", "evidence.report_data == _ASKED"): "assertions of tests",
    (
        "verifier/dcap/diagnostics.py",
        "judged.endorsed.roots[0] == judged.root.spki_der",
    ): "public keys, after the verdict",
    ("verifier/dcap/diagnostics.py", "key != root.spki_der"): "public keys of roots",
    (
        "verifier/ear/claims.py",
        "result.claims.os_image_hash in (policy.os_image_hash or ())",
    ): "an image and a policy, after the verdict",
    ("verifier/ear/envelope.py", "token.startswith(bytes([_TAG]))"): "the form of a token",
    ("verifier/dcap/collateral_checks.py", "chain.root.spki_der != key"): "public keys of roots",
    (
        "verifier/dcap/checks_before_fetch.py",
        "chain.root.spki_der != root.spki_der",
    ): "public keys of roots",
}
# How often each file compares in constant time; what is compared may have any name.
KEPT = {
    "_crypto/ecdsa.py": 1,
    "attestation/wire/agent_response.py": 1,
    "attestation/app_info.py": 1,
    "attestation/launch/os_image.py": 1,
    "attester/agent_source.py": 1,
    "attester/snp_source.py": 2,
    "attester/evidence_source.py": 1,
    "backends/dstack_agent/__init__.py": 1,
    "emulator/td.py": 1,
    "backends/tdx/device.py": 1,
    "cli/file_verifier.py": 1,
    "keys/key_file.py": 1,
    "ra_tls/certificate.py": 1,
    "verifier/ear/result_token.py": 1,
    "verifier/ear/envelope.py": 2,
    "verifier/policy/rules.py": 1,
    "verifier/platforms/snp.py": 1,
    "verifier/platforms/snp_chain.py": 1,
    "verifier/evidence_checks.py": 3,
}
_COMPARE = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
# Methods and types that give the same bytes in another form.
_SAME = {
    *("hex", "encode", "decode", "ljust", "rjust", "strip", "lstrip", "rstrip", "lower", "upper"),
    *("bytes", "bytearray", "memoryview", "str", "fromhex", "tobytes"),
}
_BY_VALUE = {"__eq__", "__contains__", "startswith", "endswith", "find", "index", "count"}
_BY_KEY = {"get", "pop", "setdefault", "remove", "add", "discard"}


def names(node: ast.AST) -> Iterator[str]:
    """Return the names of what a side of a comparison may be, as far as it has any."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            yield name
        case ast.Subscript(value=inner) | ast.Await(value=inner) | ast.Starred(value=inner):
            yield from names(inner)
        case ast.Call(func=func, args=args):
            yield from names(func)
            if _SAME.intersection(names(func)):
                yield from names(func.value) if isinstance(func, ast.Attribute) else ()
                for one in args:
                    yield from names(one)
        case ast.NamedExpr(target=name, value=value):
            yield from names(name)
            yield from names(value)
        case ast.BoolOp() | ast.IfExp() | ast.BinOp() | ast.Tuple() | ast.List() | ast.Set():
            for child in ast.iter_child_nodes(node):
                yield from names(child)


def is_type(name: str) -> bool:
    """Tell whether a name is a class's, as in `dict[str, Scalar]`."""
    return name[:1].isupper() and not name.isupper()


def is_guessed(node: ast.AST) -> bool:
    """Tell whether something is bytes that a stranger could try to hit."""
    found = [name.lower().strip("_") for name in names(node) if not is_type(name)]
    return any(name == word or name.endswith(f"_{word}") for name in found for word in GUESSED)


def is_plain(node: ast.AST) -> bool:
    """Tell whether a side is a constant, whose comparison is about a form, such as a length."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return all(map(is_plain, node.elts))
    return isinstance(node, ast.Constant)


def looks(node: ast.AST) -> bool:
    """Tell whether a node compares what could be guessed with something, byte by byte."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [left, *others]
            by_value = any(isinstance(op, _COMPARE) for op in ops)
            return by_value and any(map(is_guessed, sides)) and not any(map(is_plain, sides))
        case ast.Subscript(slice=key):
            return not isinstance(key, ast.Slice) and is_guessed(key)
        case ast.Call(func=ast.Attribute(attr=name, value=value), args=[first, *_]):
            if name in _BY_VALUE:
                return not is_plain(first) and (is_guessed(value) or is_guessed(first))
            return name in _BY_KEY and is_guessed(first)
        case ast.MatchValue(value=value):
            return is_guessed(value)
    return False


def comparisons(text: str) -> Iterator[tuple[int, str]]:
    """Return line and source of each comparison of a secret that is not in constant time."""
    for node in ast.walk(ast.parse(text)):
        if looks(node):
            yield getattr(node, "lineno", 0), ast.unparse(node)


@cache
def found() -> frozenset[tuple[str, str]]:
    """Return all such comparisons of the package: file and source."""
    return frozenset(
        (path.relative_to(PACKAGE).as_posix(), source)
        for path in PACKAGE.rglob("*.py")
        for _, source in comparisons(path.read_text())
    )


def test_the_package() -> None:
    """Every comparison is in constant time, or of what is public and listed."""
    assert found() - PUBLIC.keys() == set()


def test_the_list_is_not_longer_than_it_must() -> None:
    """An exception whose comparison has gone goes, too."""
    assert PUBLIC.keys() - found() == set()


def test_none_has_gone() -> None:
    """A comparison in constant time, under whatever names, does not become another one."""
    texts = {
        path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")
    }
    counts = {name: text.count("hmac.compare_digest(") for name, text in texts.items()}
    assert {name: count for name, count in counts.items() if count} == KEPT


@pytest.mark.parametrize(
    "source",
    [
        "seed == given",
        "given != self._secret",
        "a.k256_key == b",
        "quote.report_data == wanted",
        "report.host_data != host_data(document)",
        "wanted == report.chip_id",
        "sha256_digest(data) == x",
        "x if one.signature != other.signature else y",
        "ear.nonce != nonce",
        '(ear.nonce or b"") != wanted',
        "own.mac.hex() == given.lower()",
        "bytes.fromhex(token) == own",
        "(found := read_token()) == own",
        "given in (self._token, other)",
        "nonce not in seen",
        "key_hash in b",
        "known[token]",
        "known.get(request.nonce.hex())",
        "secret.startswith(given)",
        "seen.index(nonce)",
        "match given:\n case self.token: pass",
    ],
)
def test_it_is_seen(source: str) -> None:
    """What must not be is found."""
    assert list(comparisons(source))


@pytest.mark.parametrize(
    "source",
    [
        "len(seed) == 32",
        "hmac.compare_digest(seed, x)",
        "seed == b''",
        "name == 'seed'",
        "'seed' in options",
        "nonce in (None, b'')",
        "token.startswith(b'ey')",
        "token[:4]",
        "token[0]",
        "secrets_of(app)['seed']",
    ],
)
def test_it_is_let_be(source: str) -> None:
    """And nothing else."""
    assert not list(comparisons(source))
