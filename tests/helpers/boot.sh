#!/bin/sh
# boot.sh WORK SOURCE VENV PYTHON: boots the systemd of this machine, as the first process of fresh namespaces,
# on a throw-away copy-on-write view of its root.  Run by helpers/booted.py under unshare(1).
set -eu
work=$1 source=$2 venv=$3 python=$4

mount --make-rprivate /
mount -t tmpfs -o mode=0755 work "$work"
mkdir "$work/upper" "$work/scratch" "$work/root"
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/scratch" overlay "$work/root"
cd "$work/root"

# the service's sandbox hides /tmp, /home and /root: the code to be tested lies where it can be seen
mkdir -p opt/source opt/venv opt/python
mount --bind "$source" opt/source
mount --bind "$venv" opt/venv
mount --bind "$python" opt/python
rm -rf etc/systemd/system && mkdir etc/systemd/system  # nothing of this machine starts

mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys  # the kernel's settings are those of the whole machine
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=0755,nosuid tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t cgroup2 cgroup2 sys/fs/cgroup  # of the new cgroup namespace

mkdir -p old
pivot_root . old  # a chroot would break PrivateUsers=
umount -l old
mount --make-rshared /  # else LoadCredential= gives a directory that cannot be read
exec env -i container=quietbeam PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=0
