// SPDX-License-Identifier: GPL-2.0-only
/* The children of a dentry are a singly linked list (6.8). */
#include <linux/dcache.h>

struct dentry *probe(const struct dentry *parent)
{
	return hlist_entry_safe(parent->d_children.first, struct dentry, d_sib);
}
