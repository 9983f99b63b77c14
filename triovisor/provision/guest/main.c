// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One executable for all of the guest's programs, which it is by the name that it is called by. A static C library in each
 * would take two megabytes more of every guest's memory.
 */
#include "programs.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/');
	const char *name = slash ? slash + 1 : argv[0];
	if (!strcmp(name, "init"))
		return init_main();
	if (!strcmp(name, "agent"))
		return agent_main(argc, argv);
	if (!strcmp(name, "records"))
		return records_main(argc, argv);
	if (!strcmp(name, "load"))
		return load_main(argc, argv);
	if (!strcmp(name, "zero"))
		return zero_main(argc, argv);
	fprintf(stderr, "%s: call it by the name of one of its programs: init, agent, records, load, zero\n", name);
	return 2;
}
