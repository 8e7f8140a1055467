/* The cost of N read-only binds and nothing else: only the namespaces that a bind needs (mounts and processes; a user
 * namespace too when the caller is not root, because nobody else may mount), /usr, procfs, the binds, the pivot.
 *
 * usage: floor-binds STORE COUNT /absolute/command [argument...] */
#include "floor.h"

int main(int argc, char *argv[])
{
	if (argc < 4) {
		fprintf(stderr, "usage: floor-binds STORE COUNT COMMAND [ARGUMENT...]\n");
		return 2;
	}
	int count = atoi(argv[2]);

	enter_namespaces(CLONE_NEWNS | CLONE_NEWPID | (geteuid() == 0 ? 0 : CLONE_NEWUSER));
	int store = open_store(argv[1]);
	begin_root();
	put_usr();
	bind_store(store, count, "store");
	put_proc();
	finish_root();
	run(argv + 3);
}
