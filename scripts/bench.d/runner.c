/* Measures whole commands, from just before their process is made until it has been waited for.
 *
 * A shell, Python or hyperfine spends about as long on starting a process as a room costs in total, and a machine's
 * speed drifts within a minute. So this program is small and static, starts with posix_spawn (vfork underneath), and
 * runs all commands of a comparison in one loop: A B C, then C B A, then A B C again. Turning the order around each
 * time gives every command every neighbour: what one leaves to the kernel to tear down is not always billed to the
 * same next one.
 *
 * usage: runner --rounds N [--warmup N] [--pause MICROSECONDS] [--crowd DIRECTORY COUNT] NAME[+crowd]=ARGV-FILE...
 *        runner --parallel WIDTH --total N NAME=ARGV-FILE
 *
 * An ARGV-FILE holds the arguments, each ended by a NUL. With --crowd the commands marked +crowd are started in a mount
 * namespace that has COUNT more mounts (made in DIRECTORY), the others in one that has not. Standard output is JSON,
 * times in microseconds. A command that does not exit with 0 ends the measurement: a wrong result has no speed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* No single command takes this long unless it hangs. */
#define LIMIT_SECONDS 60

struct command {
	char *name;
	char **argv;
	int crowd;
	double *samples;
};

static posix_spawn_file_actions_t quiet_streams;
static int quiet_namespace = -1, crowded_namespace = -1, current_namespace = -1;
static volatile sig_atomic_t running;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "runner: %s: %s\n", what, strerror(errno));
	exit(1);
}

static _Noreturn void usage(void)
{
	fprintf(stderr, "usage: runner --rounds N [--warmup N] [--pause US] [--crowd DIR COUNT] NAME[+crowd]=FILE...\n"
			"       runner --parallel WIDTH --total N NAME=FILE\n");
	exit(2);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void on_alarm(int signal)
{
	static const char text[] = "runner: a command hung; killed\n";
	(void)signal;
	if (write(2, text, sizeof text - 1) < 0 || running <= 0)
		_exit(1);
	kill(running, SIGKILL);
}

static void write_file(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, text, strlen(text)) < 0)
		fail(path);
	close(file);
}

/* Two mount namespaces, alike but for `count` binds. Both are made, so that the quiet side has a copy as well. */
static void make_crowd(const char *directory, int count)
{
	if (geteuid() != 0) {
		char uid_line[64], gid_line[64];
		snprintf(uid_line, sizeof uid_line, "0 %u 1", geteuid());
		snprintf(gid_line, sizeof gid_line, "0 %u 1", getegid());
		if (unshare(CLONE_NEWUSER) < 0)
			fail("unshare user namespace (is it allowed for ordinary users here?)");
		write_file("/proc/self/setgroups", "deny");
		write_file("/proc/self/uid_map", uid_line);
		write_file("/proc/self/gid_map", gid_line);
	}
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		fail("unshare mount namespace");
	quiet_namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (unshare(CLONE_NEWNS) < 0)
		fail("unshare mount namespace");
	crowded_namespace = current_namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (quiet_namespace < 0 || crowded_namespace < 0)
		fail("/proc/self/ns/mnt");
	if (mount("tmpfs", directory, "tmpfs", 0, NULL) < 0 || chdir(directory) < 0 || mkdir("one", 0755) < 0)
		fail(directory);
	for (int i = 0; i < count; i++) {
		char name[16];
		snprintf(name, sizeof name, "m%05d", i);
		if (mkdir(name, 0755) < 0 || mount("one", name, NULL, MS_BIND, NULL) < 0)
			fail(name);
	}
	if (chdir("/") < 0)
		fail("/");
}

static void stand_in(const struct command *command)
{
	int wanted = command->crowd ? crowded_namespace : quiet_namespace;
	if (wanted == current_namespace)
		return;
	if (setns(wanted, CLONE_NEWNS) < 0)
		fail("setns");
	current_namespace = wanted;
}

static pid_t start(const struct command *command)
{
	extern char **environ;
	pid_t pid;
	int error = posix_spawn(&pid, command->argv[0], &quiet_streams, NULL, command->argv, environ);
	if (error != 0) {
		errno = error;
		fail(command->argv[0]);
	}
	return pid;
}

static void check(const struct command *command, int status)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return;
	fprintf(stderr, "runner: %s (%s) ended with %s %d\n", command->name, command->argv[0],
		WIFEXITED(status) ? "status" : "signal", WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	exit(1);
}

