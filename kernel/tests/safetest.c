// SPDX-License-Identifier: GPL-2.0-only
/* Who may write where, and that what a file gave up is nobody else's as long as the file lives. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "dmemtest.h"

#define PUNCH (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

/* Whether /proc/self/mem writes there: the kernel forces what the mapping does not allow, if the file system lets it. */
static bool mem_writes(const volatile void *at)
{
	int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	ssize_t got;

	EXPECT(mem >= 0);
	got = pwrite(mem, "XYZ", 3, (off_t)at);
	close(mem);
	return got > 0;
}

/* Whether a debugger writes there, into a child that has the mapping from us. */
static bool poke_writes(const volatile void *at)
{
	pid_t pid = fork();
	int status;
	long got;

	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	EXPECT(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	got = ptrace(PTRACE_POKEDATA, pid, at, (void *)0x5a5a5a5a5a5a5a5aUL);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return !got;
}

static bool vm_writes(const volatile void *at)
{
	struct iovec ours = { "XYZ", 3 }, theirs = { (void *)at, 3 };

	return process_vm_writev(getpid(), &ours, 1, &theirs, 1, 0) > 0;
}

/* Nothing gets into a mapping that may only be read, and it can still be read. */
static void expect_read_only(const char *what, int fd, int flags)
{
	volatile unsigned char *at = mmap(NULL, page, PROT_READ, flags, fd, 0);
	char text[8] = "";
	int mem;

	EXPECT(at != MAP_FAILED);
	if (memcmp((void *)at, "secret", 6))
		fail("%s: not what was written", what);
	if (mem_writes(at) || poke_writes(at) || vm_writes(at))
		fail("%s: written", what);
	if (memcmp((void *)at, "secret", 6))
		fail("%s: changed", what);
	if (signal_at(at, true) != SIGSEGV)
		fail("%s: a store is let through", what);
	mem = open("/proc/self/mem", O_RDONLY);
	if (pread(mem, text, 6, (off_t)at) != 6 || strcmp(text, "secret"))
		fail("%s: a debugger cannot read it", what);
	close(mem);
	munmap((void *)at, page);
}

static int has_secret(const char *name)
{
	int fd = make(name, page);
	volatile unsigned char *at = map(fd, page);

	memcpy((void *)at, "secret", 6);
	munmap((void *)at, page);
	EXPECT(!fchmod(fd, 0644));
	return fd;
}

static void check_access(void)
{
	int fd = has_secret("f"), reader = open(path_of("f"), O_RDONLY), status;
	volatile unsigned char *at;
	pid_t pid;

	expect_read_only("a shared mapping of a file open for reading", reader, MAP_SHARED);
	expect_read_only("a private mapping of a file open for reading", reader, MAP_PRIVATE);
	expect_read_only("a shared mapping for reading", fd, MAP_SHARED);
	expect_read_only("a private mapping", fd, MAP_PRIVATE);
	pid = fork();
	if (!pid) {	/* whoever may only read it */
		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) || prctl(PR_SET_DUMPABLE, 1))
			_exit(1);
		if (open(path_of("f"), O_RDWR) >= 0)
			_exit(2);
		expect_read_only("another user's mapping", open(path_of("f"), O_RDONLY), MAP_SHARED);
		_exit(0);
	}
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	/* what may be written is, by a debugger too, and no longer once that is taken back */
	at = map(fd, page);
	EXPECT(mem_writes(at) && !memcmp((void *)at, "XYZret", 6));
	EXPECT(poke_writes(at) && at[0] == 0x5a && at[7] == 0x5a);
	EXPECT(!mprotect((void *)at, page, PROT_READ));
	EXPECT(!mem_writes(at) && !poke_writes(at) && at[0] == 0x5a);
	EXPECT(!mprotect((void *)at, page, PROT_NONE));
	EXPECT(!mem_writes(at) && !poke_writes(at) && signal_at(at, false) == SIGSEGV);
	EXPECT(!mprotect((void *)at, page, PROT_READ | PROT_WRITE));
	EXPECT(mem_writes(at) && at[0] == 'X');
	munmap((void *)at, page);
	close(reader);
	gone("f", fd);
}

