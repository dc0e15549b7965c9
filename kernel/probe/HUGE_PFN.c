// SPDX-License-Identifier: GPL-2.0-only
/* huge_fault() takes an order, and entries of raw PFNs are marked special so that GUP keeps away (6.12). */
#include <linux/mm.h>
#include <linux/huge_mm.h>

#ifndef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
#error "the architecture cannot mark huge entries special"
#endif

static vm_fault_t huge_fault(struct vm_fault *vmf, unsigned int order)
{
	return VM_FAULT_FALLBACK;
}

const struct vm_operations_struct probe = { .huge_fault = huge_fault };
