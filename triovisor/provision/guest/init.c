// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * init: process 1 of a guest that boots from the initramfs.
 *
 * Mounts what the kernel offers, loads the disk driver where there is a disk, starts the agent on its
 * line, /dev/tty1, and keeps it running, and gives a shell to whoever presses Enter on the console.
 *
 * Kernel command line:
 *   tv.hostname=NAME
 *   tv.mount=DEVICE:FOLDER:TYPE   mount a disk; may be given MAX_MOUNTS times
 *   tv.root=DEVICE[:TYPE]         make that disk the root and run its /sbin/init, else its /bin/sh
 *
 * Whatever fails is told on the console and, through the agent's READY frame, to the host; the guest
 * comes up all the same, so that somebody can look at it.
 *
 * A fork costs milliseconds in User-Mode Linux, so there is none before the agent's.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "programs.h"

#define LINE "/dev/tty1"
#define AGENT "/bin/agent"
#define NEW_ROOT "/newroot"
#define MAX_MOUNTS 8
#define DISKS_WAIT_S 10     /* a back end that does not answer holds the driver's probe up for ever */
#define RESPAWN_WAIT_MS 1000 /* between two starts of an agent or a shell that ends at once */
#define FILLER (4096 + 12) /* the agent's longest frame: zeros that end whatever a dead one left half sent */

static char cmdline[4096];
static char trouble[512]; /* what went wrong so far, one line; agent.c sends it in READY */

static void complain(const char *what, const char *which, int error)
{
	char line[256];
	snprintf(line, sizeof line, "%s %s: %s", what, which, strerror(error));
	dprintf(STDERR_FILENO, "init: %s\n", line);
	size_t used = strlen(trouble);
	snprintf(trouble + used, sizeof trouble - used, "%s%s", used ? "; " : "", line);
}

/* Copies the value of the nth `key=` on the kernel command line; false where there is none. */
static bool option(const char *key, int nth, char *value, size_t size)
{
	size_t length = strlen(key);
	for (const char *at = cmdline; (at = strstr(at, key)); at += length) {
		if (at != cmdline && at[-1] != ' ')
			continue;
		if (nth-- > 0)
			continue;
		size_t count = strcspn(at + length, " \n");
		snprintf(value, size, "%.*s", (int)count, at + length);
		return true;
	}
	return false;
}

static void read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t count = fd < 0 ? -1 : read(fd, text, size - 1);
	text[count > 0 ? count : 0] = 0;
	if (fd >= 0)
		close(fd);
	text[strcspn(text, "\n")] = 0;
}

static void attach(const char *type, const char *folder)
{
	if (mkdir(folder, 0755) && errno != EEXIST)
		complain("make folder", folder, errno);
	else if (mount(type, folder, type, 0, NULL))
		complain("mount", folder, errno);
}

/* What devtmpfs does not make and shells take for granted. */
static void link_descriptors(void)
{
	static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}};
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		if (symlink(links[i][0], links[i][1]))
			complain("link", links[i][1], errno);
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		complain("bring up", "lo", errno);
	if (fd >= 0)
		close(fd);
}

/* Is there a virtio block device (virtio 1.2 §5.2, id 2)? Loading its driver for nothing costs milliseconds. */
static bool have_disk(void)
{
	DIR *devices = opendir("/sys/bus/virtio/devices");
	bool found = false;
	for (struct dirent *entry; devices && !found && (entry = readdir(devices));) {
		char path[320], id[16];
		snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", entry->d_name);
		read_text(path, id, sizeof id);
		found = strtol(id, NULL, 16) == 2;
	}
	if (devices)
		closedir(devices);
	return found;
}

static bool load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool loaded = fd >= 0 && (!syscall(SYS_finit_module, fd, "", 0) || errno == EEXIST);
	if (!loaded)
		complain("load", path, errno);
	if (fd >= 0)
		close(fd);
	return loaded;
}

static void mount_disk(char *spec)
{
	char *save = NULL;
	const char *device = strtok_r(spec, ":", &save), *folder = strtok_r(NULL, ":", &save);
	const char *type = strtok_r(NULL, ":", &save);
	if (!device || !folder || folder[0] != '/') {
		complain("tv.mount wants DEVICE:FOLDER:TYPE, not", spec, EINVAL);
		return;
	}
	mkdir(folder, 0755);
	if (mount(device, folder, type ? type : "ext4", 0, NULL))
		complain("mount", device, errno);
}