/* A file for check_readonly(), which runs where the same files are mounted read-only. */
static void check_secret(void)
{
	close(has_secret("secret"));
}

static void check_readonly(void)
{
	int fd = open(path_of("secret"), O_RDONLY);

	EXPECT(fd >= 0);
	EXPECT(open(path_of("secret"), O_RDWR) < 0 && errno == EROFS);
	expect_read_only("a shared mapping where all is read-only", fd, MAP_SHARED);
	expect_read_only("a private mapping where all is read-only", fd, MAP_PRIVATE);
	EXPECT(truncate(path_of("secret"), 0) && errno == EROFS);
	close(fd);
}

/* What a file open for reading, or its mapping, does not let anybody do. */
static void check_reader(void)
{
	int fd = has_secret("f"), reader = open(path_of("f"), O_RDONLY);
	volatile unsigned char *at = mmap(NULL, page, PROT_READ, MAP_SHARED, reader, 0);

	EXPECT(at != MAP_FAILED);
	EXPECT(ftruncate(reader, 0) && (errno == EINVAL || errno == EBADF));
	EXPECT(fallocate(reader, 0, 0, page) && errno == EBADF);
	EXPECT(fallocate(reader, PUNCH, 0, page) && errno == EBADF);
	EXPECT(mprotect((void *)at, page, PROT_READ | PROT_WRITE) && errno == EACCES);
	EXPECT(madvise((void *)at, page, MADV_REMOVE) && errno == EACCES);
	EXPECT(mremap((void *)at, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, at + 16 * page) == MAP_FAILED);
	EXPECT(remap_file_pages((void *)at, page, 0, 0, 0) || !mem_writes(at));
	EXPECT(fsetxattr(reader, "system.dmemfs.nodes", "0=0", 3, 0) && errno == EOPNOTSUPP);
	EXPECT(write(reader, "x", 1) < 0 && write(fd, "x", 1) < 0 && errno == EINVAL);
	EXPECT(!memcmp((void *)at, "secret", 6));
	munmap((void *)at, page);
	close(reader);
	gone("f", fd);
}

/* mprotect() holds with entries of each size. */
static void check_protect(void)
{
	int fd = make("f", 2 * page), status;
	volatile unsigned char *at = map(fd, 2 * page);
	pid_t pid;

	at[0] = at[page] = 1;
	EXPECT(!mprotect((void *)at, 2 * page, PROT_READ));
	EXPECT(signal_at(at, true) == SIGSEGV && signal_at(at + page, true) == SIGSEGV);
	EXPECT(!signal_at(at, false) && at[0] == 1);
	pid = fork();
	if (!pid)
		_exit(signal_at(at, true) != SIGSEGV);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	EXPECT(!mprotect((void *)at, 2 * page, PROT_NONE));
	EXPECT(signal_at(at, false) == SIGSEGV && signal_at(at + page, true) == SIGSEGV);
	EXPECT(!mprotect((void *)at, 2 * page, PROT_READ | PROT_WRITE));
	EXPECT(!signal_at(at, true) && at[page] == 1);
	munmap((void *)at, 2 * page);
	gone("f", fd);
}

static unsigned long held_by(int fd)
{
	char text[4096], *at = text;
	unsigned long sum = 0, bytes;
	ssize_t length = fgetxattr(fd, "system.dmemfs.held", text, sizeof(text) - 1);
	int nid, used;

	EXPECT(length >= 0);
	text[length] = 0;
	for (; sscanf(at, "%d=%lu%n", &nid, &bytes, &used) == 2; at += used + (at[used] == ','))
		sum += bytes;
	return sum;
}

