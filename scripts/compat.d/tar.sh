#!/bin/bash
# title: tar with xattrs and ACLs, cp -a, install, cpio, rsync, zip, find, modes, sparse and special files
# packages: tar attr acl cpio rsync zip unzip xz-utils bzip2 zstd coreutils findutils
set -euo pipefail

# try NAME COMMAND...: one result
try() {
    local name=$1
    shift
    if "$@" >&2; then echo "ok $name"; else echo "failed($?) $name"; fi
}
# All that a stat shows of a tree but times and inodes.
tree() { (cd "$1" && find . -printf '%P %y %m %n %s %l\n' | sort | sha256sum | cut -c1-16); }

mkdir -p in/sub in/empty
echo one >in/one
for number in $(seq 300); do echo "$number" >"in/sub/f$number"; done
ln in/one in/hard
ln -s one in/soft
ln -s /nonexistent in/dangling
try 'a fifo' mkfifo in/fifo
try 'a long name' touch "in/$(printf 'n%.0s' $(seq 250))"
try 'a name of bytes' touch "in/$(printf '\377\376\n\t')"
try 'a sparse file' truncate -s 10M in/sparse
printf x | dd of=in/sparse bs=1 seek=5000000 conv=notrunc status=none
chmod 0700 in/sub
chmod 0444 in/sub/f1
try 'sticky bit' chmod 1777 in/empty
mkdir set-id
try 'set-group-id of a directory' chmod 2755 set-id
try 'install -m 755' install -D -m 755 in/one in/bin/tool
try 'install -m 4755' install -D -m 4755 in/one set-id/tool
try 'install -m 2755' install -D -m 2755 in/one set-id/tool2
try 'cp -p of a set-id program that the root has' cp -p "$(find /usr/bin -perm -4000 | sort | head -n 1)" set-id/copied
try 'chown to oneself' chown "$(id -u):$(id -g)" in/one
try 'chown to another user' chown 0:0 in/one
try 'a device node' mknod in/null c 1 3
try 'set a user xattr' setfattr -n user.note -v text in/one
try 'read the user xattr' getfattr -n user.note in/one
try 'list no xattr' getfattr -d in/sub/f1
# Beside the tree, because an ACL changes the mode.
mkdir beside
echo one >beside/one
try 'set an ACL' setfacl -m u:1000:rw beside/one
try 'read an ACL' getfacl beside/one
try 'tar --acls of a file that may have one' tar --acls --xattrs -cf beside.tar beside
try 'tar -x --acls of a file that may have one' tar --acls --xattrs -xpf beside.tar
try 'utimes of nanoseconds' touch -d '2001-02-03 04:05:06.789012345' in/one
echo "$(tree in) the tree itself"
for kind in '' --xattrs --acls '--xattrs --acls --selinux' --sparse --numeric-owner '--format=pax' '--format=gnu' '--format=ustar'; do
    # shellcheck disable=SC2086 # some are two words
    try "tar $kind" tar $kind -cf a.tar -C in .
    rm -rf out
    mkdir out
    # shellcheck disable=SC2086
    try "tar -x $kind" tar $kind -xpf a.tar -C out
    echo "$(tree out) what tar -x $kind made"
done
for program in gzip bzip2 xz zstd; do
    try "tar --use-compress-program=$program" tar --use-compress-program="$program" -cf "a.$program" -C in sub
    try "tar -x of $program" tar -tf "a.$program"
done
rm -rf out
try 'cp -a' cp -a in out
echo "$(tree out) what cp -a made"
rm -rf out
try 'cp --reflink=auto --sparse=always' cp -r --reflink=auto --sparse=always in out
rm -rf out
try 'cp -r --preserve=all' cp -r --preserve=all in out
rm -rf out
try 'rsync -a' rsync -a in/ out/
echo "$(tree out) what rsync -a made"
rm -rf out
try 'rsync -aHAX' rsync -aHAX in/ out/
echo "$(tree out) what rsync -aHAX made"
rm -rf out
mkdir out
# shellcheck disable=SC2016 # for the shell inside
try 'cpio -pdm' sh -c 'cd in && find . -print0 | cpio --null -pdm ../out'
echo "$(tree out) what cpio -pdm made"
try 'zip and unzip' sh -c 'zip -qry a.zip in/sub in/one && mkdir unzipped && cd unzipped && unzip -q ../a.zip'
echo "$(tree unzipped) what unzip made"
try 'mv over a file system' mv unzipped /tmp/moved
try 'ln over a directory' ln -sfn /tmp/moved link
try 'flock' flock in/one true
try 'fallocate' fallocate -l 1M in/one
try 'punch a hole' fallocate --punch-hole -o 4096 -l 8192 in/one
try 'df' df .
try 'sync' sync -f in/one
try 'remove it' rm -rf in out
