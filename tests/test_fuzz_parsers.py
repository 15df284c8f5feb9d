"""The fuzzers of parsers: they notice what is planted, leave no parser out, and hold on seeds."""

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

PACKAGE = Path(attestkit.__file__).parent
DICTIONARIES = sorted(parser_target.DICTIONARIES.glob("*.dict"))
# What a function is called that reads; it counts if an argument is bytes, text or what JSON has.
READS = re.compile(
    r"_?((parse|decode|read|load|split|recognise|decrypt|open|feed)(_[a-z0-9_]+)?"
    r"|from_[a-z0-9_]+|[a-z0-9_]+_(from_[a-z]+|object|window)|complete_evidence)"
)
# What takes bytes from a connection or a stream: it is called, or is called by who has them.
TAKES = {
    *("recv", "recv_into", "recvfrom", "recvmsg", "sock_recv", "makefile", "getresponse"),
    *("readany", "readinto", "readline", "readuntil", "readexactly", "data_received"),
}
SENT = re.compile(r"\b(bytes|str|Mapping|object)\b")
# Targets for which every input is good: lines of a terminal are whatever it shows.
TAKES_ALL = {"docker_lines"}
OF_THE_CORE = _DICTIONARIES.keys()
LONGEST_WORD = 64  # bytes: libFuzzer leaves longer ones out
BROKEN = 12  # inputs made of each target's seeds

# Targets that know from the bytes what the value must be.
TIED = (
    *("quote", "quote_columns", "td_report", "snp_report", "v0_scale", "scale", "mr_config"),
    *("app_compose", "path_certificate", "signed_body", "large_json"),
)

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def contract(target: ParserTarget) -> Contract[object]:
    """Return what a target holds its parser to."""
    assert isinstance(target.run, Contract)
    return target.run


@every_target
def test_seeds_keep_the_contract(target: ParserTarget) -> None:
    """All do, some are accepted, and none is longer than the fuzzer's inputs."""
    seeds = target.seeds()
    for seed in seeds:
        target.run(seed)
    assert max(map(len, seeds)) <= target.max_len
    assert any(contract(target).answer(seed)[0] for seed in seeds)


@every_target
def test_broken_seeds_keep_the_contract(target: ParserTarget) -> None:
    """Cut and changed ones, of which some are refused."""
    dice, seeds = Random(target.name), target.seeds()
    refused = 0
    for _ in range(BROKEN):
        seed = dice.choice(seeds)
        broken = (seed[: dice.randrange(len(seed) + 1)], havoc(dice, seed or b"\0", ()))
        for data in broken:
            target.run(data[: target.max_len])
            refused += not contract(target).answer(data[: target.max_len])[0]
    assert refused or target.name in TAKES_ALL


# -- what is planted is noticed --------------------------------------------------------------------


def raises(error: BaseException) -> Callable[[bytes], object]:
    """Return a parser that raises this."""

    def read(_data: bytes) -> object:
        raise error

    return read


@every_target
def test_another_error_is_noticed(target: ParserTarget) -> None:
    """Whatever a parser does not name goes through to the fuzzer, our own errors too."""
    unnamed = AttestKitError("no parser names the root of our errors")
    for error in (KeyError("key"), RecursionError(), UnicodeError("text"), unnamed):
        with pytest.raises(type(error)):
            replace(contract(target), read=raises(error))(b"data")


@every_target
def test_an_error_that_is_no_line_is_noticed(target: ParserTarget) -> None:
    """One of two lines, one with an escape sequence, a long one, and none."""
    named, longest = contract(target).refusals[0], contract(target).longest
    for text in ("two\nlines", "\x1b[31mred", "x" * (longest + 1), "\u202eright to left", ""):
        with pytest.raises(BrokenContractError):
            replace(contract(target), read=raises(named(text)))(b"data")


@every_target
def test_another_answer_to_the_same_is_noticed(target: ParserTarget) -> None:
    """A parser that accepts an input and then refuses it."""
    good = next(seed for seed in target.seeds() if contract(target).answer(seed)[0])
    refusal = raises(contract(target).refusals[0]("refused"))
    turns = cycle((contract(target).read, refusal))

    def read(data: bytes) -> object:
        return next(turns)(data)

    with pytest.raises(BrokenContractError, match="a second call"):
        replace(contract(target), read=read)(good)


@pytest.mark.parametrize("name", TIED)
def test_the_value_of_other_bytes_is_noticed(name: str) -> None:
    """A parser that gives what it read of another input."""
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
    """Return a parser that has one answer."""
    return lambda _data: value


@pytest.mark.parametrize(
    ("error", "holds"),
    [
        (FormatError("text", offset=4), True),
        (FormatError("text", offset=5), False),
        (FormatError("text", offset=-1), False),
        (FormatError("text", reason="a_reason"), True),
        (FormatError("text", reason="A reason"), False),
        (FormatError("x" * LONGEST), True),
    ],
)
def test_offsets_and_reasons(error: FormatError, *, holds: bool) -> None:
    """An offset is within the input or at its end, a reason is a word."""
    held = obeys(raises(error), FormatError)
    if holds:
        held(b"data")
    else:
        with pytest.raises(BrokenContractError):
            held(b"data")


