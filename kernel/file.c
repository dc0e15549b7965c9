// SPDX-License-Identifier: GPL-2.0-only
/* What can be done with an open file: map it, give it memory, take memory from it. */

#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/mman.h>
#include <linux/sched/signal.h>

#include "dmemfs.h"

/* The file may have @pages from now on, whatever it holds. The caller holds the inode's lock. */
static void extend(struct dmemfs_inode *info, unsigned long pages)
{
	WRITE_ONCE(info->most, max(info->most, pages));
}

/*
 * Truncate or extend the file; the caller holds the inode's lock. A fault
 * holds the invalidate lock from reading the size to setting its page table
 * entry, so none comes between unmapping and freeing.
 */
int dmemfs_truncate(struct inode *inode, loff_t size)
{
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	int err = inode_newsize_ok(inode, size);

	if (err)
		return err;
	if (size & (pool->page_size - 1))
		return -EINVAL;
	filemap_invalidate_lock(inode->i_mapping);
	if (size < i_size_read(inode)) {
		i_size_write(inode, size);
		unmap_mapping_range(inode->i_mapping, size, 0, 1);
	} else {
		extend(DMEMFS_I(inode), size >> pool->page_shift);
		i_size_write(inode, size);
	}
	/* fallocate() may have put memory behind the end */
	err = dmemfs_remove(pool, DMEMFS_I(inode), size >> pool->page_shift, ULONG_MAX);
	filemap_invalidate_unlock(inode->i_mapping);
	dmemfs_touch(inode);
	return err;
}

/* Zero what of a page lies between two offsets of the file, if the file has that page. */
static void zero_part(struct dmemfs_pool *pool, struct inode *inode, loff_t start, loff_t end)
{
	unsigned long page, hint;

	if (start < end && dmemfs_lookup(DMEMFS_I(inode), start >> pool->page_shift, &page, &hint))
		memset(dmemfs_page_va(pool, page) + (start & (pool->page_size - 1)), 0,
		       end - start);
}

static int punch_hole(struct inode *inode, loff_t offset, loff_t len)
{
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	loff_t end = offset + len;
	loff_t first = round_up(offset, pool->page_size);
	loff_t last = round_down(end, pool->page_size);
	int err = 0;

	filemap_invalidate_lock(inode->i_mapping);
	if (first > last) {
		zero_part(pool, inode, offset, end);
	} else {
		zero_part(pool, inode, offset, first);
		zero_part(pool, inode, last, end);
	}
	if (first < last) {
		unmap_mapping_range(inode->i_mapping, first, last - first, 1);
		err = dmemfs_remove(pool, DMEMFS_I(inode), first >> pool->page_shift,
				    last >> pool->page_shift);
	}
	filemap_invalidate_unlock(inode->i_mapping);
	dmemfs_touch(inode);
	return err;
}

/* What a fallocate() got and the file has not yet: zero, all of it. */
struct pending {
	struct list_head fresh;		/* from the pool */
	struct list_head held;		/* by the file before */
};

static void drop_extent(struct dmemfs_pool *pool, struct dmemfs_inode *info,
			struct dmemfs_extent *extent, bool held)
{
	if (held) {
		dmemfs_hold(pool, info, extent);
		return;
	}
	dmemfs_uncharge(info, extent->count);
	dmemfs_give_back(pool, extent->page, extent->count, true, false);
	dmemfs_free_extent(extent);
}

/* Return the memory that the file does not need. */
static void drop_pending(struct dmemfs_pool *pool, struct dmemfs_inode *info,
			 struct list_head *list, bool held)
{
	struct dmemfs_extent *extent, *next;

	list_for_each_entry_safe(extent, next, list, list)
		drop_extent(pool, info, extent, held);
	INIT_LIST_HEAD(list);
}

/* Get zeroed memory for pages @index to @end, all of them holes. */
static int get_pending(struct inode *inode, unsigned long index, unsigned long end,
		       unsigned long limit, struct pending *pending)
{
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	unsigned long hint = ULONG_MAX;

	while (index < end) {
		unsigned long want = end - index;
		struct dmemfs_extent *extent;
		struct dmemfs_run run;
		int err;

		if (fatal_signal_pending(current))
			return -EINTR;
		extent = dmemfs_new_extent();
		if (!extent)
			return -ENOMEM;
		err = dmemfs_take(pool, DMEMFS_I(inode), dmemfs_task_policy(), index, want, limit,
				  hint, &run);
		if (err) {
			dmemfs_free_extent(extent);
			return err;
		}
		if (run.dirty)
			dmemfs_zero(pool, &run);
		extent->index = index;
		extent->page = run.page;
		extent->count = run.count;
		list_add_tail(&extent->list, run.held ? &pending->held : &pending->fresh);
		index += run.count;
		hint = run.page + run.count;
		cond_resched();
	}
	return 0;
}

