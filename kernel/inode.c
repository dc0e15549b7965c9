// SPDX-License-Identifier: GPL-2.0-only
/* Names and attributes: a tree of dentries in memory, as ramfs has it. */

#include <linux/fs.h>
#include <linux/slab.h>

#include "dmemfs.h"

static int dmemfs_setattr(struct dmemfs_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	int err = setattr_prepare(idmap, dentry, attr);

	if (err)
		return err;
	if (attr->ia_valid & ATTR_SIZE) {
		err = dmemfs_truncate(inode, attr->ia_size);
		if (err)
			return err;
	}
	setattr_copy(idmap, inode, attr);
	mark_inode_dirty(inode);
	return 0;
}

/* st_blocks is the pool memory that the file occupies, held pages included. */
static int dmemfs_getattr(struct dmemfs_idmap *idmap, const struct path *path, struct kstat *stat,
			  u32 mask, unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct dmemfs_pool *pool = dmemfs_pool(inode);

#ifdef HAVE_FILLATTR_MASK
	generic_fillattr(idmap, mask, inode, stat);
#else
	generic_fillattr(idmap, inode, stat);
#endif
	stat->blksize = min_t(unsigned long, pool->page_size, 1UL << 30);
	stat->blocks = (u64)READ_ONCE(DMEMFS_I(inode)->owned) << (pool->page_shift - 9);
	return 0;
}

static const struct inode_operations dmemfs_file_inode_operations = {
	.setattr	= dmemfs_setattr,
	.getattr	= dmemfs_getattr,
};

struct inode *dmemfs_new_inode(struct super_block *sb, const struct inode *dir, umode_t mode)
{
	struct inode *inode = new_inode(sb);

	if (!inode)
		return NULL;
	inode->i_ino = get_next_ino();
	if (dir) {
#ifdef HAVE_MNT_IDMAP
		inode_init_owner(&nop_mnt_idmap, inode, dir, mode);
#else
		inode_init_owner(&init_user_ns, inode, dir, mode);
#endif
	} else {
		inode->i_mode = mode;
	}
	simple_inode_init_ts(inode);
	switch (mode & S_IFMT) {
	case S_IFREG:
		inode->i_op = &dmemfs_file_inode_operations;
		inode->i_fop = &dmemfs_file_operations;
		break;
	case S_IFDIR:
		inode->i_op = &dmemfs_dir_inode_operations;
		inode->i_fop = &simple_dir_operations;
		inc_nlink(inode);
		break;
	case S_IFLNK:
		inode->i_op = &simple_symlink_inode_operations;
		break;
	}
	return inode;
}

static int add_inode(struct inode *dir, struct dentry *dentry, struct inode *inode)
{
	if (!inode)
		return -ENOSPC;
	dmemfs_keep_name(dentry, inode);
	dmemfs_touch(dir);
	return 0;
}

static int make_file(struct inode *dir, struct dentry *dentry, umode_t mode)
{
	return add_inode(dir, dentry, dmemfs_new_inode(dir->i_sb, dir, mode | S_IFREG));
}

#ifdef HAVE_CREATE_NO_EXCL
static int dmemfs_create(struct dmemfs_idmap *idmap, struct inode *dir, struct dentry *dentry,
			 umode_t mode)
{
	return make_file(dir, dentry, mode);
}
#else
static int dmemfs_create(struct dmemfs_idmap *idmap, struct inode *dir, struct dentry *dentry,
			 umode_t mode, bool excl)
{
	return make_file(dir, dentry, mode);
}
#endif

static int make_directory(struct inode *dir, struct dentry *dentry, umode_t mode)
{
	int err = add_inode(dir, dentry, dmemfs_new_inode(dir->i_sb, dir, mode | S_IFDIR));

	if (!err)
		inc_nlink(dir);
	return err;
}

#ifdef HAVE_MKDIR_DENTRY
static struct dentry *dmemfs_mkdir(struct dmemfs_idmap *idmap, struct inode *dir,
				   struct dentry *dentry, umode_t mode)
{
	return ERR_PTR(make_directory(dir, dentry, mode));
}
#else
static int dmemfs_mkdir(struct dmemfs_idmap *idmap, struct inode *dir, struct dentry *dentry,
			umode_t mode)
{
	return make_directory(dir, dentry, mode);
}
#endif

static int dmemfs_symlink(struct dmemfs_idmap *idmap, struct inode *dir, struct dentry *dentry,
			  const char *target)
{
	struct inode *inode = dmemfs_new_inode(dir->i_sb, dir, S_IFLNK | 0777);

	if (!inode)
		return -ENOSPC;
	inode->i_link = kstrdup(target, GFP_KERNEL_ACCOUNT);
	if (!inode->i_link) {
		iput(inode);
		return -ENOMEM;
	}
	inode->i_size = strlen(target);
	return add_inode(dir, dentry, inode);
}

const struct inode_operations dmemfs_dir_inode_operations = {
	.create		= dmemfs_create,
	.lookup		= simple_lookup,
	.link		= simple_link,
	.unlink		= simple_unlink,
	.symlink	= dmemfs_symlink,
	.mkdir		= dmemfs_mkdir,
	.rmdir		= simple_rmdir,
	.rename		= simple_rename,
	.setattr	= dmemfs_setattr,
	.getattr	= dmemfs_getattr,
};
