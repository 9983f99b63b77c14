// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once
#include <stdint.h>

enum { MODE_POWEROFF, MODE_REBOOT, MODE_HALT };

/*
 * Ends the guest: SIGTERM to every process, SIGKILL to what is left after `grace_ms` (at most a minute), sync, file
 * systems read-only, reboot(2). Never returns.
 */
_Noreturn void shut_down(int mode, uint32_t grace_ms);
