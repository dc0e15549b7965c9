/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * virt-dmem-prefault: populate, zero, scrub or verify the memory of one file of a pool.
 *
 * The file is mapped shared, the NUMA policy is set, and only then are its pages touched: a policy counts for pages
 * that come later, never for those that are there. Pages stay with the file when this program ends, so whoever maps it
 * next (QEMU) finds all of it present. JSON lines on standard output tell how far it is; see usage().
 *
 * Threads take chunks in rising order from one counter. A failure stops the counter but not the chunks already taken,
 * so every chunk below the failing one is finished and the lowest failing offset is the one that is reported. A signal
 * leaves the chunks where they are.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/magic.h>
#include <linux/mempolicy.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#ifndef MPOL_PREFERRED_MANY
#define MPOL_PREFERRED_MANY 5 /* Linux 5.15 */
#endif
#ifndef VIRT_DMEM_VERSION
#define VIRT_DMEM_VERSION "unknown"
#endif

#define CHUNK ((size_t)64 << 20) /* what a thread takes at a time: some 5 to 50 ms of work */
#define STEP ((size_t)2 << 20)	 /* bytes after which a thread checks whether to stop */
#define PIECE ((size_t)64 << 10) /* bytes compared at a time; fits into the first caches */
#define MAX_CPUS 8192
#define MAX_NODES 1024
#define MAX_THREADS 1024
#define MAX_AUTO_THREADS 16
#define BITS (8 * sizeof(unsigned long))

enum status { DONE = 0, FAILED = 1, USAGE = 2, SIGNALLED = 128 };
enum mode { POPULATE, ZERO, SCRUB, VERIFY_ZERO };
enum policy { NONE, BIND, INTERLEAVE, PREFERRED };
enum method { AUTO, MADVISE, TOUCH };

static const char *const mode_names[] = {"populate", "zero", "scrub", "verify-zero", NULL};
static const char *const policy_names[] = {"none", "bind", "interleave", "preferred", NULL};
static const char *const method_names[] = {"auto", "madvise", "touch", NULL};

/* What was asked; fixed once the threads run. */
static struct {
	enum mode mode;
	enum policy policy;
	enum method method;
	size_t offset, size, page, chunk; /* all the work's offsets count from this one */
	size_t stride, within;		  /* one page of the file, and where in it to ask for it: see populate() */
	unsigned long nodes[MAX_NODES / BITS];
	unsigned int node_count, threads, progress_ms;
	bool background;
	pid_t parent;
	const char *file;
} ask = {.progress_ms = 200};

/* The file, and how far the threads are. */
static struct {
	int fd, wake;
	char *base;
	atomic_bool touch;   /* pages are populated by touching them: MADV_POPULATE_WRITE cannot */
	atomic_bool by_read; /* contents are read with pread(), not through the mapping */
	atomic_bool stop;    /* take no more chunks */
	atomic_bool quit;    /* leave the one you have, too */
	bool clean_holes;    /* pages that the kernel adds are zero */
	bool all_holes;	     /* and the file has nothing else */
	bool no_holes;	     /* or it has none */
	atomic_size_t next, done;
	pthread_mutex_t lock;
	struct {
		int error;
		size_t offset;
	} failure;
} work = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* --- events --- */

/* One line in one write(), so that no reader ever sees half of it; false when standard output was closed. */
__attribute__((format(printf, 1, 2))) static bool emit(const char *format, ...)
{
	char line[1024];
	va_list args;
	va_start(args, format);
	int length = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	ssize_t written;
	do
		written = write(STDOUT_FILENO, line, (size_t)length);
	while (written < 0 && errno == EINTR);
	return written == length;
}

/* Ends the program with an error event. Our sentences hold no character that JSON would want escaped. */
__attribute__((format(printf, 3, 4), noreturn)) static void fail(int error, size_t offset, const char *format, ...)
{
	char sentence[512];
	va_list args;
	va_start(args, format);
	vsnprintf(sentence, sizeof sentence, format, args);
	va_end(args);
	const char *name = strerrorname_np(error);
	if (!emit("{\"event\":\"error\",\"errno\":\"%s\",\"message\":\"%s\",\"offset\":%zu}\n", name ? name : "EIO",
		  sentence, offset))
		warnx("%s", sentence);
	exit(FAILED);
}

