"""Write the files that a verifier needs to accept one simulated TEE. Not used on hardware.

A simulator signs with its own root, which verifiers do not trust by default. This program creates
a seed and the files that the examples pass to their verifiers:

seed              the simulator's seed; its holder can forge the simulator's evidence
trust-anchor.der  its root, instead of the vendors' (`--trust-anchor`)
collateral.json   simulated Intel collateral (`--collateral`), instead of a PCCS
policy.toml       image and app of this TEE (`--policy`); on hardware use `attestkit policy`

With `--gpus` the policy also has the GPUs, and there are two more files:

roots.json             all roots of the machine, also those of its GPUs (`--trust-anchor`)
gpu-endorsements.json  manifests and OCSP answers, instead of NVIDIA's services
"""

import argparse
import secrets
from pathlib import Path

import attestkit


def write_trust(folder: Path, app_compose: bytes | None, gpus: int | None) -> None:
    """Create `folder` and the files in it."""
    folder.mkdir(mode=0o700)
    seed, nonce = secrets.token_bytes(32), secrets.token_bytes(32)
    (folder / "seed").touch(mode=0o600)
    (folder / "seed").write_bytes(seed)
    with attestkit.open("simulator", seed=seed, app_compose=app_compose, gpus=gpus) as tee:
        root, collateral = tee.backend.trust_anchor, tee.backend.collateral()
        evidence = tee.attest(nonce=nonce, gpu=gpus is not None)
        known_good = tee.verifier().verify(evidence, nonce=nonce)
        if gpus is not None:
            (folder / "roots.json").write_bytes(tee.backend.roots.to_json())
            tee.backend.gpu_endorsements().save(folder / "gpu-endorsements.json")
    (folder / "trust-anchor.der").write_bytes(root)
    collateral.save(folder / "collateral.json")
    policy = attestkit.AppraisalPolicy.from_evidence(known_good)
    (folder / "policy.toml").write_text(policy.to_toml())


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="output folder, which must not exist")
    parser.add_argument("--app-compose", type=Path, help="the app; default: the simulator's")
    parser.add_argument("--gpus", type=int, help="the number of GPUs; default: none")
    args = parser.parse_args()
    write_trust(args.folder, args.app_compose and args.app_compose.read_bytes(), args.gpus)
    written = sorted(path.name for path in args.folder.iterdir())
    print(f"{args.folder}: {', '.join(written)} (SIMULATED)")


if __name__ == "__main__":
    main()
