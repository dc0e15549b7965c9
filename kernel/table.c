// SPDX-License-Identifier: GPL-2.0-only
/*
 * Write and read the table of table.h. What is read is hostile: nothing of it
 * is used before it was checked, and nothing is taken from it by a pointer.
 * Names and runs of pages are checked one by one; that a page is there, and
 * no other file's, is the caller's to see.
 */

#ifdef __KERNEL__
#include <linux/limits.h>
#include <linux/string.h>
#else
#include <limits.h>
#include <string.h>
#endif

#include "table.h"

#define MAGIC		"dmemfsPT"
#define MOST_PAGES	(1ULL << 51)	/* far above what can be: no sum of two overflows */
#define MOST_BYTES	(1ULL << 62)
#define NS_PER_S	1000000000U

/* Castagnoli's polynomial, reflected, by four bits at a time: no table to be made, no module to be loaded. */
u32 dmemfs_crc32c(u32 crc, const void *data, u64 size)
{
	static const u32 step[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
		0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
		0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
		0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
	};
	const u8 *at = data, *end = at + size;

	crc = ~crc;
	while (at < end) {
		crc ^= *at++;
		crc = (crc >> 4) ^ step[crc & 15];
		crc = (crc >> 4) ^ step[crc & 15];
	}
	return ~crc;
}

static u32 crc_of_header(const struct dmemfs_header *header)
{
	const u8 *start = (const u8 *)header->token;

	return dmemfs_crc32c(0, start, (const u8 *)(header + 1) - start);
}

/* Complete a header but for its state, which the caller sets when all of it lies in its place. */
void dmemfs_finish_header(struct dmemfs_header *header)
{
	memcpy(header->magic, MAGIC, sizeof(header->magic));
	header->version = cpu_to_le32(DMEMFS_TABLE_VERSION);
	header->state = cpu_to_le64(DMEMFS_OPEN);
	header->header_crc = cpu_to_le32(crc_of_header(header));
}

/* Take as long for any other token. */
static bool same_token(const u8 *a, const u8 *b)
{
	u8 different = 0;
	unsigned int i;

	for (i = 0; i < DMEMFS_TOKEN_BYTES; i++)
		different |= a[i] ^ b[i];
	return !different;
}

static bool same_regions(const struct dmemfs_header *a, const struct dmemfs_header *b)
{
	return a->page_shift == b->page_shift && a->index == b->index && a->regions == b->regions &&
	       !memcmp(a->region, b->region, sizeof(a->region));
}

/* Compare a header with what a mount expects: its token, its regions and pages, whose header it is. */
enum dmemfs_verdict dmemfs_check_header(const struct dmemfs_header *header,
					const struct dmemfs_header *expected, u64 room,
					const char **reason)
{
	if (memcmp(header->magic, MAGIC, sizeof(header->magic))) {
		*reason = "no mount with persist= has left files there";
		return DMEMFS_UNPROVEN;
	}
	if (le32_to_cpu(header->version) != DMEMFS_TABLE_VERSION) {
		*reason = "its table has a format that this module does not know";
		return DMEMFS_DAMAGED;
	}
	if (le64_to_cpu(header->state) == DMEMFS_OPEN) {
		*reason = "it was still mounted when the host went down, or was mounted since";
		return DMEMFS_UNPROVEN;
	}
	if (le64_to_cpu(header->state) != DMEMFS_SEALED ||
	    le32_to_cpu(header->header_crc) != crc_of_header(header)) {
		*reason = "its header is damaged";
		return DMEMFS_DAMAGED;
	}
	if (!same_token(header->token, expected->token)) {
		*reason = "its files were left for another token";
		return DMEMFS_UNPROVEN;
	}
	if (!same_regions(header, expected)) {
		*reason = "its files were left in other regions, or in pages of another size";
		return DMEMFS_DAMAGED;
	}
	if (le64_to_cpu(header->table_bytes) > room) {
		*reason = "its table is larger than can be";
		return DMEMFS_DAMAGED;
	}
	return DMEMFS_GOOD;
}

/* Whether two headers, each of its own region, are of the same table. */
bool dmemfs_same_table(const struct dmemfs_header *a, const struct dmemfs_header *b)
{
	return a->generation == b->generation && a->table_bytes == b->table_bytes &&
	       a->table_crc == b->table_crc;
}

bool dmemfs_is_table(const struct dmemfs_header *header, const void *table)
{
	return le32_to_cpu(header->table_crc) ==
	       dmemfs_crc32c(0, table, le64_to_cpu(header->table_bytes));
}

u64 dmemfs_table_room(u64 bytes_of_regions)
{
	return ((bytes_of_regions + (1U << 30) - 1) >> 30) * DMEMFS_TABLE_PER_GIB;
}

u32 dmemfs_most_inodes(u64 table_bytes)
{
	return table_bytes / sizeof(struct dmemfs_disk_inode) + 1;
}

