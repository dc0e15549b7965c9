// SPDX-License-Identifier: GPL-2.0-only
/* KVM on arm64 maps RAM without struct pages cacheable, if the CPU can (6.17). */
#include <linux/kvm.h>

int probe = KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED;