__attribute__((noreturn)) static void fail_at(int error, size_t offset)
{
	offset += ask.offset;
	switch (error) {
	case EFAULT: /* what madvise() makes of a fault that would have been SIGBUS */
	case ENOMEM:
		fail(ENOMEM, offset, "out of memory in the pool%s at offset %zu of %zu bytes",
		     ask.policy == BIND ? ", on the nodes asked for," : "", offset, ask.offset + ask.size);
	case EHWPOISON:
	case EIO:
		fail(error, offset, "the memory at offset %zu has a hardware error", offset);
	case EUCLEAN:
		fail(error, offset, "the byte at offset %zu is not zero", offset);
	default:
		fail(error, offset, "the memory at offset %zu cannot be used: %s", offset, strerror(error));
	}
}

/* --- the threads' work: each function does one chunk and says whether it could --- */

static bool failed(int error, size_t offset)
{
	pthread_mutex_lock(&work.lock);
	if (!work.failure.error || offset < work.failure.offset) {
		work.failure.error = error;
		work.failure.offset = offset;
	}
	pthread_mutex_unlock(&work.lock);
	atomic_store(&work.stop, true);
	return false;
}

/* SIGBUS is how the kernel says "no page" or "bad page" to the thread that touches a mapping; return to guarded() with it. */
static _Thread_local struct {
	sigjmp_buf back;
	volatile sig_atomic_t armed;
	int code;
	char *address;
} bus;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (!bus.armed) { /* a bug of ours: die of it where it happened */
		signal(number, SIG_DFL);
		return;
	}
	bus.armed = 0;
	bus.code = info->si_code;
	bus.address = info->si_addr;
	siglongjmp(bus.back, 1);
}

static bool guarded(bool (*todo)(size_t, size_t), size_t offset, size_t length)
{
	if (sigsetjmp(bus.back, 1))
		return failed(bus.code == BUS_ADRERR ? ENOMEM : EHWPOISON,
			      (size_t)(bus.address - work.base) / ask.stride * ask.stride);
	bus.armed = 1;
	bool ok = todo(offset, length);
	bus.armed = 0;
	return ok;
}

static int populate_write(size_t offset, size_t length)
{
	while (madvise(work.base + offset, length, MADV_POPULATE_WRITE))
		if (errno != EAGAIN && errno != EINTR)
			return errno;
	return 0;
}

/* Writes to every page what it holds already: an atomic OR with nothing, which no other writer can lose by. */
static bool touch(size_t offset, size_t length)
{
	for (size_t at = offset; at < offset + length; at += ask.stride) {
		if (atomic_load_explicit(&work.quit, memory_order_relaxed))
			return false;
		__atomic_fetch_or((volatile unsigned char *)work.base + at + ask.within, 0, __ATOMIC_RELAXED);
	}
	return true;
}

/*
 * Huge pages are asked for one by one, and each by its last base page. The kernel zeroes a huge page 4 KiB at a time,
 * coming from its ends to what was asked for (mm/memory.c, process_huge_page): asked for the first base page it goes
 * backwards all the way, which processors do not foresee. Forwards it is 2.3 times as fast (AMD Zen 4, Linux 6.18).
 * Where huge pages are not the file's own (tmpfs), it always goes forwards.
 */
static bool populate(size_t offset, size_t length)
{
	if (atomic_load(&work.touch))
		return touch(offset, length);
	size_t step = work.no_holes ? length : ask.within ? ask.stride : STEP;
	for (size_t at = offset, end = offset + length; at < end; at += step) {
		if (atomic_load(&work.quit))
			return false;
		size_t skip = step == ask.stride ? ask.within : 0, piece = end - at < step ? end - at : step;
		int error = populate_write(at + skip, piece - skip);
		/*
		 * EINVAL: a kernel before 5.14, or a mapping of raw PFNs, as dmemfs makes them (mm/gup.c, mm/madvise.c);
		 * for the latter some say EFAULT, which may also be a fault that would be SIGBUS: touching tells.
		 */
		if (ask.method == AUTO &&
		    (error == EINVAL || error == EFAULT || error == ENOSYS || error == EOPNOTSUPP)) {
			atomic_store(&work.touch, true);
			return touch(at, end - at);
		}
		/* Which page of the piece it was */
		for (size_t page = at; error && page < end; page += ask.stride)
			if ((error = populate_write(page + ask.within, ask.stride - ask.within)))
				return failed(error, page);
	}
	return true;
}

