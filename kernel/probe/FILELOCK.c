// SPDX-License-Identifier: GPL-2.0-only
/* Leases have a header of their own (6.3). */
#include <linux/filelock.h>

void *probe = generic_setlease;
