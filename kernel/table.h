/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The format in which a mount with persist= leaves its files in its own
 * memory: docs/development/table-format.md. This and table.c also compile in
 * user space, where tests/tabletest.c checks them.
 *
 * Each region ends with a header; the table itself lies before the header of
 * the last one. All numbers are little-endian.
 */
#ifndef DMEMFS_TABLE_H
#define DMEMFS_TABLE_H

#ifdef __KERNEL__
#include <linux/build_bug.h>
#include <linux/stat.h>
#include <linux/types.h>
#include <asm/byteorder.h>
#else
#include <assert.h>
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef uint32_t __le32;
typedef uint64_t __le64;
#define cpu_to_le32	htole32
#define cpu_to_le64	htole64
#define le32_to_cpu	le32toh
#define le64_to_cpu	le64toh
#endif

#define DMEMFS_TABLE_VERSION	1
#define DMEMFS_TABLE_REGIONS	64
#define DMEMFS_HEADER_BYTES	4096
#define DMEMFS_TABLE_PER_GIB	(56U << 10)	/* with the headers less than 64 KiB for each GiB */
#define DMEMFS_TOKEN_BYTES	16

/* The state of a header, set by one store. Any other word is a torn one. */
#define DMEMFS_OPEN	0x6e65706f2d6d6d64ULL	/* mounted, or being written */
#define DMEMFS_SEALED	0x6c6165732d6d6d64ULL	/* what was written before is whole */

struct dmemfs_header {
	u8 magic[8];
	__le32 version;
	__le32 header_crc;		/* of all that follows the state */
	__le64 state;
	u8 token[DMEMFS_TOKEN_BYTES];
	__le64 generation;		/* counts the tables that this memory has had */
	__le64 table_bytes;
	__le32 table_crc;
	__le32 page_shift;
	__le32 index;			/* the region whose header this is */
	__le32 regions;
	struct {
		__le64 start;
		__le64 size;
	} region[DMEMFS_TABLE_REGIONS];
};

enum dmemfs_verdict {
	DMEMFS_GOOD,
	DMEMFS_UNPROVEN,	/* nothing says that this host left it for this mount */
	DMEMFS_DAMAGED,		/* left for this mount, and not whole, or not readable */
};

enum dmemfs_record_kind {
	DMEMFS_INODE = 1,
	DMEMFS_NAME,
	DMEMFS_RUN,		/* of an inode, not in the table by itself */
	DMEMFS_HELD_RUN,	/* likewise */
};

#define DMEMFS_WAS_MAPPED	1U

/* Then the target of a symlink, the runs, the held runs, and the inode's first name. */
struct dmemfs_disk_inode {
	__le32 kind;
	__le32 mode;
	__le32 uid;
	__le32 gid;
	__le64 size;
	__le64 most;
	__le64 mtime;
	__le32 mtime_ns;
	__le32 flags;
	__le32 runs;
	__le32 held_runs;
	__le32 target;		/* its length */
	__le32 zero;
};

/* Then the name; inodes are numbered from 1 on as they come, 0 is the root directory. */
struct dmemfs_disk_name {
	__le32 kind;
	__le32 inode;
	__le32 parent;
	__le32 length;
};

struct dmemfs_disk_run {
	__le64 index;
	__le64 page;
	__le64 count;
};

struct dmemfs_disk_held {
	__le64 page;
	__le64 count;
};

/* What a cursor found, checked but for the pages: those are the caller's to claim. */
struct dmemfs_record {
	enum dmemfs_record_kind kind;
	u32 inode;
	/* of an inode */
	u32 mode, uid, gid, flags, mtime_ns;
	u64 size, most, mtime;
	/* of a name, or of a symlink its target; not terminated */
	const char *text;
	u32 length;
	u32 parent;
	/* of a run */
	u64 index, page, count;
};

struct dmemfs_cursor {
	const u8 *at;
	const u8 *end;
	unsigned int page_shift;
	u8 *types;		/* of the inodes so far, dmemfs_most_inodes() of them */
	u32 inodes;
	u32 runs, held_runs;	/* still to come of the last inode */
	u64 next_index, most;
	bool unnamed;		/* the last inode's name is still to come */
	const char *reason;	/* why the table cannot be read */
};

/* Text is written as it fits; full is set when something did not. */
struct dmemfs_writer {
	u8 *start;
	u64 room;
	u64 used;
	bool full;
};

u32 dmemfs_crc32c(u32 crc, const void *data, u64 size);

void dmemfs_finish_header(struct dmemfs_header *header);
enum dmemfs_verdict dmemfs_check_header(const struct dmemfs_header *header,
					const struct dmemfs_header *expected, u64 room,
					const char **reason);
bool dmemfs_same_table(const struct dmemfs_header *a, const struct dmemfs_header *b);
bool dmemfs_is_table(const struct dmemfs_header *header, const void *table);

u64 dmemfs_table_room(u64 bytes_of_regions);
u32 dmemfs_most_inodes(u64 table_bytes);
void dmemfs_open_table(struct dmemfs_cursor *cursor, const void *table, u64 size,
		       unsigned int page_shift, u8 *types);
int dmemfs_next_record(struct dmemfs_cursor *cursor, struct dmemfs_record *record);

struct dmemfs_disk_inode *dmemfs_put_inode(struct dmemfs_writer *writer);
void dmemfs_put_text(struct dmemfs_writer *writer, const char *text, u32 length);
void dmemfs_put_run(struct dmemfs_writer *writer, u64 index, u64 page, u64 count);
void dmemfs_put_held(struct dmemfs_writer *writer, u64 page, u64 count);
void dmemfs_put_name(struct dmemfs_writer *writer, u32 inode, u32 parent, const char *name,
		     u32 length);

#endif
