// SPDX-License-Identifier: GPL-2.0-only
/*
 * Check the table of table.h in user space: what is written is read, what is
 * torn is refused at each byte, and of anything hostile nothing impossible is
 * believed. Built with the sanitizers, a read outside of the table ends it.
 *
 *	tabletest [rounds of hostile tables [seed]]
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../table.h"

#define SHIFT	21
#define FIRST	512U		/* page of the only region */
#define PAGES	256U
#define ROOM	(64U << 10)

#define require(what) do { \
	if (!(what)) { \
		fprintf(stderr, "tabletest: line %d: not so: %s\n", __LINE__, #what); \
		exit(1); \
	} \
} while (0)

static u64 seed = 1;

static u32 any(u32 below)
{
	seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (u32)(seed >> 33) % below;
}

/* A table with all there is: directories, a file of two runs with held pages, another name of it, a symlink. */
static u64 write_table(u8 *table, u64 room, bool *full)
{
	struct dmemfs_writer writer = { .start = table, .room = room };
	struct dmemfs_disk_inode *inode;

	inode = dmemfs_put_inode(&writer);
	if (inode)
		inode->mode = cpu_to_le32(S_IFDIR | 0750);
	dmemfs_put_name(&writer, 1, 0, "libvirt-guest", 13);
	inode = dmemfs_put_inode(&writer);
	if (inode) {
		inode->mode = cpu_to_le32(S_IFREG | 0600);
		inode->uid = cpu_to_le32(64055);
		inode->gid = cpu_to_le32(107);
		inode->size = cpu_to_le64(8ULL << SHIFT);
		inode->most = cpu_to_le64(9);
		inode->mtime = cpu_to_le64(1796090000);
		inode->flags = cpu_to_le32(DMEMFS_WAS_MAPPED);
		inode->runs = cpu_to_le32(2);
		inode->held_runs = cpu_to_le32(1);
	}
	dmemfs_put_run(&writer, 0, FIRST + 4, 2);
	dmemfs_put_run(&writer, 6, FIRST, 3);
	dmemfs_put_held(&writer, FIRST + 100, 1);
	dmemfs_put_name(&writer, 2, 1, "pc.ram", 6);
	dmemfs_put_name(&writer, 2, 0, "again", 5);
	inode = dmemfs_put_inode(&writer);
	if (inode) {
		inode->mode = cpu_to_le32(S_IFLNK | 0777);
		inode->size = cpu_to_le64(6);
		inode->target = cpu_to_le32(6);
	}
	dmemfs_put_text(&writer, "pc.ram", 6);
	dmemfs_put_name(&writer, 3, 1, "link", 4);
	*full = writer.full;
	return writer.used;
}

/* Read all of it, as a mount does: claim each page. Return the number of records, or -1. */
static int read_table(const u8 *table, u64 size, const char **reason)
{
	u8 *types = malloc(dmemfs_most_inodes(size)), taken[PAGES] = { 0 };
	u32 names = 0, last_parent_of_directory = 0;
	struct dmemfs_cursor cursor;
	struct dmemfs_record record;
	int got, count = 0;

	dmemfs_open_table(&cursor, table, size, SHIFT, types);
	while ((got = dmemfs_next_record(&cursor, &record)) > 0) {
		count++;
		require(record.inode > 0 && record.inode < dmemfs_most_inodes(size));
		switch (record.kind) {
		case DMEMFS_NAME:
			names++;
			require(record.length > 0 && record.length <= 255);
			require(!memchr(record.text, '/', record.length));
			require(!memchr(record.text, 0, record.length));
			require(strncmp(record.text, "..", record.length));
			require((const u8 *)record.text >= table);
			require((const u8 *)record.text + record.length <= table + size);
			require(types[record.parent] == S_IFDIR >> 12);
			if (types[record.inode] == S_IFDIR >> 12) {
				require(record.parent < record.inode);
				require(record.inode > last_parent_of_directory);
				last_parent_of_directory = record.inode;
			}
			break;
		case DMEMFS_RUN:
			require(record.index + record.count <= 1ULL << 51);
			/* fall through */
		case DMEMFS_HELD_RUN:
			require(types[record.inode] == S_IFREG >> 12);
			if (record.page < FIRST || record.page - FIRST >= PAGES ||
			    record.count > PAGES - (record.page - FIRST)) {
				*reason = "outside";
				goto refused;
			}
			for (u64 page = record.page - FIRST; record.count--; page++) {
				if (taken[page]) {
					*reason = "taken";
					goto refused;
				}
				taken[page] = 1;
			}
			break;
		case DMEMFS_INODE:
			require(record.length < 4096);
			break;
		}
	}
	*reason = cursor.reason;
	free(types);
	require(got == 0 || cursor.reason);
	require(names >= cursor.inodes || got < 0);
	return got < 0 ? -1 : count;
refused:
	free(types);
	return -1;
}

