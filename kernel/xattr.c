// SPDX-License-Identifier: GPL-2.0-only
/*
 * system.dmemfs.nodes: how much of a file's memory lies on each node, in
 * bytes, as "0=268435456,1=134217728"; empty while it has none. For ordinary
 * memory numa_maps says so, which knows nothing without struct pages.
 * system.dmemfs.held: how much of that it only holds, in no place of it.
 */

#include <linux/slab.h>
#include <linux/xattr.h>

#include "dmemfs.h"

static void count_pages(struct dmemfs_pool *pool, struct dmemfs_inode *info, unsigned long *pages)
{
	struct dmemfs_extent extent;
	unsigned long index = 0;

	while (dmemfs_next_extent(info, index, &extent)) {
		pages[dmemfs_find_span(pool, extent.page)->node->nid] += extent.count;
		index = extent.index + extent.count;
		cond_resched();
	}
}

static void count_held(struct dmemfs_pool *pool, struct dmemfs_inode *info, unsigned long *pages)
{
	struct dmemfs_extent extent;
	unsigned long page = 0;

	while (dmemfs_next_held(info, page, &extent)) {
		pages[dmemfs_find_span(pool, extent.page)->node->nid] += extent.count;
		page = extent.page + extent.count;
		cond_resched();
	}
}

static int get_nodes(const struct xattr_handler *handler, struct dentry *dentry,
		     struct inode *inode, const char *name, void *buffer, size_t size)
{
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	unsigned long *pages;
	int nid, length = 0;
	char *text;

	if (!S_ISREG(inode->i_mode))
		return -ENODATA;
	pages = kcalloc(nr_node_ids, sizeof(*pages), GFP_KERNEL);
	text = kmalloc(PAGE_SIZE, GFP_KERNEL);	/* at most DMEMFS_MAX_REGIONS nodes */
	if (!pages || !text) {
		length = -ENOMEM;
		goto out;
	}
	inode_lock_shared(inode);
	if (!handler->flags)
		count_pages(pool, DMEMFS_I(inode), pages);
	count_held(pool, DMEMFS_I(inode), pages);
	inode_unlock_shared(inode);
	for_each_node_mask(nid, pool->node_mask)
		if (pages[nid])
			length += scnprintf(text + length, PAGE_SIZE - length, "%s%d=%llu",
					    length ? "," : "", nid,
					    (u64)pages[nid] << pool->page_shift);
	if (size && size < length)
		length = -ERANGE;
	else if (size)
		memcpy(buffer, text, length);
out:
	kfree(text);
	kfree(pages);
	return length;
}

static const struct xattr_handler nodes_handler = {
	.name	= "system.dmemfs.nodes",
	.get	= get_nodes,
};

static const struct xattr_handler held_handler = {
	.name	= "system.dmemfs.held",
	.flags	= 1,
	.get	= get_nodes,
};

const struct xattr_handler *dmemfs_xattr_handlers[] = { &nodes_handler, &held_handler, NULL };
