// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * load: puts a block device under load and says in one line of JSON what it did.
 *
 *   load DEVICE [op=read|write|fsync|verify] [order=random|sequential] [size=BYTES] [depth=1…32] [seconds=S] [span=BYTES]
 *        [seed=N] [gaps_us=US]
 *   BYTES may end in k or m. Without options: op=read order=random size=4k depth=1 seconds=1, over the whole device.
 *   SIGTERM ends it early, as if the time were over.
 *
 * All I/O is O_DIRECT. Depth 1 uses pread and pwrite, more uses Linux AIO (io_submit(2)).
 *   fsync   write, then fdatasync; each pair is one operation. Depth 1.
 *   verify  writes and reads at random; each block carries its generation, a read must find the last one that was
 *           acknowledged; at the end every block written is read once more. Destroys what the device held.
 *
 * Prints {"op", "order", "size", "depth", "operations", "seconds", "iops", "mb_s" (10^6 bytes), "p50_us", "p95_us",
 * "p99_us", "max_us", "gap_us": longest time without a completion, "errors"} and, for verify, "corrupt", "final": blocks
 * of the last reading. With gaps_us it first prints `started`, and "gaps" lists the first 4096 times without a completion
 * that were at least so long, each as [µs from the start to its end, µs that it lasted].
 * Exit status: 0, 1 where an error or a corrupt block was met, 2 for a wrong command line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "programs.h"

enum { MAX_DEPTH = 32, ALIGN = 4096, MAX_SIZE = 4 << 20, MAX_GAPS = 4096 };
enum { FINE = 64, BUCKETS = 32 * FINE }; /* latencies in ns: 64 buckets for each power of two, so at most 1.6 % off */
enum op { READ, WRITE, FSYNC, VERIFY };
static const char *const OPS[] = {"read", "write", "fsync", "verify"};
static const char *const ORDERS[] = {"random", "sequential"};

static struct options {
	const char *device;
	long op, order, depth;
	uint64_t size, span, seed, gaps_us;
	double seconds;
} options = {.op = READ, .depth = 1, .size = 4096, .seed = 88172645463325252, .seconds = 1};

static struct tally {
	uint64_t operations, errors, corrupt, final, max_ns, gap_ns, started, last;
	uint32_t buckets[BUCKETS];
} tally;

static struct gap {
	uint64_t end_us, us;
} gaps[MAX_GAPS];
static unsigned gaps_listed;

struct slot {
	struct iocb request;
	uint64_t started, block;
	bool writes;
	unsigned char *buffer;
};

static int device;
static uint64_t blocks, next_block;
static volatile uint64_t end_ns;
static uint32_t *generations; /* verify: the last acknowledged one of each block; 0: never written */
static bool *busy;

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t random_number(void)
{
	options.seed ^= options.seed << 13;
	options.seed ^= options.seed >> 7;
	return options.seed ^= options.seed << 17;
}

/* ---- latencies ---- */

