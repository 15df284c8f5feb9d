"""A program that runs the command of NVIDIA's nv-local-gpu-verifier, in a new process each time.

It runs in the environment of the verifier, without attestkit. Each line of standard input is a JSON
list, the arguments of `python -m verifier.cc_admin`; the answer is a line with an object: `code`,
the exit code, and `output`. The verifier keeps its state in classes, therefore the processes.
"""

import json
import os
import sys
import tempfile
from typing import IO

from verifier import cc_admin


def run_command(arguments: list[str], output: IO[bytes]) -> int:
    """Return the exit code of the command."""
    child = os.fork()
    if child == 0:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.argv = ["cc_admin", *arguments]
        code = 0
        try:
            cc_admin.main()
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Run the commands of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output:
            code = run_command(json.loads(line), output)
            output.seek(0)
            text = output.read().decode(errors="replace")
        answers.write(json.dumps({"code": code, "output": text}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
