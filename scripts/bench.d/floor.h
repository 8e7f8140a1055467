/* What the two floor programs share: the few system calls that a sealed room cannot do without, and nothing that makes
 * it safe, configurable or kind. A floor is not a sandbox. It is the cost below which no sandbox of this shape can go,
 * so that a ratio to it says how much of a launcher's time is the launcher's own doing. */
#ifndef FLOOR_H
#define FLOOR_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Outside the range of /bin/true and of shells' own codes, so that a broken floor is never mistaken for its payload. */
#define FLOOR_FAILED 99

#define MUST(call) must((long)(call), #call)

static inline long must(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
		_exit(FLOOR_FAILED);
	}
	return result;
}

static inline void write_file(const char *path, const char *text)
{
	int file = MUST(open(path, O_WRONLY | O_CLOEXEC));
	MUST(write(file, text, strlen(text)));
	close(file);
}

/* The caller becomes 0 inside: one line each, which is all that an unprivileged caller may write. The kernel wants
 * setgroups refused before it takes a group map from somebody without CAP_SETGID. */
static inline void write_maps(pid_t child)
{
	char path[64], line[64];
	snprintf(path, sizeof path, "/proc/%d/setgroups", child);
	write_file(path, "deny");
	snprintf(path, sizeof path, "/proc/%d/uid_map", child);
	snprintf(line, sizeof line, "0 %u 1", geteuid());
	write_file(path, line);
	snprintf(path, sizeof path, "/proc/%d/gid_map", child);
	snprintf(line, sizeof line, "0 %u 1", getegid());
	write_file(path, line);
}

/* Starts the inner half in new namespaces and returns only there; the outer half waits and leaves with its status. */
static inline void enter_namespaces(unsigned long long namespaces)
{
	int gate[2];
	MUST(pipe2(gate, O_CLOEXEC));
	struct clone_args args = { .flags = namespaces, .exit_signal = SIGCHLD };
	pid_t child = MUST(syscall(SYS_clone3, &args, sizeof args));
	if (child == 0) {
		char go;
		close(gate[1]);
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
		if (read(gate[0], &go, 1) != 1)
			_exit(FLOOR_FAILED);
		close(gate[0]);
		return;
	}
	if (namespaces & CLONE_NEWUSER)
		write_maps(child);
	MUST(write(gate[1], "g", 1));

	int status;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			_exit(FLOOR_FAILED);
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* A detached copy of a tree, made read-only as a whole before anybody can see it, then put in place. */
static inline void bind_read_only(int from, const char *source, int to, const char *target)
{
	struct mount_attr attributes = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV };
	int tree = MUST(open_tree(from, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
	MUST(mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof attributes));
	MUST(move_mount(tree, "", to, target, MOVE_MOUNT_F_EMPTY_PATH));
	close(tree);
}

/* Opened inside (a mount of the old namespace cannot be copied from the new one) and before the new root lies over /tmp,
 * where the store may well be. */
static inline int open_store(const char *path)
{
	return MUST(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

/* Binds the first `count` entries p0000, p0001, ... of an open directory to the same names under `target`. */
static inline void bind_store(int store, int count, const char *target)
{
	char name[16];
	MUST(mkdir(target, 0755));
	int directory = MUST(open(target, O_PATH | O_DIRECTORY | O_CLOEXEC));
	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof name, "p%04d", i);
		MUST(mkdirat(directory, name, 0755));
		bind_read_only(store, name, directory, name);
	}
	close(directory);
}

/* Leaves the process standing in an empty tmpfs that will be its root. */
static inline void begin_root(void)
{
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"));
	MUST(chdir("/tmp"));
}

/* /usr read-only, and the names in / that lead into it: a link where the host has a link, a bind where it has not. */
static inline void put_usr(void)
{
	static const char *const names[] = { "bin", "sbin", "lib", "lib32", "lib64", "libx32" };
	MUST(mkdir("usr", 0755));
	bind_read_only(AT_FDCWD, "/usr", AT_FDCWD, "usr");
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char path[16], leads_to[64];
		struct stat there;
		snprintf(path, sizeof path, "/%s", names[i]);
		if (lstat(path, &there) < 0)
			continue;
		if (S_ISLNK(there.st_mode)) {
			ssize_t length = MUST(readlink(path, leads_to, sizeof leads_to - 1));
			leads_to[length] = '\0';
			MUST(symlink(leads_to, names[i]));
		} else {
			MUST(mkdir(names[i], 0755));
			bind_read_only(AT_FDCWD, path, AT_FDCWD, names[i]);
		}
	}
}

static inline void put_proc(void)
{
	MUST(mkdir("proc", 0555));
	MUST(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
}

/* Both arguments may be the same directory: the old root then lies on top of the new one and is detached from there. */
static inline void finish_root(void)
{
	MUST(syscall(SYS_pivot_root, ".", "."));
	MUST(umount2(".", MNT_DETACH));
	MUST(chdir("/"));
}

static inline _Noreturn void run(char *const command[])
{
	static char *const environment[] = { "PATH=/usr/bin:/bin", NULL };
	execve(command[0], command, environment);
	must(-1, "execve");
	_exit(FLOOR_FAILED);
}

#endif
