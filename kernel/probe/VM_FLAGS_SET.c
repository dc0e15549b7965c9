// SPDX-License-Identifier: GPL-2.0-only
/* A VMA's flags are changed by functions (6.3). */
#include <linux/mm.h>

void probe(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_PFNMAP);
	vm_flags_clear(vma, VM_MAYWRITE);
}
