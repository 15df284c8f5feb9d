"""The parsers' fuzzers: they detect planted bugs, cover every parser, and accept their seeds."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from subprocess import run
from types import FrameType

import pytest

import attestkit
from attestkit.errors import ConfigError, FormatError
from fuzz import parser_target
from fuzz.campaign import C_DICTIONARIES
from fuzz.havoc import havoc
from fuzz.parser_target import CORPORA
from fuzz.parsers.contract import LONGEST, BrokenContractError, Contract, ParserTarget, obeys
from fuzz.parsers.registry import LEFT_OUT, MORE_READERS, READERS, TARGETS
from fuzz.parsers.serve.settings import key_samples, secrets
from tests.runner.cases import every_case
from tests.untyped import untyped

PACKAGE = Path(attestkit.__file__).parent
DICTIONARIES = sorted(parser_target.DICTIONARIES.glob("*.dict"))
# Names of reading functions; one counts if an argument is bytes, text or a JSON value.
READS = re.compile(
    r"_?((parse|decode|read|load|split|identify|decrypt|open|feed)(_[a-z0-9_]+)?"
    r"|from_[a-z0-9_]+|[a-z0-9_]+_(from_[a-z]+|object|window))"
)
# Calls that take bytes from a connection or a stream, and methods that such a caller calls.
TAKES = {
    *("recv", "recv_into", "recvfrom", "recvmsg", "sock_recv", "makefile", "getresponse"),
    *("readany", "readinto", "readline", "readuntil", "readexactly", "data_received"),
}
# Only modules whose source contains one of these can have a reader, and are parsed.
NAMED = re.compile(rf"\b(def\s+({READS.pattern})|{'|'.join(TAKES)})\b")
SENT = re.compile(r"\b(bytes|str|Mapping|object)\b")
# Targets that accept every input: a terminal shows any line.
TAKES_ALL = {"docker_lines"}
OF_THE_CORE = C_DICTIONARIES.keys()
BROKEN = 12  # inputs derived from each target's seeds


every_target = every_case("target", TARGETS.values(), ids=TARGETS)


def contract(target: ParserTarget) -> Contract[object]:
    """Return the contract that a target requires of its parser."""
    assert isinstance(target.run, Contract)
    return target.run


@every_target
def test_seeds_keep_the_contract(target: ParserTarget) -> None:
    """All seeds satisfy the contract, some are accepted, and none exceeds the fuzzer's size."""
    seeds = target.seeds()
    for seed in seeds:
        target.run(seed)
    assert max(map(len, seeds)) <= target.max_len
    assert any(contract(target).answer(seed)[0] for seed in seeds)


@every_target
def test_broken_seeds_keep_the_contract(target: ParserTarget) -> None:
    """Truncated and changed seeds satisfy the contract, and some are refused."""
    dice, seeds = Random(target.name), target.seeds()
    refused = 0
    for _ in range(BROKEN):
        seed = dice.choice(seeds)
        broken = (seed[: dice.randrange(len(seed) + 1)], havoc(dice, seed or b"\0"))
        for data in broken:
            target.run(data[: target.max_len])
            refused += not contract(target).answer(data[: target.max_len])[0]
    assert refused or target.name in TAKES_ALL


# -- planted bugs are detected ---------------------------------------------------------------------


def raises(error: BaseException) -> Callable[[bytes], object]:
    """Return a parser that raises this error."""

    def read(_data: bytes) -> object:
        raise error

    return read


@every_case(
    ("error", "holds"),
    [
        (FormatError("text", offset=4, reason="syntax"), True),
        (FormatError("text", offset=5, reason="syntax"), False),
        (FormatError("text", offset=-1, reason="syntax"), False),
        (FormatError("text", reason=untyped("quorum")), False),
        (FormatError("x" * LONGEST, reason="syntax"), True),
    ],
)
def test_offsets_and_reasons_are_checked(error: FormatError, *, holds: bool) -> None:
    """An offset is within the input or at its end; a reason is listed in its class."""
    held = obeys(raises(error), FormatError)
    if holds:
        held(b"data")
    else:
        with pytest.raises(BrokenContractError):
            held(b"data")