static size_t next_data(size_t offset, size_t end);

/*
 * memset() of zero runs at memory speed where the pages are mapped, and non-temporal stores were no faster; what
 * costs is the faults, so those are taken in bulk first. What the kernel has just zeroed is not zeroed again.
 */
static bool zero(size_t offset, size_t length)
{
	bool holes = work.clean_holes && (work.all_holes || next_data(offset, offset + length) == offset + length);
	if ((holes || !atomic_load(&work.touch)) && !populate(offset, length))
		return false;
	if (!holes)
		memset(work.base + offset, 0, length);
	return true;
}

/* Returns the index of the first byte that is not zero, or length; length is a multiple of 128, data so aligned. */
static size_t first_nonzero(const unsigned char *data, size_t length)
{
	typedef uint64_t vector __attribute__((vector_size(32), may_alias));
	const vector *words = (const vector *)data;
	vector any[4] = {0};
	for (size_t i = 0; i < length / sizeof(vector); i += 4) {
		any[0] |= words[i];
		any[1] |= words[i + 1];
		any[2] |= words[i + 2];
		any[3] |= words[i + 3];
	}
	any[0] |= any[1] | any[2] | any[3];
	if (!(any[0][0] | any[0][1] | any[0][2] | any[0][3]))
		return length;
	size_t at = 0;
	while (!data[at])
		at++;
	return at;
}

/*
 * Shows a piece without allocating where the file has holes: pread() gives zeroes for them (mm/shmem.c,
 * fs/hugetlbfs/inode.c), a mapping would fill them. A file system without read() only leaves the mapping.
 */
static const unsigned char *look(size_t offset, size_t length)
{
	static _Thread_local _Alignas(128) unsigned char copy[PIECE];
	while (atomic_load(&work.by_read)) {
		ssize_t got = pread(work.fd, copy, length, (off_t)(ask.offset + offset));
		if (got == (ssize_t)length)
			return copy;
		if (got < 0 && errno == EINVAL)
			atomic_store(&work.by_read, false);
		else if (got >= 0 || errno != EINTR) {
			failed(got < 0 ? errno : EIO, offset);
			return NULL;
		}
	}
	/* The memory must be read now, whatever the compiler knows of an earlier memset(). */
	__asm__ volatile("" ::: "memory");
	return (const unsigned char *)work.base + offset;
}

/*
 * Returns the first piece from offset on that may hold data; a file system that cannot say has data everywhere. A file
 * without holes is not asked: where lseek() takes the inode's lock (hugetlbfs), threads would wait for each other.
 */
static size_t next_data(size_t offset, size_t end)
{
	if (!atomic_load(&work.by_read))
		return offset;
	off_t data = lseek(work.fd, (off_t)(ask.offset + offset), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? end : offset;
	size_t found = (size_t)data - ask.offset; /* a multiple of the base page, and so is the offset */
	return found < end ? offset + (found - offset) / PIECE * PIECE : end;
}

static bool verify_zero(size_t offset, size_t length)
{
	for (size_t end = offset + length, at = offset; (at = next_data(at, end)) < end; at += PIECE) {
		size_t piece = end - at < PIECE ? end - at : PIECE;
		const unsigned char *data = look(at, piece);
		if (!data)
			return false;
		size_t bad = first_nonzero(data, piece);
		if (bad < piece)
			return failed(EUCLEAN, at + bad);
	}
	return true;
}

/*
 * Writes only to pages with something in them: holes stay holes, also those of one page, and clean pages are only read.
 * What was written is read again, while it is still in the caches.
 */
static bool scrub(size_t offset, size_t length)
{
	size_t page = ask.stride < PIECE ? ask.stride : PIECE;
	for (size_t end = offset + length, at = offset; (at = next_data(at, end)) < end; at += PIECE) {
		size_t piece = end - at < PIECE ? end - at : PIECE;
		const unsigned char *data = look(at, piece);
		if (!data)
			return false;
		bool written = false;
		for (size_t i = 0; i < piece; i += page) {
			if (first_nonzero(data + i, page) == page)
				continue;
			memset(work.base + at + i, 0, page);
			written = true;
		}
		if (written && !verify_zero(at, piece))
			return false;
	}
	return true;
}

static void *worker(void *unused)
{
	static bool (*const todo[])(size_t, size_t) = {
		[POPULATE] = populate, [ZERO] = zero, [SCRUB] = scrub, [VERIFY_ZERO] = verify_zero};
	while (!atomic_load(&work.stop)) {
		size_t offset = atomic_fetch_add(&work.next, ask.chunk);
		if (offset >= ask.size)
			break;
		size_t length = ask.size - offset < ask.chunk ? ask.size - offset : ask.chunk;
		if (guarded(todo[ask.mode], offset, length))
			atomic_fetch_add(&work.done, length);
	}
	eventfd_write(work.wake, 1);
	return unused;
}

/* --- the file --- */

static const char *kind(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "directory";
	case S_IFCHR:
	case S_IFBLK:
		return "device";
	case S_IFIFO:
		return "FIFO";
	default:
		return "special file";
	}
}

