// SPDX-License-Identifier: GPL-2.0-only
/* The pages of a mount, by node: taken clean where there are clean ones. */

#include <linux/bitmap.h>
#include <linux/numa.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "dmemfs.h"

#define ZERO_AT_ONCE	SZ_64M	/* of dirty memory, so that zeroing can be interrupted */

/* Take at most @want pages from @at on, which is set in @map. */
static unsigned long take_run(struct dmemfs_span *span, unsigned long *map, unsigned long at,
			      unsigned long want)
{
	unsigned long limit = span->pages - at > want ? at + want : span->pages;
	unsigned long end = find_next_zero_bit(map, limit, at);

	bitmap_clear(map, at, end - at);
	return end - at;
}

static unsigned long search(const unsigned long *map, unsigned long size, unsigned long from)
{
	unsigned long at = find_next_bit(map, size, from);

	return at < size ? at : find_first_bit(map, size);
}

static bool take_clean(struct dmemfs_node *node, unsigned long want, unsigned long hint,
		       struct dmemfs_run *run)
{
	struct dmemfs_span *span;
	unsigned long at;

	list_for_each_entry(span, &node->spans, list) {
		if (hint < span->first || hint - span->first >= span->pages ||
		    !test_bit(hint - span->first, span->clean))
			continue;
		at = hint - span->first;
		goto found;
	}
	list_for_each_entry(span, &node->spans, list) {
		at = search(span->clean, span->pages, span->next_clean);
		if (at < span->pages) {
			span->next_clean = at;
			goto found;
		}
	}
	return false;
found:
	run->page = span->first + at;
	run->count = take_run(span, span->clean, at, want);
	run->dirty = false;
	node->clean -= run->count;
	return true;
}

static bool take_dirty(struct dmemfs_node *node, unsigned long want, struct dmemfs_run *run)
{
	struct dmemfs_span *span;
	unsigned long at;

	want = min(want, max(ZERO_AT_ONCE >> node->pool->page_shift, 1UL));
	list_for_each_entry(span, &node->spans, list) {
		at = search(span->dirty, span->pages, span->next_dirty);
		if (at >= span->pages)
			continue;
		span->next_dirty = at;
		run->page = span->first + at;
		run->count = take_run(span, span->dirty, at, want);
		run->dirty = true;
		node->dirty -= run->count;
		return true;
	}
	return false;
}

/*
 * Take up to @want pages in a row, from page @hint on if it can be. They are
 * to be zeroed by the caller if the run is dirty.
 */
bool dmemfs_take_from(struct dmemfs_node *node, unsigned long want, unsigned long hint,
		      struct dmemfs_run *run)
{
	bool got = false;

	spin_lock(&node->lock);
	if (node->clean)
		got = take_clean(node, want, hint, run);
	else if (node->dirty)
		got = take_dirty(node, want, run);
	spin_unlock(&node->lock);
	return got;
}

struct dmemfs_span *dmemfs_find_span(struct dmemfs_pool *pool, unsigned long page)
{
	unsigned int low = 0, high = pool->nr_spans;

	while (high - low > 1) {
		unsigned int middle = (low + high) / 2;

		if (pool->spans[middle].first <= page)
			low = middle;
		else
			high = middle;
	}
	return &pool->spans[low];
}

/* Whether the pages of @b follow those of @a; two spans have no run together. */
bool dmemfs_continues(struct dmemfs_pool *pool, const struct dmemfs_extent *a,
		      const struct dmemfs_extent *b)
{
	return a->page + a->count == b->page &&
	       dmemfs_find_span(pool, a->page) == dmemfs_find_span(pool, b->page);
}

void *dmemfs_page_va(struct dmemfs_pool *pool, unsigned long page)
{
	struct dmemfs_span *span = dmemfs_find_span(pool, page);

	return span->va + ((page - span->first) << pool->page_shift);
}

/*
 * Free the pages, all of one span; @clean means that they are zeroed,
 * @scrubbed that the scrubber had them (they counted as free).
 */
void dmemfs_give_back(struct dmemfs_pool *pool, unsigned long page, unsigned long count,
		      bool clean, bool scrubbed)
{
	struct dmemfs_span *span = dmemfs_find_span(pool, page);
	struct dmemfs_node *node = span->node;

	spin_lock(&node->lock);
	bitmap_set(clean ? span->clean : span->dirty, page - span->first, count);
	if (clean)
		node->clean += count;
	else
		node->dirty += count;
	if (scrubbed)
		node->scrubbing -= count;
	spin_unlock(&node->lock);
	wake_up_all(&node->wait);
	if (!clean)
		wake_up(&node->work);
}

/* Take exactly these pages, if all of them are there, in one span, and dirty. */
bool dmemfs_claim(struct dmemfs_pool *pool, u64 page, u64 count)
{
	struct dmemfs_span *span = dmemfs_find_span(pool, page);
	struct dmemfs_node *node = span->node;
	u64 at = page - span->first;
	bool free;

	if (page < span->first || at >= span->pages || count > span->pages - at)
		return false;
	spin_lock(&node->lock);
	free = find_next_zero_bit(span->dirty, at + count, at) >= at + count;
	if (free) {
		bitmap_clear(span->dirty, at, count);
		node->dirty -= count;
	}
	spin_unlock(&node->lock);
	return free;
}

