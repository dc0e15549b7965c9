// SPDX-License-Identifier: GPL-2.0-only
/* ->create() is not told whether the name may exist (by 7.2). */
#include <linux/fs.h>

static int probe_create(struct mnt_idmap *idmap, struct inode *dir, struct dentry *dentry, umode_t mode)
{
	return 0;
}

const struct inode_operations probe = { .create = probe_create };
