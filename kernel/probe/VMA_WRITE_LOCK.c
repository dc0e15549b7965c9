// SPDX-License-Identifier: GPL-2.0-only
/* Faults may run under a lock of the VMA alone (6.4). */
#include <linux/mm.h>

void probe(struct vm_area_struct *vma)
{
	vma_start_write(vma);
	vma_end_read(vma);
}
