// SPDX-License-Identifier: GPL-2.0-only
/* Memory that may be poisoned can be read without a crash (5.10, under another name before). */
#include <linux/uaccess.h>

unsigned long probe(void *to, const void *from)
{
	return copy_mc_to_kernel(to, from, 1);
}
