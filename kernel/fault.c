// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page table entries for files, as large as the page and the address allow,
 * and what may be done to the VMAs that have them.
 */

#include <linux/hash.h>
#include <linux/sched/signal.h>

#include "dmemfs.h"

#ifdef HAVE_HUGE_PFN
#ifndef HAVE_PLAIN_PFN
#include <linux/pfn_t.h>
#define huge_pfn(pfn)	__pfn_to_pfn_t(pfn, PFN_DEV)
#else
#define huge_pfn(pfn)	(pfn)
#endif
#endif

/* The largest entry that a VMA can have: its addresses and offsets must agree. */
static unsigned long entry_size(const struct vm_area_struct *vma)
{
	struct dmemfs_pool *pool = dmemfs_pool(file_inode(vma->vm_file));
	unsigned long off = vma->vm_start - (vma->vm_pgoff << PAGE_SHIFT);

	if (!pool->huge)
		return PAGE_SIZE;
#ifdef HAVE_HUGE_PUD
	if (pool->page_size >= PUD_SIZE && IS_ALIGNED(off, PUD_SIZE))
		return PUD_SIZE;
#endif
	if (pool->page_size >= PMD_SIZE && IS_ALIGNED(off, PMD_SIZE))
		return PMD_SIZE;
	return PAGE_SIZE;
}

static bool entry_fits(const struct vm_fault *vmf, unsigned long size)
{
	unsigned long start = vmf->address & ~(size - 1);

	return size <= entry_size(vmf->vma) && start >= vmf->vma->vm_start &&
	       start + size <= vmf->vma->vm_end;
}

/* Find page @index of the file, or get it. */
static int get_page_at(struct vm_fault *vmf, unsigned long index, unsigned long *page)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct dmemfs_inode *info = DMEMFS_I(inode);
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	struct dmemfs_extent *extent;
	struct dmemfs_run run;
	struct mutex *lock;
	unsigned long hint;
	int err = 0;

	if (dmemfs_lookup(info, index, page, &hint))
		return 0;
	extent = dmemfs_new_extent();
	if (!extent)
		return -ENOMEM;
	lock = &pool->fault_locks[hash_long((unsigned long)info + index,
					    ilog2(DMEMFS_FAULT_LOCKS))];
	mutex_lock(lock);
	if (dmemfs_lookup(info, index, page, &hint))
		goto out;
	err = dmemfs_take(pool, info, dmemfs_vma_policy(vmf->vma), index, 1,
			  READ_ONCE(info->most), hint, &run);
	/* on the wrong node, but the file's own: better than SIGBUS */
	if (err == -ENOSPC && dmemfs_take_any_held(pool, info, 1, &run))
		err = 0;
	if (err)
		goto out;
	if (run.dirty)
		dmemfs_zero(pool, &run);
	extent->index = index;
	extent->page = run.page;
	extent->count = 1;
	*page = run.page;
	dmemfs_insert(pool, info, extent);
	extent = NULL;
out:
	mutex_unlock(lock);
	dmemfs_free_extent(extent);
	return err;
}

static vm_fault_t insert(struct vm_fault *vmf, unsigned long pfn, unsigned int order)
{
	bool __maybe_unused write = vmf->flags & FAULT_FLAG_WRITE;

	switch (order) {
	case 0:
		return vmf_insert_pfn(vmf->vma, vmf->address, pfn);
#ifdef HAVE_HUGE_PFN
	case PMD_SHIFT - PAGE_SHIFT:
		return vmf_insert_pfn_pmd(vmf, huge_pfn(pfn), write);
#ifdef HAVE_HUGE_PUD
	case PUD_SHIFT - PAGE_SHIFT:
		return vmf_insert_pfn_pud(vmf, huge_pfn(pfn), write);
#endif
#endif
	}
	return VM_FAULT_FALLBACK;
}

static vm_fault_t fault_once(struct vm_fault *vmf, unsigned int order, int *err)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	unsigned long pgoff = vmf->pgoff & ~((1UL << order) - 1);
	unsigned int shift = pool->page_shift - PAGE_SHIFT;
	vm_fault_t ret = VM_FAULT_SIGBUS;
	unsigned long page;

	*err = 0;
	filemap_invalidate_lock_shared(inode->i_mapping);
	if (vmf->pgoff < i_size_read(inode) >> PAGE_SHIFT) {
		*err = get_page_at(vmf, pgoff >> shift, &page);
		if (!*err)
			ret = insert(vmf, (page << shift) + (pgoff & ((1UL << shift) - 1)), order);
	}
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return ret;
}

