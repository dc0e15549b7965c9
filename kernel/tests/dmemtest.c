// SPDX-License-Identifier: GPL-2.0-only
/*
 * What dmemfs promises, asked of a mounted one: dmemtest DIR CHECK...
 * Each check prints "ok NAME", or one line of what was wrong and ends with 1.
 * It needs a pool of at least four pages that nobody else uses.
 */

#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <linux/futex.h>
#include <time.h>
#include <unistd.h>

#include "dmemtest.h"

#define K4	4096UL
#define M2	(2UL << 20)
#define G1	(1UL << 30)

/* Whether an entry of page tables can map 1 GiB of raw frames. */
#ifdef __aarch64__
#define GIANT	false
#else
#define GIANT	true
#endif

const char *dir;
unsigned long page;		/* of the pool */
static const char *check_name;

void fail(const char *format, ...)
{
	va_list args;

	printf("FAIL %s: ", check_name);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf(" (errno %d)\n", errno);
	fflush(stdout);
	exit(1);
}

const char *path_of(const char *name)
{
	static char paths[4][4096];
	static int at;

	at = (at + 1) % 4;
	snprintf(paths[at], sizeof(paths[at]), "%s/%s", dir, name);
	return paths[at];
}

int make(const char *name, unsigned long size)
{
	int fd = open(path_of(name), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	EXPECT(fd >= 0);
	EXPECT(!ftruncate(fd, size));
	return fd;
}

void gone(const char *name, int fd)
{
	EXPECT(!unlink(path_of(name)));
	EXPECT(!close(fd));
}

volatile unsigned char *map(int fd, unsigned long size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	EXPECT(at != MAP_FAILED);
	return at;
}

/* An attribute of /sys/fs/dmemfs/MAJOR:MINOR. */
unsigned long stat_of(const char *name)
{
	char file[4096];
	unsigned long value;
	struct stat st;
	FILE *from;

	EXPECT(!stat(dir, &st));
	snprintf(file, sizeof(file), "/sys/fs/dmemfs/%u:%u/%s", major(st.st_dev), minor(st.st_dev), name);
	from = fopen(file, "r");
	EXPECT(from);
	EXPECT(fscanf(from, "%lu", &value) == 1);
	fclose(from);
	return value;
}

void settle(void)
{
	int left = 6000;

	while (stat_of("dirty_bytes") && left--)
		usleep(10000);
	EXPECT(!stat_of("dirty_bytes"));
}

double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

unsigned long blocks(int fd)
{
	struct stat st;

	EXPECT(!fstat(fd, &st));
	return st.st_blocks * 512UL;
}

static sigjmp_buf hit;

static void on_signal(int number)
{
	siglongjmp(hit, number);
}

/* The signal that a store or a load ends in; 0 for none. */
int signal_at(volatile unsigned char *at, bool store)
{
	struct sigaction action = { .sa_handler = on_signal }, bus, segv;
	int number;

	sigaction(SIGBUS, &action, &bus);
	sigaction(SIGSEGV, &action, &segv);
	number = sigsetjmp(hit, 1);
	if (!number) {
		if (store)
			*at = 1;
		else
			(void)*at;
	}
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGSEGV, &segv, NULL);
	return number;
}

bool bus_at(volatile unsigned char *at)
{
	return signal_at(at, true) == SIGBUS;
}

static void check_names(void)
{
	char target[64] = "";
	struct stat st, other;
	int fd = make("a", page), held;

	EXPECT(!mkdir(path_of("d"), 0750));
	EXPECT(!stat(path_of("d"), &st) && S_ISDIR(st.st_mode) && (st.st_mode & 07777) == 0750 && st.st_nlink == 2);
	EXPECT(!rename(path_of("a"), path_of("d/b")));
	EXPECT(access(path_of("a"), F_OK) && errno == ENOENT);
	EXPECT(!link(path_of("d/b"), path_of("c")));
	EXPECT(!fstat(fd, &st) && st.st_nlink == 2);
	EXPECT(!stat(path_of("c"), &other) && other.st_ino == st.st_ino && other.st_dev == st.st_dev);
	EXPECT(!symlink("d/b", path_of("s")));
	EXPECT(readlink(path_of("s"), target, sizeof(target)) == 3 && !strcmp(target, "d/b"));
	EXPECT(!lstat(path_of("s"), &other) && S_ISLNK(other.st_mode) && other.st_size == 3);
	held = open(path_of("s"), O_RDWR);
	EXPECT(held >= 0);
	EXPECT(!fstat(held, &other) && other.st_ino == st.st_ino);
	close(held);
	EXPECT(!chmod(path_of("c"), 0640) && !chown(path_of("c"), 123, 45));
	EXPECT(!fstat(fd, &st) && (st.st_mode & 07777) == 0640 && st.st_uid == 123 && st.st_gid == 45);
	EXPECT(rmdir(path_of("d")) && errno == ENOTEMPTY);
	EXPECT(open(path_of("c"), O_RDWR | O_CREAT | O_EXCL, 0600) < 0 && errno == EEXIST);
	EXPECT(!unlink(path_of("s")) && !unlink(path_of("d/b")) && !rmdir(path_of("d")));
	gone("c", fd);
}

