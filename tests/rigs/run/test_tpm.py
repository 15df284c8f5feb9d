"""`attestkit run --platform`: unmodified programs use the TPM and the metadata service of a cloud.

Evidence is verified outside, by the root certificate of the machine.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.collateral import Collateral
from attestkit.errors import VerificationError
from attestkit.tpm import TpmsAttest, TpmtPublic
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.rigs.emulator import emulator
from tests.rigs.ordinary_user import requires_nobody, run_python_as_nobody
from tests.rigs.run.attestkit_run import RUN, execute, requires_run, run

TOOLS = ("tpm2_quote", "tpm2_nvread", "tpm2_nvreadpublic", "tpm2_pcrread", "tpm2_getcap")
MISSING = ", ".join(tool for tool in (*TOOLS, "curl") if shutil.which(tool) is None)
NONCE = bytes(range(32))
PLATFORMS = {
    "azure-snp": "hcl-snp",
    "azure-tdx": "hcl-tdx",
    "gcp-snp": "gcp-snp",
    "gcp-tdx": "dstack-gcp-tdx",
    "aws-nitro-tpm": "dstack-aws-nitro-tpm",
    "tpm": "tpm",
}
BACKENDS = {"azure": "azure", "gcp": "gcp", "aws": "nitro_tpm", "tpm": "tpm"}
ATTESTKIT = f"{sys.executable} -m attestkit"
LINK_LOCAL = "http://169.254.169.254"

pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    requires_run,
    pytest.mark.skipif(bool(MISSING), reason=f"missing: {MISSING}"),
]


def on(platform: str, script: str, *options: str, cwd: Path | None = None) -> str:
    """Run a shell script on a machine of a platform; return its output."""
    words = ("--platform", platform, *options)
    done = run("sh", "-euc", script, options=words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def backend_of(platform: str) -> str:
    """Return the name of attestkit's backend."""
    return BACKENDS[platform.partition("-")[0]]


def accepting(*platforms: str) -> AppraisalPolicy:
    """Return the default policy for platforms, by default all."""
    return AppraisalPolicy.default().replace(platforms={*(platforms or PLATFORMS.values())})


def verify(
    folder: Path, policy: AppraisalPolicy | None = None, nonce: bytes = NONCE
) -> AttestationResult:
    """Verify the file `evidence` by the files of its machine, which `SAVE` copied."""
    saved = folder / "collateral.json"
    verifier = Verifier(
        policy=policy or accepting(),
        trust_anchor=(folder / "trust-anchor.der").read_bytes(),
        collateral=Collateral.load(saved) if saved.exists() else None,
    )
    return verifier.verify((folder / "evidence").read_bytes(), nonce=nonce)


# -- tpm2-tools and curl ---------------------------------------------------------------------------


def test_tpm2_tools_use_the_tpm(tmp_path: Path) -> None:
    """They read properties, PCRs and NV indices, and quote with Azure's key; the quote verifies."""
    script = f"""
        tpm2_getcap properties-fixed > properties
        tpm2_pcrread sha256:7 > pcr
        tpm2_nvreadpublic > indices
        tpm2_nvread -C o -o hcl-report 0x01400001 2> progress
        tpm2_readpublic -Q -c 0x81000003 -f pem -o ak.pem
        tpm2_quote -Q -c 0x81000003 -l sha256:all -q {NONCE.hex()} -g sha256 \\
            -m quote -s signature -o pcrs
        tpm2_checkquote -Q -u ak.pem -m quote -s signature -f pcrs -g sha256 -q {NONCE.hex()}
        cat /sys/class/tpm/tpm0/pcr-sha256/7 /sys/class/tpm/tpm0/tpm_version_major
        wc -c < /sys/kernel/security/tpm0/binary_bios_measurements
    """
    shown, version, log_size = on("azure-snp", script, cwd=tmp_path).split()
    texts = {name: (tmp_path / name).read_text() for name in ("properties", "pcr", "indices")}
    assert 'value: "2.0"' in texts["properties"]
    assert f"7 : 0x{shown}" in texts["pcr"]
    assert "0x1400001:" in texts["indices"]
    assert "0x1c101d0:" in texts["indices"].lower()
    report = (tmp_path / "hcl-report").read_bytes()
    assert (report[:4], len(report)) == (b"HCLA", 2600)
    assert TpmsAttest.parse((tmp_path / "quote").read_bytes()).extra_data == NONCE
    assert version == "2"
    assert int(log_size) > 1000


def test_resource_manager_serves_tools_at_the_same_time(tmp_path: Path) -> None:
    """Keys of one program do not take the TPM's slots from others; a killed one releases them."""
    script = """
        for number in 1 2 3 4 5; do
            tpm2_createprimary -Q -C o -g sha256 -G ecc -c key$number &
        done
        wait
        tpm2_getcap handles-transient
        ls key*
    """
    assert on("tpm", script, cwd=tmp_path).split() == [f"key{number}" for number in range(1, 6)]


