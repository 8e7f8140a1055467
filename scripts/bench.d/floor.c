/* The cost of a room and nothing else: seven namespaces, id maps, loopback, a read-only /usr in a root of its own,
 * procfs, the device nodes, a pseudo-terminal instance, the pivot and a reaper. No layer beyond that: no seccomp, no
 * Landlock, no capabilities dropped, no checks.
 *
 * usage: floor [--pid1] [--binds STORE COUNT] -- /absolute/command [argument...]
 *   --pid1   the command itself is process 1, as in anchorhold's default room: one fork less
 *   --binds  additionally bind STORE/p0000 and following, read-only, to /store */
#include "floor.h"

static void raise_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int any = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	MUST(ioctl(any, SIOCSIFFLAGS, &request));
	close(any);
}

static void put_devices(void)
{
	static const char *const nodes[] = { "full", "null", "random", "tty", "urandom", "zero" };
	static const char *const links[][2] = {
		{ "/proc/self/fd", "dev/fd" },         { "/proc/self/fd/0", "dev/stdin" },
		{ "/proc/self/fd/1", "dev/stdout" },   { "/proc/self/fd/2", "dev/stderr" },
		{ "pts/ptmx", "dev/ptmx" },
	};
	MUST(mkdir("dev", 0755));
	MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755"));
	int from = MUST(open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC));
	int to = MUST(open("dev", O_PATH | O_DIRECTORY | O_CLOEXEC));
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		close(MUST(openat(to, nodes[i], O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666)));
		/* The node belongs to the host's own user namespace, so it cannot be made here, only bound. */
		int node = MUST(open_tree(from, nodes[i], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
		MUST(move_mount(node, "", to, nodes[i], MOVE_MOUNT_F_EMPTY_PATH));
		close(node);
	}
	close(from);
	close(to);
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		MUST(symlink(links[i][0], links[i][1]));
	MUST(mkdir("dev/pts", 0755));
	MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"));
	MUST(mkdir("dev/shm", 01777));
	MUST(mount("tmpfs", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"));
}

/* Process 1 that only collects the dead, and ends as its one command ended. */
static _Noreturn void reap(pid_t command)
{
	for (;;) {
		int status;
		pid_t dead = waitpid(-1, &status, 0);
		if (dead == command)
			_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		if (dead < 0 && errno != EINTR)
			_exit(FLOOR_FAILED);
	}
}

static _Noreturn void usage(void)
{
	fprintf(stderr, "usage: floor [--pid1] [--binds STORE COUNT] -- COMMAND [ARGUMENT...]\n");
	exit(2);
}

int main(int argc, char *argv[])
{
	const char *store_path = NULL;
	int pid1 = 0, store = -1, count = 0, at = 1;
	for (; at < argc && strcmp(argv[at], "--") != 0; at++) {
		if (strcmp(argv[at], "--pid1") == 0) {
			pid1 = 1;
		} else if (strcmp(argv[at], "--binds") == 0 && at + 2 < argc) {
			store_path = argv[++at];
			count = atoi(argv[++at]);
		} else {
			usage();
		}
	}
	if (at + 1 >= argc)
		usage();
	char **command = argv + at + 1;

	enter_namespaces(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS |
			 CLONE_NEWCGROUP);
	raise_loopback();
	if (store_path)
		store = open_store(store_path);
	begin_root();
	put_usr();
	if (count > 0)
		bind_store(store, count, "store");
	put_proc();
	put_devices();
	finish_root();
	if (pid1)
		run(command);
	pid_t child = MUST(fork());
	if (child == 0)
		run(command);
	reap(child);
}
