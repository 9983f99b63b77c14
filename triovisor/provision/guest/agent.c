// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * agent: runs the host's commands in the guest, over one terminal line.
 *
 * Usage: agent LINE_FD [TROUBLE [again]]
 *   LINE_FD: a raw, non-blocking tty. TROUBLE: a line for the READY frame. again: an earlier agent died on this line.
 *
 * Protocol, version 1. All numbers little-endian. A frame is a header of 12 bytes and a payload:
 *   0 u32 magic "TVA1"   4 u8 type   5 u8 zero   6 u16 id of the command, else 0   8 u32 length of the payload
 * Zero bytes between frames are filler and are skipped.
 *
 *   host to guest                                      guest to host
 *   0x01 HELLO    u64 nonce                            0x81 READY    u64 nonce, u32 version, release\0 boot id\0 trouble\0
 *   0x02 START    u16 argc, u16 envc, argv\0… env\0…   0x82 FAILED   u32 errno, text     the command never ran
 *                 working folder\0 (or empty)          0x83 STDOUT   bytes
 *   0x03 STDIN    bytes                                0x84 STDERR   bytes
 *   0x04 EOF      ends the command's input             0x85 EXIT     u8 by a signal?, u8 status or signal
 *   0x05 SIGNAL   u32 signal, to its process group     0x86 CREDIT   u32 bytes of input taken
 *   0x06 CREDIT   u8 stream 1|2, u32 bytes taken       0x87 STOPPING u8 mode: nothing more comes
 *   0x07 SHUTDOWN u8 mode, u32 grace in ms             0x88 ERROR    text: you broke the protocol
 *   0x08 CONSOLE  u16 rows, u16 columns, or 0, 0       0x89 GOT      u32 bytes read from the line
 *                                                      0x8A CONSOLE  u32 bytes unread, u8 by lines?
 *
 * The line: at most LINE_WINDOW bytes may be on their way to the guest that GOT has not told of. A tty buffers 4 KiB, and
 * User-Mode Linux 6.1 never reads a line again that its tty once throttled (arch/um/drivers/line.c, line_unthrottle).
 *
 * CONSOLE sets the size of the console's window, where one is given, and is answered with how much of its input nobody
 * has read. 0 is certain, and more may be too few: n_tty's poll waits for what is on its way only where nothing has come.
 * A tty that reads by lines (ICANON) does not count a line that has not ended.
 *
 * Windows: at most OUTPUT_WINDOW bytes of each output stream, and INPUT_WINDOW of input, are sent and not yet taken.
 * So a reader that does not read stops its own stream and no other.
 * EXIT is a command's last frame. What it wrote before its end has been sent by then; what a child that outlives it
 * writes later is not sent.
 * A host that breaks the protocol gets ERROR; its commands are killed, and until its next HELLO nothing is heard.
 * HELLO is answered by READY with its nonce and kills what ran before; of what came up to HELLO no more GOT is sent.
 * At its start the agent sends READY with nonce 0; one that was started again hears nothing until HELLO.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "programs.h"
#include "shutdown.h"

enum { MAGIC = 0x31415654, HEADER = 12, VERSION = 1 };
enum { CHUNK = 4096, START_MAX = 32 * 1024, OUTPUT_WINDOW = 32 * 1024, INPUT_WINDOW = 16 * 1024 };
enum { LINE_WINDOW = 3072, GOT_EVERY = 1024 };
enum { COMMANDS = 64, ARGUMENTS = 1024 };
enum { CONTROL_ROOM = 16 * 1024 }; /* the line's queue always has room for every command's control frames */
enum { QUEUE = 48 * 1024 };
enum { STOPPING_WAIT_MS = 500 }; /* a host that does not read does not keep the guest up */
enum { HELLO = 1, START, STDIN, INPUT_EOF, SIGNAL, CREDIT, SHUTDOWN, CONSOLE };
enum { READY = 0x81, FAILED, STDOUT, STDERR, EXIT, TAKEN, STOPPING, ERROR, GOT, CONSOLE_LOOK };

