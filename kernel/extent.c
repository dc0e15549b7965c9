// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a file has, as runs of pages in a tree: a file that got its memory in
 * a row costs one entry, whatever its size.
 */

#include "dmemfs.h"

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

/* Find page @index; if there is none, @hint is the page that would continue the preceding run. */
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

/* Find the file's first run at or after @index: contiguous, on one node. */
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
	return a->index + a->count == b->index && dmemfs_continues(pool, a, b);
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

/* Insert a run where the file has none; takes ownership of @extent. */
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

/* Leave to @rest what of a file's extent lies at or behind @index, and put that in too. */
static void divide(struct dmemfs_inode *info, struct dmemfs_extent *extent, unsigned long index,
		   struct dmemfs_extent *rest)
{
	unsigned long keep = index - extent->index;

	rest->index = index;
	rest->page = extent->page + keep;
	rest->count = extent->count - keep;
	extent->count = keep;
	link_extent(info, rest);
}

/*
 * Remove pages @index to @end, which are unmapped by now, from the file. They
 * are held if the file was ever mapped: a driver may have looked up their
 * frames and still use them, as VFIO does. The memory to split the first and
 * the last extent is allocated before anything is changed.
 */
int dmemfs_remove(struct dmemfs_pool *pool, struct dmemfs_inode *info, unsigned long index,
		  unsigned long end)
{
	struct dmemfs_extent *first = dmemfs_new_extent(), *last = dmemfs_new_extent(), *extent;
	int err = first && last ? 0 : -ENOMEM;

	while (!err) {
		spin_lock(&info->lock);
		extent = at_or_after(info, index);
		if (!extent || extent->index >= end) {
			spin_unlock(&info->lock);
			break;
		}
		if (extent->index < index) {
			divide(info, extent, index, first);
			extent = first;
			first = NULL;
		}
		if (end - extent->index < extent->count) {
			divide(info, extent, end, last);
			last = NULL;
		}
		rb_erase(&extent->rb, &info->extents);
		info->pages -= extent->count;
		spin_unlock(&info->lock);
		if (READ_ONCE(info->mapped)) {
			dmemfs_hold(pool, info, extent);
		} else {
			dmemfs_uncharge(info, extent->count);
			dmemfs_give_back(pool, extent->page, extent->count, false, false);
			dmemfs_free_extent(extent);
		}
		cond_resched();
	}
	dmemfs_free_extent(first);
	dmemfs_free_extent(last);
	return err;
}

/* The file is evicted: free all its runs. */
void dmemfs_remove_all(struct dmemfs_pool *pool, struct dmemfs_inode *info)
{
	struct dmemfs_extent *extent;

	while ((extent = entry(rb_first(&info->extents)))) {
		rb_erase(&extent->rb, &info->extents);
		dmemfs_give_back(pool, extent->page, extent->count, false, false);
		dmemfs_free_extent(extent);
		cond_resched();
	}
	dmemfs_let_go(pool, info);
}
