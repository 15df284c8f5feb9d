"""The parsers' fuzzers: they detect planted bugs, cover every parser, and accept their seeds."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from itertools import cycle
from pathlib import Path
from random import Random
from subprocess import CompletedProcess, run
from types import FrameType
from typing import Any

import pytest

import attestkit
from attestkit.errors import AttestKitError, ConfigError, FormatError
from fuzz import parser_target
from fuzz.campaign_targets import _DICTIONARIES
from fuzz.havoc import havoc
from fuzz.parser_contract import LONGEST, BrokenContractError, Contract, ParserTarget, obeys
from fuzz.parser_corpora import BUDGET, kept
from fuzz.parser_settings import key_samples, secrets
from fuzz.parser_target import CORPORA
from fuzz.parsers import LEFT_OUT, READERS, TARGETS
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
SENT = re.compile(r"\b(bytes|str|Mapping|object)\b")
# Targets that accept every input: a terminal shows any line.
TAKES_ALL = {"docker_lines"}
OF_THE_CORE = _DICTIONARIES.keys()
LONGEST_WORD = 64  # bytes: libFuzzer ignores longer words
BROKEN = 12  # inputs derived from each target's seeds

# Targets whose expected value follows from the bytes.
TIED = (
    *("quote", "quote_columns", "td_report", "snp_report", "v0_scale", "scale", "mr_config"),
    *("app_compose", "path_certificate", "signed_body", "large_json"),
)

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


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
        broken = (seed[: dice.randrange(len(seed) + 1)], havoc(dice, seed or b"\0", ()))
        for data in broken:
            target.run(data[: target.max_len])
            refused += not contract(target).answer(data[: target.max_len])[0]
    assert refused or target.name in TAKES_ALL


# -- planted bugs are detected ---------------------------------------------------------------------


def reason_of(kind: type[AttestKitError]) -> Any:
    """Return one of the reasons of an error class."""
    return min(kind.reasons())


def raises(error: BaseException) -> Callable[[bytes], object]:
    """Return a parser that raises this error."""

    def read(_data: bytes) -> object:
        raise error

    return read


@every_target
def test_undeclared_error_is_detected(target: ParserTarget) -> None:
    """An error outside of a parser's contract reaches the fuzzer, also one of attestkit's own."""
    unnamed = AttestKitError("no parser names the root of our errors", reason="internal")
    for error in (KeyError("key"), RecursionError(), UnicodeError("text"), unnamed):
        with pytest.raises(type(error)):
            replace(contract(target), read=raises(error))(b"data")


@every_target
def test_error_text_not_one_line_is_detected(target: ParserTarget) -> None:
    """A text of two lines, with an escape sequence, too long or empty is detected."""
    named, longest = contract(target).refusals[0], contract(target).longest
    for text in ("two\nlines", "\x1b[31mred", "x" * (longest + 1), "\u202eright to left", ""):
        with pytest.raises(BrokenContractError):
            replace(contract(target), read=raises(named(text, reason=reason_of(named))))(b"data")


@every_target
def test_inconsistent_result_is_detected(target: ParserTarget) -> None:
    """A parser that accepts an input and then refuses it is detected."""
    good = next(seed for seed in target.seeds() if contract(target).answer(seed)[0])
    kind = contract(target).refusals[0]
    refusal = raises(kind("refused", reason=reason_of(kind)))
    turns = cycle((contract(target).read, refusal))

    def read(data: bytes) -> object:
        return next(turns)(data)

    with pytest.raises(BrokenContractError, match="a second call"):
        replace(contract(target), read=read)(good)


@pytest.mark.parametrize("name", TIED)
def test_value_of_other_input_is_detected(name: str) -> None:
    """A parser that returns the value of another input is detected."""
    held = contract(TARGETS[name])
    good = [seed for seed in TARGETS[name].seeds() if held.answer(seed)[0]]
    first = good[0]
    others = [seed for seed in good if held.said(held.read(seed)) != held.said(held.read(first))]
    assert others
    for other in others[:8]:
        value = held.read(other)
        with pytest.raises((BrokenContractError, AttestKitError, AttributeError)):
            replace(held, read=answers(value))(first)


def answers(value: object) -> Callable[[bytes], object]:
    """Return a parser that always returns this value."""
    return lambda _data: value


@pytest.mark.parametrize(
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
        if any(map(reads, ast.walk(ast.parse(path.read_text())))):
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


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def parse(data: bytes): ...", True),
        ("def _parse(data: bytes): ...", True),
        ("def _decode(key: Key, content: bytes): ...", True),
        ("async def _open_log(name: str): ...", True),
        ("class A:\n def _read_text(self, path: str): ...", True),
        ("def readinto(buffer): ...", True),
        ("piece = sock.recv_into(buffer)", True),
        ("async def f():\n return await response.content.readany()", True),
        ("def parse(count: int): ...", False),
        ("def __parse(data: bytes): ...", False),
        ("def _reader(data: bytes): ...", False),
    ],
)
def test_reader_is_found(code: str, *, found: bool) -> None:
    """A reader is found by its name, public or private, or by its source of bytes."""
    assert any(map(reads, ast.walk(ast.parse(code)))) == found


@pytest.mark.parametrize("name", sorted(set(READERS.values())))
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
    wanted = {f"attestkit.{module}" for module, target in READERS.items() if target == name}
    assert wanted - called == set()


def test_names_match_targets() -> None:
    """Targets and names match, and every named dictionary exists and is used."""
    assert all(name == target.name for name, target in TARGETS.items())
    assert set(READERS.values()) <= TARGETS.keys()
    for module in READERS:
        import_module(f"attestkit.{module}")
    named = {target.dictionary for target in TARGETS.values()}
    named |= {f"{name}.dict" for name in OF_THE_CORE}
    assert named - {None} == {path.name for path in DICTIONARIES}


@pytest.mark.parametrize("path", DICTIONARIES, ids=lambda path: path.stem)
def test_dictionary_has_libfuzzer_syntax(path: Path) -> None:
    """A dictionary has comments, and quoted words of 1 to 64 bytes, with or without unique names.

    libFuzzer supports the escapes of a backslash, a quote and a byte only.
    """
    line_of = re.compile(r'([a-z_0-9]+=)?"((?:[ !#-\[\]-~]|\\\\|\\"|\\x[0-9a-f]{2})+)"')
    words, names = [], []
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("#"):
            continue
        found = line_of.fullmatch(line)
        assert found, line
        names += [found[1]] if found[1] else []
        words.append(re.sub(r"\\(?:x(..)|(.))", unescaped, found[2]))
        assert len(words[-1]) <= LONGEST_WORD, line
    assert len(words) == len(set(words)) > 4
    assert len(names) == len(set(names))


def unescaped(found: re.Match[str]) -> str:
    """Return the byte of an escape sequence."""
    return chr(int(found[1], 16)) if found[1] else found[2]


# -- the program -----------------------------------------------------------------------------------


def test_missing_atheris_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without atheris the program prints one line and fails."""
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit) as ended:
        parser_target.main(["quote"])
    assert ended.value.code == "fuzz.parser_target: atheris is not installed: pip install atheris"
    with pytest.raises(SystemExit, match="usage"):
        parser_target.main([])


