"""Every block of every page runs, or is valid in its language."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from attestkit._formats import toml
from attestkit.serve.config.agent_config_file import parse_config
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.docs.blocks import PARSED, ROOT, Block, pages, read_blocks
from tests.docs.session import programs, run_blocks, why_not
from tests.rigs.run import attestkit_run
from tests.rigs.run.test_third_party import _missing as missing_of_go
from tests.runner.cases import every_case

# READMEs whose commands tests/examples runs, in a copy of the folder and with variations.
ELSEWHERE: Final = {
    f"docs/examples/{name}/README.md"
    for name in (
        *("agent_over_http", "app_life", "attested_api", "ci_image_check", "from_dstack_sdk"),
        *("gpu_inference", "mcp_server", "private_chat", "pytest_app", "ra_tls_agents"),
        "wallet_per_user",
    )
}
SLOW: Final = (  # over a second of CPU time each; a folder stands for all of its pages
    *("README.md", "docs/cli.md", "docs/concepts/", "docs/guides/", "docs/index.md"),
    *("docs/start.md", "docs/tour.md", "docs/verifier.md"),
    *("docs/reference/guest/backends.md", "docs/reference/guest/kms.md"),
    *("docs/reference/verification/client.md", "docs/reference/verification/gpu.md"),
    *("docs/reference/verification/measure.md", "docs/reference/verification/verifier.md"),
)
FAST: Final = {"docs/guides/cmw.md", "docs/guides/testing/recording.md"}  # in SLOW folders
BLOCKS: Final = {page: read_blocks((ROOT / page).read_text()) for page in pages()}


def _program(name: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"{name} is not installed"


def _module(name: str) -> Callable[[], str]:
    return lambda: "" if importlib.util.find_spec(name) else f"{name} is not installed"


NEEDS: Final[dict[str, Callable[[], str]]] = {
    "fuse": attestkit_run.missing_for_run,
    "go": missing_of_go,
    "pynvml": _module("pynvml"),
    "qemu": _program("qemu-system-x86_64"),
    **{name: _program(name) for name in ("cc", "curl", "jq", "node", "openssl", "tpm2_quote")},
}
"""Functions by name that return why a requirement of a block is missing, or ""."""

ACCEPTED: Final = "<AttestationResult dstack-tdx, UpToDate, simulated>\n"
PRINTED: Final = {
    "README.md": (
        r"https://\S+  PROVEN  SIMULATED.*\nmy secret\n",
        ACCEPTED,
        *(r".*^1 passed.*", r".*"),
    ),
    "docs/cli.md": (
        r".*\[!!\] evidence: rejected.*on the CRL.*exit code 2\n",
        r".*contraindicated.*",
    ),
    "docs/guides/platforms/aws.md": (
        *[r".*"] * 6,
        r"dstack-aws-nitro-tpm \('revocation', 'hardware_to_ak', 'pcr_log'\)\n",
        *[r".*"] * 2,
    ),
    "docs/guides/platforms/azure.md": (
        *[r".*"] * 4,
        r"azure-snp hardware_report \([^\n]+\)\n",
        r".*",
    ),
    "docs/guides/platforms/gpu.md": (
        *[r".*"] * 3,
        r"(GH100 999\.10\.01 96\.00\.9F\.00\.01 33\n){2}report_data\n",
        r".*",
        r"nonce True\nrejected: binding\n",
        r".*",
    ),
    "docs/guides/connect.md": (
        r".*\nno_freshness\nkey possession\nbound nonce\n.*\nother_key\n.*PROVEN.*",
        *(r".*", r".*PROVEN.*\{\"a\": 1\}", r".*^1 passed.*"),
    ),
    "docs/guides/platforms/google.md": (
        *(r".*", r"\('hardware_to_ak', 'ak_to_hardware'\)\nrejected: require_joins\n"),
        *[r".*"] * 4,
    ),
    "docs/guides/keys.md": (
        r".*",
        r"\[.*'boot-mr-done', 'os-image-hash', 'key-provider', .*\]\n\w{66}\n",
        r"3059301306072a8648ce\n",
        r".*",
        r".*\('kms_root', 'kms_k256_root'\)\n",
        r".*\[1\] \| (\w{8}) \| refused.*\[1, 2\] \| \1 \| \1\n.*\[2\] \| refused.*",
        r"untrusted_root\n",
        r"\{'TOKEN': 's3cret'\}\n",
        r".*^1 passed.*",
    ),
    "docs/policy.md": (
        rf"{ACCEPTED}app_id - app_id: 283cd85f.*\n{ACCEPTED}[0-9a-f]+ 0\.5\.5 True\n{ACCEPTED}",
    ),
    "docs/guides/testing/recording.md": (
        r"<Attester on .*> <replay of .*>\n.*29bdbedb8d.*get_quote\([0-9a-f]{128}.*",
    ),
    "docs/guides/testing/run.md": (
        r"CCEL\s+/dev/tdx_guest\s+.*tsm:\s+report\s+/dev/sev-guest\s+ebusy:1\s+/run/.*anchor.der\s+",
        r".*quote: accepted.*",
        r"configfs_tsm 4\n",
        r".*",
        r"HCLA\nchecked\n\{\"vcekCert\":\n",
        r".*evidence: accepted.*dstack-gcp-tdx.*",
        r".*evidence: accepted.*2 x GH100.*",
    ),
    "docs/guides/testing/scenarios.md": (
        *(r"cert_revoked - .*\n", r"UpToDate\n", r"BLACKWELL BLACKWELL\n"),
        r"attempt 0: .* ebusy: .*\nattempt 1: .*\nattempt 2: a quote\nrtmr_extend_fails:1 eio:1\n",
    ),
    "docs/guides/testing/pytest.md": (
        *(r".*^2 passed.*", r".*^1 passed.*"),
        *(r".*^2 passed.*", r".*^6 passed.*", r".*^4 passed.*"),
        *(r".*^1 passed.*", r".*^1 passed.*", r".*^1 passed.*"),
    ),
    "docs/tour.md": (
        r".*^2 passed.*",
        r"UpToDate True True \w{40}\n(- [^\n]+\n){6,}",
        r"\(3, 64\) True\nTrue\n",
    ),
    "docs/verifier.md": (r".*\"is_valid\": ?true.*", r".*contraindicated True dstack-tdx.*"),
}
"""Regular expressions by page, for what each visible program prints, in the programs' order."""


