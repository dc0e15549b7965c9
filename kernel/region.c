// SPDX-License-Identifier: GPL-2.0-only
/*
 * Validate regions: RAM in the firmware's map, unused by the kernel. Anything
 * else is rejected with the reason.
 */

#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/memory.h>

#include "dmemfs.h"

#ifdef CONFIG_X86_64
#define PHYS_LIMIT	(1ULL << boot_cpu_data.x86_phys_bits)
#define WITHHELD_BY	"memmap=SIZE$BASE"
#else
#define PHYS_LIMIT	(1ULL << id_aa64mmfr0_parange_to_phys_shift(			\
				read_sanitised_ftr_reg(SYS_ID_AA64MMFR0_EL1) & 0xf))
#define WITHHELD_BY	"mem=SIZE"
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
	u64 limit = PHYS_LIMIT;
	/* what persist= needs may lie behind the last whole page */
	u64 unit = region->used == region->size ? page : PAGE_SIZE;

	if (!IS_ALIGNED(region->start, page) || !IS_ALIGNED(region->size, unit)) {
		refuse(fc, region, "is not aligned to the page size of 0x%llx", page);
		return -EINVAL;
	}
	if (region->start + region->size < region->start || region->start + region->size > limit) {
		refuse(fc, region, "ends above what this CPU can address (0x%llx)", limit);
		return -EINVAL;
	}
	return 0;
}

/* The entry that has @at and is RAM; NULL if none is. */
static const struct dmemfs_range *ram_at(const struct dmemfs_map *map, u64 at)
{
	unsigned int i;

	for (i = 0; i < map->count; i++)
		if (map->ranges[i].ram && map->ranges[i].start <= at && at < map->ranges[i].end)
			return &map->ranges[i];
	return NULL;
}

static int compare_to_map(struct fs_context *fc, struct dmemfs_region *region,
			  const struct dmemfs_map *map)
{
	u64 at = region->start, end = region->start + region->size;
	unsigned int i;

	for (i = 0; i < map->count; i++) {
		const struct dmemfs_range *range = &map->ranges[i];

		if (!range->ram && range->start < end && range->end > at) {
			refuse(fc, region,
			       "is not all RAM in the firmware's map: 0x%llx+0x%llx is \"%s\"",
			       range->start, range->end - range->start, range->what);
			return -EINVAL;
		}
	}
	/* and no gap between two entries of the map */
	while (at < end) {
		const struct dmemfs_range *range = ram_at(map, at);

		if (!range) {
			refuse(fc, region, "is not all RAM in the firmware's map: 0x%llx is not",
			       at);
			return -EINVAL;
		}
		at = range->end;
	}
	return 0;
}

static int check_firmware(struct fs_context *fc, struct dmemfs_region *region)
{
	struct dmemfs_map map;
	int err = dmemfs_read_firmware_map(&map);

	if (err)
		refuse(fc, region, "cannot be checked: the firmware's map is not readable (%d)", err);
	else
		err = compare_to_map(fc, region, &map);
	dmemfs_free_firmware_map(&map);
	return err;
}

static int check_kernel(struct fs_context *fc, struct dmemfs_region *region)
{
	u64 at, end = region->start + region->size;

	if (region_intersects(region->start, region->size, IORESOURCE_SYSTEM_RAM,
			      IORES_DESC_NONE) != REGION_DISJOINT) {
		refuse(fc, region,
		       "is the kernel's own memory (System RAM); reserve it by " WITHHELD_BY);
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