def errors_with_secret() -> Iterator[ConfigError]:
    """Yield errors that contain a secret, each in another place."""
    for inner in (
        ValueError("5ec2e75ec2e7ab"),
        UnicodeDecodeError("utf-8", b"5ec2e75ec2e7", 0, 1, ""),
    ):
        error = ConfigError("wrong", reason="wrong_value")
        error.__cause__ = inner
        yield error
        other = ConfigError("wrong", reason="wrong_value")
        other.__context__ = inner
        yield other
    yield ConfigError("k256_key: 5ec2e75ec2e7", reason="wrong_value")


def test_secret_in_error_is_detected() -> None:
    """A secret is found in an error's text, in its cause, and in its context."""
    data = key_samples()[0]
    assert "5ec2e75ec2e7" in secrets(data)
    for error in errors_with_secret():
        with pytest.raises(BrokenContractError, match="a secret"):
            obeys(raises(error), ConfigError, secret=secrets)(data)
    obeys(raises(ConfigError("wrong", reason="wrong_value")), ConfigError, secret=secrets)(data)


# -- coverage of parsers ---------------------------------------------------------------------------


def reading_modules() -> set[str]:
    """Return the modules that read untrusted input."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if NAMED.search(text) and any(map(reads, ast.walk(ast.parse(text)))):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found.add(".".join(part for part in parts if part != "__init__"))
    return found


def reads(node: ast.AST) -> bool:
    """Return whether a node reads input: by the function's name, or by its use of a stream."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name in TAKES or bool(
            READS.fullmatch(node.name) and takes_untrusted_input(node)
        )
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in TAKES
    )


def takes_untrusted_input(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether an argument may hold untrusted input."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    annotations = [argument.annotation for argument in arguments if argument.annotation]
    return any(SENT.search(ast.unparse(annotation)) for annotation in annotations)


def test_every_module_that_reads_has_a_target() -> None:
    """A module that reads input has a target, or a stated reason for its absence."""
    reading = reading_modules()
    assert reading - READERS.keys() - LEFT_OUT.keys() == set()
    assert LEFT_OUT.keys() - reading == set()
    assert LEFT_OUT.keys() & READERS.keys() == set()
    assert all(LEFT_OUT.values())


@every_case("name", sorted({*READERS.values(), *MORE_READERS}))
def test_target_reaches_its_modules(name: str) -> None:
    """The target's seeds run functions of each of its modules."""
    called: set[str] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            called.add(str(frame.f_globals.get("__name__")))

    sys.setprofile(note)
    try:
        for seed in TARGETS[name].seeds():
            TARGETS[name].run(seed)
    finally:
        sys.setprofile(None)
    modules = [module for module, target in READERS.items() if target == name]
    modules += [MORE_READERS[name]] if name in MORE_READERS else []
    wanted = {f"attestkit.{module}" for module in modules}
    assert wanted - called == set()


def test_names_match_targets() -> None:
    """Targets and names match, and every named dictionary exists and is used."""
    assert all(name == target.name for name, target in TARGETS.items())
    assert {*READERS.values(), *MORE_READERS} <= TARGETS.keys()
    assert set(MORE_READERS.values()) <= READERS.keys()
    for module in READERS:
        import_module(f"attestkit.{module}")
    named = {target.dictionary for target in TARGETS.values()}
    named |= {f"{name}.dict" for name in OF_THE_CORE}
    assert named - {None} == {path.name for path in DICTIONARIES}


# -- the program -----------------------------------------------------------------------------------


@every_target
def test_corpus_keeps_the_contract(target: ParserTarget) -> None:
    """The committed inputs satisfy the contract, and are no longer than the target's."""
    for path in sorted((CORPORA / f"parser-{target.name}").glob("*")):
        data = path.read_bytes()
        assert len(data) <= target.max_len
        target.run(data)


DEEP = """
import sys
from fuzz.parsers.registry import TARGETS
sys.setrecursionlimit(10**6)  # as libraries do, after which only bounds of ours hold
for target in TARGETS.values():
    for mark in {seed[:1] for seed in target.seeds()} | {b"", b'{"x":'}:
        for level in (b"[", b'{"x":', b"\\x81", b"\\x91", b"\\xa1", b"\\x30\\x80"):
            try:
                target.run.read(mark + 100_000 * level)
            except target.run.refusals:
                pass
print(len(TARGETS))
"""


@pytest.mark.slow
def test_deep_nesting_does_not_overflow_stack() -> None:
    """100,000 nested brackets, arrays or elements do not crash a process."""
    command = [sys.executable, "-c", DEEP]
    ended = run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(len(TARGETS))), ended.stderr
