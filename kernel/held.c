// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that was punched or truncated from a file that was ever mapped
 * remains the file's: a driver that looked up a page frame of a mapping
 * (VFIO's type 1 does, without a reference) may have a device write there
 * long after the mapping lost it. So the frame must not become another file's
 * while this one exists. New allocations of the file use held pages first.
 */

#include "dmemfs.h"

#define ZERO_AT_ONCE	SZ_64M	/* as in pool.c: the allocation zeroes all of it */

static struct dmemfs_extent *entry(struct rb_node *node)
{
	return rb_entry_safe(node, struct dmemfs_extent, rb);
}

/* Find the first run that ends behind @page. */
static struct dmemfs_extent *at_or_after(const struct dmemfs_inode *info, unsigned long page)
{
	struct rb_node *node = info->held.rb_node;
	struct dmemfs_extent *found = NULL;

	while (node) {
		struct dmemfs_extent *extent = entry(node);

		if (extent->page + extent->count > page) {
			found = extent;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	return found;
}

static void count_held(struct dmemfs_node *node, long pages)
{
	spin_lock(&node->lock);
	node->held += pages;
	spin_unlock(&node->lock);
}

static void link_held(struct dmemfs_inode *info, struct dmemfs_extent *extent)
{
	struct rb_node **link = &info->held.rb_node, *parent = NULL;

	while (*link) {
		parent = *link;
		link = extent->page < entry(parent)->page ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&extent->rb, parent, link);
	rb_insert_color(&extent->rb, &info->held);
}

static void drop_held(struct dmemfs_inode *info, struct dmemfs_extent *extent)
{
	rb_erase(&extent->rb, &info->held);
	dmemfs_free_extent(extent);
}

/* Hold pages that are the file's and in no place of it; takes ownership of @extent. */
void dmemfs_hold(struct dmemfs_pool *pool, struct dmemfs_inode *info,
		 struct dmemfs_extent *extent)
{
	struct dmemfs_extent *before, *after;

	spin_lock(&info->lock);
	count_held(dmemfs_find_span(pool, extent->page)->node, extent->count);
	after = at_or_after(info, extent->page);
	before = entry(after ? rb_prev(&after->rb) : rb_last(&info->held));
	if (before && dmemfs_continues(pool, before, extent)) {
		before->count += extent->count;
		dmemfs_free_extent(extent);
		extent = before;
	} else {
		link_held(info, extent);
	}
	if (after && dmemfs_continues(pool, extent, after)) {
		extent->count += after->count;
		drop_held(info, after);
	}
	spin_unlock(&info->lock);
}

/* Take the first pages of a run; they are dirty, and devices may still write to them. */
static void take_first(struct dmemfs_pool *pool, struct dmemfs_inode *info,
		       struct dmemfs_extent *extent, unsigned long want, struct dmemfs_run *run)
{
	run->page = extent->page;
	run->count = min3(want, extent->count, max(ZERO_AT_ONCE >> pool->page_shift, 1UL));
	run->dirty = true;
	run->held = true;
	count_held(dmemfs_find_span(pool, run->page)->node, -(long)run->count);
	extent->page += run->count;
	extent->count -= run->count;
	if (!extent->count)
		drop_held(info, extent);
}

/* Take up to @want contiguous pages that the file holds on @node, preferably from page @hint on. */
bool dmemfs_take_held(struct dmemfs_inode *info, struct dmemfs_node *node, unsigned long want,
		      unsigned long hint, struct dmemfs_run *run)
{
	struct dmemfs_extent *extent = NULL;
	struct dmemfs_span *span;

	if (RB_EMPTY_ROOT(&info->held))
		return false;
	spin_lock(&info->lock);
	list_for_each_entry(span, &node->spans, list) {
		struct dmemfs_extent *found;

		if (hint >= span->first && hint - span->first < span->pages) {
			found = at_or_after(info, hint);
			if (found && found->page == hint) {
				extent = found;
				break;
			}
		}
		found = at_or_after(info, span->first);
		if (!extent && found && found->page - span->first < span->pages)
			extent = found;
	}
	if (extent)
		take_first(node->pool, info, extent, want, run);
	spin_unlock(&info->lock);
	return extent;
}

/* Take held pages of the file on any node. */
bool dmemfs_take_any_held(struct dmemfs_pool *pool, struct dmemfs_inode *info, unsigned long want,
			  struct dmemfs_run *run)
{
	struct dmemfs_extent *extent;

	spin_lock(&info->lock);
	extent = entry(rb_first(&info->held));
	if (extent)
		take_first(pool, info, extent, want, run);
	spin_unlock(&info->lock);
	return extent;
}

/* Find the first run that the file holds at or after @page. */
bool dmemfs_next_held(struct dmemfs_inode *info, unsigned long page, struct dmemfs_extent *found)
{
	struct dmemfs_extent *extent;

	spin_lock(&info->lock);
	extent = at_or_after(info, page);
	if (extent) {
		found->page = max(page, extent->page);
		found->count = extent->page + extent->count - found->page;
	}
	spin_unlock(&info->lock);
	return extent;
}

/* The file is evicted, without openers and mappers: release all held pages. */
void dmemfs_let_go(struct dmemfs_pool *pool, struct dmemfs_inode *info)
{
	struct dmemfs_extent *extent;

	while ((extent = entry(rb_first(&info->held)))) {
		count_held(dmemfs_find_span(pool, extent->page)->node, -(long)extent->count);
		dmemfs_give_back(pool, extent->page, extent->count, false, false);
		drop_held(info, extent);
		cond_resched();
	}
}

/*
 * Charge up to @want more pages of the pool to the file, but never more than
 * @limit in total: including held pages it could otherwise own a multiple of
 * its size, by alternating between nodes. Return the number charged.
 */
unsigned long dmemfs_charge(struct dmemfs_inode *info, unsigned long want, unsigned long limit)
{
	spin_lock(&info->lock);
	want = min(want, limit > info->owned ? limit - info->owned : 0);
	info->owned += want;
	spin_unlock(&info->lock);
	return want;
}

/* Uncharge pages that the file returned to the pool. */
void dmemfs_uncharge(struct dmemfs_inode *info, unsigned long pages)
{
	spin_lock(&info->lock);
	info->owned -= pages;
	spin_unlock(&info->lock);
}
