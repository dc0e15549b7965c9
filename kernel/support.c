// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whether guests can run on such memory here. Where they would hang or die,
 * nothing is mounted at all: see
 * docs/development/decisions/0013-mixed-maps.md.
 */

#include "dmemfs.h"

#ifdef CONFIG_ARM64

#include <asm/cpufeature.h>

/* The reason why not, a sentence without its end; NULL where they can. */
const char *dmemfs_unsupported(void)
{
	if (PAGE_SIZE != SZ_4K)
		return "on arm64 it needs a kernel with pages of 4 KiB";
#ifndef HAVE_CACHEABLE_PFNMAP
	return "this kernel's KVM takes memory without struct pages for a device's, and guests stop at their first instruction; Linux 7.3 does not";
#endif
#ifndef HAVE_WALKS_ASK
	return "on this kernel QEMU would abort when a guest on such memory is migrated or saved; on Linux 7.3 it does not";
#endif
	if (!cpus_have_final_cap(ARM64_HAS_STAGE2_FWB) || !cpus_have_final_cap(ARM64_HAS_CACHE_DIC))
		return "KVM needs FEAT_S2FWB and CTR_EL0.DIC for memory without struct pages, and a CPU of this host lacks one of them";
	return NULL;
}

#elif defined(CONFIG_X86_64)

const char *dmemfs_unsupported(void)
{
	return NULL;
}

#else
#error "dmemfs is for x86-64 and arm64: elsewhere nobody has tried whether guests can run on it"
#endif