static struct dmemfs_header expected_header(u8 token)
{
	struct dmemfs_header header;

	memset(&header, 0, sizeof(header));
	memset(header.token, token, sizeof(header.token));
	header.page_shift = cpu_to_le32(SHIFT);
	header.regions = cpu_to_le32(1);
	header.region[0].start = cpu_to_le64((u64)FIRST << SHIFT);
	header.region[0].size = cpu_to_le64((u64)(PAGES + 1) << SHIFT);
	return header;
}

static void reads_what_was_written(void)
{
	u8 table[ROOM];
	const char *reason;
	bool full;
	u64 size = write_table(table, ROOM, &full), room;

	require(!full && read_table(table, size, &reason) == 10);
	for (room = 0; room < size; room++) {
		u8 *exact = malloc(room + 1);

		require(write_table(exact, room, &full) <= room && full);
		free(exact);
	}
	require(read_table(table, 0, &reason) == 0);
	for (room = 1; room < size; room++) {
		u8 *exact = malloc(room);

		memcpy(exact, table, room);
		/* it may end between two records, which its length under the checksum rules out */
		if (read_table(exact, room, &reason) < 0)
			require(reason);
		free(exact);
	}
}

static enum dmemfs_verdict believed(const struct dmemfs_header *header, const u8 *table, u8 token)
{
	struct dmemfs_header expected = expected_header(token);
	const char *reason = NULL;
	enum dmemfs_verdict verdict = dmemfs_check_header(header, &expected, ROOM, &reason);

	require(verdict == DMEMFS_GOOD || reason);
	if (verdict == DMEMFS_GOOD && !dmemfs_is_table(header, table))
		return DMEMFS_DAMAGED;
	return verdict;
}

static struct dmemfs_header sealed(const u8 *table, u64 size, u8 token, u64 generation)
{
	struct dmemfs_header header = expected_header(token);

	header.generation = cpu_to_le64(generation);
	header.table_bytes = cpu_to_le64(size);
	header.table_crc = cpu_to_le32(dmemfs_crc32c(0, table, size));
	dmemfs_finish_header(&header);
	return header;
}

static void refuses_what_is_not_its_own(void)
{
	u8 table[ROOM];
	bool full;
	u64 size = write_table(table, ROOM, &full), at;
	struct dmemfs_header header = sealed(table, size, 7, 3), other;
	unsigned int bit;

	require(believed(&header, table, 7) == DMEMFS_UNPROVEN);	/* open */
	header.state = cpu_to_le64(DMEMFS_SEALED);
	require(believed(&header, table, 7) == DMEMFS_GOOD);
	require(believed(&header, table, 8) == DMEMFS_UNPROVEN);
	memset(&other, 0, sizeof(other));
	require(believed(&other, table, 0) == DMEMFS_UNPROVEN);
	other = header;
	other.version = cpu_to_le32(DMEMFS_TABLE_VERSION + 1);
	require(believed(&other, table, 7) == DMEMFS_DAMAGED);
	other = expected_header(7);
	other.region[0].size = cpu_to_le64((u64)PAGES << SHIFT);
	other.table_bytes = header.table_bytes;
	other.table_crc = header.table_crc;
	dmemfs_finish_header(&other);
	other.state = cpu_to_le64(DMEMFS_SEALED);
	require(believed(&other, table, 7) == DMEMFS_DAMAGED);
	other = sealed(table, size, 7, 3);
	other.table_bytes = cpu_to_le64(ROOM + 1);
	dmemfs_finish_header(&other);
	other.state = cpu_to_le64(DMEMFS_SEALED);
	require(believed(&other, table, 7) == DMEMFS_DAMAGED);
	/* each bit of header and table matters */
	for (at = 0; at < sizeof(header); at++)
		for (bit = 0; bit < 8; bit++) {
			other = header;
			((u8 *)&other)[at] ^= 1 << bit;
			require(believed(&other, table, 7) != DMEMFS_GOOD);
		}
	for (at = 0; at < size; at++)
		for (bit = 0; bit < 8; bit++) {
			table[at] ^= 1 << bit;
			require(believed(&header, table, 7) != DMEMFS_GOOD);
			table[at] ^= 1 << bit;
		}
}

/*
 * Write a table over an older one as the module does, and stop at each byte:
 * first all headers are opened, then comes the table, the header, and last,
 * in one store, the state.
 */
