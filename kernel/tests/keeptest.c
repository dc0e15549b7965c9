// SPDX-License-Identifier: GPL-2.0-only
/*
 * Check that files outlive their mount (persist=), on a mounted dmemfs:
 *
 *	keeptest fill DIR SEED		make files of every kind
 *	keeptest verify DIR SEED	see that they are there, each name, owner and byte
 *	keeptest clean DIR		see that all free memory is zero, and none of it a file's
 *	keeptest flip ADDRESS		change a bit of physical memory that nobody has mounted
 *	keeptest kexec KERNEL INITRD COMMAND-LINE
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef LINUX_REBOOT_CMD_KEXEC
#define LINUX_REBOOT_CMD_KEXEC	0x45584543
#endif

#define EXPECT(what) do { \
	if (!(what)) \
		errx(1, "line %d: not so: %s (%s)", __LINE__, #what, strerror(errno)); \
} while (0)

#define MTIME	1234567890
#define LONG	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" \
		"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static unsigned long page, seed;

static unsigned long word(unsigned long file, unsigned long at)
{
	unsigned long x = (at + 1) * 0x9e3779b97f4a7c15UL ^ file * 0xc2b2ae3d27d4eb4fUL ^ seed << 40;

	return x ^ x >> 29;
}

static unsigned long *map_page(int fd, unsigned long index)
{
	void *at = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, index * page);

	EXPECT(at != MAP_FAILED);
	return at;
}

/* Write, or compare, one page of a file. */
static void do_page(int fd, unsigned long file, unsigned long index, bool write)
{
	unsigned long *at = map_page(fd, index), i, first = index * (page / sizeof(*at));

	for (i = 0; i < page / sizeof(*at); i++) {
		if (write)
			at[i] = word(file, first + i);
		else if (at[i] != word(file, first + i))
			errx(1, "file %lu: page %lu has %#lx at %lu, not %#lx", file, index, at[i],
			     i * sizeof(*at), word(file, first + i));
	}
	munmap(at, page);
}

static int create(const char *name, unsigned long pages)
{
	int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	EXPECT(fd >= 0);
	EXPECT(!ftruncate(fd, pages * page));
	return fd;
}

static void set_mtime(const char *name)
{
	struct timespec times[2] = { { .tv_sec = 1 }, { .tv_sec = MTIME, .tv_nsec = 987654321 } };

	EXPECT(!utimensat(AT_FDCWD, name, times, AT_SYMLINK_NOFOLLOW));
}

static void fill(void)
{
	unsigned long i;
	int a, b, fd;

	EXPECT(!mkdir("libvirt-guest", 0700) && !chmod("libvirt-guest", 0750));
	EXPECT(!chown("libvirt-guest", 64055, 108));
	EXPECT(!mkdir("deep", 0711) && !mkdir("deep/deeper", 0700) && !mkdir("deep/deeper/deepest", 01777));
	EXPECT(!chmod("deep/deeper/deepest", 01777));
	/* two files that get their pages in turn: as many runs as pages */
	a = create("libvirt-guest/pc.ram", 8);
	b = create("libvirt-guest/ram-node1", 8);
	for (i = 0; i < 8; i++) {
		do_page(a, 1, i, true);
		do_page(b, 2, i, true);
	}
	EXPECT(!fchown(a, 64055, 107) && !fchown(b, 4000000000U, 4000000001U));
	EXPECT(!fchmod(b, 04640));
	/* one with a hole, and a page that it holds: punched after it was mapped */
	EXPECT(!fallocate(b, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * page, 2 * page));
	close(a);
	close(b);
	set_mtime("libvirt-guest/pc.ram");
	/* one of a single run, with memory behind its end, and never mapped */
	fd = create("deep/deeper/allocated", 3);
	EXPECT(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 5 * page));
	close(fd);
	close(create("empty", 0));
	close(create("deep/hole", 7));
	/* names: another of a file, a symlink, a long one, one in UTF-8 with all that is allowed */
	EXPECT(!link("libvirt-guest/pc.ram", "deep/deeper/deepest/again"));
	EXPECT(!symlink("libvirt-guest/pc.ram", "link"));
	EXPECT(!lchown("link", 3, 4));
	fd = create(LONG "long", 1);
	do_page(fd, 3, 0, true);
	close(fd);
	fd = create("deep/ \n\\\"...ä\xff", 1);
	do_page(fd, 4, 0, true);
	close(fd);
	/* and what is removed is not to come back */
	fd = create("removed", 4);
	for (i = 0; i < 4; i++)
		do_page(fd, 5, i, true);
	close(fd);
	EXPECT(!unlink("removed"));
}

static struct stat look(const char *name, mode_t mode, uid_t uid, gid_t gid, nlink_t links)
{
	struct stat st;

	if (lstat(name, &st))
		err(1, "%s", name);
	if (st.st_mode != mode || st.st_uid != uid || st.st_gid != gid || st.st_nlink != links)
		errx(1, "%s: mode %o, owner %u:%u, %lu links", name, st.st_mode, st.st_uid, st.st_gid,
		     (unsigned long)st.st_nlink);
	return st;
}

static void look_file(const char *name, mode_t mode, uid_t uid, gid_t gid, nlink_t links,
		      unsigned long pages, unsigned long owned)
{
	struct stat st = look(name, S_IFREG | mode, uid, gid, links);

	if ((unsigned long)st.st_size != pages * page || (unsigned long)st.st_blocks != owned * (page / 512))
		errx(1, "%s: %lu bytes, %lu blocks", name, (unsigned long)st.st_size,
		     (unsigned long)st.st_blocks);
}

