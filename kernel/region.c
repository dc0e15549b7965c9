// SPDX-License-Identifier: GPL-2.0-only
/*
 * Validate regions: RAM in the firmware's map, unused by the kernel. Anything
 * else is rejected with the reason.
 */

#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/memory.h>
#include <linux/sched.h>
#include <asm/e820/api.h>

#include "dmemfs.h"

#ifndef CONFIG_X86_64
#error "dmemfs is for x86-64 only: elsewhere nothing tells a module what is RAM to the firmware"
#endif

#define EDGE		(1UL << SECTION_SIZE_BITS) /* the memory map comes in 128 MiB */
#define MAP_STEP	PMD_SIZE			/* a valid PFN comes with this much */

/* to the fs context's log and to the kernel log, where errorf() writes if there is no such log */
#define refuse(fc, region, format, ...)						\
({										\
	if ((fc)->log.log)							\
		pr_err("dmemfs: region 0x%llx+0x%llx " format "\n",		\
		       (u64)(region)->start, (region)->size, ##__VA_ARGS__);		\
	errorf(fc, "dmemfs: region 0x%llx+0x%llx " format,			\
	       (u64)(region)->start, (region)->size, ##__VA_ARGS__);		\
})

static int check_shape(struct fs_context *fc, struct dmemfs_region *region, unsigned int page_shift)
{
	u64 page = 1ULL << page_shift;
	u64 limit = 1ULL << boot_cpu_data.x86_phys_bits;

	if (!IS_ALIGNED(region->start, page) || !IS_ALIGNED(region->size, page)) {
		refuse(fc, region, "is not aligned to the page size of 0x%llx", page);
		return -EINVAL;
	}
	if (region->start + region->size < region->start || region->start + region->size > limit) {
		refuse(fc, region, "ends above what this CPU can address (0x%llx)", limit);
		return -EINVAL;
	}
	return 0;
}

static int check_firmware(struct fs_context *fc, struct dmemfs_region *region)
{
	static const enum e820_type others[] = {
		E820_TYPE_RESERVED, E820_TYPE_ACPI, E820_TYPE_NVS, E820_TYPE_UNUSABLE,
		E820_TYPE_PMEM, E820_TYPE_PRAM, E820_TYPE_SOFT_RESERVED,
	};
	u64 at, end = region->start + region->size;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		if (e820__mapped_raw_any(region->start, end, others[i])) {
			refuse(fc, region,
			       "is not all RAM in the firmware's map: a part has type %u",
			       others[i]);
			return -EINVAL;
		}
	}
	/* and no gap between two entries of the map */
	for (at = region->start; at < end; at += PAGE_SIZE) {
		if (!e820__mapped_raw_any(at, at + PAGE_SIZE, E820_TYPE_RAM)) {
			refuse(fc, region, "is not all RAM in the firmware's map: 0x%llx is not",
			       at);
			return -EINVAL;
		}
		if (!(at & (SZ_128M - 1))) {
			cond_resched();
			if (fatal_signal_pending(current))
				return -EINTR;
		}
	}
	return 0;
}

static int check_kernel(struct fs_context *fc, struct dmemfs_region *region)
{
	u64 at, end = region->start + region->size;

	if (region_intersects(region->start, region->size, IORESOURCE_SYSTEM_RAM,
			      IORES_DESC_NONE) != REGION_DISJOINT) {
		refuse(fc, region,
		       "is the kernel's own memory (System RAM); reserve it by memmap=SIZE$BASE");
		return -EBUSY;
	}
	for (at = region->start; at < end; at += MAP_STEP - (at & (MAP_STEP - 1))) {
		if (pfn_valid(PHYS_PFN(at))) {
			refuse(fc, region,
			       "has struct pages at 0x%llx; its ends must be multiples of 128 MiB",
			       at);
			return -EINVAL;
		}
	}
	if (pfn_valid(PHYS_PFN(end - 1))) {
		refuse(fc, region,
		       "has struct pages at 0x%llx; its ends must be multiples of 128 MiB",
		       end - 1);
		return -EINVAL;
	}
	if (!IS_ALIGNED(region->start, EDGE) || !IS_ALIGNED(end, EDGE))
		pr_warn("dmemfs: region 0x%llx+0x%llx: an end is no multiple of 128 MiB\n",
			(u64)region->start, region->size);
	return 0;
}

/* Take the region for this mount. -EBUSY when another has it. */
int dmemfs_claim_region(struct fs_context *fc, struct dmemfs_region *region,
			unsigned int page_shift)
{
	int err = check_shape(fc, region, page_shift);

	if (!err)
		err = check_kernel(fc, region);
	if (!err)
		err = check_firmware(fc, region);
	if (err)
		return err;
	region->claim = request_mem_region(region->start, region->size, "dmemfs");
	if (!region->claim) {
		refuse(fc, region,
		       "is in use already, by another mount or a driver (see /proc/iomem)");
		return -EBUSY;
	}
	/*
	 * Held as long as the mount lives: it is what makes the memory
	 * write-back for user mappings too (PAT), and what it is zeroed by.
	 */
	region->va = memremap(region->start, region->size, MEMREMAP_WB);
	if (!region->va) {
		release_mem_region(region->start, region->size);
		region->claim = NULL;
		refuse(fc, region, "cannot be mapped write-back");
		return -ENOMEM;
	}
	return 0;
}

void dmemfs_release_region(struct dmemfs_region *region)
{
	if (region->va)
		memunmap(region->va);
	if (region->claim)
		release_mem_region(region->start, region->size);
	region->va = NULL;
	region->claim = NULL;
}