static void *bring_up_disks(void *root_mounted)
{
	char spec[256];
	if (have_disk())
		load_module("/lib/modules/virtio_blk.ko");
	for (int nth = 0; nth < MAX_MOUNTS && option("tv.mount=", nth, spec, sizeof spec); nth++)
		mount_disk(spec);
	if (option("tv.root=", 0, spec, sizeof spec)) {
		char *type = strchr(spec, ':');
		if (type)
			*type++ = 0;
		mkdir(NEW_ROOT, 0755);
		if (mount(spec, NEW_ROOT, type ? type : "ext4", 0, NULL))
			complain("mount", spec, errno);
		else
			*(bool *)root_mounted = true;
	}
	return NULL;
}

/*
 * True where the root disk is mounted on NEW_ROOT. In a thread, since a probe that waits for its back end cannot be
 * interrupted: after DISKS_WAIT_S the guest goes on without its disks.
 */
static bool disks_up(void)
{
	static bool root_mounted;
	pthread_t worker;
	struct timespec deadline;
	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += DISKS_WAIT_S;
	int error = pthread_create(&worker, NULL, bring_up_disks, &root_mounted);
	if (!error)
		error = pthread_timedjoin_np(worker, NULL, &deadline);
	if (error)
		complain("wait for", "the disks", error);
	return !error && root_mounted;
}

/* The agent's line, raw. It stays open here: User-Mode Linux never gets a line back that was closed once. */
static int open_line(void)
{
	struct termios mode;
	int fd = open(LINE, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || tcgetattr(fd, &mode)) {
		complain("open", LINE, errno);
		return -1;
	}
	cfmakeraw(&mode);
	tcsetattr(fd, TCSANOW, &mode);
	return fd;
}

