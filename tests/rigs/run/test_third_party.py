"""Third-party programs under `attestkit run` as an ordinary user: Google's, in Go.

They are built unchanged from Debian's packages.
"""

import base64
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from attestkit.collateral import Collateral
from attestkit.errors import SignatureError
from attestkit.snp_report import SnpReport
from tests.clients import python_dcap_qvl as dcap
from tests.rigs.go_programs import build_go, missing_for_go
from tests.rigs.ordinary_user import requires_nobody, run_python_as_nobody
from tests.rigs.run.attestkit_run import RUN, requires_run, run, verify

if TYPE_CHECKING:
    import subprocess

PACKAGES = (
    ("github.com/google/go-tdx-guest/tools/attest", "golang-github-google-go-tdx-guest-dev"),
    ("github.com/google/go-configfs-tsm/report", "golang-github-google-go-configfs-tsm-dev"),
)

# The example of go-configfs-tsm's documentation.
SNP_CLIENT = """
package main

import (
    "encoding/base64"
    "fmt"
    "log"

    "github.com/google/go-configfs-tsm/configfs/linuxtsm"
    "github.com/google/go-configfs-tsm/report"
)

func main() {
    client, err := linuxtsm.MakeClient()
    if err != nil {
        log.Fatal(err)
    }
    inblob := make([]byte, 64)
    copy(inblob, "from Go")
    got, err := report.Get(client, &report.Request{InBlob: inblob, GetAuxBlob: true})
    if err != nil {
        log.Fatal(err)
    }
    fmt.Println(got.Provider)
    fmt.Println(base64.StdEncoding.EncodeToString(got.OutBlob))
    fmt.Println(len(got.AuxBlob))
}
"""


def _missing() -> str:
    return missing_for_go(*PACKAGES)


pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    pytest.mark.skipif(bool(_missing()), reason=_missing() or "available"),
    requires_run if os.geteuid() else requires_nobody,
]


def run_as_ordinary_user(
    *words: str, options: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run a program on a machine with these options, as nobody if root runs the tests."""
    if os.geteuid():
        return run(*words, options=options)
    return run_python_as_nobody(*RUN[1:], *options, "--", *words)


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """Build attest and snp in a directory that all users may read."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "snp.go").write_text(SNP_CLIENT)
        attest, snp = PACKAGES[0][0], str(folder / "snp.go")
        for program, source in (("attest", attest), ("snp", snp)):
            build_go(folder / program, source)
        yield folder


def test_go_tdx_guest_quote_verifies(programs: Path) -> None:
    """Attestkit and dcap-qvl accept the quote of Google's `attest` under its machine's root."""
    report_data = os.urandom(64)
    script = """
        id -u
        file=$(mktemp)
        "$1" -inform hex -in "$2" -out "$file" > /dev/null
        base64 -w0 "$file"; echo; rm "$file"
        base64 -w0 /run/attestkit/trust-anchor.der; echo
        cat /run/attestkit/collateral.json
    """
    attest = str(programs / "attest")
    done = run_as_ordinary_user("sh", "-euc", script, "sh", attest, report_data.hex())
    assert (done.returncode, done.stderr) == (0, "")
    user, quote64, anchor64, collateral = done.stdout.split("\n", 3)
    assert int(user) != 0
    quote, anchor = base64.b64decode(quote64), base64.b64decode(anchor64)
    result = verify(quote, anchor, collateral, report_data)
    assert str(result) == "<AttestationResult dstack-tdx, UpToDate, simulated>"
    with pytest.raises(SignatureError):
        verify(quote[:200] + bytes([quote[200] ^ 1]) + quote[201:], anchor, collateral, report_data)
    now = int(time.time())
    words = Collateral.from_json(collateral)
    assert dcap.verify_with_dcap_qvl(quote, words, anchor, now).status == "UpToDate"
    assert dcap.verify_with_dcap_qvl(quote, words, None, now).status == dcap.REJECT


def test_go_tdx_guest_reports_busy_device(programs: Path) -> None:
    """Its next request succeeds."""
    script = '"$1" -inform hex -in 00 | wc -c; "$1" -inform hex -in 00 | wc -c'
    words = ("sh", "-c", script, "sh", str(programs / "attest"))
    done = run_as_ordinary_user(*words, options=("--fault", "ebusy:1"))
    first, second = map(int, done.stdout.split())
    assert first < 1000 < second
    assert "busy" in done.stderr + done.stdout


def test_go_tdx_guest_without_configfs_uses_the_device(programs: Path) -> None:
    """Linux's driver gives no quotes."""
    words = (str(programs / "attest"), "-inform", "hex", "-in", "00")
    done = run_as_ordinary_user(*words, options=("--kernel-release", "6.6"))
    assert done.returncode != 0
    assert "invalid ioctl" in done.stderr + done.stdout


@pytest.mark.parametrize("more", [(), ("--no-certificates",)], ids=["all", "report"])
def test_go_configfs_tsm_gets_snp_report(programs: Path, more: tuple[str, ...]) -> None:
    """Certificates are included if the host has them."""
    options = ("--provider", "sev_guest", *more)
    done = run_as_ordinary_user(str(programs / "snp"), options=options)
    assert (done.returncode, done.stderr) == (0, "")
    provider, report, certificates = done.stdout.split()
    assert provider == "sev_guest"
    parsed = SnpReport.parse(base64.b64decode(report))
    assert parsed.report_data == b"from Go".ljust(64, b"\0")
    assert (int(certificates) > 0) == (not more)
