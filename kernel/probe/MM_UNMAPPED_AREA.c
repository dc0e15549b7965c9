// SPDX-License-Identifier: GPL-2.0-only
/* The search for a free address is a function of the mm (6.10). */
#include <linux/mm.h>
#include <linux/sched/mm.h>

unsigned long probe(struct file *file, unsigned long size)
{
	return mm_get_unmapped_area(current->mm, file, 0, size, 0, 0);
}