def test_raw_node_serves_tools_one_at_a_time() -> None:
    """A second opener gets EBUSY, as from the kernel."""
    script = """
        tpm2_getcap -T device:/dev/tpm0 properties-fixed | grep -c 'value: "2.0"'
        exec 3<> /dev/tpm0
        exec 4<> /dev/tpmrm0
        sh -c 'exec 5<> /dev/tpm0' 2>&1 | grep -io 'device or resource busy'
        exec 3>&-
        sh -c 'exec 5<> /dev/tpm0' && echo free
    """
    assert on("tpm", script).lower().split("\n") == ["1", "device or resource busy", "free", ""]


def test_poll_waits_for_the_response_of_another_thread() -> None:
    """A thread that waits in poll(2) wakes up when the response is there; readable then."""
    program = """if True:
        import os, select, sys, threading, time
        fd = os.open("/dev/tpmrm0", os.O_RDWR | os.O_NONBLOCK)
        waiting, found = select.poll(), []
        waiting.register(fd, select.POLLIN)
        print(waiting.poll(0))
        thread = threading.Thread(target=lambda: found.extend(waiting.poll(30_000)))
        began = time.monotonic()
        thread.start()
        os.write(fd, bytes.fromhex("80010000000c0000017b0008"))
        thread.join()
        print(time.monotonic() - began < 20)  # at its time limit, poll asks again anyway
        print([events for _, events in found], waiting.poll(0) == found)
        print(len(os.read(fd, 4096)), waiting.poll(0))
    """
    done = run(sys.executable, "-c", program, options=("--platform", "tpm"))
    assert (done.stdout.splitlines(), done.stderr) == (["[]", "True", "[1] True", "20 []"], "")


def test_curl_reaches_the_metadata_service() -> None:
    """The header is required; a proxy and the machine's own network do not exist here."""
    path = f"{LINK_LOCAL}/metadata/THIM/amd/certification"
    location = f"{LINK_LOCAL}/metadata/instance/compute/location?api-version=2021-01-01&format=text"
    script = f"""
        curl -sS -H Metadata:true {path}; echo
        curl -sS -o /dev/null -w '%{{http_code}}\\n' {path}
        curl -sS -H Metadata:true '{location}'; echo
        cat /run/attestkit/imds-url
        cat /proc/net/dev | grep -c :
    """
    certification, *rest = on("azure-snp", script).splitlines()
    assert {"vcekCert", "tcbm", "certificateChain"} <= json.loads(certification).keys()
    assert rest == ["400", "westeurope", LINK_LOCAL, "1"]


def test_other_clouds_keep_the_network() -> None:
    """Only Azure's evidence needs a metadata service."""
    interfaces = Path("/proc/net/dev").read_text().count(":")
    assert on("gcp-tdx", "grep -c : /proc/net/dev").split() == [str(interfaces)]


# -- attestkit -------------------------------------------------------------------------------------

SAVE = """
cp /run/attestkit/trust-anchor.der .
cp /run/attestkit/collateral.json . 2> /dev/null || true
"""


@pytest.mark.parametrize("platform", PLATFORMS)
def test_attestkit_inside_is_verified_outside(platform: str, tmp_path: Path) -> None:
    """Evidence of the cloud's backend, and of the detected one where there is detection."""
    words = f"--backend {backend_of(platform)}"
    if platform == "tpm":
        words += " --option ak_certificate=@/run/attestkit/ak-certificate.der"
    elif platform in ("gcp-tdx", "azure-snp"):
        words = ""  # detected
    attest = f"{ATTESTKIT} attest {words} --encoding cbor --nonce {NONCE.hex()} -o evidence"
    on(platform, f"{SAVE}{attest}", cwd=tmp_path)
    result = verify(tmp_path)
    assert (result.claims.platform, result.simulated) == (PLATFORMS[platform], True)
    with pytest.raises(VerificationError):
        verify(tmp_path, nonce=bytes(32))


def test_key_of_a_plain_tpm_is_trusted_by_policy(tmp_path: Path) -> None:
    """Without its certificate, the policy lists the key."""
    attest = f"{ATTESTKIT} attest --backend tpm --encoding cbor --nonce {NONCE.hex()} -o evidence"
    on("tpm", f"{SAVE}{attest}", cwd=tmp_path)
    with pytest.raises(VerificationError) as unknown:
        verify(tmp_path)
    assert unknown.value.reason == "ak_unknown"
    found = Attestation.from_bytes((tmp_path / "evidence").read_bytes()).evidence.platform
    assert isinstance(found, Tpm)
    key = TpmtPublic.parse(found.vtpm_quote.ak_public)
    listed = accepting("tpm").replace(trusted_aks={key.spki})
    assert verify(tmp_path, listed).claims.platform == "tpm"


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        ("azure-snp", "Azure"),
        ("azure-tdx", "Azure"),
        ("gcp-snp", "Google Cloud"),
        ("gcp-tdx", "Google Cloud"),
        ("aws-nitro-tpm", "AWS EC2"),
    ],
)
def test_doctor_names_the_platform(platform: str, name: str) -> None:
    """And the cloud's backend is usable."""
    found = json.loads(on(platform, f"{ATTESTKIT} doctor --json"))
    assert [one["name"] for one in found["platforms"]] == [name]
    assert found["backends"][backend_of(platform)] is None


