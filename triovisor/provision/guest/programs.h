// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/* The guest's programs, each of them the main() of its file; one executable holds them all, see main.c. */
int init_main(void);
int agent_main(int argc, char **argv);
int records_main(int argc, char **argv);
int load_main(int argc, char **argv);
int zero_main(int argc, char **argv);
