#!/bin/bash
# title: gcc -m32, static and dynamic: files, threads, sockets, signals, processes
# packages: build-essential gcc-multilib g++-multilib file
set -euo pipefail

cat >main.c <<'C'
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static const char *kind;
static void told(const char *name, int good) {
    printf("%s %s: %s\n", good ? "ok" : "failed", kind, name);
    if (!good)
        fprintf(stderr, "%s: %s: %s\n", kind, name, strerror(errno));
}
static volatile sig_atomic_t caught;
static void on_signal(int number) { caught = number; }
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int count;
static void *add(void *unused) {
    for (int i = 0; i < 10000; i++) {
        pthread_mutex_lock(&mutex);
        count++;
        pthread_mutex_unlock(&mutex);
    }
    return unused;
}
static int pass_descriptor(void) {
    int pair[2], got = -1;
    char byte = 'x', room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        return 0;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof(int));
    int fd = open("/dev/null", O_RDWR);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(pair[0], &message, 0) != 1 || recvmsg(pair[1], &message, 0) != 1)
        return 0;
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    return write(got, "x", 1) == 1;
}
static int tcp(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    char byte = 0;
    int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (void *)&at, sizeof at) || listen(server, 1) || getsockname(server, (void *)&at, &size) ||
        connect(client, (void *)&at, sizeof at))
        return 0;
    int peer = accept(server, NULL, NULL);
    return send(client, "y", 1, 0) == 1 && recv(peer, &byte, 1, 0) == 1 && byte == 'y';
}
static int spawned(void) {
    char *arguments[] = {"sh", "-c", "exit 7", NULL};
    int status;
    pid_t child;
    return posix_spawnp(&child, "sh", NULL, NULL, arguments, environ) == 0 && waitpid(child, &status, 0) == child &&
           WEXITSTATUS(status) == 7;
}
static int sysv(void) {
    struct { long type; char text[4]; } letter = {1, "abc"};
    int queue = msgget(IPC_PRIVATE, 0600), memory = shmget(IPC_PRIVATE, 4096, 0600), set = semget(IPC_PRIVATE, 1, 0600);
    char *at = shmat(memory, NULL, 0);
    int good = queue >= 0 && set >= 0 && at != (void *)-1 && msgsnd(queue, &letter, 4, 0) == 0 &&
               msgrcv(queue, &letter, 4, 0, 0) == 4 && semctl(set, 0, SETVAL, 1) == 0;
    msgctl(queue, IPC_RMID, NULL), shmctl(memory, IPC_RMID, NULL), semctl(set, 0, IPC_RMID);
    return good;
}
int main(int argc, char **arguments) {
    kind = argc > 1 ? arguments[1] : "?";
    struct stat status;
    struct utsname names;
    struct timespec now, nap = {0, 1000000};
    told("pointers have 32 bits", sizeof(void *) == 4);
    told("uname", uname(&names) == 0);
    told("open, pwrite, fstat beyond 4 GiB", ({ int f = open("big", O_RDWR | O_CREAT, 0644);
        int good = pwrite(f, "x", 1, 5000000000LL) == 1 && fstat(f, &status) == 0 && status.st_size == 5000000001LL;
        unlink("big"); good; }));
    told("rename, link, symlink, chmod", ({ close(open("a", O_CREAT | O_RDWR, 0600)); rename("a", "b") == 0 && link("b", "c") == 0 &&
        symlink("b", "d") == 0 && chmod("d", 0644) == 0 && unlink("b") == 0 && unlink("c") == 0 && unlink("d") == 0; }));
    told("mmap and mprotect", ({ char *m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        m != MAP_FAILED && mprotect(m, 4096, PROT_READ | PROT_EXEC) == 0; }));
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, add, NULL);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    told("eight threads", count == 80000);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    kill(getpid(), SIGUSR1);
    told("a signal", caught == SIGUSR1);
    told("spawn and wait", spawned());
    told("TCP over loopback", tcp());
    told("a descriptor over a Unix socket", pass_descriptor());
    told("epoll and eventfd", ({ int e = epoll_create1(0), v = eventfd(1, 0); struct epoll_event w = {.events = EPOLLIN};
        epoll_ctl(e, EPOLL_CTL_ADD, v, &w) == 0 && epoll_wait(e, &w, 1, 1000) == 1; }));
    told("timerfd", ({ struct itimerspec t = {{0, 0}, {0, 1000000}}; unsigned long long n; int f = timerfd_create(CLOCK_MONOTONIC, 0);
        timerfd_settime(f, 0, &t, NULL) == 0 && read(f, &n, 8) == 8; }));
    told("clock and sleep", clock_gettime(CLOCK_MONOTONIC, &now) == 0 && nanosleep(&nap, NULL) == 0);
    told("System V messages, memory, semaphores", sysv());
    told("memfd", memfd_create("m", 0) >= 0);
    told("a pipe and poll", ({ int p[2]; struct pollfd w = {.events = POLLIN}; pipe2(p, O_CLOEXEC) == 0 && write(p[1], "x", 1) == 1 &&
        (w.fd = p[0], poll(&w, 1, 1000) == 1); }));
    return 0;
}
C
for kind in dynamic static; do
    options=(-m32 -O2 -pthread)
    [[ $kind == dynamic ]] || options+=(-static)
    if gcc "${options[@]}" -o "$kind" main.c >&2; then echo "ok compile $kind"; else echo "failed compile $kind"; fi
    file "$kind" >&2
    "./$kind" "$kind" || echo "status-$? run $kind"
done
printf '#include <iostream>\n#include <stdexcept>\nint main() { try { throw std::runtime_error("x"); } catch (std::exception &e) { std::cerr << e.what(); } }\n' >e.cc
if g++ -m32 -o e e.cc >&2 && ./e; then echo 'ok C++ exceptions'; else echo 'failed C++ exceptions'; fi
echo "$(linux32 uname -m) uname -m under linux32"
