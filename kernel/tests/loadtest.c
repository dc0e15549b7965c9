// SPDX-License-Identifier: GPL-2.0-only
/* Checks with many threads, with NUMA policies, and what things cost. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "dmemtest.h"

#define THREADS 4

static int shared_fd;
static unsigned long shared_size;
static volatile unsigned char *shared;
static volatile int stop;

static void *touch_all(void *data)
{
	unsigned long which = (unsigned long)data;

	for (unsigned long i = 0; i < shared_size; i += 4096)
		__atomic_fetch_add((uint32_t *)(shared + i), 1 + 0 * which, __ATOMIC_RELAXED);
	return NULL;
}

static void *punch_all(void *data)
{
	unsigned int seed = (unsigned long)data;

	while (!stop) {
		unsigned long at = rand_r(&seed) % (shared_size / page) * page;

		if (rand_r(&seed) % 2)
			fallocate(shared_fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, at, page);
		else
			fallocate(shared_fd, FALLOC_FL_KEEP_SIZE, at, page);
	}
	return NULL;
}

static void *map_all(void *data)
{
	unsigned int seed = (unsigned long)data;

	while (!stop) {
		volatile unsigned char *at = map(shared_fd, shared_size);

		for (int i = 0; i < 200; i++)
			at[rand_r(&seed) % (shared_size / 4096) * 4096] = 1;
		munmap((void *)at, shared_size);
	}
	return NULL;
}

/* Threads that fault on the same pages get the same pages. */
static void check_threads(void)
{
	unsigned long before = stat_of("free_bytes");
	pthread_t threads[THREADS];

	shared_size = before / 2 / page * page;
	if (shared_size > 256UL << 20 && page < 256UL << 20)
		shared_size = 256UL << 20;
	shared_fd = make("f", shared_size);
	shared = map(shared_fd, shared_size);
	for (unsigned long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, touch_all, (void *)i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned long i = 0; i < shared_size; i += 4096)
		if (*(volatile uint32_t *)(shared + i) != THREADS)
			fail("offset %lu was touched %u times", i, *(volatile uint32_t *)(shared + i));
	EXPECT(blocks(shared_fd) == shared_size && before - stat_of("free_bytes") == shared_size);
	munmap((void *)shared, shared_size);
	gone("f", shared_fd);
	EXPECT(stat_of("free_bytes") == before);
}

/* Faults, holes, fallocate and mappings at once; afterwards nothing is lost. */
static void check_storm(void)
{
	unsigned long before = stat_of("free_bytes");
	pthread_t threads[THREADS];

	shared_size = 4 * page < 8UL << 20 ? 8UL << 20 : 2 * page;
	shared_fd = make("f", shared_size);
	stop = 0;
	for (unsigned long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, i % 2 ? punch_all : map_all, (void *)(i + 1));
	sleep(5);
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	EXPECT(before - stat_of("free_bytes") == blocks(shared_fd));
	gone("f", shared_fd);
	EXPECT(stat_of("free_bytes") == before);
}

static unsigned long used_on(int nid)
{
	char total[64], available[64];

	snprintf(total, sizeof(total), "node%d/total_bytes", nid);
	snprintf(available, sizeof(available), "node%d/free_bytes", nid);
	return stat_of(total) - stat_of(available);
}

static void expect_used(const char *what, const unsigned long *was, unsigned long on0, unsigned long on1)
{
	if (used_on(0) - was[0] != on0 || used_on(1) - was[1] != on1)
		fail("%s: %lu and %lu bytes more on the nodes, not %lu and %lu", what, used_on(0) - was[0],
		     used_on(1) - was[1], on0, on1);
}

