// SPDX-License-Identifier: GPL-2.0-only
/* A name that lives without being used is marked as such, and any umount takes it away (by 7.2). */
#include <linux/dcache.h>

void *probe = d_make_persistent;
