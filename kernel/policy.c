// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which node memory comes from: the policy of the mapping (mbind) or of the
 * task (set_mempolicy), read where the kernel keeps it, as none of its own
 * functions for that is exported. Without set_policy() in the vm_ops, mbind
 * stores the policy in the VMA, where the fault finds it.
 */

#include <linux/cpuset.h>
#include <linux/mempolicy.h>
#include <linux/topology.h>

#include "dmemfs.h"

struct mempolicy *dmemfs_vma_policy(struct vm_area_struct *vma)
{
#ifdef CONFIG_NUMA
	return vma->vm_policy ? : current->mempolicy;
#else
	return NULL;
#endif
}

struct mempolicy *dmemfs_task_policy(void)
{
#ifdef CONFIG_NUMA
	return current->mempolicy;
#else
	return NULL;
#endif
}

/* Whether the cpuset allows a node; a cpuset does not cover nodes without other memory. */
static bool allowed(int nid)
{
	return node_isset(nid, cpuset_current_mems_allowed) || !node_state(nid, N_MEMORY);
}

static int nearest(const nodemask_t *nodes, int from)
{
	int nid, best = NUMA_NO_NODE, best_distance = INT_MAX;

	for_each_node_mask(nid, *nodes) {
		if (node_distance(from, nid) < best_distance) {
			best = nid;
			best_distance = node_distance(from, nid);
		}
	}
	return best;
}

static int nth(const nodemask_t *nodes, unsigned int n)
{
	int nid = first_node(*nodes);

	while (n--)
		nid = next_node(nid, *nodes);
	return nid;
}

struct choice {
	nodemask_t nodes;	/* all that may serve, */
	int first;		/* this one before the others, */
	int near;		/* and those by their distance from here */
};

static void choose(struct dmemfs_pool *pool, struct mempolicy *policy, unsigned long index,
		   struct choice *choice)
{
	int nid;

	nodes_clear(choice->nodes);
	for_each_node_mask(nid, pool->node_mask)
		if (allowed(nid))
			node_set(nid, choice->nodes);
	choice->near = numa_node_id();
	choice->first = choice->near;
#ifdef CONFIG_NUMA
	if (!policy)
		return;
	switch (policy->mode) {
	case MPOL_BIND:
		nodes_and(choice->nodes, choice->nodes, policy->nodes);
		if (policy->home_node != NUMA_NO_NODE)
			choice->near = choice->first = policy->home_node;
		break;
	case MPOL_PREFERRED:
	case MPOL_PREFERRED_MANY: {
		nodemask_t wanted;

		if (policy->home_node != NUMA_NO_NODE)
			choice->near = policy->home_node;
		nodes_and(wanted, choice->nodes, policy->nodes);
		if (!nodes_empty(wanted))
			choice->near = choice->first = nearest(&wanted, choice->near);
		break;
	}
	case MPOL_INTERLEAVE:
#ifdef HAVE_WEIGHTED_INTERLEAVE
	case MPOL_WEIGHTED_INTERLEAVE:	/* the weights are not a module's to read */
#endif
	{
		nodemask_t wanted;

		nodes_and(wanted, choice->nodes, policy->nodes);
		if (!nodes_empty(wanted))
			choice->first = nth(&wanted, index % nodes_weight(wanted));
		break;
	}
	}
#endif
}

static bool interleaved(const struct mempolicy *policy)
{
#ifdef CONFIG_NUMA
#ifdef HAVE_WEIGHTED_INTERLEAVE
	if (policy && policy->mode == MPOL_WEIGHTED_INTERLEAVE)
		return true;
#endif
	return policy && policy->mode == MPOL_INTERLEAVE;
#else
	return false;
#endif
}

/* Whether the nodes that may serve have that much by now. */
bool dmemfs_could_take(struct dmemfs_pool *pool, struct mempolicy *policy, unsigned long pages)
{
	struct choice choice;
	unsigned long have = 0;
	int nid;

	choose(pool, policy, 0, &choice);
	for_each_node_mask(nid, choice.nodes) {
		struct dmemfs_node *node = pool->nodes[nid];

		spin_lock(&node->lock);
		have += node->clean + node->dirty + node->scrubbing;
		spin_unlock(&node->lock);
	}
	return have >= pages;
}

/* Take from one node; wait for pages that are being scrubbed there. */
static int take_or_wait(struct dmemfs_node *node, unsigned long want, unsigned long hint,
			struct dmemfs_run *run)
{
	bool busy;

	do {
		busy = READ_ONCE(node->scrubbing);
		if (dmemfs_take_from(node, want, hint, run))
			return 0;
		if (busy && wait_event_killable(node->wait, !READ_ONCE(node->scrubbing) ||
						READ_ONCE(node->clean) || READ_ONCE(node->dirty)))
			return -EINTR;
	} while (busy);
	return -ENOSPC;
}

/* Take pages that the file does not have yet, as long as it then has at most @limit. */
static int take_new(struct dmemfs_node *node, struct dmemfs_inode *info, unsigned long want,
		    unsigned long limit, unsigned long hint, struct dmemfs_run *run)
{
	unsigned long charged = dmemfs_charge(info, want, limit);
	int err;

	if (!charged)
		return -ENOSPC;
	err = take_or_wait(node, charged, hint, run);
	run->held = false;
	dmemfs_uncharge(info, err ? charged : charged - run->count);
	return err;
}

/* The next node that may serve and was not asked yet: the first one, then by distance. */
static int next_choice(struct choice *choice)
{
	int nid = choice->first;

	if (nid == NUMA_NO_NODE || !node_isset(nid, choice->nodes))
		nid = nearest(&choice->nodes, choice->near);
	if (nid != NUMA_NO_NODE)
		node_clear(nid, choice->nodes);
	return nid;
}

/*
 * Take up to @want pages for page @index of a file and those after it: pages
 * that the file holds on the allowed nodes, else free ones. -ENOSPC if there
 * are none for a file that may own @limit, -EINTR when killed meanwhile.
 */
int dmemfs_take(struct dmemfs_pool *pool, struct dmemfs_inode *info, struct mempolicy *policy,
		unsigned long index, unsigned long want, unsigned long limit, unsigned long hint,
		struct dmemfs_run *run)
{
	struct choice choice, again;
	int nid, err = -ENOSPC;

	choose(pool, policy, index, &choice);
	if (interleaved(policy))
		want = 1;
	again = choice;
	while ((nid = next_choice(&again)) != NUMA_NO_NODE)
		if (dmemfs_take_held(info, pool->nodes[nid], want, hint, run))
			return 0;
	while (err == -ENOSPC && (nid = next_choice(&choice)) != NUMA_NO_NODE)
		err = take_new(pool->nodes[nid], info, want, limit, hint, run);
	return err;
}