struct output {
	int fd;          /* -1: ended */
	uint32_t credit; /* bytes that may be sent */
	int left;        /* bytes still to be sent of a command that has ended; -1: it runs */
};

struct command {
	bool used, ended, input_over;
	uint16_t id;
	pid_t pid;
	int status;
	int input_fd; /* -1: closed */
	struct output outputs[2];
	uint32_t input_start, input_count;
	unsigned char *input; /* a ring of INPUT_WINDOW bytes */
};

static struct command commands[COMMANDS];
static unsigned char inputs[COMMANDS][INPUT_WINDOW];
static unsigned turn; /* the command whose output goes first */
static int line, signals, console = -1;
static bool deaf; /* the host broke the protocol: skip to its HELLO */
static const char *trouble = "";

static unsigned char received[HEADER + START_MAX];
static size_t received_count;
static uint32_t got; /* bytes read that no GOT has told of */
static unsigned char queue[QUEUE];
static size_t queue_start, queue_end;

static uint16_t get16(const unsigned char *at) { return at[0] | at[1] << 8; }
static uint32_t get32(const unsigned char *at) { return get16(at) | (uint32_t)get16(at + 2) << 16; }

static void put32(unsigned char *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = value >> 8 * i;
}

/* ---- towards the host ---- */

static size_t queue_room(void)
{
	if (queue_start) {
		memmove(queue, queue + queue_start, queue_end - queue_start);
		queue_end -= queue_start;
		queue_start = 0;
	}
	return QUEUE - queue_end;
}

static void flush_queue(void)
{
	while (queue_start < queue_end) {
		ssize_t count = write(line, queue + queue_start, queue_end - queue_start);
		if (count < 0)
			return;
		queue_start += count;
	}
	queue_start = queue_end = 0;
}

static bool queue_empties(void)
{
	flush_queue();
	return queue_room() >= CONTROL_ROOM;
}

/* Puts a header for `length` bytes into the queue and returns where they go. The caller has seen to the room. */
static unsigned char *frame(int type, uint16_t id, uint32_t length)
{
	unsigned char *at = queue + queue_end;
	put32(at, MAGIC);
	put32(at + 4, type | (uint32_t)id << 16);
	put32(at + 8, length);
	queue_end += HEADER + length;
	return at + HEADER;
}

static void send_text(int type, uint16_t id, int error, const char *text)
{
	size_t length = strlen(text), number = type == FAILED ? 4 : 0;
	unsigned char *at = frame(type, id, number + length);
	if (number)
		put32(at, error);
	memcpy(at + number, text, length);
}

static size_t append(char *text, size_t used, size_t size, const char *word)
{
	return used + 1 + (size_t)snprintf(text + used, size - used, "%.400s", word);
}

static void send_ready(const unsigned char nonce[8])
{
	char text[1024], boot_id[64] = "";
	struct utsname kernel;
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t count = read(fd, boot_id, sizeof boot_id - 1);
	close(fd);
	boot_id[count > 0 ? strcspn(boot_id, "\n") : 0] = 0;
	uname(&kernel);
	size_t length = append(text, 0, sizeof text, kernel.release);
	length = append(text, length, sizeof text, boot_id);
	length = append(text, length, sizeof text, trouble);
	unsigned char *at = frame(READY, 0, 12 + length);
	memcpy(at, nonce, 8);
	put32(at + 8, VERSION);
	memcpy(at + 12, text, length);
}

/* ---- commands ---- */

