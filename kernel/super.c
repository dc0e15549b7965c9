// SPDX-License-Identifier: GPL-2.0-only
/* The mount as a whole: its superblock, what statfs says, and the module. */

#include <linux/magic.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/statfs.h>

#include "dmemfs.h"

static struct kmem_cache *inode_cache;

static struct inode *dmemfs_alloc_inode(struct super_block *sb)
{
	struct dmemfs_inode *info = alloc_inode_sb(sb, inode_cache, GFP_KERNEL);

	if (!info)
		return NULL;
	info->extents = RB_ROOT;
	info->held = RB_ROOT;
	info->pages = 0;
	info->owned = 0;
	info->most = 0;
	info->mapped = false;
	info->number = 0;
	return &info->vfs;
}

static void dmemfs_free_inode(struct inode *inode)
{
	if (S_ISLNK(inode->i_mode))
		kfree(inode->i_link);
	kmem_cache_free(inode_cache, DMEMFS_I(inode));
}

static void init_inode_once(void *data)
{
	struct dmemfs_inode *info = data;

	spin_lock_init(&info->lock);
	inode_init_once(&info->vfs);
}

/* The last name and the last user are gone: so is the memory, to be scrubbed. */
static void dmemfs_evict_inode(struct inode *inode)
{
	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	dmemfs_remove_all(dmemfs_pool(inode), DMEMFS_I(inode));
}

static int dmemfs_statfs(struct dentry *dentry, struct kstatfs *buf)
{
	struct dmemfs_pool *pool = dentry->d_sb->s_fs_info;
	u64 total, available;
	u64 id = huge_encode_dev(dentry->d_sb->s_dev);

	dmemfs_count(pool, &total, &available);
	buf->f_type = pool->opt.hugetlbfs ? HUGETLBFS_MAGIC : DMEMFS_MAGIC;
	buf->f_bsize = pool->page_size;
	buf->f_frsize = pool->page_size;
	buf->f_blocks = total;
	buf->f_bfree = available;
	buf->f_bavail = available;
	buf->f_namelen = NAME_MAX;
	buf->f_fsid = u64_to_fsid(id);
	return 0;
}

static const struct super_operations dmemfs_super_operations = {
	.alloc_inode	= dmemfs_alloc_inode,
	.free_inode	= dmemfs_free_inode,
	.evict_inode	= dmemfs_evict_inode,
	.drop_inode	= inode_just_drop,
	.statfs		= dmemfs_statfs,
	.show_options	= dmemfs_show_options,
};

int dmemfs_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct dmemfs_pool *pool;
	struct inode *root;
	int err;

	err = dmemfs_make_room(fc, fc->fs_private);
	if (err)
		return err;
	pool = dmemfs_create_pool(fc, fc->fs_private);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	sb->s_fs_info = pool;	/* dmemfs_kill_sb() sees to it from here on */
	pool->huge = dmemfs_guard_on() && pool->page_size > PAGE_SIZE;
	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = pool->page_size;
	sb->s_blocksize_bits = pool->page_shift;
	sb->s_magic = pool->opt.hugetlbfs ? HUGETLBFS_MAGIC : DMEMFS_MAGIC;
	sb->s_op = &dmemfs_super_operations;
	sb->s_xattr = dmemfs_xattr_handlers;
	sb->s_time_gran = 1;
	root = dmemfs_new_inode(sb, NULL, S_IFDIR | pool->opt.mode);
	if (!root)
		return -ENOMEM;
	root->i_uid = pool->opt.uid;
	root->i_gid = pool->opt.gid;
	sb->s_root = d_make_root(root);
	if (!sb->s_root)
		return -ENOMEM;
	/* before anything is zeroed */
	if (pool->opt.persist == DMEMFS_FIND) {
		err = dmemfs_restore(sb, fc);
		if (err)
			return err;
	}
	err = dmemfs_start_scrubbers(pool);
	if (err)
		return err;
	err = dmemfs_show_pool(pool, sb->s_dev);
	if (err)
		return err;
	/* nothing fails from here on: what a mount found is not lost with it */
	if (pool->opt.persist == DMEMFS_FIND)
		dmemfs_take_over(pool);
	else
		dmemfs_forget(pool);
	pool->keep = pool->opt.persist != DMEMFS_FORGET;
	pr_info("dmemfs: %u:%u: %u region(s) in pages of %lu KiB%s\n", MAJOR(sb->s_dev),
		MINOR(sb->s_dev), pool->opt.nr_regions, pool->page_size / SZ_1K,
		pool->page_size > PAGE_SIZE && !pool->huge ? ", mapped by 4K entries" : "");
	return 0;
}

static void dmemfs_kill_sb(struct super_block *sb)
{
	struct dmemfs_pool *pool = sb->s_fs_info;

	/* named by the device number, which is another mount's as soon as it is free */
	if (pool)
		dmemfs_hide_pool(pool);
	if (pool && pool->opt.persist != DMEMFS_FORGET) {
		/* what is evicted below is still the files', and not to be zeroed */
		dmemfs_stop_scrubbers(pool);
		if (pool->keep)
			dmemfs_keep(sb);
	}
	dmemfs_kill_super(sb);
	if (pool) {
		dmemfs_stop_scrubbers(pool);
		dmemfs_destroy_pool(pool);
	}
}

static struct file_system_type dmemfs_type = {
	.owner			= THIS_MODULE,
	.name			= "dmemfs",
	.init_fs_context	= dmemfs_init_fs_context,
	.kill_sb		= dmemfs_kill_sb,
};
MODULE_ALIAS_FS("dmemfs");

static int __init dmemfs_init(void)
{
	int err;

	inode_cache = kmem_cache_create("dmemfs_inode", sizeof(struct dmemfs_inode), 0,
					SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT, init_inode_once);
	if (!inode_cache)
		return -ENOMEM;
	err = dmemfs_init_extents();
	if (err)
		goto no_extents;
	err = dmemfs_init_sysfs();
	if (err)
		goto no_sysfs;
	dmemfs_init_guard();
	err = register_filesystem(&dmemfs_type);
	if (!err)
		return 0;
	dmemfs_exit_guard();
	dmemfs_exit_sysfs();
no_sysfs:
	dmemfs_exit_extents();
no_extents:
	kmem_cache_destroy(inode_cache);
	return err;
}

static void __exit dmemfs_exit(void)
{
	unregister_filesystem(&dmemfs_type);
	dmemfs_exit_guard();
	dmemfs_exit_sysfs();
	rcu_barrier();	/* inodes are freed behind it */
	dmemfs_exit_extents();
	kmem_cache_destroy(inode_cache);
}

module_init(dmemfs_init);
module_exit(dmemfs_exit);
MODULE_DESCRIPTION("Files over memory reserved at boot, without struct pages");
MODULE_LICENSE("GPL");
