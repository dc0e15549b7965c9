// SPDX-License-Identifier: GPL-2.0-only
/* There is a policy of weighted interleaving (6.9). */
#include <linux/mempolicy.h>

int probe = MPOL_WEIGHTED_INTERLEAVE;