def _with_marks() -> Iterator[object]:
    for page, blocks in BLOCKS.items():
        if page not in ELSEWHERE and any(block.is_run for block in blocks):
            marks = [pytest.mark.slow] if page.startswith(SLOW) and page not in FAST else []
            yield pytest.param(page, marks=marks, id=page)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had")
@pytest.mark.parametrize("page", list(_with_marks()))
def test_blocks_run(page: str, tmp_path: Path) -> None:
    """The blocks run in order and print what is shown; those that cannot run here are skipped."""
    missing = {
        block.line: reason
        for block in BLOCKS[page]
        for name in block.marks.get("needs", "").split()
        if (reason := NEEDS[name]())
    }
    ran = run_blocks([block for block in BLOCKS[page] if block.line not in missing], tmp_path)
    by_line = {one.block.line: one.printed for one in ran}
    visible = [block for block in programs(BLOCKS[page]) if "hidden" not in block.marks]
    for block, pattern in zip(visible, PRINTED.get(page, [".*"] * len(visible)), strict=True):
        if block.line in by_line:
            printed = by_line[block.line]
            assert re.fullmatch(pattern, printed, re.DOTALL | re.MULTILINE), printed
    if missing:
        pytest.skip(f"the other blocks ran; {missing}")


def _check_parsed(block: Block) -> None:
    if block.language == "toml":
        assert toml.decode(block.text)
    elif block.language == "yaml":
        yaml = pytest.importorskip("yaml", reason="PyYAML is not here")
        list(yaml.safe_load_all(block.text))
    else:
        try:
            json.loads(block.text)
        except ValueError:  # or one value per line
            for line in block.text.splitlines():
                json.loads(line)
    if "policy" in block.marks:
        AppraisalPolicy.from_toml(block.text)
    if "server config" in block.marks:
        found = parse_config(block.text.encode(), "agent.toml")
        assert (list(found.unknown), list(found.unused)) == ([], [])


@every_case("page", BLOCKS)
def test_data_blocks_are_valid(page: str) -> None:
    """JSON, TOML and YAML parse; policies and server configurations are valid."""
    for at, block in enumerate(BLOCKS[page]):
        if block.language in PARSED and "not run" not in block.marks:
            _check_parsed(block)
        if name := block.marks.get("file"):
            assert any(Path(name).name in later.text for later in BLOCKS[page][at + 1 :])
