#!/bin/bash
# title: gdb, gdbserver, gcore, strace and valgrind on children, and the sanitizers of gcc
# packages: build-essential gdb gdbserver strace valgrind libc6-dbg
set -euo pipefail

# try NAME COMMAND...: one result
try() {
    local name=$1
    shift
    if "$@" >&2; then echo "ok $name"; else echo "failed($?) $name"; fi
}
# says TEXT COMMAND...: whether its output has it
says() {
    local text=$1 output
    shift
    output=$("$@" 2>&1) || true
    printf '%s\n' "$output" >&2
    [[ $output == *"$text"* ]]
}

cat >main.c <<'C'
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int answer;
static void *work(void *unused) { __atomic_add_fetch(&answer, 21, __ATOMIC_SEQ_CST); return unused; }
int reached(int value) { value += 1; return value; }
int main(int argc, char **arguments) {
    pthread_t one, two;
    pthread_create(&one, NULL, work, NULL);
    pthread_create(&two, NULL, work, NULL);
    pthread_join(one, NULL);
    pthread_join(two, NULL);
    answer = reached(answer);
    if (argc > 1 && !strcmp(arguments[1], "crash")) abort();
    if (argc > 1 && !strcmp(arguments[1], "wait")) { puts("waiting"); fflush(stdout); pause(); }
    printf("answer %d\n", answer);
}
C
gcc -g -O0 -pthread -o main main.c
gdb_of() { gdb -nx -q -batch "$@"; }
try 'gdb: a breakpoint and a backtrace' says 'main (argc=1' gdb_of -ex 'break reached' -ex run -ex backtrace -ex continue ./main
try 'gdb: a watchpoint' says 'New value = 43' gdb_of -ex 'break reached' -ex run -ex 'watch value' -ex continue ./main
try 'gdb: call a function' says '= 42' gdb_of -ex 'break main' -ex run -ex 'print reached(41)' ./main
try 'gdb: write a variable' says 'answer 1001' gdb_of -ex 'break reached' -ex run -ex 'set var value = 1000' -ex continue ./main
try 'gdb: stops at an abort' says SIGABRT gdb_of -ex run -ex 'info threads' --args ./main crash
try 'gdb: addresses are not randomised' says 0x5555555 gdb_of -ex 'break main' -ex run -ex 'info symbol main' -ex 'print &main' ./main
try 'gdb: follows a fork' says 'exited normally' gdb_of -ex 'set follow-fork-mode child' -ex run --args sh -c './main; :'
coproc WAITING { ./main wait; }
read -r _ <&"${WAITING[0]}"
waiting=$WAITING_PID
# A shell between us and it is not the program that waits.
child=$(cat "/proc/$waiting/task/$waiting/children" 2>/dev/null || true)
waiting=${child:-$waiting}
waiting=${waiting// /}
try 'gdb: attaches to a process' says 'pause' gdb_of -ex backtrace -p "$waiting"
try 'gcore' gcore -o core "$waiting"
try 'strace -p' says 'strace: Process' timeout 2 strace -p "$waiting"
kill "$waiting"
wait "$WAITING_PID" 2>/dev/null || true
try 'gdbserver over a pipe' says 'value=42' gdb_of -ex 'target remote | gdbserver --once - ./main' -ex 'break reached' -ex continue -ex backtrace ./main
try 'strace -f' says 'exited with 0' strace -f ./main
try 'strace -c' says 'total' strace -c -f ./main
try 'strace sees a clone' says 'clone3(' strace -f -e trace=clone3,clone ./main
try 'strace --inject' says 'INJECTED' strace -e inject=openat:error=EPERM:when=1 cat /dev/null
try 'strace --seccomp-bpf' says 'exited with 0' strace -f --seccomp-bpf -e trace=openat ./main
try 'strace -k' says 'main' strace -k -e trace=write ./main
try 'strace with every detail' says 'exited with 0' strace -e trace=all -yy -tt -T cat /proc/self/maps
try 'LD_DEBUG of the dynamic linker' says 'symbol=' env LD_DEBUG=bindings,symbols ./main
try 'valgrind' says 'ERROR SUMMARY: 0 errors' valgrind ./main
try 'valgrind: helgrind' says 'ERROR SUMMARY' valgrind --tool=helgrind ./main

cat >leak.c <<'C'
#include <limits.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **arguments) {
    char *block = malloc(10);
    if (!strcmp(arguments[1], "overflow")) block[argc + 9] = 1;
    if (!strcmp(arguments[1], "undefined")) { volatile int most = INT_MAX; most += argc; return 0; }
    block = NULL;
    return block != NULL;
}
C
gcc -g -fsanitize=address,undefined -o leak leak.c
try 'AddressSanitizer' says 'heap-buffer-overflow' ./leak overflow
try 'LeakSanitizer' says 'detected memory leaks' ./leak leak
try 'UndefinedBehaviorSanitizer' says 'signed integer overflow' ./leak undefined
sed -i 's/__atomic_add_fetch(&answer, 21, __ATOMIC_SEQ_CST)/answer += 21/' main.c
gcc -g -fsanitize=thread -pthread -o race main.c
try 'ThreadSanitizer' says 'answer' ./race