static unsigned bucket_of(uint64_t ns)
{
	if (ns < FINE)
		return ns;
	unsigned power = 63 - __builtin_clzll(ns); /* at least 6 */
	unsigned bucket = (power - 5) * FINE + (ns >> (power - 6)) - FINE;
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double middle_us(unsigned bucket)
{
	if (bucket < FINE)
		return bucket / 1e3;
	unsigned power = bucket / FINE + 5;
	return ((bucket % FINE + FINE + 0.5) * (1ull << (power - 6))) / 1e3;
}

static double percentile_us(double share)
{
	uint64_t seen = 0, wanted = share * tally.operations;
	for (unsigned i = 0; i < BUCKETS; i++)
		if ((seen += tally.buckets[i]) > wanted)
			return middle_us(i);
	return 0;
}

static void count(uint64_t started, uint64_t end, bool failed)
{
	uint64_t ns = end - started;
	tally.operations++;
	tally.errors += failed;
	tally.buckets[bucket_of(ns)]++;
	if (ns > tally.max_ns)
		tally.max_ns = ns;
	uint64_t gap_ns = end - tally.last;
	if (gap_ns > tally.gap_ns)
		tally.gap_ns = gap_ns;
	if (options.gaps_us && gap_ns >= options.gaps_us * 1000 && gaps_listed < MAX_GAPS)
		gaps[gaps_listed++] = (struct gap){(end - tally.started) / 1000, gap_ns / 1000};
	tally.last = end;
}

/* ---- what to do next ---- */

static uint64_t pick_block(void)
{
	uint64_t block = options.order ? next_block++ % blocks : random_number() % blocks;
	while (options.op == VERIFY && busy[block])
		block = (block + 1) % blocks;
	return block;
}

static void fill(unsigned char *buffer, uint64_t block, uint64_t generation)
{
	uint64_t *words = (uint64_t *)buffer, value = block * 0x9e3779b97f4a7c15 ^ generation * 0xc2b2ae3d27d4eb4f;
	words[0] = block;
	words[1] = generation;
	for (uint64_t i = 2; i < options.size / 8; i++)
		words[i] = value = value * 6364136223846793005 + 1442695040888963407;
}

static void check(const unsigned char *buffer, uint64_t block)
{
	static uint64_t wanted[MAX_SIZE / 8];
	fill((unsigned char *)wanted, block, generations[block]);
	if (!memcmp(buffer, wanted, options.size))
		return;
	const uint64_t *found = (const uint64_t *)buffer;
	tally.corrupt++;
	fprintf(stderr, "load: block %llu generation %u holds block %llu generation %llu\n", (unsigned long long)block,
		generations[block], (unsigned long long)found[0], (unsigned long long)found[1]);
}

static void prepare(struct slot *slot)
{
	uint64_t block = slot->block = pick_block();
	slot->writes = options.op == VERIFY ? !generations[block] || random_number() & 1 : options.op == WRITE;
	if (options.op == VERIFY) {
		busy[block] = true;
		if (slot->writes)
			fill(slot->buffer, block, generations[block] + 1);
		else
			memset(slot->buffer, 0, options.size);
	}
	slot->request = (struct iocb){.aio_data = (uintptr_t)slot,
				      .aio_fildes = device,
				      .aio_lio_opcode = slot->writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
				      .aio_buf = (uintptr_t)slot->buffer,
				      .aio_nbytes = options.size,
				      .aio_offset = block * options.size};
}

static void complete(struct slot *slot, uint64_t end, bool failed)
{
	count(slot->started, end, failed);
	if (options.op != VERIFY)
		return;
	busy[slot->block] = false;
	if (slot->writes && !failed)
		generations[slot->block]++;
	else if (!failed)
		check(slot->buffer, slot->block);
}

/* ---- running ---- */

/* Reading the clock is a system call in User-Mode Linux, of 14 us: once for each operation, or for each batch of them. */

static void run_one_by_one(unsigned char *buffer)
{
	ssize_t size = options.size;
	for (uint64_t started = now(); started < end_ns; started = tally.last) {
		off_t at = pick_block() * options.size;
		bool failed = options.op == READ ? pread(device, buffer, size, at) != size
						 : pwrite(device, buffer, size, at) != size;
		if (options.op == FSYNC && fdatasync(device))
			failed = true;
		count(started, now(), failed);
	}
}

static void submitted_at(struct iocb **requests, long count, uint64_t started)
{
	for (long i = 0; i < count; i++)
		((struct slot *)(uintptr_t)requests[i]->aio_data)->started = started;
}

static bool run_at_depth(struct slot *slots)
{
	struct iocb *requests[MAX_DEPTH];
	struct io_event events[MAX_DEPTH];
	aio_context_t context = 0;
	long in_flight = options.depth;
	if (syscall(SYS_io_setup, MAX_DEPTH, &context))
		return false;
	for (long i = 0; i < options.depth; i++) {
		prepare(&slots[i]);
		requests[i] = &slots[i].request;
	}
	for (long ready = options.depth; in_flight;) {
		submitted_at(requests, ready, now());
		if (ready && syscall(SYS_io_submit, context, ready, requests) != ready)
			return false;
		long done = syscall(SYS_io_getevents, context, 1, MAX_DEPTH, events, NULL);
		if (done < 0 && errno != EINTR)
			return false;
		ready = 0;
		uint64_t end = now();
		for (long i = 0; i < done; i++) {
			struct slot *slot = (struct slot *)(uintptr_t)events[i].data;
			complete(slot, end, events[i].res != (int64_t)options.size);
			if (tally.last >= end_ns) {
				in_flight--;
				continue;
			}
			prepare(slot);
			requests[ready++] = &slot->request;
		}
	}
	return true;
}

static void read_all_back(unsigned char *buffer)
{
	ssize_t size = options.size;
	for (uint64_t block = 0; block < blocks; block++) {
		if (!generations[block])
			continue;
		tally.final++;
		if (pread(device, buffer, size, block * size) != size)
			tally.errors++;
		else
			check(buffer, block);
	}
}

static void report(void)
{
	double seconds = (tally.last - tally.started) / 1e9;
	double rate = seconds > 0 ? tally.operations / seconds : 0;
	printf("{\"op\": \"%s\", \"order\": \"%s\", \"size\": %llu, \"depth\": %ld, \"operations\": %llu, \"seconds\": %.3f, "
	       "\"iops\": %.1f, \"mb_s\": %.1f, \"p50_us\": %.1f, \"p95_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
	       "\"gap_us\": %.1f, \"errors\": %llu", OPS[options.op], ORDERS[options.order],
	       (unsigned long long)options.size, options.depth, (unsigned long long)tally.operations, seconds, rate,
	       rate * options.size / 1e6, percentile_us(0.5), percentile_us(0.95), percentile_us(0.99), tally.max_ns / 1e3,
	       tally.gap_ns / 1e3, (unsigned long long)tally.errors);
	if (options.op == VERIFY)
		printf(", \"corrupt\": %llu, \"final\": %llu", (unsigned long long)tally.corrupt,
		       (unsigned long long)tally.final);
	if (options.gaps_us) {
		printf(", \"gaps\": [");
		for (unsigned i = 0; i < gaps_listed; i++)
			printf("%s[%llu, %llu]", i ? ", " : "", (unsigned long long)gaps[i].end_us,
			       (unsigned long long)gaps[i].us);
		printf("]");
	}
	printf("}\n");
}

/* ---- command line ---- */

static bool parse_bytes(const char *text, uint64_t *bytes)
{
	char *end;
	*bytes = strtoull(text, &end, 10);
	int shift = *end == 'k' ? 10 : *end == 'm' ? 20 : 0;
	*bytes <<= shift;
	return end != text && !end[shift ? 1 : 0];
}

static bool parse_word(const char *text, const char *const *words, long count, long *index)
{
	for (*index = 0; *index < count; ++*index)
		if (!strcmp(text, words[*index]))
			return true;
	return false;
}

static bool parse_option(char *word)
{
	char *value = strchr(word, '=');
	if (!value)
		return false;
	*value++ = 0;
	if (!strcmp(word, "op"))
		return parse_word(value, OPS, 4, &options.op);
	if (!strcmp(word, "order"))
		return parse_word(value, ORDERS, 2, &options.order);
	if (!strcmp(word, "size"))
		return parse_bytes(value, &options.size) && options.size >= 512 && options.size <= MAX_SIZE;
	if (!strcmp(word, "span"))
		return parse_bytes(value, &options.span);
	if (!strcmp(word, "seed"))
		return (options.seed = strtoull(value, NULL, 10)) != 0;
	if (!strcmp(word, "gaps_us"))
		return (options.gaps_us = strtoull(value, NULL, 10)) != 0;
	if (!strcmp(word, "depth"))
		return (options.depth = atol(value)) >= 1 && options.depth <= MAX_DEPTH;
	if (!strcmp(word, "seconds"))
		return (options.seconds = atof(value)) > 0;
	return false;
}

static bool open_device(void)
{
	uint64_t bytes = 0;
	struct stat file;
	device = open(options.device, (options.op == READ ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
	if (device < 0 || fstat(device, &file))
		return false;
	if (S_ISREG(file.st_mode))
		bytes = file.st_size;
	else if (ioctl(device, BLKGETSIZE64, &bytes))
		return false;
	if (options.span && options.span < bytes)
		bytes = options.span;
	blocks = bytes / options.size;
	errno = ENOSPC;
	return blocks > (uint64_t)options.depth;
}

static void end_early(int number)
{
	(void)number;
	end_ns = 0;
}

static bool run(void)
{
	static struct slot slots[MAX_DEPTH];
	unsigned char *buffers;
	if (posix_memalign((void **)&buffers, ALIGN, options.size * options.depth))
		return false;
	memset(buffers, 0x5a, options.size * options.depth);
	for (long i = 0; i < options.depth; i++)
		slots[i].buffer = buffers + i * options.size;
	if (options.op == VERIFY) {
		generations = calloc(blocks, sizeof *generations);
		busy = calloc(blocks, sizeof *busy);
		if (!generations || !busy)
			return false;
	}
	tally.started = now();
	end_ns = tally.started + options.seconds * 1e9;
	signal(SIGTERM, end_early);
	if (options.gaps_us) {
		puts("started");
		fflush(stdout);
	}
	tally.last = now();
	bool plain = options.op == FSYNC || (options.depth == 1 && options.op != VERIFY);
	if (plain)
		run_one_by_one(buffers);
	else if (!run_at_depth(slots))
		return false;
	if (options.op == VERIFY)
		read_all_back(buffers);
	return true;
}

int load_main(int argc, char **argv)
{
	bool good = argc > 1;
	for (int i = 2; good && i < argc; i++)
		good = parse_option(argv[i]);
	if (!good) {
		fprintf(stderr, "usage: load DEVICE [op=read|write|fsync|verify] [order=random|sequential] [size=BYTES]\n"
				"            [depth=1..32] [seconds=S] [span=BYTES] [seed=N] [gaps_us=US]\n");
		return 2;
	}
	options.device = argv[1];
	if (!open_device() || !run()) {
		fprintf(stderr, "load: %s: %s\n", options.device, strerror(errno));
		return 1;
	}
	report();
	return tally.errors || tally.corrupt ? 1 : 0;
}
