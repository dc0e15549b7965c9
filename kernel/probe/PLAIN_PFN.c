// SPDX-License-Identifier: GPL-2.0-only
/* vmf_insert_pfn_pmd() takes a number instead of a pfn_t (about 6.17). */
#include <linux/mm.h>
#include <linux/huge_mm.h>

vm_fault_t (*probe)(struct vm_fault *vmf, unsigned long pfn, bool write) = vmf_insert_pfn_pmd;
