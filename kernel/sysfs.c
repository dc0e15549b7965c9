// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/fs/dmemfs/MAJOR:MINOR, named as the mount is in /proc/self/mountinfo,
 * and firmware_ram beside them where nothing else shows that to users.
 */

#include <linux/slab.h>
#include <linux/sysfs.h>

#include "dmemfs.h"

static struct kobject *dmemfs_root;

struct attribute_of {
	struct attribute attr;
	ssize_t (*pool)(struct dmemfs_pool *pool, char *buf);
	u64 (*node)(const struct dmemfs_node *node);	/* pages */
};

static u64 node_total(const struct dmemfs_node *node)
{
	return node->pages;
}

static u64 node_free(const struct dmemfs_node *node)
{
	return node->clean + node->dirty + node->scrubbing;
}

static u64 node_clean(const struct dmemfs_node *node)
{
	return node->clean;
}

static u64 node_dirty(const struct dmemfs_node *node)
{
	return node->dirty + node->scrubbing;
}

static u64 node_held(const struct dmemfs_node *node)
{
	return node->held;
}

static u64 bytes_of(struct dmemfs_node *node, const struct attribute_of *attr)
{
	u64 pages;

	spin_lock(&node->lock);
	pages = attr->node(node);
	spin_unlock(&node->lock);
	return pages << node->pool->page_shift;
}

static ssize_t show_node(struct kobject *kobj, struct attribute *attr, char *buf)
{
	struct dmemfs_node *node = container_of(kobj, struct dmemfs_node, kobj);

	return sysfs_emit(buf, "%llu\n",
			  bytes_of(node, container_of(attr, struct attribute_of, attr)));
}

static ssize_t show_pool(struct kobject *kobj, struct attribute *attr, char *buf)
{
	struct dmemfs_pool *pool = container_of(kobj, struct dmemfs_pool, kobj);
	struct attribute_of *of = container_of(attr, struct attribute_of, attr);
	u64 sum = 0;
	int nid;

	if (of->pool)
		return of->pool(pool, buf);
	for_each_node_mask(nid, pool->node_mask)
		sum += bytes_of(pool->nodes[nid], of);
	return sysfs_emit(buf, "%llu\n", sum);
}

static ssize_t pool_page_size(struct dmemfs_pool *pool, char *buf)
{
	return sysfs_emit(buf, "%lu\n", pool->page_size);
}

static ssize_t pool_huge_entries(struct dmemfs_pool *pool, char *buf)
{
	return sysfs_emit(buf, "%d\n", pool->huge);
}

static ssize_t pool_regions(struct dmemfs_pool *pool, char *buf)
{
	ssize_t used = 0;
	unsigned int i;

	for (i = 0; i < pool->nr_spans; i++)
		used += sysfs_emit_at(buf, used, "0x%llx+0x%llx node%d\n",
				      (u64)pool->spans[i].first << pool->page_shift,
				      (u64)pool->spans[i].pages << pool->page_shift,
				      pool->spans[i].node->nid);
	return used;
}

static ssize_t pool_faults_4k(struct dmemfs_pool *pool, char *buf)
{
	return sysfs_emit(buf, "%ld\n", atomic_long_read(&pool->faults[DMEMFS_4K]));
}

static ssize_t pool_faults_2m(struct dmemfs_pool *pool, char *buf)
{
	return sysfs_emit(buf, "%ld\n", atomic_long_read(&pool->faults[DMEMFS_2M]));
}

static ssize_t pool_faults_1g(struct dmemfs_pool *pool, char *buf)
{
	return sysfs_emit(buf, "%ld\n", atomic_long_read(&pool->faults[DMEMFS_1G]));
}

static ssize_t pool_faults_failed(struct dmemfs_pool *pool, char *buf)
{
	return sysfs_emit(buf, "%ld\n", atomic_long_read(&pool->faults_failed));
}