static void open_file(void)
{
	int access = ask.mode == VERIFY_ZERO ? O_RDONLY : O_RDWR;
	/* O_NONBLOCK and O_NOCTTY: what turns out to be a FIFO or a terminal must neither hold nor seize us. */
	work.fd = open(ask.file, access | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (work.fd < 0 && errno == ELOOP)
		fail(ELOOP, 0, "the file is a symbolic link and was not followed");
	if (work.fd < 0)
		fail(errno, 0, "the file cannot be opened: %s", strerror(errno));
	struct stat st;
	struct statfs fs;
	if (fstat(work.fd, &st) || fstatfs(work.fd, &fs))
		fail(errno, 0, "the file cannot be examined: %s", strerror(errno));
	if (!S_ISREG(st.st_mode))
		fail(EINVAL, 0, "the file is a %s, not a regular file", kind(st.st_mode));
	size_t end = ask.offset + ask.size;
	if ((uintmax_t)st.st_size < end)
		fail(EINVAL, 0, "the file has %jd bytes, less than the %zu asked for", (intmax_t)st.st_size, end);

	/* A file system with pages of its own (hugetlbfs, dmemfs) says so in f_bsize; one touch populates one of them. */
	size_t base_page = (size_t)sysconf(_SC_PAGESIZE), fs_page = (size_t)fs.f_bsize;
	if (fs_page > base_page && fs_page != ask.page)
		fail(EINVAL, 0, "the file system has pages of %zu bytes, not of %zu", fs_page, ask.page);
	ask.stride = fs_page == ask.page ? fs_page : base_page;
	ask.within = ask.stride - base_page;
	/* shmem_get_folio_gfp() and hugetlb_no_page() zero what they allocate; so does our dmemfs, which says hugetlbfs. */
	work.clean_holes = fs.f_type == TMPFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC;
	work.all_holes = !st.st_blocks;
	work.no_holes = (intmax_t)st.st_blocks * 512 >= (intmax_t)st.st_size;
	atomic_init(&work.by_read, !work.no_holes);
	atomic_init(&work.touch, ask.method == TOUCH);

	/*
	 * To populate the file, hugetlbfs has to reserve all its pages here, not to fail half way; to verify it, no pages
	 * may be allocated for its holes.
	 */
	int protection = ask.mode == VERIFY_ZERO ? PROT_READ : PROT_READ | PROT_WRITE;
	int flags = ask.mode == POPULATE || ask.mode == ZERO ? MAP_SHARED : MAP_SHARED | MAP_NORESERVE;
	work.base = mmap(NULL, ask.size, protection, flags, work.fd, (off_t)ask.offset);
	if (work.base == MAP_FAILED && errno == ENOMEM && fs_page > base_page)
		fail(ENOMEM, 0, "out of memory in the pool: it has not the free pages for %zu bytes", ask.size);
	if (work.base == MAP_FAILED)
		fail(errno, 0, "the file cannot be mapped: %s", strerror(errno));
	madvise(work.base, ask.size, MADV_DONTDUMP); /* guest memory belongs in no core file of ours */
	if (fs.f_type == TMPFS_MAGIC)
		madvise(work.base, ask.size, MADV_HUGEPAGE); /* counts where it is mounted with huge=advise */
}

static long mbind_all(unsigned int flags)
{
	int policy = ask.policy == BIND		? MPOL_BIND
		     : ask.policy == INTERLEAVE ? MPOL_INTERLEAVE
		     : ask.node_count > 1	? MPOL_PREFERRED_MANY
						: MPOL_PREFERRED;
	/* The kernel reads one bit less than it is told (mm/mempolicy.c, get_nodes). */
	return syscall(SYS_mbind, work.base, ask.size, policy, ask.nodes, (unsigned long)MAX_NODES + 1, flags);
}

static void set_policy(void)
{
	if (ask.policy == NONE)
		return;
	/* mbind() silently drops nodes that have no memory as long as one is left, so check first. */
	unsigned long allowed[MAX_NODES / BITS] = {0};
	if (syscall(SYS_get_mempolicy, NULL, allowed, (unsigned long)MAX_NODES, NULL, MPOL_F_MEMS_ALLOWED))
		fail(errno, 0, "NUMA policies cannot be used: %s", strerror(errno));
	for (unsigned int node = 0; node < MAX_NODES; node++)
		if (ask.nodes[node / BITS] & ~allowed[node / BITS] & 1UL << node % BITS)
			fail(EINVAL, 0, "node %u has no memory or may not be used here", node);
	if (mbind_all(0))
		fail(errno, 0, "the NUMA policy cannot be set: %s", strerror(errno));
}

/*
 * Pages that were there before keep their node, and QEMU would refuse them. Only for pages that MADV_POPULATE_WRITE
 * could handle: the kernel's walk expects a struct page behind each of them.
 */
static void check_policy(void)
{
	bool strict = ask.policy == BIND || ask.policy == INTERLEAVE;
	bool brought_in = ask.mode == POPULATE || ask.mode == ZERO;
	if (strict && brought_in && !atomic_load(&work.touch) && mbind_all(MPOL_MF_STRICT))
		fail(errno, 0, errno == EIO ? "pages that the file had before lie on other nodes"
					    : "it cannot be checked on which nodes the pages lie");
}

/* --- the command line --- */

static void usage(void)
{
	printf("Usage: virt-dmem-prefault --mode MODE --size BYTES --page-size BYTES [OPTION...] FILE\n"
	       "Populate, zero, scrub or verify the memory of FILE, a file of a pool.\n\n"
	       "  --mode populate        populate every page; contents are kept\n"
	       "  --mode zero            populate every page and write zeroes to all of them\n"
	       "  --mode scrub           zero what is not zero, and read it again to verify; holes stay holes\n"
	       "  --mode verify-zero     read all of it, fail at the first byte that is not zero; holes stay holes\n"
	       "  --size BYTES           size of the range to work on; a multiple of the page size\n"
	       "  --offset BYTES         start of that range; a multiple of the page size (default: 0)\n"
	       "  --page-size BYTES      page size of the pool\n"
	       "  --policy none|bind|interleave|preferred\n"
	       "                         NUMA policy, set before the first page is populated (default: none)\n"
	       "  --nodes LIST           its nodes, such as 0,2-3\n"
	       "  --threads N            default 0: one for each CPU it may run on, at most %d; with --nodes it runs\n"
	       "                         on their CPUs, if they have any\n"
	       "  --method auto|madvise|touch\n"
	       "                         how pages are populated; auto touches where madvise cannot\n"
	       "  --progress-ms N        least time between progress events (default: 200; 0: none)\n"
	       "  --background           run at the lowest priority: nice 19, its session as well if it leads one\n"
	       "  --parent PID           exit when this process, the parent, exits\n"
	       "  --help, --version\n\n"
	       "Events are JSON lines on standard output: any number of\n"
	       "  {\"event\":\"progress\",\"done\":BYTES,\"total\":BYTES}\n"
	       "and finally one of\n"
	       "  {\"event\":\"done\",\"bytes\":N,\"seconds\":S,\"threads\":N,\"method\":\"madvise|touch|memset|read\"}\n"
	       "  {\"event\":\"error\",\"errno\":\"ENOMEM\",\"message\":\"...\",\"offset\":N}\n"
	       "  {\"event\":\"stopped\",\"signal\":N,\"done\":BYTES,\"total\":BYTES}\n"
	       "Exit status: 0 done, 1 failed, 2 usage error, 128+N stopped by signal N (143: SIGTERM).\n",
	       MAX_AUTO_THREADS);
}

static uint64_t number(const char *option, const char *text, uint64_t most)
{
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > most)
		errx(USAGE, "--%s takes a number from 0 to %ju, not '%s'", option, (uintmax_t)most, text);
	return value;
}