def test_extended_pcr_is_in_the_next_quote(tmp_path: Path) -> None:
    """The TPM keeps its state between programs, until the machine ends."""
    digest = bytes(range(32))
    script = f"""
        tpm2_pcrextend 8:sha256={digest.hex()}
        {ATTESTKIT} attest --encoding cbor --nonce {NONCE.hex()} -o evidence
    """
    on("azure-tdx", SAVE + script, cwd=tmp_path)
    listed = accepting("hcl-tdx").replace(init_data={digest})
    assert verify(tmp_path, listed).claims.platform == "hcl-tdx"
    other = accepting("hcl-tdx").replace(init_data={bytes(32)})
    with pytest.raises(VerificationError) as refused:
        verify(tmp_path, other)
    assert refused.value.reason == "init_data"


def test_fault_of_the_metadata_service() -> None:
    """A fault armed while it runs is in the next response, and then gone."""
    path = f"{LINK_LOCAL}/metadata/THIM/amd/certification"
    get = f"curl -sS -o /dev/null -w '%{{http_code}} ' -H Metadata:true {path}"
    script = f"echo imds_unavailable > /run/attestkit/faults; {get}; {get}"
    assert on("azure-snp", script).split() == ["503", "200"]


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("azure-snp-vmpl-2", "vmpl"),
        ("aws-nitro-tpm-old", "document_expired"),
    ],
)
def test_scenario_is_in_the_devices(scenario: str, reason: str, tmp_path: Path) -> None:
    """Evidence of a program has the deviation of the named scenario, whose platform it implies."""
    script = f"{SAVE}{ATTESTKIT} attest --encoding cbor --nonce {NONCE.hex()} -o evidence"
    done = run("sh", "-euc", script, options=("--scenario", scenario), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with pytest.raises(VerificationError) as refused:
        verify(tmp_path)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("scenario", "text"),
    [
        ("azure-snp-foreign-ak", "not that of the HCL report"),
        ("azure-snp-wrong-binding", "not over the runtime data"),
    ],
)
def test_backend_notices_devices_that_contradict_each_other(scenario: str, text: str) -> None:
    """Key and hardware report in the HCL report must be those of the VM; else no evidence."""
    attest = (sys.executable, "-m", "attestkit", "attest", "--nonce", NONCE.hex())
    done = run(*attest, options=("--scenario", scenario))
    assert (done.returncode, done.stdout) == (3, "")
    assert text in done.stderr


# -- namespaces ------------------------------------------------------------------------------------


def test_network_namespace_is_refused_clearly() -> None:
    """Without the privilege the error names the option of the container."""
    drop = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("only root can drop CAP_NET_ADMIN alone, with setpriv")
    done = execute(*drop, *RUN, "--platform", "azure-snp", "--", "true")
    assert (done.returncode, done.stdout) == (3, "")
    assert "network namespace" in done.stderr
    assert "--cap-add NET_ADMIN" in done.stderr
    assert execute(*drop, *RUN, "--platform", "gcp-snp", "--", "true").returncode == 0


@requires_nobody
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user")
def test_ordinary_user_has_tpm_and_metadata_service() -> None:
    """In a user namespace; port 80 needs no privilege of the machine."""
    url = f"{LINK_LOCAL}/metadata/instance/compute/location?api-version=2021-01-01&format=text"
    script = f"id -u; tpm2_pcrread sha256:0 | wc -l; curl -sS -H Metadata:true '{url}'"
    done = run_python_as_nobody(*RUN[1:], "--platform", "azure-tdx", "--", "sh", "-euc", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["65534", "2", "westeurope"]


# -- attestkit mount -------------------------------------------------------------------------------


def test_mount_has_tpm_and_address_of_the_metadata_service() -> None:
    """Programs that take a device and a URL can use them below the folder."""
    with emulator(platform="azure-tdx") as machine:
        device = f"device:{machine.root}/dev/tpmrm0"
        found = execute("tpm2_nvread", "-T", device, "-C", "o", "-s", "4", "0x01400001")
        assert found.stdout == "HCLA"
        url = (machine.root / "attestkit/imds-url").read_text().strip()
        assert url.startswith("http://127.0.0.1:")
        path = "/metadata/instance/compute/location?api-version=2021-01-01&format=text"
        words = ("curl", "-sS", "--noproxy", "*", "-H", "Metadata:true", url + path)
        assert subprocess.check_output(words) == b"westeurope"


def test_unknown_platform_is_a_usage_error() -> None:
    """The names are listed."""
    done = run("true", options=("--platform", "azure"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "azure-snp, azure-tdx, gcp-snp" in done.stderr
