// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whether KVM runs a guest whose memory is a file: kvmtest DIR. The guest is a
 * loop that writes to each 4 KiB of 4 MiB, from where it lies in the same
 * memory, and ends by a store to where there is none. It runs once as it is,
 * once with its dirty pages logged, as QEMU does for a migration, and once as
 * before.
 */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SIZE	(4UL << 20)
#define STEP	4096UL
#define FIRST	STEP			/* the code is before */
#define COUNT	(SIZE / STEP - 1)
#define NOWHERE	0x20000000UL

extern const char guest_code[], guest_end[];
static int vm, vcpu;
static struct kvm_run *run;

#if defined(__aarch64__)

asm(".pushsection .rodata\n"
    ".balign 4\n"
    ".globl guest_code, guest_end\n"
    "guest_code: str x0, [x1]\n"
    "	add x1, x1, #4096\n"
    "	subs x2, x2, #1\n"
    "	b.ne guest_code\n"
    "	str x0, [x3]\n"
    "	b .\n"
    "guest_end:\n"
    ".popsection");

static void set_register(size_t offset, uint64_t value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | (offset / 4),
		.addr = (uintptr_t)&value,
	};

	if (ioctl(vcpu, KVM_SET_ONE_REG, &reg))
		err(1, "a register");
}

static void init_cpu(void)
{
	struct kvm_vcpu_init init;

	if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init) || ioctl(vcpu, KVM_ARM_VCPU_INIT, &init))
		err(1, "the CPU");
}

static void start_at(uint64_t value)
{
	const uint64_t values[] = { value, FIRST, COUNT, NOWHERE };

	for (size_t i = 0; i < 4; i++)
		set_register(offsetof(struct kvm_regs, regs.regs) + 8 * i, values[i]);
	set_register(offsetof(struct kvm_regs, regs.pc), 0);
}

#elif defined(__x86_64__)

asm(".pushsection .rodata\n"
    ".globl guest_code, guest_end\n"
    ".code32\n"
    "guest_code: movl %eax, (%ebx)\n"
    "	addl $4096, %ebx\n"
    "	decl %ecx\n"
    "	jnz guest_code\n"
    "	movl %eax, (%edx)\n"
    "	hlt\n"
    "guest_end:\n"
    ".code64\n"
    ".popsection");

static void init_cpu(void)
{
	struct kvm_segment flat = {
		.limit = 0xffffffff, .selector = 8, .present = 1, .db = 1, .s = 1, .g = 1, .type = 11,
	};
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "the CPU");
	sregs.cs = flat;
	flat.type = 3;
	flat.selector = 16;
	sregs.ds = sregs.es = sregs.ss = flat;
	sregs.cr0 |= 1;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		err(1, "the CPU");
}

static void start_at(uint64_t value)
{
	struct kvm_regs regs = { .rax = value, .rbx = FIRST, .rcx = COUNT, .rdx = NOWHERE, .rflags = 2 };

	if (ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "the registers");
}

#else
#error "no guest for this architecture"
#endif

static void set_memory(volatile unsigned char *at, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {
		.memory_size = SIZE, .userspace_addr = (uintptr_t)at, .flags = flags,
	};

	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		err(1, flags ? "dirty logging" : "the memory");
}

static void on_alarm(int number)
{
	(void)number;
}

static void run_guest(volatile unsigned char *at, unsigned char value)
{
	start_at(value);
	alarm(30);			/* a guest that cannot fetch its code runs for ever */
	if (ioctl(vcpu, KVM_RUN, 0))
		err(1, "the guest does not end");
	alarm(0);
	if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.phys_addr != NOWHERE)
		errx(1, "the guest stopped by exit %u", run->exit_reason);
	for (unsigned long i = FIRST; i < SIZE; i += STEP)
		if (at[i] != value)
			errx(1, "the guest did not write at 0x%lx", i);
	/* the store has been done, as far as the guest knows */
	run->immediate_exit = 1;
	ioctl(vcpu, KVM_RUN, 0);
	run->immediate_exit = 0;
}

int main(int argc, char **argv)
{
	static unsigned long dirty[SIZE / STEP / 64];
	struct kvm_dirty_log log = { .dirty_bitmap = dirty };
	unsigned long logged = 0;
	struct sigaction action = { .sa_handler = on_alarm };
	volatile unsigned char *at;
	struct statfs fs;
	char name[4096];
	int kvm = open("/dev/kvm", O_RDWR), fd;

	if (argc < 2)
		errx(2, "usage: kvmtest DIR");
	if (kvm < 0)
		err(1, "/dev/kvm");
	if (statfs(argv[1], &fs))
		err(1, "%s", argv[1]);
	snprintf(name, sizeof(name), "%s/guest", argv[1]);
	fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || unlink(name) || ftruncate(fd, (unsigned long)fs.f_bsize > SIZE ? (unsigned long)fs.f_bsize : SIZE))
		err(1, "%s", name);
	at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		err(1, "mmap");
	memcpy((void *)at, guest_code, guest_end - guest_code);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	set_memory(at, 0);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (vm < 0 || vcpu < 0 || run == MAP_FAILED)
		err(1, "the guest");
	sigaction(SIGALRM, &action, NULL);
	init_cpu();
	run_guest(at, 0x5a);
	set_memory(at, KVM_MEM_LOG_DIRTY_PAGES);
	run_guest(at, 0x5b);
	if (ioctl(vm, KVM_GET_DIRTY_LOG, &log))
		err(1, "the log of dirty pages");
	for (unsigned long i = 0; i < SIZE / STEP / 64; i++)
		logged += __builtin_popcountl(dirty[i]);
	if (logged < COUNT)
		errx(1, "%lu pages of %lu are in the log", logged, COUNT);
	set_memory(at, 0);
	run_guest(at, 0x5c);
	printf("ok kvm\n");
	return 0;
}
