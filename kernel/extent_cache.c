// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory for runs of pages: those in a place of a file (extent.c), and those
 * that it only holds (held.c).
 */

#include <linux/slab.h>

#include "dmemfs.h"

static struct kmem_cache *extent_cache;

int dmemfs_init_extents(void)
{
	extent_cache = KMEM_CACHE(dmemfs_extent, 0);
	return extent_cache ? 0 : -ENOMEM;
}

void dmemfs_exit_extents(void)
{
	kmem_cache_destroy(extent_cache);
}

struct dmemfs_extent *dmemfs_new_extent(void)
{
	return kmem_cache_alloc(extent_cache, GFP_KERNEL);
}

void dmemfs_free_extent(struct dmemfs_extent *extent)
{
	if (extent)
		kmem_cache_free(extent_cache, extent);
}