static void check_sizes(void)
{
	unsigned long before = stat_of("free_bytes");
	int fd = make("f", 2 * page);
	volatile unsigned char *at = map(fd, 2 * page);
	struct stat st;

	EXPECT(blocks(fd) == 0);
	at[0] = 1;
	at[page] = 2;
	EXPECT(blocks(fd) == 2 * page);
	EXPECT(before - stat_of("free_bytes") == 2 * page);
	EXPECT(!ftruncate(fd, page));
	EXPECT(blocks(fd) == 2 * page && at[0] == 1 && bus_at(at + page));	/* cut off, and still its own */
	EXPECT(!ftruncate(fd, 3 * page));
	EXPECT(!fstat(fd, &st) && st.st_size == (off_t)(3 * page));
	EXPECT(at[page] == 0);
	EXPECT(ftruncate(fd, page + 512) && errno == EINVAL);
	EXPECT(!ftruncate(fd, 0) && blocks(fd) == 2 * page);
	EXPECT(!munmap((void *)at, 2 * page));
	gone("f", fd);
	EXPECT(stat_of("free_bytes") == before);
}

static void check_fallocate(void)
{
	unsigned long before = stat_of("free_bytes");
	int fd = make("f", 0);
	volatile unsigned char *at;
	struct stat st;

	EXPECT(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 2 * page));
	EXPECT(!fstat(fd, &st) && st.st_size == 0 && blocks(fd) == 2 * page);
	EXPECT(!fallocate(fd, 0, 0, 3 * page));
	EXPECT(!fstat(fd, &st) && st.st_size == (off_t)(3 * page) && blocks(fd) == 3 * page);
	at = map(fd, 3 * page);
	for (int i = 0; i < 3; i++)
		EXPECT(at[i * page] == 0 && at[(i + 1) * page - 1] == 0);
	memset((void *)at, 0x5a, 3 * page);
	EXPECT(!fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, page, page));
	EXPECT(blocks(fd) == 3 * page && before - stat_of("free_bytes") == 3 * page);
	EXPECT(lseek(fd, 0, SEEK_DATA) == 0 && lseek(fd, 0, SEEK_HOLE) == (off_t)page);
	EXPECT(lseek(fd, page, SEEK_DATA) == (off_t)(2 * page) && lseek(fd, page + 1, SEEK_HOLE) == (off_t)(page + 1));
	EXPECT(lseek(fd, 2 * page, SEEK_HOLE) == (off_t)(3 * page));
	EXPECT(lseek(fd, 3 * page, SEEK_DATA) < 0 && errno == ENXIO);
	EXPECT(at[page] == 0 && at[2 * page - 1] == 0);		/* a zero page */
	EXPECT(at[0] == 0x5a && at[2 * page] == 0x5a);
	/* parts of pages are zeroed, and stay */
	EXPECT(!fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, page / 2, page / 4));
	EXPECT(blocks(fd) == 3 * page && at[page / 2 - 1] == 0x5a && at[page / 2] == 0 &&
	       at[page / 2 + page / 4 - 1] == 0 && at[page / 2 + page / 4] == 0x5a);
	EXPECT(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, page) && errno == EOPNOTSUPP);
	EXPECT(fallocate(fd, 0, 0, 3 * page + 4096) ? errno == EINVAL || errno == ENOSPC : page == K4);
	/* QEMU's balloon, where the page of the file system is that of the host */
	EXPECT(!madvise((void *)at, page, MADV_REMOVE) && at[0] == 0);
	munmap((void *)at, 3 * page);
	gone("f", fd);
	EXPECT(stat_of("free_bytes") == before);
}