/* Needs a pool on the nodes 0 and 1. */
static void check_policy(void)
{
	unsigned long size = 2 * page, was[2] = { used_on(0), used_on(1) }, both = 3;
	int fd;

	for (unsigned long nid = 0; nid < 2; nid++) {
		unsigned long nodes = 1UL << nid;
		volatile unsigned char *at;

		/* by the mapping, at first touch, with the flags that QEMU gives */
		fd = make("f", size);
		at = map(fd, size);
		EXPECT(!syscall(SYS_mbind, at, size, MPOL_BIND, &nodes, 64UL, MPOL_MF_STRICT | MPOL_MF_MOVE));
		at[0] = at[page] = 1;
		expect_used("mbind", was, nid ? 0 : size, nid ? size : 0);
		munmap((void *)at, size);
		gone("f", fd);
		/* by the task, at first touch and in fallocate() */
		EXPECT(!syscall(SYS_set_mempolicy, MPOL_BIND, &nodes, 64UL));
		fd = make("f", size);
		EXPECT(!fallocate(fd, 0, 0, page));
		at = map(fd, size);
		at[page] = 1;
		expect_used("set_mempolicy", was, nid ? 0 : size, nid ? size : 0);
		munmap((void *)at, size);
		/* bound is bound: ENOSPC and SIGBUS though the other node has memory */
		EXPECT(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, stat_of(nid ? "node1/total_bytes" : "node0/total_bytes") + page) &&
		       errno == ENOSPC);
		/* preferred is not */
		EXPECT(!syscall(SYS_set_mempolicy, MPOL_PREFERRED, &nodes, 64UL));
		EXPECT(!fallocate(fd, 0, 0, stat_of(nid ? "node1/total_bytes" : "node0/total_bytes") + page));
		EXPECT(used_on(!nid) - was[!nid] == page);
		EXPECT(!syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0UL));
		gone("f", fd);
	}
	EXPECT(!syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, &both, 64UL));
	fd = make("f", 0);
	EXPECT(!fallocate(fd, 0, 0, 2 * page));
	EXPECT(!syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0UL));
	expect_used("interleave", was, page, page);
	gone("f", fd);
}

static void cost_of(const char *what, unsigned long size)
{
	int fd = make("cost", 0);
	volatile unsigned char *at;
	double start = now(), got, touched;

	EXPECT(!fallocate(fd, 0, 0, size));
	got = now();
	at = map(fd, size);
	for (unsigned long i = 0; i < size; i += 4096)
		at[i] = 1;
	touched = now();
	printf("cost page=%luK size=%luM %s fallocate=%.6f touch=%.6f\n", page >> 10, size >> 20, what, got - start,
	       touched - got);
	munmap((void *)at, size);
	close(fd);
}

static unsigned long cost_size(void)
{
	struct statfs fs;

	EXPECT(!statfs(dir, &fs));
	return fs.f_bfree * page < 1UL << 30 ? fs.f_bfree / 2 * page : 1UL << 30;
}

/* Seconds to get and to touch up to 1 GiB of clean and of dirty memory. */
static void check_cost(void)
{
	unsigned long size = cost_size();
	int rest;

	settle();
	cost_of("clean", size);
	/* leave nothing clean behind */
	EXPECT(!unlink(path_of("cost")));
	rest = make("rest", 0);
	EXPECT(!fallocate(rest, 0, 0, stat_of("free_bytes")));
	gone("rest", rest);
	cost_of("dirty", size);
	EXPECT(!unlink(path_of("cost")));
	EXPECT(!stat_of("clean_bytes") || stat_of("dirty_bytes") || page > 1UL << 20);
}

/* The same on another file system, to compare with. */
static void check_other_cost(void)
{
	cost_of("other", cost_size());
	EXPECT(!unlink(path_of("cost")));
}

/* Have a page mapped until killed. */
static void check_hold(void)
{
	int fd = open(path_of("held"), O_RDWR | O_CREAT, 0600);
	volatile unsigned char *at;

	EXPECT(fd >= 0 && !ftruncate(fd, page));
	at = map(fd, page);
	close(fd);
	for (;;) {
		at[0]++;
		printf("holding\n");
		fflush(stdout);
		usleep(100000);
	}
}

const struct check more_checks[] = {
	{ "threads", check_threads }, { "storm", check_storm }, { "policy", check_policy }, { "cost", check_cost },
	{ "other-cost", check_other_cost }, { "hold", check_hold },
	{ NULL, NULL }
};