static int choice(const char *option, const char *text, const char *const names[])
{
	for (int i = 0; names[i]; i++)
		if (!strcmp(text, names[i]))
			return i;
	errx(USAGE, "--%s does not know '%s'; see --help", option, text);
}

static void parse_nodes(const char *text)
{
	const char *at = text;
	do {
		char *end;
		unsigned long first = strtoul(at, &end, 10), last = first;
		bool digit = *at >= '0' && *at <= '9';
		if (digit && *end == '-') {
			at = end + 1;
			digit = *at >= '0' && *at <= '9';
			last = strtoul(at, &end, 10);
		}
		if (!digit || (*end && *end != ',') || last < first || last >= MAX_NODES)
			errx(USAGE, "--nodes takes a list such as 0,2-3 of nodes below %d, not '%s'", MAX_NODES, text);
		for (; first <= last; first++)
			ask.nodes[first / BITS] |= 1UL << first % BITS;
		at = end;
	} while (*at++);
	ask.node_count = 0;
	for (size_t i = 0; i < MAX_NODES / BITS; i++)
		ask.node_count += (unsigned int)__builtin_popcountl(ask.nodes[i]);
}

static void parse(int argc, char **argv)
{
	enum { MODE, SIZE, OFFSET, PAGE_SIZE, POLICY, NODES, THREADS, METHOD, PROGRESS, BACKGROUND, PARENT, HELP, VERSION };
	static const struct option options[] = {
		{"mode", required_argument, NULL, MODE},
		{"size", required_argument, NULL, SIZE},
		{"offset", required_argument, NULL, OFFSET},
		{"page-size", required_argument, NULL, PAGE_SIZE},
		{"policy", required_argument, NULL, POLICY},
		{"nodes", required_argument, NULL, NODES},
		{"threads", required_argument, NULL, THREADS},
		{"method", required_argument, NULL, METHOD},
		{"progress-ms", required_argument, NULL, PROGRESS},
		{"background", no_argument, NULL, BACKGROUND},
		{"parent", required_argument, NULL, PARENT},
		{"help", no_argument, NULL, HELP},
		{"version", no_argument, NULL, VERSION},
		{NULL, 0, NULL, 0}};
	bool have_mode = false;
	int index = 0, option;
	while ((option = getopt_long(argc, argv, "", options, &index)) != -1) {
		const char *name = option == '?' ? "" : options[index].name;
		switch (option) {
		case MODE:
			ask.mode = choice(name, optarg, mode_names);
			have_mode = true;
			break;
		case SIZE:
			ask.size = number(name, optarg, SSIZE_MAX);
			break;
		case OFFSET:
			ask.offset = number(name, optarg, SSIZE_MAX);
			break;
		case PAGE_SIZE:
			ask.page = number(name, optarg, SSIZE_MAX);
			break;
		case POLICY:
			ask.policy = choice(name, optarg, policy_names);
			break;
		case NODES:
			parse_nodes(optarg);
			break;
		case THREADS:
			ask.threads = (unsigned int)number(name, optarg, MAX_THREADS);
			break;
		case METHOD:
			ask.method = choice(name, optarg, method_names);
			break;
		case PROGRESS:
			ask.progress_ms = (unsigned int)number(name, optarg, INT_MAX);
			break;
		case BACKGROUND:
			ask.background = true;
			break;
		case PARENT:
			ask.parent = (pid_t)number(name, optarg, INT_MAX);
			break;
		case HELP:
			usage();
			exit(DONE);
		case VERSION:
			puts("virt-dmem-prefault " VIRT_DMEM_VERSION);
			exit(DONE);
		default: /* getopt_long() has said it */
			exit(USAGE);
		}
	}
	if (!have_mode)
		errx(USAGE, "--mode is missing; see --help");
	if (optind != argc - 1)
		errx(USAGE, "one FILE is needed, %d were given", argc - optind);
	ask.file = argv[optind];
	if (ask.page < (size_t)sysconf(_SC_PAGESIZE) || ask.page & (ask.page - 1))
		errx(USAGE, "--page-size is a power of two from %ld bytes on, not %zu", sysconf(_SC_PAGESIZE), ask.page);
	if (!ask.size || ask.size % ask.page)
		errx(USAGE, "--size is a multiple of the page size of %zu bytes and not 0, not %zu", ask.page, ask.size);
	if (ask.offset % ask.page)
		errx(USAGE, "--offset is a multiple of the page size of %zu bytes, not %zu", ask.page, ask.offset);
	if (ask.offset > SSIZE_MAX - ask.size)
		errx(USAGE, "--offset %zu and --size %zu reach beyond the largest file", ask.offset, ask.size);
	if ((ask.policy == NONE) != (ask.node_count == 0))
		errx(USAGE, "--policy %s goes %s --nodes", policy_names[ask.policy], ask.policy == NONE ? "without" : "with");
	/* Two threads that populate the same page would wait for each other; two that read it do not. */
	ask.chunk = ask.page > CHUNK && (ask.mode == POPULATE || ask.mode == ZERO) ? ask.page : CHUNK;
}

