#!/bin/bash
# title: QEMU by TCG: firmware and a boot sector, two processors in threads, disks, networks, qemu-img
# packages: qemu-system-x86 qemu-utils seabios build-essential
set -euo pipefail

# try NAME COMMAND...: one result
try() {
    local name=$1
    shift
    if "$@" >&2; then echo "ok $name"; else echo "failed($?) $name"; fi
}

# Writes "booted" and a newline to the first serial port, then ends QEMU by isa-debug-exit with status 2 * 16 + 1.
cat >boot.s <<'S'
.code16
.globl _start
_start:
    xorw %ax, %ax
    movw %ax, %ds
    movw $0x7c00 + message - _start, %si
    movw $0x3f8, %dx
next:
    lodsb
    testb %al, %al
    jz done
    outb %al, %dx
    jmp next
done:
    movw $0xf4, %dx
    movb $16, %al
    outb %al, %dx
    hlt
message: .asciz "booted\n"
.org 510
.word 0xaa55
S
as --32 -o boot.o boot.s
ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o boot.raw boot.o
truncate -s 1M boot.raw

# boots ARGUMENT...: whether the boot sector said so and ended the machine
boots() {
    local status=0
    rm -f serial
    timeout 60 qemu-system-x86_64 -machine q35 -m 128M -display none -nodefaults -no-reboot -serial file:serial \
        -device isa-debug-exit,iobase=0xf4,iosize=4 "$@" || status=$?
    cat serial >&2
    ((status == 33)) && grep -q booted serial
}
disk() { printf '%s' "file=boot.raw,format=raw,if=ide$1"; }

try 'boot' boots -accel tcg -drive "$(disk '')"
try 'two processors, a thread each' boots -accel tcg,thread=multi -smp 2 -drive "$(disk '')"
try 'one thread for all' boots -accel tcg,thread=single -smp 2 -drive "$(disk '')"
try 'aio=threads' boots -accel tcg -drive "$(disk ,aio=threads,cache=none)"
try 'aio=native' boots -accel tcg -drive "$(disk ,aio=native,cache=none)"
try 'aio=io_uring' boots -accel tcg -drive "$(disk ,aio=io_uring)"
try 'its own sandbox' boots -accel tcg -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -drive "$(disk '')"
try 'memory from memfd' boots -accel tcg -object memory-backend-memfd,id=m,size=128M,share=on -machine q35,memory-backend=m -drive "$(disk '')"
try 'memory from a file' boots -accel tcg -object memory-backend-file,id=m,size=128M,mem-path=/tmp,share=on -machine q35,memory-backend=m -drive "$(disk '')"
try 'user-mode network' boots -accel tcg -netdev user,id=n -device e1000,netdev=n,romfile= -drive "$(disk '')"
try 'a network socket' boots -accel tcg -netdev socket,id=n,udp=127.0.0.1:1,localaddr=127.0.0.1:0 -device e1000,netdev=n,romfile= -drive "$(disk '')"
try 'a disk image of qcow2' sh -c 'qemu-img convert -f raw -O qcow2 boot.raw boot.qcow2'
try 'boot from qcow2' boots -accel tcg -drive file=boot.qcow2,format=qcow2,if=ide
try 'boot from a snapshot' boots -accel tcg -snapshot -drive file=boot.qcow2,format=qcow2,if=ide
try 'shared files by 9p' boots -accel tcg -virtfs local,path=/tmp,mount_tag=t,security_model=none -drive "$(disk '')"
try 'a tap device' boots -accel tcg -netdev tap,id=n,ifname=none0,script=no,downscript=no -device e1000,netdev=n,romfile= -drive "$(disk '')"
try 'qemu-img create' qemu-img create -f qcow2 -b boot.qcow2 -F qcow2 overlay.qcow2 2M
try 'qemu-io' sh -c "qemu-io -c 'write -P 7 64k 64k' -c 'read -P 7 64k 64k' overlay.qcow2 | grep -v -q 'verification failed'"
try 'qemu-img check' qemu-img check overlay.qcow2
try 'qemu-img snapshot' qemu-img snapshot -c one overlay.qcow2
try 'qemu-img compare' qemu-img compare -f raw -F qcow2 boot.raw boot.qcow2
try 'qemu-img bench' qemu-img bench -c 100 -f qcow2 boot.qcow2
qemu-nbd --read-only --fork --pid-file="$PWD/pid" --socket="$PWD/nbd" -f qcow2 boot.qcow2 >&2 && echo 'ok qemu-nbd' || echo 'failed qemu-nbd'
try 'an image over NBD' qemu-img compare -f raw -F raw boot.raw "nbd+unix:///?socket=$PWD/nbd"
kill "$(cat pid)" || true
