// SPDX-License-Identifier: GPL-2.0-only
/* mkdir() of a directory returns a dentry instead of an int (6.15). */
#include <linux/fs.h>

static struct dentry *probe_mkdir(struct mnt_idmap *idmap, struct inode *dir, struct dentry *dentry, umode_t mode)
{
	return NULL;
}

const struct inode_operations probe = { .mkdir = probe_mkdir };