/* --- where and how the threads run; main()'s CPUs and priority become theirs --- */

typedef cpu_set_t cpu_sets[MAX_CPUS / CPU_SETSIZE];

/* Adds the CPUs of a node, as its cpulist gives them ("0-3,8\n"; "\n" for a node of memory alone). */
static void add_cpus(unsigned int node, cpu_sets cpus)
{
	char path[64];
	snprintf(path, sizeof path, "/sys/devices/system/node/node%u/cpulist", node);
	FILE *file = fopen(path, "re");
	if (!file)
		return;
	unsigned int first, last;
	while (fscanf(file, "%u", &first) == 1) {
		if (fscanf(file, "-%u", &last) != 1)
			last = first;
		for (; first <= last && first < MAX_CPUS; first++)
			CPU_SET_S(first, sizeof(cpu_sets), cpus);
		if (fgetc(file) != ',')
			break;
	}
	fclose(file);
}

/* Memory is zeroed fastest from its own node. Nodes without a CPU that we may use: stay on those we have. */
static void move_to_nodes(void)
{
	static cpu_sets allowed, near;
	if (!ask.node_count || sched_getaffinity(0, sizeof allowed, allowed))
		return;
	for (unsigned int node = 0; node < MAX_NODES; node++)
		if (ask.nodes[node / BITS] & 1UL << node % BITS)
			add_cpus(node, near);
	CPU_AND_S(sizeof near, near, near, allowed);
	if (CPU_COUNT_S(sizeof near, near))
		sched_setaffinity(0, sizeof near, near);
}