static void check_statfs(void)
{
	struct statfs fs;

	EXPECT(!statfs(dir, &fs));
	EXPECT((unsigned long)fs.f_bsize == page && fs.f_blocks * page == stat_of("total_bytes") &&
	       fs.f_bfree * page == stat_of("free_bytes") && fs.f_bavail == fs.f_bfree);
	EXPECT(stat_of("clean_bytes") + stat_of("dirty_bytes") == stat_of("free_bytes") || stat_of("dirty_bytes"));
	printf("type 0x%lx\n", (unsigned long)fs.f_type);
}

/* Entries as large as the addresses allow, by the module's own counters. */
static unsigned long on_nodes(int fd)
{
	char text[4096], *at = text;
	unsigned long sum = 0, bytes;
	ssize_t length = fgetxattr(fd, "system.dmemfs.nodes", text, sizeof(text) - 1);
	int nid, used;

	EXPECT(length >= 0);
	text[length] = 0;
	while (sscanf(at, "%d=%lu%n", &nid, &bytes, &used) == 2) {
		EXPECT(nid >= 0 && bytes);
		sum += bytes;
		at += used + (at[used] == ',');
	}
	EXPECT(!*at);
	return sum;
}

/* Where its memory lies, as an extended attribute. */
static void check_nodes(void)
{
	int fd = make("f", 4 * page), at;
	char text[1];

	EXPECT(on_nodes(fd) == 0);
	EXPECT(!fallocate(fd, 0, page, 2 * page));
	EXPECT(on_nodes(fd) == 2 * page);
	EXPECT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page, page));
	EXPECT(on_nodes(fd) == page);
	EXPECT(fgetxattr(fd, "system.dmemfs.nodes", NULL, 0) > 1);
	EXPECT(fgetxattr(fd, "system.dmemfs.nodes", text, 1) == -1 && errno == ERANGE);
	EXPECT(fsetxattr(fd, "system.dmemfs.nodes", "0=0", 3, 0) == -1);
	EXPECT(fgetxattr(fd, "user.other", text, 1) == -1 && errno == EOPNOTSUPP);
	at = open(dir, O_RDONLY | O_DIRECTORY);
	EXPECT(fgetxattr(at, "system.dmemfs.nodes", text, 1) == -1 && errno == ENODATA);
	close(at);
	gone("f", fd);
}