def told() -> Iterator[ConfigError]:
    """Return errors that have a secret in them, each in another place."""
    for inner in (
        ValueError("5ec2e75ec2e7ab"),
        UnicodeDecodeError("utf-8", b"5ec2e75ec2e7", 0, 1, ""),
    ):
        error = ConfigError("wrong")
        error.__cause__ = inner
        yield error
        other = ConfigError("wrong")
        other.__context__ = inner
        yield other
    yield ConfigError("k256_key: 5ec2e75ec2e7")


def test_a_secret_in_an_error_is_noticed() -> None:
    """In its text, in what caused it, and in what was being handled."""
    data = key_samples()[0]
    assert "5ec2e75ec2e7" in secrets(data)
    for error in told():
        with pytest.raises(BrokenContractError, match="a secret"):
            obeys(raises(error), ConfigError, secret=secrets)(data)
    obeys(raises(ConfigError("wrong")), ConfigError, secret=secrets)(data)


# -- no parser is left out -------------------------------------------------------------------------


def modules_that_read() -> set[str]:
    """Return the modules that read what was sent."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if any(map(reads, ast.walk(ast.parse(path.read_text())))):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found.add(".".join(part for part in parts if part != "__init__"))
    return found


def reads(node: ast.AST) -> bool:
    """Tell what reads: a function that is called so, and whatever takes bytes from a stream."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name in TAKES or bool(READS.fullmatch(node.name) and takes_what_was_sent(node))
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in TAKES
    )


def takes_what_was_sent(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether an argument may be what a stranger sent."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    annotations = [argument.annotation for argument in arguments if argument.annotation]
    return any(SENT.search(ast.unparse(annotation)) for annotation in annotations)


def test_every_module_that_reads_has_a_target() -> None:
    """A new one is given one, or a reason why it has none."""
    reading = modules_that_read()
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
def test_what_reads_is_found(code: str, *, found: bool) -> None:
    """By its name, whether it is for others or not, or by where it takes its bytes from."""
    assert any(map(reads, ast.walk(ast.parse(code)))) == found


@pytest.mark.parametrize("name", sorted(set(READERS.values())))
def test_a_target_gets_to_the_modules_it_is_for(name: str) -> None:
    """Its seeds run functions of each."""
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


def test_the_names_are_the_targets() -> None:
    """And every dictionary that one names is there, and used."""
    assert all(name == target.name for name, target in TARGETS.items())
    assert set(READERS.values()) <= TARGETS.keys()
    for module in READERS:
        import_module(f"attestkit.{module}")
    named = {target.dictionary for target in TARGETS.values()}
    named |= {f"{name}.dict" for name in OF_THE_CORE}
    assert named - {None} == {path.name for path in DICTIONARIES}


@pytest.mark.parametrize("path", DICTIONARIES, ids=lambda path: path.stem)
def test_a_dictionary_is_one_of_libfuzzer(path: Path) -> None:
    """Comments, and words in quotes of 1 to 64 bytes, with or without names; none is there twice.

    The escapes of a backslash, of a quote, and of a byte are all that libFuzzer knows.
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
    """Return what an escape stands for."""
    return chr(int(found[1], 16)) if found[1] else found[2]


# -- the program -----------------------------------------------------------------------------------


def test_without_atheris_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, and with a status that is not success."""
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit) as ended:
        parser_target.main(["quote"])
    assert ended.value.code == "fuzz.parser_target: atheris is not installed: pip install atheris"
    with pytest.raises(SystemExit, match="usage"):
        parser_target.main([])


def test_new_seeds_reach_an_old_corpus(tmp_path: Path) -> None:
    """A campaign that goes on gets what its target has learnt; nothing is there twice."""
    folder = tmp_path / "corpus"
    parser_target.write_seeds(folder, [b"one", b"two"])
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"one", b"two"]
    parser_target.write_seeds(folder, [b"two", b"three"])
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"one", b"three", b"two"]


def test_all_targets_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first byte says which, and each gets what it would alone: seeds, corpus, length."""
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


def test_what_reaches_nothing_new_is_not_kept() -> None:
    """Of those that reach the same the shortest is kept; none is, beyond what a corpus may have."""
    target = TARGETS["options"]
    limit, longer = b"\1body=x", b"\1body=xyz"
    assert kept(target, target.seeds()) == []
    assert kept(target, [longer, limit, b""]) == [limit]
    assert kept(target, [b"\1body=" + bytes(BUDGET)]) == []


@every_target
def test_the_corpus_keeps_the_contract(target: ParserTarget) -> None:
    """What campaigns have found, a few files of each parser, and within bounds."""
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
def test_nothing_deep_overflows_the_stack() -> None:
    """A hundred thousand brackets, arrays or elements: in a process of its own, which lives."""
    command = [sys.executable, "-c", DEEP]
    ended = run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(len(TARGETS))), ended.stderr


def fuzzer(*arguments: str) -> CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, "-m", "fuzz.parser_target", *arguments]
    return run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    """It instruments attestkit and nothing else, starts from the seeds, and ends well."""
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