static vm_fault_t do_fault(struct vm_fault *vmf, unsigned int order, enum dmemfs_entry size)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	vm_fault_t ret;
	int err;

	ret = fault_once(vmf, order, &err);
	if (err == -ENOSPC) {
		if (!down_write_killable(&pool->allocating)) {
			ret = fault_once(vmf, order, &err);
			up_write(&pool->allocating);
		} else {
			err = -EINTR;
		}
	}
	switch (err) {
	case 0:
		atomic_long_inc(&pool->faults[size]);
		return ret;
	case -EINTR:
		return VM_FAULT_NOPAGE;	/* killed: it will not come back */
	case -ENOMEM:
		return VM_FAULT_OOM;
	}
	atomic_long_inc(&pool->faults_failed);
	return VM_FAULT_SIGBUS;
}

static vm_fault_t dmemfs_fault(struct vm_fault *vmf)
{
	if (entry_fits(vmf, PMD_SIZE))
		pr_warn_once("dmemfs: transparent_hugepage/enabled or the process bars huge entries\n");
	return do_fault(vmf, 0, DMEMFS_4K);
}

#ifdef HAVE_HUGE_PFN
static vm_fault_t dmemfs_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	if (!entry_fits(vmf, PAGE_SIZE << order))
		return VM_FAULT_FALLBACK;
	if (order == PMD_SHIFT - PAGE_SHIFT)
		return do_fault(vmf, order, DMEMFS_2M);
	if (order == PUD_SHIFT - PAGE_SHIFT)
		return do_fault(vmf, order, DMEMFS_1G);
	return VM_FAULT_FALLBACK;
}
#endif

/* No entry may come to lie in two VMAs. */
static int dmemfs_may_split(struct vm_area_struct *vma, unsigned long addr)
{
	return IS_ALIGNED(addr, entry_size(vma)) ? 0 : -EINVAL;
}

/*
 * mremap() is rejected, but the kernel asks only after it has moved the page
 * tables, which fails for entries of 1 GiB ("bad pud"). This is called
 * earlier: a new VMA of this mm where none was is the destination of a move.
 * Unmap the source, so that nothing is moved; accesses to it fault again.
 */
static void dmemfs_open(struct vm_area_struct *vma)
{
	struct vm_area_struct *there;

	if (vma->vm_mm != current->mm)
		return;	/* fork() */
	there = find_vma_intersection(vma->vm_mm, vma->vm_start, vma->vm_end);
	if (there && there != vma)
		return;	/* a split */
	unmap_mapping_range(vma->vm_file->f_mapping, (loff_t)vma->vm_pgoff << PAGE_SHIFT,
			    vma->vm_end - vma->vm_start, 1);
}

static int dmemfs_mremap(struct vm_area_struct *vma)
{
	return -EINVAL;
}

/*
 * ptrace and /proc/PID/mem, of memory that the file has. The kernel asks for
 * nothing before it comes here (__access_remote_vm() in mm/memory.c), and
 * forces reads and writes of other memory by these rules (check_vma_flags() in
 * mm/gup.c): a write to a mapping that is read-only gets a copy of a private
 * one, which there is not here, and nothing of a shared one.
 */
static bool may_access(const struct vm_area_struct *vma, int write)
{
	vm_flags_t writable = VM_WRITE | VM_MAYWRITE | VM_SHARED;

	return write ? (vma->vm_flags & writable) == writable : vma->vm_flags & VM_MAYREAD;
}

static int dmemfs_access(struct vm_area_struct *vma, unsigned long addr, void *buf, int len,
			 int write)
{
	struct inode *inode = file_inode(vma->vm_file);
	struct dmemfs_pool *pool = dmemfs_pool(inode);
	u64 offset = ((u64)vma->vm_pgoff << PAGE_SHIFT) + (addr - vma->vm_start);
	unsigned long in_page = offset & (pool->page_size - 1);
	unsigned long page, hint;
	void *va;

	if (!may_access(vma, write))
		return -EACCES;
	len = min_t(u64, len, min_t(u64, pool->page_size - in_page, vma->vm_end - addr));
	filemap_invalidate_lock_shared(inode->i_mapping);
	if (offset < i_size_read(inode) &&
	    dmemfs_lookup(DMEMFS_I(inode), offset >> pool->page_shift, &page, &hint)) {
		va = dmemfs_page_va(pool, page) + in_page;
		if (write)
			memcpy(va, buf, len);
		else if (dmemfs_copy(buf, va, len))
			len = -EIO;
	} else {
		len = -EIO;
	}
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return len;
}

const struct vm_operations_struct dmemfs_vm_ops = {
	.open		= dmemfs_open,
	.fault		= dmemfs_fault,
#ifdef HAVE_HUGE_PFN
	.huge_fault	= dmemfs_huge_fault,
#endif
	.may_split	= dmemfs_may_split,
	.mremap		= dmemfs_mremap,
	.access		= dmemfs_access,
};
