#!/bin/bash
# title: what packages' tests start: an X server, a message bus, fakeroot, ccache, terminals, locks, shared memory
# packages: xvfb xauth x11-utils dbus fakeroot ccache build-essential python3 util-linux
set -euo pipefail

# try NAME COMMAND...: one result
try() {
    local name=$1
    shift
    if "$@" >&2; then echo "ok $name"; else echo "failed($?) $name"; fi
}

try 'an X server and a client' xvfb-run -a xdpyinfo
try 'a message bus' dbus-run-session -- dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames
# fakeroot talks over System V messages; set-id bits are what it is used for.
cat >fake.sh <<'SH'
set -e
test "$(id -u)" = 0
touch tool
mknod null c 1 3
tar -cf fake.tar tool null
tar -tvf fake.tar | grep -q ^c
SH
try fakeroot fakeroot sh fake.sh
# shellcheck disable=SC2016 # for the shell inside
try 'fakeroot: chown' fakeroot sh -c 'touch given && chown 0:5 given && test "$(stat -c %u:%g given)" = 0:5'
# shellcheck disable=SC2016 # for the shell inside
try 'fakeroot: chmod 4755' fakeroot sh -c 'touch set-id && chmod 4755 set-id && test "$(stat -c %a set-id)" = 4755'
mkdir -p package/DEBIAN package/usr/bin
printf 'Package: one\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: one\n' >package/DEBIAN/control
try 'dpkg-deb --build' dpkg-deb --root-owner-group --build package one.deb
try 'dpkg-deb --build under fakeroot' fakeroot dpkg-deb --build package two.deb
echo 'int main(void) { return 0; }' >main.c
for _ in 1 2; do CCACHE_DIR=$PWD/ccache ccache gcc -c main.c >&2; done
try 'ccache hits' sh -c "CCACHE_DIR=$PWD/ccache ccache -s | tee /dev/stderr | grep -q 'Hits: *1 '"
try 'script: a terminal' script -qec 'test -t 0 && stty -a' /dev/null
try 'setsid' setsid -w true
try 'nice and ionice' nice -n 5 ionice -c 3 true
try 'taskset' taskset -c 0 true
try 'chrt --batch' chrt --batch 0 true
try 'prlimit' prlimit --nofile=256:512 true
try 'setarch: no randomised addresses' setarch -R true
try 'unshare --user' unshare --user true
try 'unshare --map-root-user --mount' unshare --map-root-user --mount true
try 'a socket for ping' python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)'
try 'gcc with LTO and a job server' sh -c 'echo "all: ; +gcc -flto=auto -O2 -o lto main.c" > Makefile && make -j2'
cat >shared.py <<'PYTHON'
import multiprocessing, os, sys
from multiprocessing import shared_memory, Pool, Queue, Semaphore

def square(number):
    return number * number

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.buf[0] = 7
    other = shared_memory.SharedMemory(block.name)
    good = other.buf[0] == 7
    other.close(), block.close(), block.unlink()
    with Pool(4) as pool:
        good = good and pool.map(square, range(10)) == [n * n for n in range(10)]
    semaphore, queue = Semaphore(1), Queue()
    child = multiprocessing.Process(target=queue.put, args=(os.getpid(),))
    child.start()
    good = good and queue.get() == os.getpid() and semaphore.acquire()
    child.join()
    sys.exit(not good)
PYTHON
for method in fork spawn forkserver; do
    try "multiprocessing: $method" python3 shared.py "$method"
done