static struct command *find(uint16_t id)
{
	for (int i = 0; i < COMMANDS; i++)
		if (commands[i].used && commands[i].id == id)
			return &commands[i];
	return NULL;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void forget(struct command *command)
{
	close_fd(&command->input_fd);
	close_fd(&command->outputs[0].fd);
	close_fd(&command->outputs[1].fd);
	command->used = false;
}

static void kill_all(void)
{
	for (int i = 0; i < COMMANDS; i++) {
		if (!commands[i].used)
			continue;
		if (!commands[i].ended)
			kill(-commands[i].pid, SIGKILL);
		forget(&commands[i]);
	}
}

__attribute__((format(printf, 1, 2))) static void protocol_error(const char *format, ...)
{
	char text[200];
	va_list values;
	va_start(values, format);
	vsnprintf(text, sizeof text, format, values);
	va_end(values);
	kill_all();
	send_text(ERROR, 0, 0, text);
	deaf = true;
}

/* In the child, which shares the agent's memory until exec: only system calls here. */
static void become(char **argv, char **env, const char *folder, int pipes[3][2], volatile int *error)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < 3; i++)
		dup2(pipes[i][i > 0], i);
	if (!chdir(folder))
		execvpe(argv[0], argv, env);
	*error = errno;
	_exit(127);
}

static int run(struct command *command, char **argv, char **env, const char *folder)
{
	int pipes[3][2];
	for (int i = 0; i < 3; i++) {
		if (pipe2(pipes[i], O_CLOEXEC)) {
			int error = errno;
			while (i-- > 0) {
				close(pipes[i][0]);
				close(pipes[i][1]);
			}
			return error;
		}
	}
	volatile int error = 0;
	pid_t pid = vfork();
	if (pid == 0)
		become(argv, env, folder, pipes, &error);
	if (pid < 0)
		error = errno;
	close(pipes[0][0]);
	close(pipes[1][1]);
	close(pipes[2][1]);
	command->pid = pid;
	command->input_fd = pipes[0][1];
	for (int i = 0; i < 2; i++)
		command->outputs[i] = (struct output){.fd = pipes[i + 1][0], .credit = OUTPUT_WINDOW, .left = -1};
	fcntl(command->input_fd, F_SETFL, O_NONBLOCK);
	fcntl(command->outputs[0].fd, F_SETFL, O_NONBLOCK);
	fcntl(command->outputs[1].fd, F_SETFL, O_NONBLOCK);
	return error;
}

/* The next of the payload's strings, or NULL where it does not end within the payload. */
static char *next_string(unsigned char **at, const unsigned char *end)
{
	char *text = (char *)*at;
	unsigned char *stop = memchr(*at, 0, end - *at);
	*at = stop ? stop + 1 : *at;
	return stop ? text : NULL;
}

/* Unpacks START into `words`: argv, NULL, env, NULL. Returns the working folder, NULL for a bad payload. */
static const char *unpack_start(unsigned char *at, const unsigned char *end, char **words, unsigned *argc)
{
	if (end - at < 4)
		return NULL;
	*argc = get16(at);
	unsigned envc = get16(at + 2), n = 0;
	at += 4;
	if (*argc < 1 || *argc + envc > ARGUMENTS)
		return NULL;
	for (unsigned i = 0; i < *argc; i++)
		if (!(words[n++] = next_string(&at, end)))
			return NULL;
	words[n++] = NULL;
	for (unsigned i = 0; i < envc; i++)
		if (!(words[n++] = next_string(&at, end)))
			return NULL;
	words[n] = NULL;
	char *folder = next_string(&at, end);
	if (at != end || !folder)
		return NULL;
	return folder[0] ? folder : "/";
}

/* The environment of a command: the agent's own, after what START gave, which counts first. */
static void inherit(char **env)
{
	char **end = env;
	while (*end)
		end++;
	for (char **own = environ; *own; own++) {
		size_t name = strcspn(*own, "=") + 1;
		bool given = false;
		for (char **word = env; word < end && !given; word++)
			given = !strncmp(*word, *own, name);
		if (!given)
			*end++ = *own;
	}
	*end = NULL;
}

static void on_start(uint16_t id, unsigned char *payload, uint32_t length)
{
	static char *words[ARGUMENTS + 16];
	unsigned argc;
	if (find(id)) {
		protocol_error("START of command %u, which still runs", id);
		return;
	}
	const char *folder = unpack_start(payload, payload + length, words, &argc);
	struct command *command = commands;
	while (command < commands + COMMANDS && command->used)
		command++;
	if (!folder || command == commands + COMMANDS) {
		int error = folder ? EAGAIN : EINVAL;
		send_text(FAILED, id, error, folder ? "64 commands run already" : "START with a bad payload");
		return;
	}
	*command = (struct command){.used = true, .id = id, .input = inputs[command - commands]};
	inherit(words + argc + 1);
	int error = run(command, words, words + argc + 1, folder);
	if (error) {
		send_text(FAILED, id, error, strerror(error));
		forget(command);
	}
}

