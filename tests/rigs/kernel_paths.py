"""Mount namespace with the emulator's files at the kernel's own paths.

The mounts are visible to the program only, and end with it. `/run` is empty, so that the runtime
log is new.
"""

import pytest

from tests.rigs.emulator import missing_for_fuse
from tests.rigs.unshare import last_error_line

# $1 is the emulator's root, $2 an empty directory; the rest is the program. Paths missing on the
# emulated kernel are hidden.
SCRIPT = """
root=$1; scratch=$2; shift 2
cover() { # hide a folder of the real machine behind an empty one
    mount -t tmpfs attestkit "$1"
}
show() { # let a file or folder of the emulator appear at its own path
    if [ -d "$root$1" ]; then mkdir -p "$1"
    elif [ -e "$root$1" ]; then mkdir -p "$(dirname "$1")"; [ -e "$1" ] || : > "$1"
    else return 0
    fi
    mount --bind "$root$1" "$1"
}
cover "$scratch"
mkdir "$scratch/dev" "$scratch/etc"
for name in null zero full random urandom tty fuse; do
    [ -e "/dev/$name" ] || continue
    : > "$scratch/dev/$name"
    mount --bind "/dev/$name" "$scratch/dev/$name"
done
for name in shm pts mqueue; do
    [ -d "/dev/$name" ] || continue
    mkdir "$scratch/dev/$name"
    mount --rbind "/dev/$name" "$scratch/dev/$name"
done
ln -s /proc/self/fd "$scratch/dev/fd"
mount --rbind "$scratch/dev" /dev
cp -a /etc/. "$scratch/etc"
mount --bind "$scratch/etc" /etc
for folder in /sys/kernel /sys/devices/virtual/misc /sys/firmware /run; do cover "$folder"; done
show /sys/kernel/config
show /sys/devices/virtual/misc/tdx_guest
show /sys/firmware/acpi/tables
show /dev/tdx_guest
show /dev/sev-guest
show /proc/sys/kernel/random/boot_id
show /etc/tdx-attest.conf
rm -rf /run/mount # which mount itself leaves
exec "$@"
"""


def _missing() -> str:
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "attestkit", "/sys/kernel"]
    return missing_for_fuse() or last_error_line(words)


requires_namespace = pytest.mark.skipif(bool(_missing()), reason=_missing() or "available")
