// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * records: writes what must not be lost, and looks whether it was.
 *
 *   records write FILE [count=N] [seconds=S] [slow_ms=MS] [run=N] [every_ms=MS]
 *     Appends records of 4 KiB, each written and then fdatasync'ed before the next, until SIGTERM or SIGINT, or `count` or
 *     `seconds` are reached. Prints `acked SEQ` once in `every_ms` (50): all records up to SEQ are on the disk. Then, in
 *     one line of JSON: {"acknowledged": records of this run, "last": SEQ or -1, "io_errors": N, "median_ms", "p95_ms",
 *     "max_ms", "outages": [{"seq", "at_s": since the start, "ms"}, …], "outages_not_listed": N}. An outage is a record
 *     that took longer than `slow_ms` (20); the longest 256 are listed.
 *   records verify FILE acked=SEQ [run=N]
 *     Reads records 0 … SEQ past the page cache and prints {"verified", "lost", "corrupt", "first_bad": SEQ or -1}:
 *     lost: not there, or zeros; corrupt: something else is there.
 *
 * Exit status: 0 nothing is wrong, 1 an I/O error, a lost or a corrupt record, 2 a wrong command line.
 * A record: u64 magic, u64 run, u64 seq, u32 zero, u32 CRC-32 of the whole with this field zero, then words that
 * follow from run and seq. A record of another run, or of another place, is so corrupt too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "programs.h"

enum { SIZE = 4096, WORDS = SIZE / 8, BODY = 4, CRC_AT = 28 };
enum { MAX_OUTAGES = 256, BUCKETS = 1 << 16, BUCKET_US = 20, RETRY_MS = 10, MAX_RETRIES = 500 };
static const uint64_t MAGIC = 0x5644524f43455254; /* "TRECORDV" */

static uint32_t crc_table[256];
static volatile sig_atomic_t stopped;

struct options {
	long long count, seconds, slow_ms, every_ms, acked, run;
};

struct outage {
	long long seq;
	double at_s, ms;
};

struct tally {
	long long acknowledged, last, io_errors, outages;
	double started, max_ms;
	uint32_t buckets[BUCKETS]; /* latencies, BUCKET_US each; the last holds all longer ones */
	struct outage outage[MAX_OUTAGES];
};

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

static void make_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t value = i;
		for (int bit = 0; bit < 8; bit++)
			value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
		crc_table[i] = value;
	}
}

static uint32_t crc32(const void *data, size_t size)
{
	uint32_t crc = ~0u;
	for (const unsigned char *at = data; size--; at++)
		crc = crc >> 8 ^ crc_table[(crc ^ *at) & 255];
	return ~crc;
}

static void make_record(uint64_t *record, uint64_t run, uint64_t seq)
{
	uint64_t value = run * 0x9e3779b97f4a7c15 ^ seq * 0xc2b2ae3d27d4eb4f;
	record[0] = MAGIC;
	record[1] = run;
	record[2] = seq;
	record[3] = 0;
	for (int i = BODY; i < WORDS; i++)
		record[i] = value = value * 6364136223846793005 + 1442695040888963407;
	uint32_t crc = crc32(record, SIZE);
	memcpy((char *)record + CRC_AT, &crc, sizeof crc);
}

static void on_signal(int number)
{
	(void)number;
	stopped = true;
}

/* The longest MAX_OUTAGES are kept. */
static void keep_outage(struct tally *tally, struct outage outage)
{
	struct outage *place = &tally->outage[tally->outages++];
	if (tally->outages > MAX_OUTAGES) {
		place = tally->outage;
		for (struct outage *other = place; other < tally->outage + MAX_OUTAGES; other++)
			if (other->ms < place->ms)
				place = other;
		if (place->ms >= outage.ms)
			return;
	}
	*place = outage;
}

static int by_seq(const void *a, const void *b)
{
	long long first = ((const struct outage *)a)->seq, second = ((const struct outage *)b)->seq;
	return (first > second) - (first < second);
}

static void count_latency(struct tally *tally, long long seq, double start, double ms, long long slow_ms)
{
	uint64_t bucket = ms * 1000 / BUCKET_US;
	tally->buckets[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	if (ms > tally->max_ms)
		tally->max_ms = ms;
	if (ms > slow_ms)
		keep_outage(tally, (struct outage){seq, start - tally->started, ms});
}

/* Writes one record until it is acknowledged. False when it never is; each failed try is an I/O error of the guest. */
static bool write_record(int fd, const uint64_t *record, long long seq, struct tally *tally)
{
	for (int tries = 0; tries < MAX_RETRIES; tries++) {
		if (pwrite(fd, record, SIZE, seq * SIZE) == SIZE && !fdatasync(fd))
			return true;
		tally->io_errors++;
		if (tries == 0)
			fprintf(stderr, "records: record %lld: %s\n", seq, strerror(errno));
		if (stopped)
			return false;
		nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000}, NULL);
	}
	return false;
}