def test_new_seeds_reach_an_old_corpus(tmp_path: Path) -> None:
    """A continued campaign receives new seeds; no input is stored twice."""
    folder = tmp_path / "corpus"
    parser_target.write_seeds(folder, [b"one", b"two"])
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"one", b"two"]
    parser_target.write_seeds(folder, [b"two", b"three"])
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"one", b"three", b"two"]


def test_all_targets_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first byte selects the target, which gets its own seeds, corpus and maximum length."""
    monkeypatch.setattr(parser_target, "CORPORA", tmp_path)
    (tmp_path / "parser-second").mkdir()
    (tmp_path / "parser-second" / "kept").write_bytes(b"kept")
    got: dict[str, list[bytes]] = {"first": [], "second": []}
    two = {
        name: ParserTarget(name, got[name].append, lambda: [b"seed"], max_len=size)
        for name, size in (("first", 4), ("second", 7))
    }
    both = parser_target.together(two)
    assert both.seeds() == [b"\0seed", b"\1seed", b"\1kept"]
    assert both.max_len == 8
    for data in (b"", b"\0longer than that", b"\1longer than that", b"\3x"):
        both.run(data)
    assert got == {"first": [b"long"], "second": [b"longer ", b"x"]}
    assert len(TARGETS) <= 256


def test_input_without_new_coverage_is_dropped() -> None:
    """The shortest of inputs with equal coverage is kept, and none above the corpus's limit."""
    target = TARGETS["options"]
    limit, longer = b"\1body=x", b"\1body=xyz"
    assert kept(target, target.seeds()) == []
    assert kept(target, [longer, limit, b""]) == [limit]
    assert kept(target, [b"\1body=" + bytes(BUDGET)]) == []


@every_target
def test_corpus_keeps_the_contract(target: ParserTarget) -> None:
    """The committed findings satisfy the contract, and each corpus stays within its limits."""
    files = sorted((CORPORA / f"parser-{target.name}").glob("*"))
    inputs = [path.read_bytes() for path in files]
    assert sum(map(len, inputs)) <= BUDGET
    for data in inputs:
        assert len(data) <= target.max_len
        target.run(data)


DEEP = """
import sys
from fuzz.parsers import TARGETS
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


def fuzzer(*arguments: str) -> CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, "-m", "fuzz.parser_target", *arguments]
    return run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)


@pytest.mark.slow
def test_run_instruments_attestkit_only(tmp_path: Path) -> None:
    """A run instruments attestkit only, starts from the seeds, and succeeds."""
    pytest.importorskip("atheris")
    ended = fuzzer("qgs", "-runs=300", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "Done 300 runs" in ended.stderr
    assert len(list(tmp_path.iterdir())) >= len(TARGETS["qgs"].seeds())
    instrumented = re.findall(r"Instrumenting (\S+)", ended.stderr)
    assert {name.partition(".")[0] for name in instrumented} == {"attestkit"}
    unknown = fuzzer("none")
    assert unknown.returncode == 1
    assert "the targets are quote" in unknown.stderr