/* Start to read; @types has room for the types of dmemfs_most_inodes(@size) inodes. */
void dmemfs_open_table(struct dmemfs_cursor *cursor, const void *table, u64 size,
		       unsigned int page_shift, u8 *types)
{
	memset(cursor, 0, sizeof(*cursor));
	cursor->at = table;
	cursor->end = cursor->at + size;
	cursor->page_shift = page_shift;
	cursor->types = types;
	types[0] = S_IFDIR >> 12;
}

static int bad(struct dmemfs_cursor *cursor, const char *reason)
{
	cursor->reason = reason;
	return -1;
}

/* Copy @size bytes, padded to a multiple of 8 in the table with zeroes; NULL if it has not that many. */
static const void *take(struct dmemfs_cursor *cursor, u64 size)
{
	const u8 *from = cursor->at;
	u64 padded = (size + 7) & ~7ULL, i;

	if (padded > (u64)(cursor->end - cursor->at))
		return NULL;
	for (i = size; i < padded; i++)
		if (from[i])
			return NULL;
	cursor->at += padded;
	return from;
}

static bool has_nul(const char *text, u32 length)
{
	return memchr(text, 0, length);
}

/* What an inode of its type may have. */
static const char *wrong_with(const struct dmemfs_cursor *cursor, const struct dmemfs_record *record,
			      const struct dmemfs_disk_inode *inode)
{
	u64 page = 1ULL << cursor->page_shift;
	bool memory = inode->runs || inode->held_runs || record->most;

	if ((record->mode & ~(u32)(S_IFMT | 07777)) || record->uid == ~0U || record->gid == ~0U ||
	    record->mtime_ns >= NS_PER_S || record->flags & ~DMEMFS_WAS_MAPPED ||
	    record->size > MOST_BYTES || record->most > MOST_PAGES || inode->zero)
		return "an inode's attributes are impossible";
	switch (record->mode & S_IFMT) {
	case S_IFREG:
		if (record->length || record->size & (page - 1) ||
		    record->size >> cursor->page_shift > record->most)
			return "a file's size is impossible";
		return NULL;
	case S_IFDIR:
		return memory || record->size || record->flags || record->length ?
			"a directory has memory" : NULL;
	case S_IFLNK:
		return memory || record->flags || record->size != record->length ||
		       !record->length || record->length >= PATH_MAX ?
			"a symlink's target is impossible" : NULL;
	}
	return "an inode is of no type that is kept";
}

static int read_inode(struct dmemfs_cursor *cursor, struct dmemfs_record *record)
{
	struct dmemfs_disk_inode inode;
	const void *from = take(cursor, sizeof(inode));
	const char *wrong;

	if (!from)
		return bad(cursor, "it ends within an inode");
	memcpy(&inode, from, sizeof(inode));
	record->kind = DMEMFS_INODE;
	record->inode = ++cursor->inodes;
	record->mode = le32_to_cpu(inode.mode);
	record->uid = le32_to_cpu(inode.uid);
	record->gid = le32_to_cpu(inode.gid);
	record->size = le64_to_cpu(inode.size);
	record->most = le64_to_cpu(inode.most);
	record->mtime = le64_to_cpu(inode.mtime);
	record->mtime_ns = le32_to_cpu(inode.mtime_ns);
	record->flags = le32_to_cpu(inode.flags);
	record->length = le32_to_cpu(inode.target);
	wrong = wrong_with(cursor, record, &inode);
	if (wrong)
		return bad(cursor, wrong);
	record->text = take(cursor, record->length);
	if (!record->text || has_nul(record->text, record->length))
		return bad(cursor, "a symlink's target is impossible");
	cursor->types[cursor->inodes] = record->mode >> 12;
	cursor->runs = le32_to_cpu(inode.runs);
	cursor->held_runs = le32_to_cpu(inode.held_runs);
	cursor->next_index = 0;
	cursor->most = record->most;
	cursor->unnamed = true;
	return 1;
}

static int read_run(struct dmemfs_cursor *cursor, struct dmemfs_record *record)
{
	struct dmemfs_disk_run run;
	const void *from = take(cursor, sizeof(run));

	if (!from)
		return bad(cursor, "it ends within a run of pages");
	memcpy(&run, from, sizeof(run));
	cursor->runs--;
	record->kind = DMEMFS_RUN;
	record->inode = cursor->inodes;
	record->index = le64_to_cpu(run.index);
	record->page = le64_to_cpu(run.page);
	record->count = le64_to_cpu(run.count);
	if (!record->count || record->count > MOST_PAGES || record->page > MOST_PAGES ||
	    record->index > MOST_PAGES || record->index < cursor->next_index ||
	    record->index + record->count > cursor->most)
		return bad(cursor, "a run of pages is impossible");
	cursor->next_index = record->index + record->count;
	return 1;
}

