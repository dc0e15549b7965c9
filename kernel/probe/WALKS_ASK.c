// SPDX-License-Identifier: GPL-2.0-only
/*
 * All walks through page tables ask vm_normal_page_pmd() before they take the
 * struct page of a huge entry: mbind(), clear_refs, pagemap and madvise(). All
 * of them were changed for 7.3, in no header. So look for what came to
 * linux/mm.h in that release.
 */
#include <linux/mm.h>

bool probe(const struct vm_area_struct *vma)
{
	return vma_is_cow_mapping(vma);
}

unsigned long probe_flag = VM_UFFD_RWP;
