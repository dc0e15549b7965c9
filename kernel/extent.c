// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a file has, as runs of pages in a tree: a file that got its memory in
 * a row costs one entry, whatever its size.
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

static struct dmemfs_extent *entry(struct rb_node *node)
{
	return rb_entry_safe(node, struct dmemfs_extent, rb);
}

/* The last extent that starts at @index or before. */
static struct dmemfs_extent *at_or_before(const struct dmemfs_inode *info, unsigned long index)
{
	struct rb_node *node = info->extents.rb_node;
	struct dmemfs_extent *found = NULL;

	while (node) {
		struct dmemfs_extent *extent = entry(node);

		if (extent->index <= index) {
			found = extent;
			node = node->rb_right;
		} else {
			node = node->rb_left;
		}
	}
	return found;
}

/* The first extent that ends behind @index. */
static struct dmemfs_extent *at_or_after(const struct dmemfs_inode *info, unsigned long index)
{
	struct dmemfs_extent *extent = at_or_before(info, index);

	if (!extent)
		return entry(rb_first(&info->extents));
	return extent->index + extent->count > index ? extent : entry(rb_next(&extent->rb));
}

/* Where page @index is; if nowhere, @hint is the page that would continue what is before it. */
bool dmemfs_lookup(struct dmemfs_inode *info, unsigned long index, unsigned long *page,
		   unsigned long *hint)
{
	struct dmemfs_extent *extent;
	bool found = false;

	*hint = ULONG_MAX;
	spin_lock(&info->lock);
	extent = at_or_before(info, index);
	if (extent) {
		found = index - extent->index < extent->count;
		*page = extent->page + (index - extent->index);
		*hint = *page;
	}
	spin_unlock(&info->lock);
	return found;
}

/* The first run of pages that the file has at or after @index. */
bool dmemfs_next_data(struct dmemfs_inode *info, unsigned long index, unsigned long *start,
		      unsigned long *end)
{
	struct dmemfs_extent *extent;
	bool found;

	spin_lock(&info->lock);
	extent = at_or_after(info, index);
	found = extent;
	if (found) {
		*start = max(index, extent->index);
		*end = extent->index;
	}
	while (extent && extent->index == *end) {
		*end += extent->count;
		extent = entry(rb_next(&extent->rb));
	}
	spin_unlock(&info->lock);
	return found;
}

/* What the file has at or after @index, on one node and in a row there too. */
bool dmemfs_next_extent(struct dmemfs_inode *info, unsigned long index,
			struct dmemfs_extent *found)
{
	struct dmemfs_extent *extent;

	spin_lock(&info->lock);
	extent = at_or_after(info, index);
	if (extent) {
		found->index = max(index, extent->index);
		found->page = extent->page + (found->index - extent->index);
		found->count = extent->index + extent->count - found->index;
	}
	spin_unlock(&info->lock);
	return extent;
}

static bool continues(struct dmemfs_pool *pool, const struct dmemfs_extent *a,
		      const struct dmemfs_extent *b)
{
	return a->index + a->count == b->index && a->page + a->count == b->page &&
	       dmemfs_find_span(pool, a->page) == dmemfs_find_span(pool, b->page);
}

static void link_extent(struct dmemfs_inode *info, struct dmemfs_extent *extent)
{
	struct rb_node **link = &info->extents.rb_node, *parent = NULL;

	while (*link) {
		parent = *link;
		link = extent->index < entry(parent)->index ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&extent->rb, parent, link);
	rb_insert_color(&extent->rb, &info->extents);
}

/* Give the file what it does not have at that place; @extent is ours from now on. */
void dmemfs_insert(struct dmemfs_pool *pool, struct dmemfs_inode *info,
		   struct dmemfs_extent *extent)
{
	struct dmemfs_extent *before, *after;

	spin_lock(&info->lock);
	info->pages += extent->count;
	before = at_or_before(info, extent->index);
	after = before ? entry(rb_next(&before->rb)) : entry(rb_first(&info->extents));
	if (before && continues(pool, before, extent)) {
		before->count += extent->count;
		dmemfs_free_extent(extent);
		extent = before;
	} else {
		link_extent(info, extent);
	}
	if (after && continues(pool, extent, after)) {
		extent->count += after->count;
		rb_erase(&after->rb, &info->extents);
		dmemfs_free_extent(after);
	}
	spin_unlock(&info->lock);
}

/*
 * Take pages @index to @end from the file; nobody maps them any more. The
 * memory to divide one extent is had before anything is done.
 */
int dmemfs_remove(struct dmemfs_pool *pool, struct dmemfs_inode *info, unsigned long index,
		  unsigned long end)
{
	struct dmemfs_extent *spare = NULL, *extent;

	if (index && end != ULONG_MAX) {
		spare = dmemfs_new_extent();
		if (!spare)
			return -ENOMEM;
	}
	for (;;) {
		unsigned long from, to, page;

		spin_lock(&info->lock);
		extent = at_or_after(info, index);
		if (!extent || extent->index >= end)
			break;
		from = max(index, extent->index);
		to = min(end, extent->index + extent->count);
		page = extent->page + (from - extent->index);
		if (to < extent->index + extent->count && from > extent->index) {
			spare->index = to;
			spare->page = page + (to - from);
			spare->count = extent->index + extent->count - to;
			extent->count = from - extent->index;
			link_extent(info, spare);
			spare = NULL;
			extent = NULL;
		} else if (to < extent->index + extent->count) {
			extent->count -= to - from;
			extent->page += to - from;
			extent->index = to;
			extent = NULL;
		} else if (from > extent->index) {
			extent->count = from - extent->index;
			extent = NULL;
		} else {
			rb_erase(&extent->rb, &info->extents);
		}
		info->pages -= to - from;
		spin_unlock(&info->lock);
		dmemfs_free_extent(extent);
		dmemfs_give_back(pool, page, to - from, false, false);
		cond_resched();
	}
	spin_unlock(&info->lock);
	dmemfs_free_extent(spare);
	return 0;
}
