// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * zero: makes a range of a block device read as zeros without sending any: busybox's blkdiscard has no -z.
 *
 *   zero DEVICE OFFSET LENGTH [unmap]
 *   Bytes, whole sectors. With `unmap` the device may give the space back (fallocate(2), FALLOC_FL_PUNCH_HOLE), and it is
 *   an error where it can do no zeros of its own; without, the space stays (BLKZEROOUT), and Linux helps such a device out.
 *
 * Exit status: 0, 1 where the device refused, 2 for a wrong command line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "programs.h"

int zero_main(int argc, char **argv)
{
	if (argc < 4 || argc > 5 || (argc == 5 && strcmp(argv[4], "unmap"))) {
		fputs("zero: DEVICE OFFSET LENGTH [unmap]\n", stderr);
		return 2;
	}
	int device = open(argv[1], O_RDWR | O_EXCL | O_CLOEXEC);
	uint64_t range[2] = {strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0)};
	int refused = device < 0;
	if (!refused && argc == 5)
		refused = fallocate(device, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range[0], range[1]);
	else if (!refused)
		refused = ioctl(device, BLKZEROOUT, range);
	if (refused)
		fprintf(stderr, "zero: %s: %s\n", argv[1], strerror(errno));
	return refused ? 1 : 0;
}
