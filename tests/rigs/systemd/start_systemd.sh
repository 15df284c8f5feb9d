#!/bin/sh
# A machine whose first process is systemd: start_systemd.sh FOLDER UNITS GROUPS
#
# Run it as root in new mount, process, IPC, UTS and cgroup namespaces. The machine's files are this
# one's under an overlay that is gone with it; FOLDER is where that is mounted. It starts nothing but
# the journal. UNITS are copied to /etc/systemd/system, GROUPS is given to systemd-sysusers.
set -eu
folder=$1 units=$2 groups=$3
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
root=$folder/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/lock" "$root/run/old"
rm -rf "$root"/usr/lib/systemd/system/*.target.wants "$root"/etc/systemd/system/*.wants
rm -rf "$root"/usr/lib/systemd/system-generators "$root/etc/fstab"
cp -r "$units"/. "$root/etc/systemd/system/"
systemd-sysusers --root="$root" "$groups"
cat >"$root/etc/systemd/system/machine.target" <<'END'
[Unit]
Description=A machine for tests
Requires=systemd-journald.service
END
cd "$root"
pivot_root . run/old
umount -l /run/old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test \
  /usr/lib/systemd/systemd --system --unit=machine.target --show-status=no
