#!/bin/sh
# Fail unless what was deployed is what policy.toml was pinned from. The exit code is the job's:
# 0 as pinned, 4 another image, app or setting, 2 evidence that must not be believed, 5 no evidence,
# such as an empty file, 3 unreachable, 1 wrong use.
#
# $ATTEST is how the deployed machine is asked for evidence; all arguments go to `attestkit verify`.
set -eu
attest=${ATTEST:-attestkit attest}
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT

# From here, so that evidence of yesterday does not do.
nonce=$(python3 -c 'import secrets; print(secrets.token_hex(32))')

# shellcheck disable=SC2086 # a command with its arguments
$attest --nonce "$nonce" > "$found/evidence.bin" || exit 3
attestkit verify "$found/evidence.bin" --nonce "$nonce" --policy policy.toml "$@"
