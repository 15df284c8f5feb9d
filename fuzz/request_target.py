"""The program that AFL++ runs: one input is one connection to the server.

Alone it runs what is on standard input, which is how to see again what AFL++ has found:
`python -m fuzz.request_target <INPUT`.
"""

import gc
import os
import signal
import sys
import traceback
from pathlib import Path

import attestkit
from fuzz import request_rig
from fuzz.request_afl import Edges, serve, shared_map
from fuzz.request_rig import Rig
from fuzz.request_words import seeds


def main() -> None:
    """Load all there is, then serve AFL++."""
    rig = Rig()
    edges = Edges(shared_map(), Path(attestkit.__file__).parent, Path(request_rig.__file__))
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