static void on_credit(struct command *command, const unsigned char *payload)
{
	struct output *output = &command->outputs[payload[0] == 2];
	uint32_t bytes = get32(payload + 1);
	if (payload[0] < 1 || payload[0] > 2 || bytes > OUTPUT_WINDOW - output->credit)
		protocol_error("CREDIT of %u bytes for stream %u of command %u", bytes, payload[0], command->id);
	else
		output->credit += bytes;
}

static void send_taken(struct command *command, uint32_t bytes)
{
	put32(frame(TAKEN, command->id, 4), bytes);
}

static void on_stdin(struct command *command, const unsigned char *payload, uint32_t length)
{
	if (command->input_over || length > INPUT_WINDOW - command->input_count) {
		protocol_error("STDIN of command %u %s", command->id, command->input_over ? "after EOF" : "past its window");
		return;
	}
	if (command->input_fd < 0) {
		send_taken(command, length);
		return;
	}
	for (uint32_t i = 0; i < length; i++)
		command->input[(command->input_start + command->input_count++) % INPUT_WINDOW] = payload[i];
}

static void close_input_when_over(struct command *command)
{
	if (command->input_over && command->input_count == 0)
		close_fd(&command->input_fd);
}

static void write_input(struct command *command)
{
	uint32_t run = INPUT_WINDOW - command->input_start;
	if (run > command->input_count)
		run = command->input_count;
	ssize_t count = write(command->input_fd, command->input + command->input_start, run);
	if (count < 0 && errno == EAGAIN)
		return;
	if (count < 0) { /* nobody will read it */
		close_fd(&command->input_fd);
		count = command->input_count;
	}
	command->input_start = (command->input_start + count) % INPUT_WINDOW;
	command->input_count -= count;
	send_taken(command, count);
	close_input_when_over(command);
}

static void read_output(struct command *command, int stream)
{
	struct output *output = &command->outputs[stream];
	size_t most = output->credit < CHUNK ? output->credit : CHUNK;
	if (output->left >= 0 && (size_t)output->left < most)
		most = output->left;
	size_t before = queue_end;
	unsigned char *at = frame(STDOUT + stream, command->id, most);
	ssize_t count = read(output->fd, at, most);
	queue_end = before;
	if (count < 0 && errno == EAGAIN)
		return;
	if (count > 0) {
		frame(STDOUT + stream, command->id, count);
		output->credit -= count;
		output->left -= output->left > 0 ? count : 0;
	}
	if (count <= 0 || output->left == 0)
		close_fd(&output->fd);
}

static void finish_when_done(struct command *command)
{
	if (!command->ended || command->outputs[0].fd >= 0 || command->outputs[1].fd >= 0)
		return;
	bool by_signal = WIFSIGNALED(command->status);
	unsigned char *at = frame(EXIT, command->id, 2);
	at[0] = by_signal;
	at[1] = by_signal ? WTERMSIG(command->status) : WEXITSTATUS(command->status);
	forget(command);
}

/* A command has ended: what is in its pipes now is all that will be sent of it. */
static void on_death(struct command *command, int status)
{
	command->ended = true;
	command->status = status;
	for (int i = 0; i < 2; i++) {
		struct output *output = &command->outputs[i];
		if (output->fd >= 0 && (ioctl(output->fd, FIONREAD, &output->left) || output->left == 0))
			close_fd(&output->fd);
	}
	finish_when_done(command);
}

static void reap(void)
{
	struct signalfd_siginfo info;
	int status;
	while (read(signals, &info, sizeof info) > 0)
		;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
		for (int i = 0; i < COMMANDS; i++)
			if (commands[i].used && !commands[i].ended && commands[i].pid == pid)
				on_death(&commands[i], status);
}

