"""A fuzzer of one parser: `python -m fuzz.parser_target NAME [OPTION...] [FOLDER]`.

Atheris, which is libFuzzer for Python, is to be installed. Options and exit status are libFuzzer's;
FOLDER is the corpus, into which the target's seeds go, and without which they are put into a new
folder below that of temporary files. NAME `all` is all of them in one process: the
first byte of an input says which. Only attestkit's own modules are instrumented,
over the plain core: a walker in C hides no branch there.
"""

import os
import sys
import tempfile
import warnings
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from fuzz.parsers.contract import ParserTarget

DICTIONARIES = Path(__file__).parent / "dictionaries"
CORPORA = Path(__file__).parent / "corpora"
ALL = "all"
_USAGE = "usage: python -m fuzz.parser_target NAME [libFuzzer's options] [corpus folder]"


def main(arguments: list[str]) -> NoReturn:
    """Run libFuzzer, which ends the process."""
    if not arguments:
        sys.exit(f"{_USAGE}; `{ALL}` is all targets, by the first byte; any other word lists them")
    try:
        atheris: Any = import_module("atheris")  # an extra, which not everyone has
    except ImportError:
        sys.exit("fuzz.parser_target: atheris is not installed: pip install atheris")
    name, options = arguments[0], arguments[1:]
    os.environ["ATTESTKIT_PURE_PYTHON"] = "1"
    with atheris.instrument_imports(include=["attestkit"], enable_loader_override=False):
        from fuzz.parsers.registry import TARGETS

        if name not in (ALL, *TARGETS):
            sys.exit(f"{_USAGE}; the targets are {', '.join(TARGETS)}")
        target = together(TARGETS) if name == ALL else TARGETS[name]
        seeds = target.seeds()
        for seed in seeds:  # so that what is imported late is instrumented too
            target.run(seed)
    warnings.simplefilter("error")  # nor may a parser raise one where a user has them as errors
    atheris.Setup([sys.argv[0], *_options(target, options, seeds)], target.run)
    atheris.Fuzz()
    raise AssertionError("libFuzzer ends the process")


def _options(target: "ParserTarget", options: list[str], seeds: list[bytes]) -> list[str]:
    """Return libFuzzer's arguments: what is not given is filled in, the folder with its seeds."""
    folders = [option for option in options if not option.startswith("-")]
    if not folders:
        folders = [tempfile.mkdtemp(prefix=f"corpus-{target.name}-")]
        options = [*options, *folders]
    given = {option.partition("=")[0] for option in options}
    if not Path(folders[0]).is_file():  # which is an input to be run again
        write_seeds(Path(folders[0]), seeds)
    if "-max_len" not in given:
        options = [f"-max_len={target.max_len}", *options]
    if "-dict" not in given and target.dictionary is not None:
        options = [f"-dict={DICTIONARIES / target.dictionary}", *options]
    return options


def together(targets: "dict[str, ParserTarget]") -> "ParserTarget":
    """Return one target that is all of them, by the first byte; it starts from their corpora."""
    from fuzz.parsers.contract import ParserTarget

    each = list(targets.values())

    def run(data: bytes) -> None:
        if data:
            target = each[data[0] % len(each)]
            target.run(data[1 : 1 + target.max_len])

    def seeds() -> list[bytes]:
        found = []
        for number, target in enumerate(each):
            kept = sorted((CORPORA / f"parser-{target.name}").glob("*"))
            inputs = [*target.seeds(), *(path.read_bytes() for path in kept)]
            found += [bytes([number]) + data for data in dict.fromkeys(inputs)]
        return found

    return ParserTarget(ALL, run, seeds, max_len=1 + max(target.max_len for target in each))


def write_seeds(folder: Path, seeds: list[bytes]) -> None:
    """Write those seeds into a folder that are not there; a new one reaches an old corpus too."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        place = folder / sha256(seed).hexdigest()[:40]
        if not place.exists():
            place.write_bytes(seed)


if __name__ == "__main__":
    main(sys.argv[1:])