static unsigned long held(const char *name)
{
	char text[256] = "";
	const char *at;

	EXPECT(getxattr(name, "system.dmemfs.held", text, sizeof(text) - 1) >= 0);
	at = strchr(text, '=');
	return at ? strtoul(at + 1, NULL, 10) : 0;
}

static void verify(void)
{
	char target[64] = "";
	struct stat st, other;
	unsigned long i;
	int fd;

	look("libvirt-guest", S_IFDIR | 0750, 64055, 108, 2);
	look("deep", S_IFDIR | 0711, 0, 0, 3);
	look("deep/deeper", S_IFDIR | 0700, 0, 0, 3);
	look("deep/deeper/deepest", S_IFDIR | 01777, 0, 0, 2);
	look_file("libvirt-guest/pc.ram", 0600, 64055, 107, 2, 8, 8);
	look_file("libvirt-guest/ram-node1", 04640, 4000000000U, 4000000001U, 1, 8, 8);
	look_file("deep/deeper/allocated", 0600, 0, 0, 1, 3, 5);
	look_file("empty", 0600, 0, 0, 1, 0, 0);
	look_file("deep/hole", 0600, 0, 0, 1, 7, 0);
	look_file(LONG "long", 0600, 0, 0, 1, 1, 1);
	EXPECT(!lstat("libvirt-guest/pc.ram", &st) && st.st_mtim.tv_sec == MTIME &&
	       st.st_mtim.tv_nsec == 987654321);
	EXPECT(!lstat("deep/deeper/deepest/again", &other) && other.st_ino == st.st_ino);
	st = look("link", S_IFLNK | 0777, 3, 4, 1);
	EXPECT(readlink("link", target, sizeof(target)) == 20 && st.st_size == 20 &&
	       !strcmp(target, "libvirt-guest/pc.ram"));
	EXPECT(lstat("removed", &st) && errno == ENOENT);
	EXPECT(held("libvirt-guest/ram-node1") == 2 * page && !held("libvirt-guest/pc.ram"));

	fd = open("link", O_RDWR | O_CLOEXEC);
	EXPECT(fd >= 0);
	for (i = 0; i < 8; i++)
		do_page(fd, 1, i, false);
	close(fd);
	fd = open("libvirt-guest/ram-node1", O_RDWR | O_CLOEXEC);
	EXPECT(fd >= 0);
	EXPECT(lseek(fd, 0, SEEK_HOLE) == (off_t)(2 * page));
	EXPECT(lseek(fd, 2 * page, SEEK_DATA) == (off_t)(4 * page));
	for (i = 0; i < 8; i++)
		if (i != 2 && i != 3)
			do_page(fd, 2, i, false);
	close(fd);
	fd = open(LONG "long", O_RDWR | O_CLOEXEC);
	EXPECT(fd >= 0);
	do_page(fd, 3, 0, false);
	close(fd);
	fd = open("deep/ \n\\\"...ä\xff", O_RDWR | O_CLOEXEC);
	EXPECT(fd >= 0);
	do_page(fd, 4, 0, false);
	close(fd);
}

/* Take all that is free: it is zero, so neither a removed file's nor one that still is. */
static void clean(void)
{
	unsigned long i, j, *at;
	struct statfs fs;
	int fd = create("all", 0);

	EXPECT(!statfs(".", &fs) && fs.f_bfree);
	EXPECT(!fallocate(fd, 0, 0, fs.f_bfree * page));
	for (i = 0; i < fs.f_bfree; i++) {
		at = map_page(fd, i);
		for (j = 0; j < page / sizeof(*at); j++)
			if (at[j])
				errx(1, "free page %lu of %lu has %#lx", i, (unsigned long)fs.f_bfree, at[j]);
		memset(at, 0xa5, page);		/* nobody else's */
		munmap(at, page);
	}
	close(fd);
	EXPECT(!unlink("all"));
}

static void flip(unsigned long address)
{
	unsigned long page = sysconf(_SC_PAGESIZE);
	int fd = open("/dev/mem", O_RDWR | O_CLOEXEC);
	unsigned char *at;

	EXPECT(fd >= 0);
	/* read() and write() end where the kernel's own memory does */
	at = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, address & ~(page - 1));
	EXPECT(at != MAP_FAILED);
	at[address % page] ^= 1;
	EXPECT(!munmap(at, page));
	close(fd);
}

static void boot(const char *kernel, const char *initrd, const char *line)
{
	int k = open(kernel, O_RDONLY | O_CLOEXEC), i = open(initrd, O_RDONLY | O_CLOEXEC);

	EXPECT(k >= 0 && i >= 0);
	EXPECT(!syscall(SYS_kexec_file_load, k, i, strlen(line) + 1, line, 0UL));
	sync();
	reboot(LINUX_REBOOT_CMD_KEXEC);
	err(1, "kexec");
}

int main(int argc, char **argv)
{
	struct statfs fs;

	if (argc == 3 && !strcmp(argv[1], "flip")) {
		flip(strtoul(argv[2], NULL, 0));
		return 0;
	}
	if (argc == 5 && !strcmp(argv[1], "kexec"))
		boot(argv[2], argv[3], argv[4]);
	if (argc < 3 || chdir(argv[2]) || statfs(".", &fs))
		errx(2, "usage: %s fill|verify|clean DIR [SEED]", argv[0]);
	page = fs.f_bsize;
	seed = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
	umask(0);
	if (!strcmp(argv[1], "fill"))
		fill();
	else if (!strcmp(argv[1], "verify"))
		verify();
	else if (!strcmp(argv[1], "clean"))
		clean();
	else
		errx(2, "%s: not known", argv[1]);
	printf("ok %s\n", argv[1]);
	return 0;
}
