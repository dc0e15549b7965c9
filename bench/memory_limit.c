/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory_limit FILE BYTES THREADS: how fast this machine zeroes memory that is mapped.
 *
 * FILE is mapped shared and populated; then each thread zeroes its part of it with non-temporal stores ("stream"), and
 * again in pieces of 4 KiB by the string instruction that Linux' clear_page() uses on x86-64 ("page"; elsewhere
 * memset() of 4 KiB). Prints "stream GIB_PER_SECOND" and "page GIB_PER_SECOND".
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sys/mman.h>

#ifdef __x86_64__
#include <emmintrin.h>
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE ((size_t)4096)
#define MOST_THREADS 1024

static char *base;
static size_t share;

static void *stream(void *part)
{
	char *at = base + (uintptr_t)part * share, *end = at + share;
#ifdef __x86_64__
	const __m128i nothing = _mm_setzero_si128();
	for (; at < end; at += 64)
		for (int i = 0; i < 64; i += 16)
			_mm_stream_si128((__m128i *)(at + i), nothing);
	_mm_sfence();
#else
	memset(at, 0, (size_t)(end - at));
#endif
	return NULL;
}

static void *page(void *part)
{
	char *at = base + (uintptr_t)part * share, *end = at + share;
	for (; at < end; at += PAGE) {
#ifdef __x86_64__
		char *to = at;
		size_t count = PAGE;
		__asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(0) : "memory");
#else
		memset(at, 0, PAGE);
#endif
	}
	return NULL;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void measure(const char *name, void *(*work)(void *), unsigned int threads)
{
	static pthread_t ids[MOST_THREADS];
	double start = now();
	for (uintptr_t i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, work, (void *)i))
			errx(1, "no thread can be started");
	for (unsigned int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	printf("%s %.3f\n", name, (double)(share * threads) / (now() - start) / (1 << 30));
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "FILE BYTES THREADS");
	size_t size = strtoull(argv[2], NULL, 10);
	unsigned int threads = (unsigned int)strtoul(argv[3], NULL, 10);
	if (!threads || threads > MOST_THREADS || size / threads < PAGE)
		errx(2, "from 1 to %d threads, and a page for each", MOST_THREADS);
	int fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s", argv[1]);
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED || madvise(base, size, MADV_POPULATE_WRITE))
		err(1, "%s cannot be populated", argv[1]);
	share = size / threads / PAGE * PAGE;
	measure("stream", stream, threads);
	measure("page", page, threads);
	return 0;
}
