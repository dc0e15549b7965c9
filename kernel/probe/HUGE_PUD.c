// SPDX-License-Identifier: GPL-2.0-only
/* Entries of a PUD can be of raw PFNs too: not on arm64. */
#include <linux/mm.h>

#ifndef CONFIG_ARCH_SUPPORTS_PUD_PFNMAP
#error "no PUD entries"
#endif
