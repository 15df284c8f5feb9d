"""`attestkit completion` in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attestkit import backends
from attestkit.__main__ import main
from attestkit.backends.simulator.faults.fault_specs import NAMED
from attestkit.cli import COMMANDS
from tests.serve.server import environment

pytestmark = pytest.mark.slow  # hundreds of starts

PATIENCE = 120  # seconds; each completion starts attestkit


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose `attestkit` is this installation."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "attestkit"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m attestkit "$@"\n')
    path.chmod(0o700)
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "TERM": "dumb"}
    return {**environment(), **home, "PATH": f"{folder}:{os.environ['PATH']}"}


def _shell(name: str, script: str, env: dict[str, str], **more: Any) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here")
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [name, *(["--norc"] if name == "bash" else ["-f"] if name == "zsh" else []), "-c", script],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )
    assert done.stderr == ""
    return done.stdout


# Call the completion function like readline: input and output are in variables.
_ASK = """
eval "$(attestkit completion bash)"
compopt() { :; }  # works only inside readline
IFS= read -r line
read -ra COMP_WORDS <<< "$line"
[[ $line == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_attestkit_completion attestkit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("attestkit ", set(COMMANDS)),
        ("attestkit sh", {"show"}),
        ("attestkit quote --backend ", set(backends.BUILTIN)),
        ("attestkit quote --back", {"--backend"}),
        ("attestkit quote --backend simulator --option qu", {"quote_version="}),
        ("attestkit quote --backend tdx_ioctl --option q", {"qgs="}),
        ("attestkit attest --encoding v", {"v0", "v1", "v1-cbor"}),
        ("attestkit key x --algorithm x", {"x25519"}),
        ("attestkit verify --policy st", {"strict"}),
        (
            "attestkit mount --fault rtmr_extend_",
            {n for n in NAMED if n.startswith("rtmr_extend_")},
        ),
        ("attestkit serve --dev", {"--dev-http"}),
        ("attestkit completion ", {"bash", "zsh", "fish"}),
        ("attestkit quote --backend nothing --option x", set()),
    ],
)
def test_bash_completes_words(line: str, expected: set[str], program: dict[str, str]) -> None:
    """Bash completes commands, options and values."""
    output = _shell("bash", _ASK, program, input=f"{line}\n")
    found = set(output.split())
    if line.endswith(" --backend "):
        assert found >= expected  # plugins may be installed
    else:
        assert found == expected


def test_bash_completes_files(program: dict[str, str], tmp_path: Path) -> None:
    """For files, the script uses readline's completion."""
    (tmp_path / "evidence").touch()
    script = _ASK.replace("compopt() { :; }", "compopt() { echo compopt $*; }")
    for line in ("show ev", "run -- ls ev", "run ev", "attest -o ev"):
        output = _shell("bash", script, program, input=f"attestkit {line}\n", cwd=tmp_path)
        assert output.split() == ["compopt", "-o", "default"], line
    output = _shell("bash", script, program, input="attestkit mount d\n", cwd=tmp_path)
    assert output.split() == ["compopt", "-o", "dirnames"]


LAST_WORDS = {  # completed, by line
    "attestkit sh": "show",
    "attestkit quote --backend simulator --option faults=ebu": "faults=ebusy",
    "attestkit quote --backend=sim": "--backend=simulator",
    "attestkit run --scenario=pck-rev": "--scenario=pck-revoked",
    "attestkit quote --option=scenario=pck-rev": "--option=scenario=pck-revoked",
    "attestkit show evi": "evidence",
    "attestkit run -- ls evi": "evidence",
}


@pytest.mark.parametrize("line", LAST_WORDS)
def test_fish_completes_words(line: str, program: dict[str, str], tmp_path: Path) -> None:
    """Fish completes commands, values and files."""
    (tmp_path / "evidence").touch()
    script = f"attestkit completion fish | source; complete --do-complete '{line}'"
    output = _shell("fish", script, program, cwd=tmp_path)
    assert [found.split("\t")[0] for found in output.splitlines()] == [LAST_WORDS[line]]


# Zsh completes only in its line editor, which needs a terminal.
_ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; unsetopt zle_bracketed_paste 2>/dev/null; autoload -U compinit; compinit -u'
zpty -w shell 'eval "$(attestkit completion zsh)"'
zpty -w shell 'reported() { print -r -- "<<<$BUFFER>>>"; exit }'
zpty -w shell 'zle -N reported; bindkey ^X reported'
zpty -w shell 'print -r -- re""ady'
zpty -r shell line '*ready*' || exit 1
zpty -n -w shell "$LINE"$'\\t\\x18'
zpty -r shell line '*<<<*>>>*' || exit 1
print -r -- "$line"
zpty -d shell
"""


@pytest.mark.parametrize("line", LAST_WORDS)
def test_zsh_completes_words(line: str, program: dict[str, str], tmp_path: Path) -> None:
    """A tab in zsh's line editor completes the word."""
    (tmp_path / "evidence").touch()
    output = _shell("zsh", _ZSH, {**program, "LINE": line}, cwd=tmp_path)
    assert f"<<<{line.rpartition(' ')[0]} {LAST_WORDS[line]}" in output


def test_completion_unknown_shell_is_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown shell is a usage error that lists the known ones."""
    assert main(["completion", "tcsh"]) == 1
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err
