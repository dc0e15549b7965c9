// SPDX-License-Identifier: GPL-2.0-only
/* generic_delete_inode() is called inode_just_drop() (6.18). */
#include <linux/fs.h>

void *probe = inode_just_drop;