static double measure(const struct command *command)
{
	struct rusage usage;
	int status;
	stand_in(command);
	alarm(LIMIT_SECONDS);
	double begin = now();
	pid_t pid = start(command);
	running = pid;
	while (wait4(pid, &status, 0, &usage) < 0)
		if (errno != EINTR)
			fail("wait4");
	double end = now();
	running = 0;
	alarm(0);
	check(command, status);
	return end - begin;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double percentile(const double *sorted, int count, double share)
{
	double at = share * (count - 1);
	int below = (int)at;
	int above = below + 1 < count ? below + 1 : below;
	return sorted[below] + (sorted[above] - sorted[below]) * (at - below);
}

static char **read_arguments(const char *path)
{
	FILE *file = fopen(path, "re");
	if (!file)
		fail(path);
	size_t count = 0, room = 0, size = 0;
	char **arguments = NULL, *line = NULL;
	for (;;) {
		if (count + 1 >= room) {
			room = room ? room * 2 : 64;
			arguments = realloc(arguments, room * sizeof *arguments);
			if (!arguments)
				fail("realloc");
		}
		if (getdelim(&line, &size, '\0', file) < 0)
			break;
		arguments[count++] = strdup(line);
	}
	fclose(file);
	free(line);
	arguments[count] = NULL;
	if (count == 0)
		usage();
	return arguments;
}

static void compare(struct command *commands, int count, int rounds, int warmup, int pause)
{
	for (int round = -warmup; round < rounds; round++) {
		for (int i = 0; i < count; i++) {
			struct command *command = &commands[round & 1 ? count - 1 - i : i];
			double took = measure(command);
			if (round >= 0)
				command->samples[round] = took;
			if (pause > 0)
				usleep(pause);
		}
	}
	printf("{\"rounds\":%d,\"commands\":{", rounds);
	for (int i = 0; i < count; i++) {
		double *samples = commands[i].samples;
		qsort(samples, rounds, sizeof *samples, ascending);
		printf("%s\"%s\":{\"median\":%.1f,\"p10\":%.1f,\"p90\":%.1f,\"min\":%.1f}", i ? "," : "", commands[i].name,
		       percentile(samples, rounds, 0.5), percentile(samples, rounds, 0.1),
		       percentile(samples, rounds, 0.9), samples[0]);
	}
	printf("}}\n");
}

static void throughput(const struct command *command, int width, int total)
{
	int started = 0, ended = 0;
	alarm(LIMIT_SECONDS + total / 10);
	double begin = now();
	while (ended < total) {
		int status;
		if (started < total && started - ended < width) {
			start(command);
			started++;
			continue;
		}
		if (wait(&status) < 0) {
			if (errno == EINTR)
				continue;
			fail("wait");
		}
		check(command, status);
		ended++;
	}
	double took = now() - begin;
	alarm(0);
	printf("{\"width\":%d,\"total\":%d,\"per_second\":%.1f,\"each\":%.1f}\n", width, total, total / (took / 1e6),
	       took / total);
}

int main(int argc, char *argv[])
{
	int rounds = 0, warmup = 0, pause = 0, width = 0, total = 0, crowd = 0, count = 0;
	const char *crowd_directory = NULL;
	struct command *commands = calloc(argc, sizeof *commands);

	for (int i = 1; i < argc; i++) {
		int left = argc - i - 1;
		if (strcmp(argv[i], "--rounds") == 0 && left >= 1) {
			rounds = atoi(argv[++i]);
		} else if (strcmp(argv[i], "--warmup") == 0 && left >= 1) {
			warmup = atoi(argv[++i]);
		} else if (strcmp(argv[i], "--pause") == 0 && left >= 1) {
			pause = atoi(argv[++i]);
		} else if (strcmp(argv[i], "--parallel") == 0 && left >= 1) {
			width = atoi(argv[++i]);
		} else if (strcmp(argv[i], "--total") == 0 && left >= 1) {
			total = atoi(argv[++i]);
		} else if (strcmp(argv[i], "--crowd") == 0 && left >= 2) {
			crowd_directory = argv[++i];
			crowd = atoi(argv[++i]);
		} else {
			char *path = strchr(argv[i], '=');
			if (!path)
				usage();
			*path++ = '\0';
			size_t length = strlen(argv[i]);
			commands[count].name = argv[i];
			commands[count].crowd = length > 6 && strcmp(argv[i] + length - 6, "+crowd") == 0;
			commands[count].argv = read_arguments(path);
			count++;
		}
	}
	if (count == 0 || (width > 0 ? count != 1 || total <= 0 : rounds <= 0))
		usage();

	struct sigaction action = { .sa_handler = on_alarm };
	sigaction(SIGALRM, &action, NULL);
	/* Errors stay visible; the rest of a command's talk would be the terminal's speed, not the command's. */
	posix_spawn_file_actions_init(&quiet_streams);
	posix_spawn_file_actions_addopen(&quiet_streams, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&quiet_streams, 1, "/dev/null", O_WRONLY, 0);

	if (width > 0) {
		throughput(&commands[0], width, total);
		return 0;
	}
	if (crowd_directory)
		make_crowd(crowd_directory, crowd);
	for (int i = 0; i < count; i++) {
		commands[i].samples = calloc(rounds, sizeof(double));
		if (!commands[i].samples)
			fail("calloc");
	}
	compare(commands, count, rounds, warmup, pause);
	return 0;
}