static int read_held(struct dmemfs_cursor *cursor, struct dmemfs_record *record)
{
	struct dmemfs_disk_held run;
	const void *from = take(cursor, sizeof(run));

	if (!from)
		return bad(cursor, "it ends within a run of pages");
	memcpy(&run, from, sizeof(run));
	cursor->held_runs--;
	record->kind = DMEMFS_HELD_RUN;
	record->inode = cursor->inodes;
	record->page = le64_to_cpu(run.page);
	record->count = le64_to_cpu(run.count);
	if (!record->count || record->count > MOST_PAGES || record->page > MOST_PAGES)
		return bad(cursor, "a run of pages is impossible");
	return 1;
}

static bool is_name(const char *name, u32 length)
{
	if (!length || length > NAME_MAX || has_nul(name, length) || memchr(name, '/', length))
		return false;
	return name[0] != '.' || (length > 1 && (length > 2 || name[1] != '.'));
}

/* The first name of each inode follows it: so no directory can come to lie within itself. */
static int read_name(struct dmemfs_cursor *cursor, struct dmemfs_record *record)
{
	struct dmemfs_disk_name name;
	const void *from = take(cursor, sizeof(name));

	if (!from)
		return bad(cursor, "it ends within a name");
	memcpy(&name, from, sizeof(name));
	record->kind = DMEMFS_NAME;
	record->inode = le32_to_cpu(name.inode);
	record->parent = le32_to_cpu(name.parent);
	record->length = le32_to_cpu(name.length);
	if (!record->inode || record->inode > cursor->inodes ||
	    (cursor->unnamed ? record->inode != cursor->inodes :
			       cursor->types[record->inode] == S_IFDIR >> 12))
		return bad(cursor, "a name is of an impossible inode");
	if (record->parent > cursor->inodes || cursor->types[record->parent] != S_IFDIR >> 12 ||
	    (cursor->unnamed && record->parent == record->inode))
		return bad(cursor, "a name is in no directory");
	record->text = take(cursor, record->length);
	if (!record->text || !is_name(record->text, record->length))
		return bad(cursor, "a name is impossible");
	cursor->unnamed = false;
	return 1;
}

/* Find the next record: 1, 0 at the end, -1 with the cursor's reason when it cannot be read. */
int dmemfs_next_record(struct dmemfs_cursor *cursor, struct dmemfs_record *record)
{
	__le32 kind;

	memset(record, 0, sizeof(*record));
	if (cursor->runs)
		return read_run(cursor, record);
	if (cursor->held_runs)
		return read_held(cursor, record);
	if (cursor->at == cursor->end)
		return cursor->unnamed ? bad(cursor, "an inode has no name") : 0;
	if (cursor->end - cursor->at < (ptrdiff_t)sizeof(kind))
		return bad(cursor, "it ends within a record");
	memcpy(&kind, cursor->at, sizeof(kind));
	if (cursor->unnamed || le32_to_cpu(kind) == DMEMFS_NAME)
		return le32_to_cpu(kind) == DMEMFS_NAME ? read_name(cursor, record) :
							   bad(cursor, "an inode has no name");
	if (le32_to_cpu(kind) == DMEMFS_INODE)
		return read_inode(cursor, record);
	return bad(cursor, "a record is of no known kind");
}

/* Append @size bytes, padded to a multiple of 8. */
static void *put(struct dmemfs_writer *writer, const void *data, u64 size)
{
	u64 padded = (size + 7) & ~7ULL;
	u8 *to = writer->start + writer->used;

	if (writer->full || padded > writer->room - writer->used) {
		writer->full = true;
		return NULL;
	}
	if (size)
		memcpy(to, data, size);
	memset(to + size, 0, padded - size);
	writer->used += padded;
	return to;
}

/* Append an inode, to be filled in by the caller with the numbers of its runs; NULL if it is full. */
struct dmemfs_disk_inode *dmemfs_put_inode(struct dmemfs_writer *writer)
{
	struct dmemfs_disk_inode inode = { .kind = cpu_to_le32(DMEMFS_INODE) };

	return put(writer, &inode, sizeof(inode));
}

void dmemfs_put_text(struct dmemfs_writer *writer, const char *text, u32 length)
{
	put(writer, text, length);
}

void dmemfs_put_run(struct dmemfs_writer *writer, u64 index, u64 page, u64 count)
{
	struct dmemfs_disk_run run = {
		.index = cpu_to_le64(index), .page = cpu_to_le64(page), .count = cpu_to_le64(count),
	};

	put(writer, &run, sizeof(run));
}

void dmemfs_put_held(struct dmemfs_writer *writer, u64 page, u64 count)
{
	struct dmemfs_disk_held run = { .page = cpu_to_le64(page), .count = cpu_to_le64(count) };

	put(writer, &run, sizeof(run));
}

void dmemfs_put_name(struct dmemfs_writer *writer, u32 inode, u32 parent, const char *name,
		     u32 length)
{
	struct dmemfs_disk_name record = {
		.kind = cpu_to_le32(DMEMFS_NAME), .inode = cpu_to_le32(inode),
		.parent = cpu_to_le32(parent), .length = cpu_to_le32(length),
	};

	put(writer, &record, sizeof(record));
	put(writer, name, length);
}
