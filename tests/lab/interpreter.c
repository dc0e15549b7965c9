/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The interpreter of binfmt_misc(5) for arm64 while a root of arm64 is built: it has common programs, such as the
 * shell, run as this machine's own, from /.native of that root, and emulates the rest. A maintainer script is mostly
 * common programs, and emulated each takes ten times as long.
 *
 * The entry has the flags F and P: argv is this file's name, the program's path, its argv[0], and its arguments.
 * /.native/programs has those that give the same results on each architecture. Python is one when it compiles or runs
 * pip: told of the other architecture, as below, it takes and builds what that needs. The compiler is one for the
 * kernel's modules.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NATIVE "/.native"
#define EMULATOR NATIVE "/usr/bin/qemu-aarch64"

extern char **environ;

static int is_for_native_python(int argc, char **argv)
{
	int i;

	for (i = 3; i < argc && i < 9; i++)
		if (strstr(argv[i], "pip") || strstr(argv[i], "py_compile") || strstr(argv[i], "compileall") ||
		    !strcmp(argv[i], "venv") || !strcmp(argv[i], "generator.py") || /* libvirt-python's */
		    !strncmp(argv[i], "/usr/bin/py3c", 13)) /* py3compile, py3clean */
			return 1;
	return 0;
}

/* A cross compiler would look for the C library elsewhere; the kernel has none. */
static int is_for_kernel(int argc, char **argv)
{
	while (argc-- > 3)
		if (!strcmp(argv[argc], "-nostdinc"))
			return 1;
	return 0;
}

/* Add a directory to those that pip set. */
static void add_to_path(const char *name, const char *directory)
{
	const char *was = getenv(name);
	char *all;

	if (!was || !*was)
		setenv(name, directory, 1);
	else if (!strstr(was, directory) && asprintf(&all, "%s:%s", was, directory) > 0)
		setenv(name, all, 1);
}

int main(int argc, char **argv)
{
	char native[PATH_MAX];
	char **emulated;
	const char *name;
	int i;

	if (argc < 3)
		return 127;
	name = strrchr(argv[1], '/');
	name = name ? name + 1 : argv[1];
	snprintf(native, sizeof(native), NATIVE "/programs/%s", name);
	if (strstr(name, "gcc")) {
		if (is_for_kernel(argc, argv))
			execve(NATIVE "/programs/gcc-14", argv + 2, environ);
	} else if (strncmp(name, "python", 6)) {
		execve(native, argv + 2, environ); /* comes back where there is none */
	} else if (is_for_native_python(argc, argv)) {
		add_to_path("PYTHONPATH", NATIVE "/usr/lib/python3.13/lib-dynload");
		setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64", 1);
		setenv("_PYTHON_SYSCONFIGDATA_NAME", "_sysconfigdata__aarch64-linux-gnu", 1);
		execve(NATIVE "/programs/python3", argv + 2, environ);
	}
	emulated = calloc(argc + 3, sizeof(*emulated));
	if (!emulated)
		return 127;
	emulated[0] = EMULATOR;
	emulated[1] = "-0";
	emulated[2] = argv[2];
	emulated[3] = argv[1];
	for (i = 3; i < argc; i++)
		emulated[i + 1] = argv[i];
	execve(EMULATOR, emulated, environ);
	perror(EMULATOR);
	return 127;
}