static double percentile(const struct tally *tally, double share)
{
	long long seen = 0, wanted = share * tally->acknowledged;
	for (int i = 0; i < BUCKETS - 1; i++)
		if ((seen += tally->buckets[i]) > wanted)
			return (i + 0.5) * BUCKET_US / 1000;
	return tally->max_ms;
}

static void report(struct tally *tally)
{
	printf("{\"acknowledged\": %lld, \"last\": %lld, \"io_errors\": %lld, \"median_ms\": %.2f, \"p95_ms\": %.2f, "
	       "\"max_ms\": %.2f, \"outages\": [", tally->acknowledged, tally->last, tally->io_errors,
	       percentile(tally, 0.5), percentile(tally, 0.95), tally->max_ms);
	long long kept = tally->outages < MAX_OUTAGES ? tally->outages : MAX_OUTAGES;
	qsort(tally->outage, kept, sizeof tally->outage[0], by_seq);
	for (long long i = 0; i < kept; i++)
		printf("%s{\"seq\": %lld, \"at_s\": %.4f, \"ms\": %.2f}", i ? ", " : "", tally->outage[i].seq,
		       tally->outage[i].at_s, tally->outage[i].ms);
	printf("], \"outages_not_listed\": %lld}\n", tally->outages - kept);
}

static int write_records(const char *path, const struct options *options)
{
	static struct tally tally;
	static uint64_t record[WORDS];
	struct stat file;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0 || fstat(fd, &file)) {
		fprintf(stderr, "records: open %s: %s\n", path, strerror(errno));
		return 1;
	}
	struct sigaction stop = {.sa_handler = on_signal};
	sigaction(SIGTERM, &stop, NULL);
	sigaction(SIGINT, &stop, NULL);
	double told = tally.started = now();
	tally.last = file.st_size / SIZE - 1;
	while (!stopped && (!options->count || tally.acknowledged < options->count)) {
		long long seq = tally.last + 1;
		make_record(record, options->run, seq);
		double start = now();
		if (!write_record(fd, record, seq, &tally))
			break;
		double end = now();
		tally.last = seq;
		tally.acknowledged++;
		count_latency(&tally, seq, start, (end - start) * 1000, options->slow_ms);
		if ((end - told) * 1000 >= options->every_ms) {
			printf("acked %lld\n", seq);
			fflush(stdout);
			told = end;
		}
		if (options->seconds && end - tally.started >= options->seconds)
			break;
	}
	report(&tally);
	return tally.io_errors ? 1 : 0;
}

static bool all_zero(const uint64_t *record)
{
	for (int i = 0; i < WORDS; i++)
		if (record[i])
			return false;
	return true;
}

static int verify_records(const char *path, const struct options *options)
{
	static uint64_t record[WORDS], wanted[WORDS];
	long long verified = 0, lost = 0, corrupt = 0, first_bad = -1;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fprintf(stderr, "records: open %s: %s\n", path, strerror(errno));
	else
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	for (long long seq = 0; seq <= options->acked; seq++) {
		bool there = fd >= 0 && pread(fd, record, SIZE, seq * SIZE) == SIZE && !all_zero(record);
		make_record(wanted, options->run, seq);
		bool good = there && !memcmp(record, wanted, SIZE);
		verified += good;
		lost += !there;
		corrupt += there && !good;
		if (!good && first_bad < 0)
			first_bad = seq;
	}
	printf("{\"verified\": %lld, \"lost\": %lld, \"corrupt\": %lld, \"first_bad\": %lld}\n", verified, lost, corrupt,
	       first_bad);
	return lost || corrupt ? 1 : 0;
}

static bool parse_option(const char *word, struct options *options)
{
	const char *value = strchr(word, '=');
	char *end;
	if (!value)
		return false;
	long long number = strtoll(value + 1, &end, 10);
	size_t length = value - word;
	const struct { const char *name; long long *field; } known[] = {
		{"count", &options->count}, {"seconds", &options->seconds}, {"slow_ms", &options->slow_ms},
		{"every_ms", &options->every_ms}, {"acked", &options->acked}, {"run", &options->run}};
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		if (strlen(known[i].name) == length && !strncmp(known[i].name, word, length)) {
			*known[i].field = number;
			return end != value + 1 && !*end;
		}
	}
	return false;
}

int records_main(int argc, char **argv)
{
	struct options options = {.slow_ms = 20, .every_ms = 50, .acked = -1};
	bool writes = argc > 2 && !strcmp(argv[1], "write"), verifies = argc > 2 && !strcmp(argv[1], "verify");
	bool good = writes || verifies;
	for (int i = 3; good && i < argc; i++)
		good = parse_option(argv[i], &options);
	if (!good) {
		fprintf(stderr, "usage: records write FILE [count=N] [seconds=S] [slow_ms=MS] [run=N] [every_ms=MS]\n"
				"       records verify FILE acked=SEQ [run=N]\n");
		return 2;
	}
	make_crc_table();
	return writes ? write_records(argv[2], &options) : verify_records(argv[2], &options);
}