/* ---- from the host ---- */

static void on_shutdown(const unsigned char *payload)
{
	static const char *const names[] = {"poweroff", "reboot", "halt"};
	if (payload[0] >= sizeof names / sizeof *names) {
		protocol_error("SHUTDOWN with mode %u", payload[0]);
		return;
	}
	*frame(STOPPING, 0, 1) = payload[0];
	flush_queue();
	struct pollfd ready = {.fd = line, .events = POLLOUT};
	while (queue_end && poll(&ready, 1, STOPPING_WAIT_MS) > 0)
		flush_queue();
	shut_down(payload[0], get32(payload + 1));
}

/* The console that the kernel prints to. */
static int open_console(void)
{
	char names[64] = "", path[80];
	int fd = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
	ssize_t count = read(fd, names, sizeof names - 1);
	close(fd);
	names[count > 0 ? strcspn(names, "\n") : 0] = 0;
	char *last = strrchr(names, ' ');
	snprintf(path, sizeof path, "/dev/%s", last ? last + 1 : names);
	return open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
}

/* It is held open between looks, and opened again where its session has ended and hung it up. */
static void on_console(const unsigned char *payload)
{
	struct winsize size = {.ws_row = get16(payload), .ws_col = get16(payload + 2)};
	struct termios modes = {0};
	int unread = 0;
	if (console < 0 || ioctl(console, FIONREAD, &unread)) {
		close_fd(&console);
		console = open_console();
	}
	poll(&(struct pollfd){.fd = console, .events = POLLIN}, 1, 0); /* flushes what is on its way, where nothing has come */
	ioctl(console, FIONREAD, &unread);
	if (size.ws_row && size.ws_col)
		ioctl(console, TIOCSWINSZ, &size);
	tcgetattr(console, &modes);
	unsigned char *at = frame(CONSOLE_LOOK, 0, 5);
	put32(at, unread);
	at[4] = (modes.c_lflag & ICANON) != 0;
}

/* What a payload's length may be, for each type from the host. */
static bool length_fits(int type, uint32_t length)
{
	switch (type) {
	case HELLO: return length == 8;
	case START: return length <= START_MAX;
	case STDIN: return length >= 1 && length <= CHUNK;
	case INPUT_EOF: return length == 0;
	case SIGNAL: case CONSOLE: return length == 4;
	case CREDIT: case SHUTDOWN: return length == 5;
	default: return false;
	}
}

static void on_command_frame(int type, struct command *command, unsigned char *payload, uint32_t length)
{
	switch (type) {
	case STDIN: on_stdin(command, payload, length); break;
	case CREDIT: on_credit(command, payload); break;
	case INPUT_EOF:
		command->input_over = true;
		close_input_when_over(command);
		break;
	case SIGNAL:
		if (!command->ended)
			kill(-command->pid, get32(payload));
		break;
	}
}

static void on_frame(int type, uint16_t id, unsigned char *payload, uint32_t length)
{
	struct command *command = find(id);
	if (type == HELLO) {
		kill_all();
		deaf = false;
		got = 0;
		send_ready(payload);
	} else if (type == START) {
		on_start(id, payload, length);
	} else if (type == SHUTDOWN) {
		on_shutdown(payload);
	} else if (type == CONSOLE) {
		on_console(payload);
	} else if (command) { /* a frame for a command whose EXIT is on its way is no fault */
		on_command_frame(type, command, payload, length);
	}
}

/* Handles what stands at `at`. Returns how many bytes that took, 0 when more must come first. */
static size_t take(unsigned char *at, size_t count)
{
	if (at[0] == 0)
		return 1;
	if (count < HEADER)
		return 0;
	int type = at[4];
	uint32_t length = get32(at + 8);
	bool good = get32(at) == MAGIC && at[5] == 0 && length_fits(type, length);
	if (deaf && (!good || type != HELLO))
		return 1;
	if (!good) {
		protocol_error("bad frame %08x, type %u, length %u", get32(at), type, length);
		return 1;
	}
	if (count < HEADER + length)
		return 0;
	on_frame(type, get16(at + 6), at + HEADER, length);
	return HEADER + length;
}