/* Take the first @count pages off @extent; all of it if it has no more. */
static struct dmemfs_extent *take_off(struct dmemfs_extent **extent, unsigned long count)
{
	struct dmemfs_extent *first = *extent, *rest;

	if (first->count == count) {
		*extent = NULL;
		return first;
	}
	rest = first;
	first = dmemfs_new_extent();
	if (first) {
		first->index = rest->index;
		first->page = rest->page;
		first->count = count;
		rest->index += count;
		rest->page += count;
		rest->count -= count;
	}
	return first;
}

/* Put one run into the file, but for pages that faults have given it meanwhile. */
static int put_pending(struct dmemfs_pool *pool, struct dmemfs_inode *info,
		       struct dmemfs_extent *extent, bool held)
{
	while (extent) {
		unsigned long index = extent->index, end = index + extent->count, start, stop;
		bool data = dmemfs_next_data(info, index, &start, &stop);
		bool taken = data && start == index;
		struct dmemfs_extent *piece;

		if (!taken)
			stop = data ? start : end;
		piece = take_off(&extent, min(stop, end) - index);
		if (!piece) {
			drop_extent(pool, info, extent, held);
			return -ENOMEM;
		}
		if (taken)
			drop_extent(pool, info, piece, held);
		else
			dmemfs_insert(pool, info, piece);
	}
	return 0;
}

static int put_list(struct dmemfs_pool *pool, struct dmemfs_inode *info, struct list_head *list,
		    bool held)
{
	int err = 0;

	while (!err && !list_empty(list)) {
		struct dmemfs_extent *extent = list_first_entry(list, struct dmemfs_extent, list);

		list_del(&extent->list);
		err = put_pending(pool, info, extent, held);
	}
	return err;
}

/* How many of the pages @index to @end the file lacks. */
static unsigned long lacking(struct dmemfs_inode *info, unsigned long index, unsigned long end)
{
	unsigned long count = 0, start, stop;

	while (index < end && dmemfs_next_data(info, index, &start, &stop) && start < end) {
		count += start - index;
		index = stop;
	}
	return index < end ? count + (end - index) : count;
}

/*
 * Allocate all memory, and zero what is dirty, before the file gets any of
 * it: faults continue meanwhile, and a failed fallocate() changes nothing.
 * With @alone there are none: the caller holds the invalidate lock.
 */
static int try_allocate(struct inode *inode, unsigned long index, unsigned long end, bool alone)
{
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	struct dmemfs_inode *info = DMEMFS_I(inode);
	unsigned long limit = max(info->most, end);
	struct pending pending;
	int err = 0;

	INIT_LIST_HEAD(&pending.fresh);
	INIT_LIST_HEAD(&pending.held);
	while (index < end && !err) {
		unsigned long start, stop;

		if (!dmemfs_next_data(info, index, &start, &stop) || start >= end) {
			start = end;
			stop = end;
		}
		err = get_pending(inode, index, start, limit, &pending);
		index = stop;
	}
	if (!alone)
		filemap_invalidate_lock(inode->i_mapping);
	if (!err)
		extend(info, end);
	if (!err)
		err = put_list(pool, info, &pending.held, true);
	if (!err)
		err = put_list(pool, info, &pending.fresh, false);
	if (!alone)
		filemap_invalidate_unlock(inode->i_mapping);
	drop_pending(pool, info, &pending.held, true);
	drop_pending(pool, info, &pending.fresh, false);
	return err;
}

/* Whether there is that much by now; not to take from others what could not be enough anyway. */
static bool could_allocate(struct inode *inode, unsigned long index, unsigned long end)
{
	struct dmemfs_inode *info = DMEMFS_I(inode);
	unsigned long lacks = lacking(info, index, end), held;

	spin_lock(&info->lock);
	held = info->owned - info->pages;
	spin_unlock(&info->lock);
	return lacks <= held || dmemfs_could_take(dmemfs_pool(inode), dmemfs_task_policy(), lacks - held);
}

static int allocate(struct inode *inode, unsigned long index, unsigned long end)
{
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	int err;

	if (!could_allocate(inode, index, end))
		return -ENOSPC;
	down_read(&pool->allocating);
	err = try_allocate(inode, index, end, false);
	if (err == -ENOSPC && READ_ONCE(DMEMFS_I(inode)->mapped)) {
		/* concurrent faults in the same range may have used up the file's limit */
		filemap_invalidate_lock(inode->i_mapping);
		if (could_allocate(inode, index, end))
			err = try_allocate(inode, index, end, true);
		filemap_invalidate_unlock(inode->i_mapping);
	}
	up_read(&pool->allocating);
	return err;
}

