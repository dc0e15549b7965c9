// SPDX-License-Identifier: GPL-2.0-only
/* Zeroing: in the background by one worker for each node, or synchronously by an allocation. */

#include <linux/kthread.h>
#include <linux/sched.h>
#include <linux/topology.h>

#include "dmemfs.h"

#define CHUNK	SZ_256K		/* between two looks at the scheduler */
#define BATCH	SZ_2M		/* memory that the worker takes at once, at least a page */

/* Zero the run; not to its end if @worker is told to stop, as 1 GiB takes long. */
static bool zero(struct dmemfs_pool *pool, const struct dmemfs_run *run, bool worker)
{
	void *va = dmemfs_page_va(pool, run->page);
	u64 left = (u64)run->count << pool->page_shift;

	while (left) {
		size_t now = min_t(u64, left, CHUNK);

		if (worker && kthread_should_stop())
			return false;
		memset(va, 0, now);
		va += now;
		left -= now;
		cond_resched();
	}
	return true;
}

void dmemfs_zero(struct dmemfs_pool *pool, const struct dmemfs_run *run)
{
	zero(pool, run, false);
}

static bool take_batch(struct dmemfs_node *node, struct dmemfs_run *run)
{
	unsigned long want = max_t(unsigned long, BATCH >> node->pool->page_shift, 1);
	struct dmemfs_span *span;
	bool got = false;

	spin_lock(&node->lock);
	list_for_each_entry(span, &node->spans, list) {
		unsigned long at = find_next_bit(span->dirty, span->pages, span->next_dirty);
		unsigned long end;

		if (at >= span->pages)
			at = find_first_bit(span->dirty, span->pages);
		if (at >= span->pages)
			continue;
		end = find_next_zero_bit(span->dirty, min(span->pages, at + want), at);
		bitmap_clear(span->dirty, at, end - at);
		span->next_dirty = end;
		node->dirty -= end - at;
		node->scrubbing += end - at;
		run->page = span->first + at;
		run->count = end - at;
		run->dirty = true;
		got = true;
		break;
	}
	spin_unlock(&node->lock);
	return got;
}

static int scrubber(void *data)
{
	struct dmemfs_node *node = data;
	struct dmemfs_run run;

	set_user_nice(current, MAX_NICE);
	while (!kthread_should_stop()) {
		wait_event_interruptible(node->work,
					 READ_ONCE(node->dirty) || kthread_should_stop());
		while (!kthread_should_stop() && take_batch(node, &run))
			dmemfs_give_back(node->pool, run.page, run.count,
					 zero(node->pool, &run, true), true);
	}
	return 0;
}

static int start(struct dmemfs_node *node)
{
	struct task_struct *task =
		kthread_create_on_node(scrubber, node, node->nid, "dmemfs_scrub/%d", node->nid);

	if (IS_ERR(task))
		return PTR_ERR(task);
	/* a node without CPUs is scrubbed from anywhere */
	if (node_online(node->nid) && !cpumask_empty(cpumask_of_node(node->nid)))
		set_cpus_allowed_ptr(task, cpumask_of_node(node->nid));
	node->scrubber = task;
	wake_up_process(task);
	return 0;
}

int dmemfs_start_scrubbers(struct dmemfs_pool *pool)
{
	int nid;

	for_each_node_mask(nid, pool->node_mask) {
		int err = start(pool->nodes[nid]);

		if (err)
			return err;
	}
	return 0;
}

/* Also where not all of them were started. */
void dmemfs_stop_scrubbers(struct dmemfs_pool *pool)
{
	int nid;

	for_each_node_mask(nid, pool->node_mask) {
		struct dmemfs_node *node = pool->nodes[nid];

		if (node->scrubber)
			kthread_stop(node->scrubber);
		node->scrubber = NULL;
	}
}