/*
 * Where the scheduler groups by session (CONFIG_SCHED_AUTOGROUP), nice counts within a session only, and the session's
 * own in /proc/PID/autogroup between them: sched(7). One that others are in, too, is not ours to change.
 */
static void step_back(void)
{
	setpriority(PRIO_PROCESS, 0, 19);
	int fd = getsid(0) == getpid() ? open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	if (write(fd, "19", 2) < 0)
		warn("the session's priority stays as it is");
	close(fd);
}

static unsigned int thread_count(void)
{
	static cpu_sets cpus;
	size_t threads = ask.threads, chunks = (ask.size - 1) / ask.chunk + 1;
	if (!threads) {
		threads = sched_getaffinity(0, sizeof cpus, cpus) ? 1 : (size_t)CPU_COUNT_S(sizeof cpus, cpus);
		threads = threads < MAX_AUTO_THREADS ? threads : MAX_AUTO_THREADS;
	}
	return (unsigned int)(threads < chunks ? threads : chunks);
}

/* --- start and end --- */

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* A program started with closed descriptors would open FILE as its own standard output. */
static void check_descriptors(void)
{
	for (int fd = 0; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) >= 0)
			continue;
		if (fd == STDOUT_FILENO)
			errx(FAILED, "standard output is closed");
		if (open("/dev/null", O_RDWR) != fd)
			exit(FAILED);
	}
}

