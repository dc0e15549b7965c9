/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between kernels; each HAVE_ is a probe of Kbuild, none a version number. */
#ifndef DMEMFS_COMPAT_H
#define DMEMFS_COMPAT_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>
#if __has_include(<linux/hex.h>)
#include <linux/hex.h>	/* before, hex2bin() was in linux/kernel.h */
#endif

#ifdef HAVE_MNT_IDMAP
#define dmemfs_idmap mnt_idmap
#else
#define dmemfs_idmap user_namespace
#endif

#ifndef HAVE_INODE_TIMES
#define inode_set_ctime_current(inode)	((inode)->i_ctime = current_time(inode))
#define inode_set_mtime_to_ts(inode, ts) ((inode)->i_mtime = (ts))
#define simple_inode_init_ts(inode) \
	((inode)->i_atime = (inode)->i_mtime = (inode)->i_ctime = current_time(inode))
#endif

#ifndef HAVE_VM_FLAGS_SET
#define vm_flags_set(vma, flags)	((vma)->vm_flags |= (flags))
#define vm_flags_clear(vma, flags)	((vma)->vm_flags &= ~(flags))
#endif

#ifdef HAVE_FILELOCK
#include <linux/filelock.h>
#endif

static inline unsigned long dmemfs_search_area(struct file *file, unsigned long addr,
					       unsigned long len, unsigned long pgoff,
					       unsigned long flags)
{
#ifdef HAVE_MM_UNMAPPED_AREA_NO_MM
	return mm_get_unmapped_area(file, addr, len, pgoff, flags);
#elif defined(HAVE_MM_UNMAPPED_AREA)
	return mm_get_unmapped_area(current->mm, file, addr, len, pgoff, flags);
#else
	return current->mm->get_unmapped_area(file, addr, len, pgoff, flags);
#endif
}

/* Copy what may be poisoned; return how much could not be. */
static inline unsigned long dmemfs_copy(void *to, const void *from, unsigned long size)
{
#ifdef HAVE_COPY_MC
	return copy_mc_to_kernel(to, from, size);
#else
	memcpy(to, from, size);
	return 0;
#endif
}

#ifndef HAVE_JUST_DROP
#define inode_just_drop	generic_delete_inode
#endif

/* A name lives without being used: simple_unlink() and umount take it away. */
static inline void dmemfs_keep_name(struct dentry *dentry, struct inode *inode)
{
#ifdef HAVE_MAKE_PERSISTENT
	d_make_persistent(dentry, inode);
#else
	d_instantiate(dentry, inode);
	dget(dentry);
#endif
}

static inline void dmemfs_kill_super(struct super_block *sb)
{
#ifdef HAVE_MAKE_PERSISTENT
	kill_anon_super(sb);
#else
	kill_litter_super(sb);
#endif
}

/* As dmemfs_keep_name(), of a dentry that d_alloc() returned. */
static inline void dmemfs_add_name(struct dentry *dentry, struct inode *inode)
{
#ifdef HAVE_MAKE_PERSISTENT
	d_make_persistent(dentry, inode);
	dput(dentry);
#else
	d_add(dentry, inode);
#endif
}

static inline struct timespec64 dmemfs_mtime(const struct inode *inode)
{
#ifdef HAVE_INODE_TIMES
	return inode_get_mtime(inode);
#else
	return inode->i_mtime;
#endif
}

static inline void dmemfs_set_mtime(struct inode *inode, struct timespec64 mtime)
{
#ifdef HAVE_INODE_TIMES
	inode_set_mtime_to_ts(inode, mtime);
#else
	inode->i_mtime = mtime;
#endif
}

static inline void dmemfs_touch(struct inode *inode)
{
#ifdef HAVE_INODE_TIMES
	inode_set_mtime_to_ts(inode, inode_set_ctime_current(inode));
#else
	inode->i_mtime = inode->i_ctime = current_time(inode);
#endif
}

#endif
