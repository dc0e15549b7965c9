/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef DMEMTEST_H
#define DMEMTEST_H

#include <stdbool.h>

struct check {
	const char *name;
	void (*run)(void);
};

extern const struct check more_checks[];
extern const struct check safe_checks[];
extern const char *dir;
extern unsigned long page;

#define EXPECT(what) do { if (!(what)) fail("line %d: %s", __LINE__, #what); } while (0)

void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
const char *path_of(const char *name);
int make(const char *name, unsigned long size);
void gone(const char *name, int fd);
volatile unsigned char *map(int fd, unsigned long size);
unsigned long stat_of(const char *name);
void settle(void);
double now(void);
unsigned long blocks(int fd);
int signal_at(volatile unsigned char *at, bool store);
bool bus_at(volatile unsigned char *at);

#endif