/* Watches the threads until all have ended; returns the signal that stopped them, 0, or -1 when standard output was closed. */
static int watch(int signals, unsigned int threads)
{
	struct pollfd fds[] = {{.fd = signals, .events = POLLIN}, {.fd = work.wake, .events = POLLIN}};
	int stopped = 0;
	size_t told = 0;
	double due = now() + ask.progress_ms / 1e3;
	while (threads) {
		double wait = due - now();
		int timeout = !ask.progress_ms || stopped ? -1 : wait > 0 ? (int)(wait * 1e3) + 1 : 0;
		poll(fds, 2, timeout);
		struct signalfd_siginfo info;
		if (fds[0].revents & POLLIN && read(signals, &info, sizeof info) == sizeof info)
			stopped = (int)info.ssi_signo;
		eventfd_t ended;
		if (fds[1].revents & POLLIN && !eventfd_read(work.wake, &ended))
			threads -= (unsigned int)ended;
		if (!stopped && threads && ask.progress_ms && now() >= due) {
			due = now() + ask.progress_ms / 1e3;
			size_t done = atomic_load(&work.done);
			struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
			/* Nothing new, or a reader that does not keep up: leave this one out, the work goes on. */
			if (done != told && poll(&out, 1, 0) == 1 &&
			    !emit("{\"event\":\"progress\",\"done\":%zu,\"total\":%zu}\n", done, ask.size))
				stopped = -1;
			told = done;
		}
		if (stopped) {
			atomic_store(&work.stop, true);
			atomic_store(&work.quit, true);
		}
	}
	return stopped;
}

int main(int argc, char **argv)
{
	check_descriptors();
	parse(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGBUS, &(struct sigaction){.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO}, NULL);
	sigset_t ending;
	sigemptyset(&ending);
	sigaddset(&ending, SIGTERM);
	sigaddset(&ending, SIGINT);
	sigaddset(&ending, SIGHUP);
	sigprocmask(SIG_BLOCK, &ending, NULL); /* inherited by the threads; they are read in watch() */
	if (ask.parent) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() != ask.parent) /* it ended before we asked to be told */
			errx(FAILED, "process %d is not the parent, or has exited", ask.parent);
	}
	if (ask.background)
		step_back();
	open_file();
	set_policy();
	move_to_nodes();
	work.wake = eventfd(0, EFD_CLOEXEC);
	int signals = signalfd(-1, &ending, SFD_CLOEXEC);
	if (work.wake < 0 || signals < 0)
		fail(errno, 0, "no descriptor is left: %s", strerror(errno));

	double start = now();
	unsigned int threads = 0, wanted = thread_count();
	static pthread_t ids[MAX_THREADS];
	while (threads < wanted && !pthread_create(&ids[threads], NULL, worker, NULL))
		threads++;
	if (!threads)
		fail(EAGAIN, 0, "no thread can be started");
	int stopped = watch(signals, threads);
	for (unsigned int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);

	size_t done = atomic_load(&work.done);
	if (stopped < 0)
		errx(FAILED, "standard output was closed; stopped after %zu of %zu bytes", done, ask.size);
	if (work.failure.error)
		fail_at(work.failure.error, work.failure.offset);
	if (stopped) {
		emit("{\"event\":\"stopped\",\"signal\":%d,\"done\":%zu,\"total\":%zu}\n", stopped, done, ask.size);
		return SIGNALLED + stopped;
	}
	check_policy();
	static const char *const methods[] = {
		[POPULATE] = "madvise", [ZERO] = "memset", [SCRUB] = "memset", [VERIFY_ZERO] = "read"};
	const char *method = ask.mode == POPULATE && atomic_load(&work.touch) ? "touch" : methods[ask.mode];
	if (!emit("{\"event\":\"done\",\"bytes\":%zu,\"seconds\":%.3f,\"threads\":%u,\"method\":\"%s\"}\n", done,
		  now() - start, threads, method))
		errx(FAILED, "all %zu bytes are done, but standard output was closed", done);
	return DONE;
}