static void refuses_what_is_torn(void)
{
	u8 old_table[ROOM], table[ROOM], now[ROOM];
	struct dmemfs_header old, new, header;
	bool full;
	u64 size = write_table(table, ROOM, &full), at, round;

	memset(old_table, 0xa5, ROOM);
	old = sealed(old_table, 4096, 6, 2);
	old.state = cpu_to_le64(DMEMFS_SEALED);
	require(believed(&old, old_table, 6) == DMEMFS_GOOD);
	new = sealed(table, size, 7, 3);
	memcpy(now, old_table, ROOM);
	header = old;
	header.state = cpu_to_le64(DMEMFS_OPEN);
	for (at = 0; at < size; at++) {
		now[at] = table[at];
		require(believed(&header, now, 6) == DMEMFS_UNPROVEN);
		require(believed(&header, now, 7) == DMEMFS_UNPROVEN);
	}
	for (at = 0; at < sizeof(header); at++) {
		((u8 *)&header)[at] = ((u8 *)&new)[at];
		require(believed(&header, now, 6) == DMEMFS_UNPROVEN);
		require(believed(&header, now, 7) == DMEMFS_UNPROVEN);
	}
	header.state = cpu_to_le64(DMEMFS_SEALED);
	require(believed(&header, now, 7) == DMEMFS_GOOD);
	require(believed(&header, now, 6) == DMEMFS_UNPROVEN);
	/* and if the memory had not kept that order: any part of it new, any other old */
	for (round = 0; round < 2000; round++) {
		bool whole = true;

		for (at = 0; at < size; at++)
			now[at] = any(64) ? table[at] : old_table[at];
		header = new;
		for (at = 0; at < sizeof(header); at++)
			if (!any(256))
				((u8 *)&header)[at] = ((u8 *)&old)[at];
		header.state = cpu_to_le64(DMEMFS_SEALED);
		whole = !memcmp(now, table, size) &&
			!memcmp(header.token, new.token, sizeof(new) - offsetof(struct dmemfs_header, token)) &&
			header.header_crc == new.header_crc;
		require(whole == (believed(&header, now, 7) == DMEMFS_GOOD));
	}
}

/* Change a table as somebody would who can make checksums too. */
static void believes_nothing_hostile(unsigned long rounds)
{
	static const u64 words[] = { 0, 1, 2, 3, 255, 256, FIRST, FIRST + PAGES, 1ULL << 31, 1ULL << 32,
				     1ULL << 51, 1ULL << 62, 1ULL << 63, ~0ULL, ~0ULL << 12 };
	u8 table[ROOM];
	const char *reason;
	bool full;
	unsigned long round, believed_rounds = 0;

	for (round = 0; round < rounds; round++) {
		u64 size = write_table(table, ROOM, &full);
		unsigned int changes = 1 + any(4);
		u8 *exact;

		while (changes--) {
			u64 word = words[any(sizeof(words) / sizeof(*words))];

			switch (any(5)) {
			case 0:
				table[any(size)] = any(256);
				break;
			case 1:
				memcpy(table + any(size / 4) * 4, &word, 4);
				break;
			case 2:
				memcpy(table + any(size / 8 - 1) * 8, &word, 8);
				break;
			case 3:	/* records moved and repeated */
				memmove(table + any(size / 8) * 8, table + any(size / 8) * 8, any(128));
				break;
			case 4:
				size = 8 * (1 + any(size / 8));
				if (size < 32)
					size = 32;
				break;
			}
		}
		exact = malloc(size);	/* so that the sanitizer knows its end */
		memcpy(exact, table, size);
		if (read_table(exact, size, &reason) >= 0)
			believed_rounds++;
		free(exact);
	}
	printf("%lu of %lu hostile tables could be read, none with anything impossible\n",
	       believed_rounds, rounds);
}

int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000;

	if (argc > 2)
		seed = strtoull(argv[2], NULL, 0);
	_Static_assert(sizeof(struct dmemfs_header) <= DMEMFS_HEADER_BYTES, "a header is a page");
	require(dmemfs_crc32c(0, "123456789", 9) == 0xe3069283);	/* RFC 3720's polynomial */
	require(dmemfs_table_room(1ULL << 30) + DMEMFS_HEADER_BYTES < 64U << 10);
	require(dmemfs_table_room(320ULL << 30) + 64 * DMEMFS_HEADER_BYTES < 320 * (64ULL << 10));
	reads_what_was_written();
	refuses_what_is_not_its_own();
	refuses_what_is_torn();
	believes_nothing_hostile(rounds);
	puts("ok table");
	return 0;
}