#define OF_NODE(name) static struct attribute_of attr_##name = \
	{ .attr = { #name "_bytes", 0444 }, .node = node_##name }
#define OF_POOL(name) \
	static struct attribute_of attr_##name = { .attr = { #name, 0444 }, .pool = pool_##name }

OF_NODE(total);
OF_NODE(free);
OF_NODE(clean);
OF_NODE(dirty);
OF_NODE(held);
OF_POOL(page_size);
OF_POOL(huge_entries);
OF_POOL(regions);
OF_POOL(faults_4k);
OF_POOL(faults_2m);
OF_POOL(faults_1g);
OF_POOL(faults_failed);

static struct attribute *node_attrs[] = {
	&attr_total.attr, &attr_free.attr, &attr_clean.attr, &attr_dirty.attr, &attr_held.attr, NULL
};
ATTRIBUTE_GROUPS(node);

static struct attribute *pool_attrs[] = {
	&attr_total.attr, &attr_free.attr, &attr_clean.attr, &attr_dirty.attr, &attr_held.attr,
	&attr_page_size.attr, &attr_huge_entries.attr, &attr_regions.attr, &attr_faults_4k.attr, &attr_faults_2m.attr,
	&attr_faults_1g.attr, &attr_faults_failed.attr, NULL
};
ATTRIBUTE_GROUPS(pool);

static const struct sysfs_ops node_sysfs_ops = { .show = show_node };
static const struct sysfs_ops pool_sysfs_ops = { .show = show_pool };

static void release_node(struct kobject *kobj)
{
	kfree(container_of(kobj, struct dmemfs_node, kobj));
}

static void release_pool(struct kobject *kobj)
{
	kfree_sensitive(container_of(kobj, struct dmemfs_pool, kobj));	/* tokens */
}

static const struct kobj_type node_type = {
	.release = release_node, .sysfs_ops = &node_sysfs_ops, .default_groups = node_groups,
};

static const struct kobj_type pool_type = {
	.release = release_pool, .sysfs_ops = &pool_sysfs_ops, .default_groups = pool_groups,
};

/* From here on, the last kobject_put() frees. */
void dmemfs_init_pool_kobject(struct dmemfs_pool *pool)
{
	kobject_init(&pool->kobj, &pool_type);
}

void dmemfs_init_node_kobject(struct dmemfs_node *node)
{
	kobject_init(&node->kobj, &node_type);
}

int dmemfs_show_pool(struct dmemfs_pool *pool, dev_t dev)
{
	int nid, err = kobject_add(&pool->kobj, dmemfs_root, "%u:%u", MAJOR(dev), MINOR(dev));

	for_each_node_mask(nid, pool->node_mask)
		if (!err)
			err = kobject_add(&pool->nodes[nid]->kobj, &pool->kobj, "node%d", nid);
	return err;
}

void dmemfs_hide_pool(struct dmemfs_pool *pool)
{
	int nid;

	for_each_node_mask(nid, pool->node_mask)
		if (pool->nodes[nid]->kobj.state_in_sysfs)
			kobject_del(&pool->nodes[nid]->kobj);
	if (pool->kobj.state_in_sysfs)
		kobject_del(&pool->kobj);
}

#ifndef CONFIG_X86_64
static ssize_t firmware_ram_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return dmemfs_show_firmware_ram(buf);
}

static struct kobj_attribute attr_firmware_ram = __ATTR(firmware_ram, 0400, firmware_ram_show, NULL);
#endif

int dmemfs_init_sysfs(void)
{
	int err = 0;

	dmemfs_root = kobject_create_and_add("dmemfs", fs_kobj);
	if (!dmemfs_root)
		return -ENOMEM;
#ifndef CONFIG_X86_64
	err = sysfs_create_file(dmemfs_root, &attr_firmware_ram.attr);
	if (err)
		kobject_put(dmemfs_root);
#endif
	return err;
}

void dmemfs_exit_sysfs(void)
{
	kobject_put(dmemfs_root);
}
