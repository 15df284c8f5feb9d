"""No secret is compared with `==`, which ends at the first byte that differs."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "attestkit"
# A name that ends so means bytes, or their hex, that a stranger could try to hit.
GUESSED = (
    *("secret", "seed", "mac", "hmac", "token", "password", "scalar"),
    *("private_key", "k256_key", "ca_key", "env_crypt_key", "disk_crypt_key"),
    *("report_data", "host_data", "chip_id", "digest", "spki_der", "signature", "key_hash"),
)
# What is public on both sides, so that its comparison tells nothing; each with the reason.
PUBLIC = {
    (
        "_crypto/certificates.py",
        "certificate.spki_der != spki_der",
    ): "public keys of one certificate chain",
    ("backends/dstack_agent.py", "len(report_data) != _REPORT_DATA"): "a length",
    ("collateral/__init__.py", "len(value) != _SIGNATURE"): "a length",
    (
        "event_log/__init__.py",
        "wire.digest != event.digest",
    ): "a log and itself: nothing is kept from whoever wrote it",
    ("event_log/runtime.py", "hashlib.sha384(preimage).digest() != wire.digest"): "as above",
    ("keys/agent_keys.py", "first != signature"): "an agent's answer and itself",
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
        "verifier/dcap_explained.py",
        "judged.endorsed.roots[0] == judged.root.spki_der",
    ): "public keys, after the verdict",
    ("verifier/dcap_explained.py", "key != judged.root.spki_der"): "public keys, after the verdict",
    ("verifier/endorsements.py", "chain.root.spki_der != key"): "public keys of roots",
}


def last_name(node: ast.expr) -> str:
    """Return the name of what is compared, as far as it has one."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.Call, ast.Subscript)):
        return last_name(node.func if isinstance(node, ast.Call) else node.value)
    return ""


def is_guessed(node: ast.expr) -> bool:
    """Tell whether a side of a comparison is bytes that a stranger could try to hit."""
    name = last_name(node).lower().strip("_")
    return any(name == word or name.endswith(f"_{word}") for word in GUESSED)


def is_plain(node: ast.expr) -> bool:
    """Tell whether a side is a constant, whose comparison is about a form, such as a length."""
    return isinstance(node, ast.Constant)


def comparisons(text: str) -> Iterator[tuple[int, str]]:
    """Return line and source of each comparison of a secret with `==` or `!=`."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        equal = any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops)
        if equal and any(map(is_guessed, sides)) and not any(map(is_plain, sides)):
            yield node.lineno, ast.unparse(node)


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
    ],
)
def test_it_is_seen(source: str) -> None:
    """What must not be is found."""
    assert list(comparisons(source))


@pytest.mark.parametrize(
    "source", ["len(seed) == 32", "hmac.compare_digest(seed, x)", "seed == b''", "name == 'seed'"]
)
def test_it_is_let_be(source: str) -> None:
    """And nothing else."""
    assert not list(comparisons(source))