void dmemfs_count(struct dmemfs_pool *pool, u64 *total, u64 *available)
{
	int nid;

	*total = 0;
	*available = 0;
	for_each_node_mask(nid, pool->node_mask) {
		struct dmemfs_node *node = pool->nodes[nid];

		spin_lock(&node->lock);
		*total += node->pages;
		*available += node->clean + node->dirty + node->scrubbing;
		spin_unlock(&node->lock);
	}
}

static int node_of(phys_addr_t at)
{
	int nid = phys_to_target_node(at);

	if (nid == NUMA_NO_NODE || nid >= MAX_NUMNODES || !node_possible(nid))
		return first_online_node;
	return nid;
}

static struct dmemfs_node *get_node(struct dmemfs_pool *pool, int nid)
{
	struct dmemfs_node *node = pool->nodes[nid];

	if (node)
		return node;
	node = kzalloc(sizeof(*node), GFP_KERNEL);
	if (!node)
		return NULL;
	node->nid = nid;
	dmemfs_init_node_kobject(node);
	node->pool = pool;
	spin_lock_init(&node->lock);
	INIT_LIST_HEAD(&node->spans);
	init_waitqueue_head(&node->wait);
	init_waitqueue_head(&node->work);
	pool->nodes[nid] = node;
	node_set(nid, pool->node_mask);
	return node;
}

static int add_span(struct dmemfs_pool *pool, const struct dmemfs_region *region, u64 start,
		    u64 end, int nid)
{
	struct dmemfs_node *node = get_node(pool, nid);
	struct dmemfs_span *spans, *span;
	unsigned int at;

	if (!node)
		return -ENOMEM;
	spans = krealloc(pool->spans, (pool->nr_spans + 1) * sizeof(*spans), GFP_KERNEL);
	if (!spans)
		return -ENOMEM;
	pool->spans = spans;
	for (at = pool->nr_spans; at && spans[at - 1].first > start >> pool->page_shift; at--)
		;
	memmove(&spans[at + 1], &spans[at], (pool->nr_spans - at) * sizeof(*spans));
	pool->nr_spans++;
	span = &spans[at];
	memset(span, 0, sizeof(*span));
	span->node = node;
	span->first = start >> pool->page_shift;
	span->pages = (end - start) >> pool->page_shift;
	span->va = region->va + (start - region->start);
	span->clean = kvcalloc(BITS_TO_LONGS(span->pages), sizeof(long), GFP_KERNEL);
	span->dirty = kvcalloc(BITS_TO_LONGS(span->pages), sizeof(long), GFP_KERNEL);
	if (!span->clean || !span->dirty)
		return -ENOMEM;
	/* do not expose memory contents from before the boot */
	bitmap_set(span->dirty, 0, span->pages);
	node->pages += span->pages;
	node->dirty += span->pages;
	return 0;
}

/* Divide a region by node. A page on two nodes counts to the one of its start. */
static int add_region(struct dmemfs_pool *pool, const struct dmemfs_region *region)
{
	u64 step = max_t(u64, pool->page_size, PMD_SIZE);
	u64 end = region->start + region->used;
	u64 start = region->start, at = start;
	int nid = node_of(start);

	while (at < end) {
		u64 next = min_t(u64, end, at + step - (at & (step - 1)));
		int following = next < end ? node_of(next) : NUMA_NO_NODE;

		if (following != nid) {
			int err = add_span(pool, region, start, next, nid);

			if (err)
				return err;
			start = next;
			nid = following;
		}
		at = next;
	}
	return 0;
}

static void link_spans(struct dmemfs_pool *pool)
{
	unsigned int i;

	for (i = 0; i < pool->nr_spans; i++)
		list_add_tail(&pool->spans[i].list, &pool->spans[i].node->spans);
}

struct dmemfs_pool *dmemfs_create_pool(struct fs_context *fc, struct dmemfs_options *opt)
{
	struct dmemfs_pool *pool = kzalloc(sizeof(*pool), GFP_KERNEL);
	unsigned int i;
	int err = 0;

	if (!pool)
		return ERR_PTR(-ENOMEM);
	dmemfs_init_pool_kobject(pool);
	pool->opt = *opt;
	pool->page_shift = opt->page_shift;
	pool->page_size = 1UL << opt->page_shift;
	init_rwsem(&pool->allocating);
	for (i = 0; i < DMEMFS_FAULT_LOCKS; i++)
		mutex_init(&pool->fault_locks[i]);
	for (i = 0; i < pool->opt.nr_regions && !err; i++) {
		err = dmemfs_claim_region(fc, &pool->opt.regions[i], pool->page_shift);
		if (!err)
			err = add_region(pool, &pool->opt.regions[i]);
	}
	if (err) {
		dmemfs_destroy_pool(pool);
		return ERR_PTR(err);
	}
	link_spans(pool);
	return pool;
}

void dmemfs_destroy_pool(struct dmemfs_pool *pool)
{
	unsigned int i;
	int nid;

	for (i = 0; i < pool->nr_spans; i++) {
		kvfree(pool->spans[i].clean);
		kvfree(pool->spans[i].dirty);
	}
	kfree(pool->spans);
	for (i = 0; i < pool->opt.nr_regions; i++)
		dmemfs_release_region(&pool->opt.regions[i]);
	for_each_node_mask(nid, pool->node_mask)
		kobject_put(&pool->nodes[nid]->kobj);
	kobject_put(&pool->kobj);
}
