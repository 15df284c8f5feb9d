"""A server for the benchmarks of clients: attested TLS, with a simulated TEE.

`python -m benchmarks.serve.attested_app FOLDER` writes trust anchor and collateral to the folder,
and prints URL and CA as JSON; it ends with its standard input.
"""

import json
import sys
from pathlib import Path

from attestkit._crypto.pem import encode_pem
from attestkit.testing import AttestedServer

ANCHOR = "anchor.pem"
COLLATERAL = "collateral.json"


def main() -> None:
    """Serve until standard input ends."""
    folder = Path(sys.argv[1])
    with AttestedServer() as server:
        (folder / ANCHOR).write_text(encode_pem("CERTIFICATE", server.tee.trust_anchor))
        server.tee.collateral.save(folder / COLLATERAL)
        print(json.dumps({"url": server.url, "ca": server.ca}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
