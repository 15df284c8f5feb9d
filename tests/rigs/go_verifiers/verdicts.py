"""Verdicts of a verifier in Go: an error for each case, empty if it accepts."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attestkit._crypto.x509 import vendor_roots
from attestkit.backends.simulator.scenarios.registry import SCENARIOS
from tests.rigs.go_programs import build_go

SEED = bytes(range(32))
NOW = 1_790_000_000
REPORT_DATA = bytes(range(64))
# Scenarios that a verifier accepts and attestkit does not, or the other way round; the reasons are
# in docs/guides/testing/scenarios.md.
GO_TDX_GUEST = frozenset({"ok-v5-td10", "ok-v5-td15", "collateral-not-yet-valid"})
GO_SEV_GUEST = frozenset({"snp-v5", "snp-turin", "snp-vlek"})


_ROOTS = Path(vendor_roots.__file__).parent / "roots"
# The vendors' certificates, which are not used here.
_EMBEDDED = {
    "github.com/google/go-tdx-guest/verify/trusted_root.pem": _ROOTS / "intel_sgx.pem",
    **{
        f"github.com/google/go-sev-guest/verify/trust/ask_ark_{name}.pem": _ROOTS / "amd_milan.pem"
        for name in ("milan", "milan_vlek", "genoa", "genoa_vlek", "turin_vcek", "turin_vlek")
    },
}


def build(folder: Path, name: str) -> Path:
    """Build a program of this directory."""
    program = folder / name
    sources = [str(Path(__file__).with_name(f"{part}.go")) for part in ("main", name)]
    build_go(program, *sources, embedded=_EMBEDDED)
    return program


def verify_with_go(program: Path, cases: Sequence[dict[str, Any]]) -> list[str]:
    """Return the program's error for each case."""
    given = json.dumps(list(cases)).encode()
    done = subprocess.run([program], input=given, capture_output=True, check=True, timeout=300)
    errors: list[str] = json.loads(done.stdout)
    assert len(errors) == len(cases)
    return errors


def check_verdicts(errors: dict[str, str], differences: frozenset[str]) -> None:
    """Check that scenarios are accepted if attestkit says UpToDate, except for differences."""
    differing = {
        name
        for name, error in errors.items()
        if (error == "") != (SCENARIOS[name].outcome == "UpToDate")
    }
    assert differing == differences, {name: errors[name] for name in differing}