static void check_entries(void)
{
	unsigned long size = page < M2 ? M2 : page;
	int fd = make("f", size + (page < M2 ? 0 : page));
	unsigned long huge = stat_of("huge_entries"), was[3], is[3];
	volatile unsigned char *at = map(fd, size);
	char *area;

#define FAULTS(to) ((to)[0] = stat_of("faults_4k"), (to)[1] = stat_of("faults_2m"), (to)[2] = stat_of("faults_1g"))
	EXPECT((unsigned long)at % page == 0);
	FAULTS(was);
	for (unsigned long i = 0; i < size; i += K4)
		at[i] = 1;
	FAULTS(is);
	EXPECT(is[2] - was[2] == (huge && GIANT && page == G1 ? 1UL : 0UL));
	EXPECT(is[1] - was[1] == (!huge || page < M2 || (GIANT && page == G1) ? 0UL : page / M2));
	EXPECT(is[0] - was[0] == (huge ? 0UL : size / K4));
	munmap((void *)at, size);
	if (page < M2) {
		gone("f", fd);
		return;
	}
	/* an address that is 4 KiB off: entries of 4 KiB; 2 MiB off: entries of 2 MiB */
	size = 2 * page;
	area = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	EXPECT(area != MAP_FAILED);
	area = (char *)(((unsigned long)area + page - 1) & ~(page - 1));
	at = mmap(area + K4, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	EXPECT((char *)at == area + K4);
	FAULTS(was);
	at[0] = at[K4] = at[M2] = 1;
	FAULTS(is);
	EXPECT(is[0] - was[0] == 3 && is[1] == was[1] && is[2] == was[2]);
	munmap((void *)at, size);
	if (page == G1) {
		at = mmap(area + M2, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
		EXPECT((char *)at == area + M2);
		FAULTS(was);
		at[0] = at[K4] = at[M2] = 1;
		FAULTS(is);
		EXPECT(is[0] - was[0] == (huge ? 0UL : 3UL) && is[1] - was[1] == (huge ? 2UL : 0UL) && is[2] == was[2]);
		munmap((void *)at, size);
	}
	gone("f", fd);
}

static void check_private(void)
{
	int fd = make("f", page), other;
	char *at;

	EXPECT(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EINVAL);
	at = mmap(NULL, page, PROT_READ, MAP_PRIVATE, fd, 0);
	EXPECT(at != MAP_FAILED && at[0] == 0);
	EXPECT(mprotect(at, page, PROT_READ | PROT_WRITE) && errno == EACCES);
	munmap(at, page);
	other = open(path_of("f"), O_RDONLY);
	EXPECT(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0) == MAP_FAILED && errno == EACCES);
	close(other);
	gone("f", fd);
}

/* Splits, mprotect, mremap, fork: what is refused, and that the rest works on. */
static void check_splits(void)
{
	unsigned long size = 2 * page;
	int fd = make("f", size), status;
	volatile unsigned char *at = map(fd, size);
	unsigned long entry = GIANT || page < G1 ? page : M2, inside = entry > K4 ? entry / 2 : K4;
	bool may = page == K4 || !stat_of("huge_entries");
	pid_t pid;

	at[0] = 1;
	at[page] = 2;
	EXPECT(may == !mprotect((void *)at, inside, PROT_READ));
	EXPECT(may == !munmap((char *)at + size - (page - (page == K4 ? 0 : inside)), K4));
	if (may) {
		munmap((void *)at, size);
		at = map(fd, size);
	}
	EXPECT(!mprotect((void *)at, size, PROT_READ));
	EXPECT(at[0] == 1 && at[page] == 2);
	EXPECT(!mprotect((void *)at, size, PROT_READ | PROT_WRITE));
	at[0] = 3;
	EXPECT(!mprotect((void *)at, page, PROT_NONE));	/* at a page of the pool */
	EXPECT(!mprotect((void *)at, page, PROT_READ | PROT_WRITE));
	at[1] = 4;
	EXPECT(at[0] == 3 && at[page] == 2);
	munmap((void *)at, size);

	at = map(fd, size);
	EXPECT(at[0] == 3 && at[page] == 2);
	EXPECT(mremap((void *)at, size, 2 * size, MREMAP_MAYMOVE) == MAP_FAILED && (errno == EFAULT || errno == EINVAL));
	{
		char *to = mmap(NULL, size + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		char *aligned = (char *)(((unsigned long)to + page - 1) & ~(page - 1));

		EXPECT(to != MAP_FAILED);
		EXPECT(mremap((void *)at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, aligned) == MAP_FAILED &&
		       errno == EINVAL);
		EXPECT(mremap((void *)at, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, aligned) == MAP_FAILED &&
		       errno == EINVAL);
	}
	EXPECT(at[0] == 3 && at[page] == 2);

	pid = fork();
	if (!pid) {
		if (at[0] != 3 || at[page] != 2)
			_exit(1);
		at[page + 1] = 7;
		_exit(mprotect((void *)at, size, PROT_READ) || at[page + 1] != 7);
	}
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	EXPECT(at[page + 1] == 7);
	at[2] = 9;
	EXPECT(!munmap((void *)at, page) && at[page] == 2);
	munmap((void *)(at + page), page);
	gone("f", fd);
}

/* Who wants struct pages gets an error, and nothing worse. */
static void check_gup(void)
{
	int fd = make("f", page), pipes[2], direct;
	volatile unsigned char *at = map(fd, page);
	char buffer[64] = "", name[] = "/var/tmp/dmemtest-XXXXXX", text[64];
	struct iovec ours = { buffer, 16 }, theirs = { (void *)at, 16 };
	FILE *mem;
	ssize_t got;

	memcpy((void *)at, "hello dmemfs", 13);
	EXPECT(process_vm_readv(getpid(), &ours, 1, &theirs, 1, 0) < 0 && errno == EFAULT);
	EXPECT(!pipe(pipes));
	EXPECT(vmsplice(pipes[1], &theirs, 1, 0) < 0 && errno == EFAULT);
	EXPECT(write(pipes[1], (void *)at, 13) == 13 && read(pipes[0], buffer, 13) == 13 && !strcmp(buffer, "hello dmemfs"));
	got = syscall(SYS_futex, at, FUTEX_WAKE, 1, NULL, NULL, 0);
	EXPECT(got < 0 && errno == EFAULT);
	direct = mkstemp(name);
	EXPECT(direct >= 0);
	unlink(name);
	EXPECT(ftruncate(direct, 4096) == 0);
	if (!fcntl(direct, F_SETFL, O_DIRECT)) {
		got = pwrite(direct, (void *)at, 4096, 0);
		EXPECT(got < 0 ? errno == EFAULT || errno == EINVAL : true);
		printf("O_DIRECT: %s\n", got < 0 ? strerror(errno) : "by a copy");
	}
	close(direct);
	EXPECT(madvise((void *)at, page, MADV_POPULATE_WRITE));
	if (!madvise((void *)at, page, MADV_DONTNEED))
		EXPECT(!memcmp((void *)at, "hello dmemfs", 13));	/* unmapped, and not lost */
	EXPECT(mlock((void *)at, page) == 0 || errno);
	/* ptrace's way reads and writes */
	mem = fopen("/proc/self/mem", "r+");
	EXPECT(mem && !fseeko(mem, (off_t)at, SEEK_SET) && fread(text, 1, 13, mem) == 13 && !strcmp(text, "hello dmemfs"));
	fclose(mem);
	close(pipes[0]);
	close(pipes[1]);
	munmap((void *)at, page);
	gone("f", fd);
}

static void read_all(const char *name)
{
	char buffer[65536];
	int fd = open(name, O_RDONLY);

	EXPECT(fd >= 0);
	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

static void scan_pagemap(int fd, unsigned long at, unsigned long size)
{
#ifdef PAGEMAP_SCAN
	struct page_region found[8];
	struct pm_scan_arg scan = {
		.size = sizeof(scan), .start = at, .end = at + size, .vec = (uintptr_t)found, .vec_len = 8,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_SOFT_DIRTY,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_FILE,
	};

	EXPECT(ioctl(fd, PAGEMAP_SCAN, &scan) >= 0 || errno == ENOTTY);	/* 6.7 */
#else
	(void)fd;
	(void)at;
	(void)size;
#endif
}

/* All that walks page tables. */
static void check_walkers(void)
{
	unsigned long size = 2 * page, nodes = 1, map_at;
	int fd = make("f", size), statuses[2];
	volatile unsigned char *at = map(fd, size);
	void *pages[2] = { (void *)at, (char *)at + page };
	int to[2] = { 0, 0 }, clear;
	unsigned char vec[4];
	uint64_t entry;

	at[0] = 1;
	at[page] = 2;
	for (int flags = 0; flags < 8; flags++)	/* STRICT, MOVE, MOVE_ALL */
		syscall(SYS_mbind, at, size, MPOL_BIND, &nodes, 64, flags);
	EXPECT(at[0] == 1 && at[page] == 2);
	EXPECT(!syscall(SYS_mbind, at, size, MPOL_DEFAULT, NULL, 0, MPOL_MF_STRICT));
	syscall(SYS_move_pages, 0, 2UL, pages, NULL, statuses, 0);
	syscall(SYS_move_pages, 0, 2UL, pages, to, statuses, 2);
	syscall(SYS_migrate_pages, 0, 64UL, &nodes, &nodes);
	EXPECT(at[0] == 1 && at[page] == 2);
	read_all("/proc/self/smaps");
	read_all("/proc/self/numa_maps");
	read_all("/proc/self/smaps_rollup");
	clear = open("/proc/self/clear_refs", O_WRONLY);
	if (clear >= 0) {
		EXPECT(write(clear, "1", 1) == 1 && write(clear, "4", 1) == 1);
		close(clear);
	}
	at[0]++;
	map_at = open("/proc/self/pagemap", O_RDONLY);
	EXPECT(pread(map_at, &entry, 8, (unsigned long)at / K4 * 8) == 8);
	scan_pagemap(map_at, (unsigned long)at, size);
	close(map_at);
	mincore((void *)at, K4 * 4, vec);
	for (int advice = 0; advice < 26; advice++)
		if (advice != MADV_REMOVE)
			madvise((void *)at, size, advice);
	madvise((void *)at, size, MADV_DOFORK);
	EXPECT(at[0] == 2 && at[page] == 2);
	munmap((void *)at, size);
	gone("f", fd);
}

static void check_leases(void)
{
	int fd = make("f", page), other, pipes[2], status;
	volatile unsigned char *at;
	pid_t pid;
	char c;

	EXPECT(!fcntl(fd, F_SETLEASE, F_WRLCK) && !fcntl(fd, F_SETLEASE, F_UNLCK));
	other = open(path_of("f"), O_RDWR);
	EXPECT(fcntl(fd, F_SETLEASE, F_WRLCK) && errno == EAGAIN);
	at = map(other, page);
	close(other);
	EXPECT(fcntl(fd, F_SETLEASE, F_WRLCK) && errno == EAGAIN);
	munmap((void *)at, page);
	EXPECT(!fcntl(fd, F_SETLEASE, F_WRLCK) && !fcntl(fd, F_SETLEASE, F_UNLCK));
	EXPECT(!pipe(pipes));
	pid = fork();
	if (!pid) {
		int mine = open(path_of("f"), O_RDWR);
		volatile unsigned char *there = map(mine, page);

		close(mine);
		there[0] = 1;
		if (write(pipes[1], "x", 1) == 1)
			pause();
		_exit(0);
	}
	EXPECT(read(pipes[0], &c, 1) == 1);
	EXPECT(fcntl(fd, F_SETLEASE, F_WRLCK) && errno == EAGAIN);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	EXPECT(!fcntl(fd, F_SETLEASE, F_WRLCK));
	EXPECT(!fcntl(fd, F_SETLEASE, F_UNLCK));
	gone("f", fd);
}

static void check_exhaustion(void)
{
	unsigned long total, before;
	int fd = make("all", 0), more;
	volatile unsigned char *at;

	before = stat_of("free_bytes");
	total = before;
	EXPECT(fallocate(fd, 0, 0, total + page) && errno == ENOSPC);
	EXPECT(blocks(fd) == 0 && stat_of("free_bytes") == before);	/* all or nothing */
	EXPECT(!fallocate(fd, 0, 0, total));
	EXPECT(blocks(fd) == total && stat_of("free_bytes") == 0);
	more = make("more", page);
	at = map(more, page);
	EXPECT(bus_at(at));
	EXPECT(stat_of("faults_failed"));
	EXPECT(fallocate(more, 0, 0, page) && errno == ENOSPC);
	/* and goes on as soon as there is some */
	EXPECT(!fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, page));
	EXPECT(!bus_at(at));
	munmap((void *)at, page);
	gone("more", more);
	gone("all", fd);
	EXPECT(stat_of("free_bytes") == before);
}

static void check_zeroes(void)
{
	/* nobody sees what was there: all of the pool, written and given again, before it can have been scrubbed */
	unsigned long total = stat_of("free_bytes") / 2 / page * page;
	int fd = make("one", total);
	volatile unsigned char *at = map(fd, total);

	for (unsigned long i = 0; i < total; i += K4)
		memset((void *)(at + i), 0xa5, 64);
	munmap((void *)at, total);
	gone("one", fd);
	total = stat_of("free_bytes");
	fd = make("two", total);
	at = map(fd, total);
	for (unsigned long i = 0; i < total; i += K4)
		for (unsigned long j = 0; j < 64; j += 8)
			if (*(volatile uint64_t *)(at + i + j))
				fail("offset %lu is not zero", i + j);
	munmap((void *)at, total);
	gone("two", fd);
}

static const struct check own[] = {
	{ "names", check_names }, { "sizes", check_sizes }, { "fallocate", check_fallocate },
	{ "statfs", check_statfs }, { "nodes", check_nodes }, { "entries", check_entries }, { "private", check_private },
	{ "splits", check_splits }, { "gup", check_gup }, { "walkers", check_walkers }, { "leases", check_leases },
	{ "exhaustion", check_exhaustion }, { "zeroes", check_zeroes }, { NULL, NULL }
};

static bool run_named(const struct check *checks, const char *name)
{
	for (; checks->name; checks++) {
		if (strcmp(checks->name, name))
			continue;
		check_name = name;
		errno = 0;
		checks->run();
		printf("ok %s\n", name);
		fflush(stdout);
		return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	struct statfs fs;

	if (argc < 3)
		errx(2, "usage: %s DIR CHECK...", argv[0]);
	dir = argv[1];
	if (statfs(dir, &fs))
		err(1, "%s", dir);
	page = fs.f_bsize;
	for (int i = 2; i < argc; i++)
		if (!run_named(own, argv[i]) && !run_named(more_checks, argv[i]) &&
		    !run_named(safe_checks, argv[i]))
			errx(2, "%s: no such check", argv[i]);
	return 0;
}