static unsigned long before;	/* what was free */

static void expect_has(int fd, unsigned long live, unsigned long held)
{
	if (before - stat_of("free_bytes") != live + held || held_by(fd) != held || stat_of("held_bytes") != held ||
	    blocks(fd) != live + held)
		fail("%lu bytes less free, %lu of them held (%lu in all), %lu in blocks; not %lu and %lu",
		     before - stat_of("free_bytes"), held_by(fd), stat_of("held_bytes"), blocks(fd), live, held);
}

/* What was punched or cut out of a file that was mapped is given to no other, and back to itself, zero. */
static void check_held(void)
{
	int fd = make("f", page), other, rounds = page > 256UL << 20 ? 2 : 200;
	volatile unsigned char *at = map(fd, page), *there;
	unsigned long rest;

	before = stat_of("free_bytes");
	memset((void *)at, 0x5a, 4096);
	at[page - 1] = 0x5a;
	expect_has(fd, page, 0);
	EXPECT(!fallocate(fd, PUNCH, 0, page));
	expect_has(fd, 0, page);
	EXPECT(lseek(fd, 0, SEEK_DATA) < 0 && errno == ENXIO);
	/* all that others can get, they do */
	rest = stat_of("free_bytes");
	EXPECT(rest == before - page);
	other = make("g", rest + page);
	EXPECT(!fallocate(other, FALLOC_FL_KEEP_SIZE, 0, rest));
	EXPECT(fallocate(other, FALLOC_FL_KEEP_SIZE, 0, rest + page) && errno == ENOSPC);
	there = map(other, rest + page);
	EXPECT(bus_at(there + rest));
	EXPECT(at[0] == 0 && at[4095] == 0 && at[page - 1] == 0);
	EXPECT(bus_at(there + rest));
	munmap((void *)there, rest + page);
	gone("g", other);
	expect_has(fd, page, 0);
	/* a loop of it takes nothing more */
	for (int i = 0; i < rounds; i++) {
		at[0] = at[page - 1] = 0x5a;
		EXPECT(i % 2 ? !fallocate(fd, PUNCH, 0, page) : !madvise((void *)at, page, MADV_REMOVE));
		expect_has(fd, 0, page);
		EXPECT(at[0] == 0 && at[page - 1] == 0);
		expect_has(fd, page, 0);
	}
	at[0] = at[page - 1] = 0x5a;
	EXPECT(!ftruncate(fd, 0));
	expect_has(fd, 0, page);
	EXPECT(bus_at(at));
	EXPECT(!ftruncate(fd, page));
	expect_has(fd, 0, page);
	EXPECT(!fallocate(fd, 0, 0, page));
	expect_has(fd, page, 0);
	EXPECT(at[0] == 0 && at[page - 1] == 0);
	/* without a mapping, a name or an open file left: only the last of them lets go */
	EXPECT(!fallocate(fd, PUNCH, 0, page));
	munmap((void *)at, page);
	expect_has(fd, 0, page);
	at = map(fd, page);
	close(fd);
	EXPECT(!unlink(path_of("f")));
	EXPECT(before - stat_of("free_bytes") == page && stat_of("held_bytes") == page);
	munmap((void *)at, page);
	EXPECT(stat_of("free_bytes") == before && stat_of("held_bytes") == 0);
	/* nobody can know the page frames of what was never mapped */
	fd = make("f", page);
	EXPECT(!fallocate(fd, 0, 0, page));
	EXPECT(!fallocate(fd, PUNCH, 0, page));
	expect_has(fd, 0, 0);
	gone("f", fd);
}