/* Handles the frames that came, as long as there is room for their answers. False: there are more for when there is. */
static bool parse(void)
{
	size_t done = 0;
	while (done < received_count && queue_room() >= CONTROL_ROOM) {
		size_t took = take(received + done, received_count - done);
		if (!took)
			break;
		done += took;
	}
	memmove(received, received + done, received_count - done);
	received_count -= done;
	return queue_room() >= CONTROL_ROOM;
}

static void read_line(void)
{
	ssize_t count = read(line, received + received_count, sizeof received - received_count);
	if (count <= 0)
		return;
	received_count += count;
	got += count;
	if (got >= GOT_EVERY) {
		put32(frame(GOT, 0, 4), got);
		got = 0;
	}
}

/* ---- the loop ---- */

enum { LINE_SLOT, SIGNAL_SLOT, FIRST_SLOT, SLOTS = FIRST_SLOT + 3 * COMMANDS };

static bool wants_output(const struct output *output)
{
	return output->fd >= 0 && output->credit > 0;
}

static void watch(struct pollfd *slots)
{
	bool room = queue_room() >= CONTROL_ROOM + HEADER + CHUNK;
	short directions = (room && received_count < sizeof received ? POLLIN : 0) | (queue_end ? POLLOUT : 0);
	slots[LINE_SLOT] = (struct pollfd){.fd = line, .events = directions};
	slots[SIGNAL_SLOT] = (struct pollfd){.fd = room ? signals : -1, .events = POLLIN};
	for (int i = 0; i < COMMANDS; i++) {
		struct command *command = &commands[i];
		struct pollfd *slot = slots + FIRST_SLOT + 3 * i;
		bool used = command->used;
		slot[0] = (struct pollfd){.fd = used && command->input_count ? command->input_fd : -1, .events = POLLOUT};
		for (int j = 0; j < 2; j++) {
			bool wanted = used && room && wants_output(&command->outputs[j]);
			slot[1 + j] = (struct pollfd){.fd = wanted ? command->outputs[j].fd : -1, .events = POLLIN};
		}
	}
}

/* One chunk a stream and turn, and the next turn starts one further: no command waits for another's flood. */
static void serve_commands(const struct pollfd *slots)
{
	unsigned first = turn++;
	for (unsigned i = 0; i < COMMANDS; i++) {
		unsigned n = (first + i) % COMMANDS;
		struct command *command = &commands[n];
		const struct pollfd *slot = slots + FIRST_SLOT + 3 * n;
		if (command->used && slot[0].revents && queue_room() >= CONTROL_ROOM)
			write_input(command);
		for (int j = 0; command->used && j < 2; j++)
			if (slot[1 + j].revents && queue_room() >= CONTROL_ROOM + HEADER + CHUNK)
				read_output(command, j);
		if (command->used)
			finish_when_done(command);
	}
}

int agent_main(int argc, char **argv)
{
	static struct pollfd slots[SLOTS];
	static const unsigned char no_nonce[8];
	sigset_t children;
	if (argc < 2) {
		fprintf(stderr, "usage: agent LINE_FD [TROUBLE [again]]\n");
		return 2;
	}
	line = atoi(argv[1]);
	trouble = argc > 2 ? argv[2] : "";
	deaf = argc > 3;
	fcntl(line, F_SETFD, FD_CLOEXEC);
	prctl(PR_SET_NAME, "agent");
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	signals = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
	send_ready(no_nonce);
	flush_queue();
	for (;;) {
		watch(slots);
		poll(slots, SLOTS, -1);
		if (slots[LINE_SLOT].revents & POLLIN)
			read_line();
		if (slots[SIGNAL_SLOT].revents)
			reap();
		serve_commands(slots);
		flush_queue();
		while (!parse() && queue_empties())
			;
		flush_queue();
	}
}
