"""The program that AFL++ runs: one input is one connection to the server.

Alone it runs what is on standard input, which is how to see again what AFL++ has found:
`python -m fuzz.request_path.target <INPUT`.
"""

import gc
import os
import signal
import sys
import traceback
from pathlib import Path

import attestkit
from fuzz.request_path import rig as rig_module
from fuzz.request_path.afl_protocol import Edges, serve, shared_map
from fuzz.request_path.rig import Rig
from fuzz.request_path.words import seeds


def main() -> None:
    """Load all there is, then serve AFL++."""
    rig = Rig()
    edges = Edges(shared_map(), Path(attestkit.__file__).parent, Path(rig_module.__file__))
    for data in seeds():  # what is loaded late is then there, and kept answers are kept
        if b"/EmitEvent" not in data:
            rig.run(data)
    gc.collect()
    gc.freeze()

    def run(data: bytes) -> bool:
        edges.start()
        try:
            return rig.run(data)
        except Exception:
            edges.stop()
            traceback.print_exc()
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGABRT)
            raise
        finally:
            edges.stop()

    serve(run)


if __name__ == "__main__":
    main()