/* Pieces of runs come and go in any order, and nothing gets lost. */
static void check_pieces(void)
{
	unsigned long pages = page < 1UL << 30 ? 16 : 2, seed = 1, live = 0, owned = 0, end;
	int fd = make("f", pages * page);
	volatile unsigned char *at = map(fd, pages * page);
	bool has[16] = { false };

	before = stat_of("free_bytes");
	for (int round = 0; round < (pages == 16 ? 2000 : 6); round++) {
		unsigned long start, count;

		seed = seed * 6364136223846793005UL + 1442695040888963407UL;
		start = (seed >> 33) % pages;
		count = 1 + (seed >> 43) % (pages - start);
		end = start + count;
		switch ((seed >> 53) % 4) {
		case 0:
			EXPECT(!fallocate(fd, PUNCH, start * page, count * page));
			for (unsigned long i = start; i < end; i++)
				has[i] = false;
			break;
		case 1:
			EXPECT(!ftruncate(fd, start * page) && !ftruncate(fd, pages * page));
			for (unsigned long i = start; i < pages; i++)
				has[i] = false;
			break;
		case 2:
			EXPECT(!fallocate(fd, 0, start * page, count * page));
			for (unsigned long i = start; i < end; i++)
				has[i] = true;
			break;
		case 3:
			for (unsigned long i = start; i < end; i++) {
				if (at[i * page] != (has[i] ? at[i * page] : 0))
					fail("page %lu is not zero", i);
				has[i] = true;
			}
			break;
		}
		live = 0;
		for (unsigned long i = 0; i < pages; i++) {
			live += has[i];
			if (has[i])
				at[i * page + 64] = 1 + i;
		}
		owned = live > owned ? live : owned;
		expect_has(fd, live * page, (owned - live) * page);
		for (unsigned long i = 0; i < pages; i++)
			if (has[i] && at[i * page + 64] != 1 + i)
				fail("page %lu is another's", i);
	}
	munmap((void *)at, pages * page);
	gone("f", fd);
	EXPECT(stat_of("free_bytes") == before && stat_of("held_bytes") == 0);
}

static void bind_to(volatile unsigned char *at, int nid)
{
	unsigned long nodes = 1UL << nid;

	EXPECT(!syscall(SYS_mbind, at, page, MPOL_BIND, &nodes, 64UL, 0));
}

/* A file that has all of its size gets no more of another node; a guest goes on with what there is. Needs nodes 0 and 1. */
static void check_heldpolicy(void)
{
	unsigned long nodes = 2, on0 = stat_of("node0/held_bytes");
	int fd = make("f", 2 * page);
	volatile unsigned char *at = map(fd, 2 * page);

	before = stat_of("free_bytes");
	bind_to(at, 0);
	at[0] = 1;
	EXPECT(!fallocate(fd, PUNCH, 0, page));
	EXPECT(stat_of("node0/held_bytes") - on0 == page && stat_of("node1/held_bytes") == 0);
	bind_to(at, 1);
	at[0] = 1;			/* half of its size was never had */
	expect_has(fd, page, page);
	EXPECT(!fallocate(fd, PUNCH, 0, page));
	at[0] = 1;
	expect_has(fd, page, page);
	EXPECT(stat_of("node0/held_bytes") - on0 == page);
	bind_to(at + page, 1);
	/* of its size all is had now: a fallocate says so, a touch gets what there is */
	EXPECT(!syscall(SYS_set_mempolicy, MPOL_BIND, &nodes, 64UL));
	EXPECT(fallocate(fd, 0, page, page) && errno == ENOSPC);
	EXPECT(!syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0UL));
	expect_has(fd, page, page);
	EXPECT(!bus_at(at + page));
	expect_has(fd, 2 * page, 0);
	munmap((void *)at, 2 * page);
	gone("f", fd);
	EXPECT(stat_of("free_bytes") == before);
}

const struct check safe_checks[] = {
	{ "access", check_access }, { "secret", check_secret }, { "readonly", check_readonly },
	{ "reader", check_reader }, { "protect", check_protect }, { "held", check_held }, { "pieces", check_pieces },
	{ "heldpolicy", check_heldpolicy }, { NULL, NULL }
};
