// SPDX-License-Identifier: GPL-2.0-only
/*
 * mbind(MPOL_MF_STRICT) over 2 MiB entries of raw PFNs makes the kernel access
 * struct pages that do not exist, and oops (queue_folios_pmd() of 6.12 does
 * not check the "special" bit). No file system callback comes before it, so a
 * probe makes the walk skip dmemfs VMAs, as it skips all that cannot be
 * migrated when the flag is not given. If the probe cannot be installed,
 * there are no huge entries. Kernels whose walks ask vm_normal_folio_pmd()
 * need no probe.
 */

#include <linux/kprobes.h>
#include <linux/pagewalk.h>

#include "dmemfs.h"

static bool guarded;

#if defined(HAVE_HUGE_PFN) && defined(HAVE_WALKS_ASK)

void dmemfs_init_guard(void)
{
	guarded = true;
}

void dmemfs_exit_guard(void)
{
}

#elif defined(HAVE_HUGE_PFN) && defined(CONFIG_KRETPROBES)

#define AT_ONCE	1024	/* concurrent calls, each shorter than a time slice */

static int entering(struct kretprobe_instance *call, struct pt_regs *regs)
{
	struct mm_walk *walk = (void *)regs_get_kernel_argument(regs, 2);

	return !walk->vma || walk->vma->vm_ops != &dmemfs_vm_ops;	/* not dmemfs: unchanged */
}
NOKPROBE_SYMBOL(entering);

static int leaving(struct kretprobe_instance *call, struct pt_regs *regs)
{
	if ((int)regs_return_value(regs) == 0)
		regs_set_return_value(regs, 1);		/* skip this VMA */
	return 0;
}
NOKPROBE_SYMBOL(leaving);

static struct kretprobe walk_probe = {
	.kp.symbol_name	= "queue_pages_test_walk",
	.entry_handler	= entering,
	.handler	= leaving,
	.maxactive	= AT_ONCE,
};

void dmemfs_init_guard(void)
{
	int err = register_kretprobe(&walk_probe);

	guarded = !err;
	if (err)
		pr_warn("dmemfs: no huge entries: no kretprobe (%d) to keep mbind() from oopsing\n",
			err);
}

void dmemfs_exit_guard(void)
{
	if (guarded)
		unregister_kretprobe(&walk_probe);
}

#else

void dmemfs_init_guard(void)
{
	pr_info("dmemfs: this kernel has no huge entries for raw PFNs: all mappings are of 4K\n");
}

void dmemfs_exit_guard(void)
{
}

#endif

bool dmemfs_guard_on(void)
{
	return guarded;
}