static long dmemfs_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct inode *inode = file_inode(file);
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	loff_t end = offset + len;
	long err;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	inode_lock(inode);
	if (mode & FALLOC_FL_PUNCH_HOLE) {
		err = punch_hole(inode, offset, len);
		goto out;
	}
	err = inode_newsize_ok(inode, end);
	if (!err && !(mode & FALLOC_FL_KEEP_SIZE) && end > i_size_read(inode) &&
	    (end & (pool->page_size - 1)))
		err = -EINVAL;	/* a file has whole pages, as with truncate() */
	if (!err)
		err = allocate(inode, offset >> pool->page_shift,
			       round_up((u64)end, pool->page_size) >> pool->page_shift);
	if (!err) {
		if (!(mode & FALLOC_FL_KEEP_SIZE) && end > i_size_read(inode))
			i_size_write(inode, end);
		dmemfs_touch(inode);
	}
out:
	inode_unlock(inode);
	return err;
}

static loff_t seek_data_or_hole(struct file *file, loff_t offset, int whence)
{
	struct inode *inode = file_inode(file);
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	loff_t size = i_size_read(inode);
	unsigned long start, end;
	bool data;

	if (offset < 0 || offset >= size)
		return -ENXIO;
	data = dmemfs_next_data(DMEMFS_I(inode), offset >> pool->page_shift, &start, &end);
	if (whence == SEEK_DATA) {
		if (!data || (loff_t)start << pool->page_shift >= size)
			return -ENXIO;
		offset = max(offset, (loff_t)start << pool->page_shift);
	} else if (data && start == offset >> pool->page_shift) {
		offset = min((loff_t)end << pool->page_shift, size);
	}
	return vfs_setpos(file, offset, inode->i_sb->s_maxbytes);
}

static loff_t dmemfs_llseek(struct file *file, loff_t offset, int whence)
{
	struct inode *inode = file_inode(file);

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return generic_file_llseek(file, offset, whence);
	inode_lock_shared(inode);
	offset = seek_data_or_hole(file, offset, whence);
	inode_unlock_shared(inode);
	return offset;
}

/*
 * Raw PFNs: no struct pages, so no GUP, no dump, no growing. KVM on arm64 logs
 * no dirty pages of VM_PFNMAP, and QEMU aborts when it learns that; it knows
 * VM_MIXEDMAP, which needs walks that ask (dmemfs_unsupported()), as most of
 * them pass by VM_PFNMAP alone.
 */
#ifdef CONFIG_ARM64
#define RAW_FRAMES	(VM_MIXEDMAP | VM_IO)
#else
#define RAW_FRAMES	VM_PFNMAP
#endif

static int dmemfs_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED)) {
		/* a private copy would be ordinary memory: not what anybody wants here */
		if (vma->vm_flags & VM_WRITE)
			return -EINVAL;
		vm_flags_clear(vma, VM_MAYWRITE);
	}
	vm_flags_set(vma, RAW_FRAMES | VM_DONTEXPAND | VM_DONTDUMP);
	/* huge faults also where transparent huge pages are for madvise() only */
	if (dmemfs_pool(file_inode(file))->huge)
		vm_flags_set(vma, VM_HUGEPAGE);
	vma->vm_ops = &dmemfs_vm_ops;
	WRITE_ONCE(DMEMFS_I(file_inode(file))->mapped, true);
	file_accessed(file);
	return 0;
}

/* Return an address aligned like the file offset, for the largest page that fits. */
static unsigned long dmemfs_get_unmapped_area(struct file *file, unsigned long addr,
					      unsigned long len, unsigned long pgoff,
					      unsigned long flags)
{
	unsigned long align = dmemfs_pool(file_inode(file))->page_size;
	u64 offset = (u64)pgoff << PAGE_SHIFT;
	unsigned long found;

	if (flags & MAP_FIXED)
		return dmemfs_search_area(file, addr, len, pgoff, flags);
	if (addr) {
		found = dmemfs_search_area(file, addr, len, pgoff, flags);
		if (found == addr)
			return addr;
	}
	while (align > PAGE_SIZE && len < align)
		align = align == PUD_SIZE ? PMD_SIZE : PAGE_SIZE;
	if (align > PAGE_SIZE && len + align > len) {
		found = dmemfs_search_area(file, 0, len + align, pgoff, flags);
		if (!IS_ERR_VALUE(found))
			return found + ((offset - found) & (align - 1));
	}
	return dmemfs_search_area(file, addr, len, pgoff, flags);
}

const struct file_operations dmemfs_file_operations = {
	.mmap			= dmemfs_mmap,
	.get_unmapped_area	= dmemfs_get_unmapped_area,
	.fallocate		= dmemfs_fallocate,
	.llseek			= dmemfs_llseek,
	.fsync			= noop_fsync,
	.setlease		= generic_setlease,
};
