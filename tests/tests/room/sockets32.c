/* What a 32-bit program of the C library does with sockets, each made by socketcall(2). Prints one line. */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what) {
	printf("%s: %s\n", what, strerrorname_np(errno));
	return 1;
}

static int loopback(void) {
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	char word[5] = "";
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length))
		return fail("listener");
	int client = socket(AF_INET, SOCK_STREAM, 0);
	if (client < 0 || connect(client, (struct sockaddr *)&address, length))
		return fail("client");
	int server = accept(listener, NULL, NULL);
	if (server < 0 || write(client, "word", 4) != 4 || read(server, word, 4) != 4)
		return fail("server");
	puts(word);
	return 0;
}

static int pair(void) {
	int ends[2];
	char word[5] = "";
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		return fail("socketpair");
	if (write(ends[0], "word", 4) != 4 || read(ends[1], word, 4) != 4)
		return fail("pair");
	puts(word);
	return 0;
}

static int interfaces(void) {
	struct ifaddrs *all;
	if (getifaddrs(&all))
		return fail("getifaddrs");
	const char *last = "";
	for (struct ifaddrs *one = all; one; one = one->ifa_next) {
		if (strcmp(last, one->ifa_name))
			printf("%s ", one->ifa_name);
		last = one->ifa_name;
	}
	puts("");
	return 0;
}

int main(int count, char **words) {
	if (count == 2 && !strcmp(words[1], "loopback"))
		return loopback();
	if (count == 2 && !strcmp(words[1], "pair"))
		return pair();
	if (count == 2 && !strcmp(words[1], "interfaces"))
		return interfaces();
	if (count != 4)
		return 2;
	if (socket(atoi(words[1]), atoi(words[2]), atoi(words[3])) < 0) {
		puts(strerrorname_np(errno));
		return 0;
	}
	puts("done");
	return 0;
}
