// SPDX-License-Identifier: GPL-2.0-or-later
#include "shutdown.h"

#include <ctype.h>
#include <dirent.h>
#include <mntent.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

#define MAX_GRACE_MS 60000
#define LOOK_EVERY_MS 5
#define KILL_WAIT_MS 1000 /* SIGKILL needs no more, save where a disk does not answer */
#define MAX_MOUNTS 64

/* Is a process left besides this one and process 1? Kernel threads and zombies have no program, so no exe. */
static bool others_live(void)
{
	DIR *processes = opendir("/proc");
	bool found = false;
	for (struct dirent *entry; processes && !found && (entry = readdir(processes));) {
		char path[300], program[8];
		int pid = isdigit((unsigned char)entry->d_name[0]) ? atoi(entry->d_name) : 0;
		snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
		found = pid > 1 && pid != getpid() && readlink(path, program, sizeof program) > 0;
	}
	if (processes)
		closedir(processes);
	return found;
}

/* kill(-1) spares process 1 and the caller. */
static void signal_and_wait(int number, uint32_t wait_ms)
{
	kill(-1, number);
	for (uint32_t waited = 0; waited < wait_ms && others_live(); waited += LOOK_EVERY_MS)
		poll(NULL, 0, LOOK_EVERY_MS);
}

static void make_read_only(void)
{
	char *folders[MAX_MOUNTS];
	int count = 0;
	FILE *mounts = setmntent("/proc/mounts", "r");
	for (struct mntent *entry; mounts && count < MAX_MOUNTS && (entry = getmntent(mounts));)
		if (!strncmp(entry->mnt_fsname, "/dev/", 5))
			folders[count++] = strdup(entry->mnt_dir);
	while (count-- > 0)
		if (umount(folders[count]))
			mount(NULL, folders[count], NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

_Noreturn void shut_down(int mode, uint32_t grace_ms)
{
	static const int actions[] = {
		[MODE_POWEROFF] = RB_POWER_OFF, [MODE_REBOOT] = RB_AUTOBOOT, [MODE_HALT] = RB_HALT_SYSTEM};
	if (others_live()) {
		signal_and_wait(SIGTERM, grace_ms < MAX_GRACE_MS ? grace_ms : MAX_GRACE_MS);
		signal_and_wait(SIGKILL, KILL_WAIT_MS);
	}
	chdir("/");
	sync();
	make_read_only();
	reboot(actions[mode]);
	for (;;)
		pause();
}