/* Makes NEW_ROOT the root, taking proc, sys and dev along. False, and nothing changed, where it has no program to run. */
static bool enter_root(void)
{
	static const char *const along[] = {"/proc", "/sys", "/dev"};
	struct stat found;
	if (lstat(NEW_ROOT "/sbin/init", &found) && lstat(NEW_ROOT "/bin/sh", &found)) {
		complain("run", "/sbin/init or /bin/sh of the root disk", errno);
		umount(NEW_ROOT);
		return false;
	}
	for (size_t i = 0; i < sizeof along / sizeof *along; i++) {
		char target[32];
		snprintf(target, sizeof target, NEW_ROOT "%s", along[i]);
		mkdir(target, 0755);
		if (mount(along[i], target, NULL, MS_MOVE, NULL))
			complain("move", along[i], errno);
	}
	if (chdir(NEW_ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		complain("enter", NEW_ROOT, errno);
	return true;
}

static void unblock_signals(void)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Starts the agent from its descriptor, which stays good whatever becomes the root. */
static pid_t start_agent(int agent, int line, bool again)
{
	char number[16], *argv[] = {"agent", number, trouble, again ? "again" : NULL, NULL};
	char *env[] = {"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TERM=linux", NULL};
	snprintf(number, sizeof number, "%d", line);
	pid_t pid = vfork();
	if (pid == 0) {
		unblock_signals();
		fcntl(line, F_SETFD, 0);
		fexecve(agent, argv, env);
		_exit(127);
	}
	return pid;
}

static pid_t start_shell(const char *console)
{
	char *env[] = {"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TERM=linux", NULL};
	pid_t pid = vfork();
	if (pid == 0) {
		setsid();
		unblock_signals();
		int fd = open(console, O_RDWR);
		ioctl(fd, TIOCSCTTY, 0);
		for (int i = 0; i < 3; i++)
			dup2(fd, i);
		execle("/bin/sh", "-sh", NULL, env);
		_exit(127);
	}
	return pid;
}

static int64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void end_half_sent_frame(int line)
{
	static const char zeros[FILLER];
	for (size_t sent = 0; sent < sizeof zeros;) {
		struct pollfd ready = {.fd = line, .events = POLLOUT};
		ssize_t count = write(line, zeros + sent, sizeof zeros - sent);
		if (count > 0)
			sent += count;
		else if (errno != EAGAIN || poll(&ready, 1, RESPAWN_WAIT_MS) <= 0)
			return;
	}
}

/* Opens the console that the kernel prints to: /dev/console itself can never be a controlling terminal. */
static int open_console(char *path, size_t size)
{
	char name[64];
	read_text("/sys/class/tty/console/active", name, sizeof name);
	char *last = strrchr(name, ' ');
	snprintf(path, size, "/dev/%s", last ? last + 1 : name);
	int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0)
		dprintf(fd, "Press Enter for a shell on this console.\n");
	return fd;
}

struct kept {
	pid_t pid;
	int64_t started_ms;
};

/* Takes the line that asked for a shell. What was typed after it is the shell's. */
static void take_line(int console)
{
	char input[256];
	ssize_t count;
	do
		count = read(console, input, sizeof input);
	while (count > 0 && input[count - 1] != '\n');
}

/* Waits out RESPAWN_WAIT_MS for what ended sooner than that after its start. */
static void pace(const struct kept *child)
{
	int64_t lived = now_ms() - child->started_ms;
	if (lived < RESPAWN_WAIT_MS)
		poll(NULL, 0, RESPAWN_WAIT_MS - lived);
}

/* Keeps the agent running and reaps orphans; with a console, keeps a shell ready there too. Never returns. */
_Noreturn static void keep(int agent, int line, bool with_console)
{
	char path[80];
	sigset_t children;
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	int signals = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
	struct kept daemon = {.started_ms = now_ms(), .pid = line < 0 ? -1 : start_agent(agent, line, false)};
	struct kept shell = {.pid = 0};
	int console = with_console ? open_console(path, sizeof path) : -1;

	for (;;) {
		struct pollfd watched[] = {{.fd = signals, .events = POLLIN},
					   {.fd = shell.pid ? -1 : console, .events = POLLIN}};
		struct signalfd_siginfo info;
		poll(watched, 2, -1);
		while (read(signals, &info, sizeof info) > 0)
			;
		for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;) {
			if (pid == daemon.pid) {
				pace(&daemon);
				end_half_sent_frame(line);
				daemon = (struct kept){.started_ms = now_ms(), .pid = start_agent(agent, line, true)};
			} else if (pid == shell.pid) {
				pace(&shell);
				shell.pid = 0;
				close(console);
				console = open_console(path, sizeof path);
			}
		}
		if (watched[1].revents & (POLLHUP | POLLERR | POLLNVAL)) {
			close(console);
			console = -1;
		} else if (watched[1].revents) {
			take_line(console);
			shell = (struct kept){.started_ms = now_ms(), .pid = start_shell(path)};
		}
	}
}

/* Only returns control by a panic: the guest has no process 1 then, which its console says. */
static void run_root_init(void)
{
	char *env[] = {"PATH=/sbin:/bin:/usr/sbin:/usr/bin", "HOME=/", "TERM=linux", NULL};
	execle("/sbin/init", "init", NULL, env);
	execle("/bin/sh", "sh", NULL, env);
	dprintf(STDERR_FILENO, "init: run /sbin/init or /bin/sh of the root disk: %s\n", strerror(errno));
	_exit(127);
}

int init_main(void)
{
	char hostname[65];
	attach("proc", "/proc");
	attach("sysfs", "/sys");
	attach("devtmpfs", "/dev");
	attach("devpts", "/dev/pts");
	attach("tmpfs", "/dev/shm");
	link_descriptors();
	read_text("/proc/cmdline", cmdline, sizeof cmdline);
	if (option("tv.hostname=", 0, hostname, sizeof hostname) && sethostname(hostname, strlen(hostname)))
		complain("set hostname", hostname, errno);
	loopback_up();
	int line = open_line();
	int agent = open(AGENT, O_RDONLY | O_CLOEXEC);
	bool wanted = have_disk() || strstr(cmdline, "tv.mount=") || strstr(cmdline, "tv.root=");
	bool on_disk = wanted && disks_up() && enter_root();
	if (on_disk && fork() > 0)
		run_root_init();
	keep(agent, line, !on_disk);
}
