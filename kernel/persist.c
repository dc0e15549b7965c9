// SPDX-License-Identifier: GPL-2.0-only
/*
 * A pool that survives its mount (persist=): leave the files in the memory
 * itself when it is unmounted, and find them again. The format is table.h's.
 *
 * While it is mounted its headers are open, so that a host that goes down
 * leaves nothing that could be believed: the table is true of the moment at
 * which the last user was gone, and of no other.
 */

#include <linux/slab.h>
#include <linux/uio.h>

#include "dmemfs.h"
#include "table.h"

static struct dmemfs_header *header_of(const struct dmemfs_region *region)
{
	return region->va + region->size - DMEMFS_HEADER_BYTES;
}

static const struct dmemfs_region *last_region(const struct dmemfs_pool *pool)
{
	return &pool->opt.regions[pool->opt.nr_regions - 1];
}

static u64 table_room(const struct dmemfs_options *opt)
{
	u64 bytes = 0;
	unsigned int i;

	for (i = 0; i < opt->nr_regions; i++)
		bytes += opt->regions[i].size;
	return dmemfs_table_room(bytes);
}

static void *table_of(const struct dmemfs_pool *pool)
{
	return (void *)header_of(last_region(pool)) - table_room(&pool->opt);
}

/* Leave room at the end of each region for its header, and of the last for the table: no pages lie there. */
int dmemfs_make_room(struct fs_context *fc, struct dmemfs_options *opt)
{
	u64 page = 1ULL << opt->page_shift;
	unsigned int i;

	for (i = 0; i < opt->nr_regions; i++) {
		struct dmemfs_region *region = &opt->regions[i];
		u64 room = DMEMFS_HEADER_BYTES;

		region->used = region->size;
		if (opt->persist == DMEMFS_FORGET)
			continue;
		if (i == opt->nr_regions - 1)
			room += table_room(opt);
		if (region->size < room + page)
			return invalf(fc,
				      "dmemfs: region 0x%llx+0x%llx is too small for persist=, which needs 0x%llx of it beside a page",
				      (u64)region->start, region->size, room);
		region->used = round_down(region->size - room, page);
	}
	return 0;
}

/* Let no later mount believe what earlier ones left. */
void dmemfs_forget(struct dmemfs_pool *pool)
{
	unsigned int i;

	for (i = 0; i < pool->opt.nr_regions; i++) {
		WRITE_ONCE(header_of(&pool->opt.regions[i])->state, 0);
		wmb();
		memset(header_of(&pool->opt.regions[i]), 0, DMEMFS_HEADER_BYTES);
	}
	wmb();
}

/* The files are this mount's from now on: a second one could not have them, whatever its token. */
void dmemfs_take_over(struct dmemfs_pool *pool)
{
	unsigned int i;

	for (i = 0; i < pool->opt.nr_regions; i++) {
		struct dmemfs_header *header = header_of(&pool->opt.regions[i]);

		WRITE_ONCE(header->state, cpu_to_le64(DMEMFS_OPEN));
		wmb();
		memzero_explicit(header->token, sizeof(header->token));
	}
	wmb();
}

static void describe(const struct dmemfs_pool *pool, struct dmemfs_header *header, unsigned int index,
		     const u8 *token)
{
	unsigned int i;

	memset(header, 0, sizeof(*header));
	memcpy(header->token, token, sizeof(header->token));
	header->page_shift = cpu_to_le32(pool->page_shift);
	header->index = cpu_to_le32(index);
	header->regions = cpu_to_le32(pool->opt.nr_regions);
	for (i = 0; i < pool->opt.nr_regions; i++) {
		header->region[i].start = cpu_to_le64(pool->opt.regions[i].start);
		header->region[i].size = cpu_to_le64(pool->opt.regions[i].size);
	}
}

/* -- writing */

/* The names of a mount that nobody uses any more: all that have an inode are pinned, and none changes. */
static bool has_name(const struct dentry *dentry)
{
	return d_really_is_positive(dentry) && !d_unhashed(dentry);
}

#ifdef HAVE_D_CHILDREN
static struct dentry *step(struct dentry *parent, struct dentry *child)
{
	return hlist_entry_safe(child ? child->d_sib.next : parent->d_children.first,
				struct dentry, d_sib);
}
#else
static struct dentry *step(struct dentry *parent, struct dentry *child)
{
	struct list_head *next = child ? child->d_child.next : parent->d_subdirs.next;

	return next == &parent->d_subdirs ? NULL : list_entry(next, struct dentry, d_child);
}
#endif

/* The child of @parent that follows @child, or the first. */
static struct dentry *next_child(struct dentry *parent, struct dentry *child)
{
	spin_lock(&parent->d_lock);
	do
		child = step(parent, child);
	while (child && !has_name(child));
	spin_unlock(&parent->d_lock);
	return child;
}

/* All names, a directory before what lies in it; NULL after the last. */
static struct dentry *next_name(struct dentry *root, struct dentry *dentry)
{
	struct dentry *next = d_is_dir(dentry) ? next_child(dentry, NULL) : NULL;

	while (!next && dentry != root) {
		next = next_child(dentry->d_parent, dentry);
		dentry = dentry->d_parent;
	}
	return next;
}

static u32 write_runs(struct dmemfs_writer *writer, struct dmemfs_inode *info)
{
	struct dmemfs_extent extent;
	unsigned long index = 0;
	u32 count = 0;

	for (; dmemfs_next_extent(info, index, &extent); count++) {
		dmemfs_put_run(writer, extent.index, extent.page, extent.count);
		index = extent.index + extent.count;
		cond_resched();
	}
	return count;
}

static u32 write_held(struct dmemfs_writer *writer, struct dmemfs_inode *info)
{
	struct dmemfs_extent extent;
	unsigned long page = 0;
	u32 count = 0;

	for (; dmemfs_next_held(info, page, &extent); count++) {
		dmemfs_put_held(writer, extent.page, extent.count);
		page = extent.page + extent.count;
		cond_resched();
	}
	return count;
}

static void write_inode(struct dmemfs_writer *writer, struct inode *inode)
{
	struct dmemfs_disk_inode *to = dmemfs_put_inode(writer);
	struct dmemfs_inode *info = DMEMFS_I(inode);
	u32 runs, held;

	if (!to)
		return;
	if (S_ISLNK(inode->i_mode))
		dmemfs_put_text(writer, inode->i_link, i_size_read(inode));
	runs = write_runs(writer, info);
	held = write_held(writer, info);
	to->mode = cpu_to_le32(inode->i_mode);
	to->uid = cpu_to_le32(from_kuid(&init_user_ns, inode->i_uid));
	to->gid = cpu_to_le32(from_kgid(&init_user_ns, inode->i_gid));
	to->size = cpu_to_le64(S_ISDIR(inode->i_mode) ? 0 : i_size_read(inode));
	to->most = cpu_to_le64(info->most);
	to->mtime = cpu_to_le64(dmemfs_mtime(inode).tv_sec);
	to->mtime_ns = cpu_to_le32(dmemfs_mtime(inode).tv_nsec);
	to->flags = cpu_to_le32(info->mapped ? DMEMFS_WAS_MAPPED : 0);
	to->runs = cpu_to_le32(runs);
	to->held_runs = cpu_to_le32(held);
	to->target = cpu_to_le32(S_ISLNK(inode->i_mode) ? i_size_read(inode) : 0);
}

/* Write all files; return their number. */
static u32 write_table(struct super_block *sb, struct dmemfs_writer *writer)
{
	struct dentry *dentry = sb->s_root;
	u32 inodes = 0;

	DMEMFS_I(d_inode(dentry))->number = 0;
	while (!writer->full && (dentry = next_name(sb->s_root, dentry))) {
		struct dmemfs_inode *info = DMEMFS_I(d_inode(dentry));

		if (!info->number) {
			info->number = ++inodes;
			write_inode(writer, &info->vfs);
		}
		dmemfs_put_name(writer, info->number,
				DMEMFS_I(d_inode(dentry->d_parent))->number, dentry->d_name.name,
				dentry->d_name.len);
		cond_resched();
	}
	return inodes;
}

/*
 * Leave the files for the next mount. Nobody has any of them open or mapped,
 * nobody scrubs, and the headers are open: of a crash before the last store
 * nothing remains that could be believed.
 */
void dmemfs_keep(struct super_block *sb)
{
	struct dmemfs_pool *pool = sb->s_fs_info;
	struct dmemfs_writer writer = { .start = table_of(pool), .room = table_room(&pool->opt) };
	struct dmemfs_header *header = kmalloc(sizeof(*header), GFP_KERNEL | __GFP_NOFAIL);
	unsigned int i;
	u32 inodes, crc;

	inodes = write_table(sb, &writer);
	if (writer.full) {
		pr_err("dmemfs: %u:%u: its files are lost: their table needs more than 0x%llx bytes\n",
		       MAJOR(sb->s_dev), MINOR(sb->s_dev), writer.room);
		goto out;
	}
	crc = dmemfs_crc32c(0, writer.start, writer.used);
	for (i = 0; i < pool->opt.nr_regions; i++) {
		describe(pool, header, i, pool->opt.next_token);
		header->generation = cpu_to_le64(pool->generation + 1);
		header->table_bytes = cpu_to_le64(writer.used);
		header->table_crc = cpu_to_le32(crc);
		dmemfs_finish_header(header);
		memcpy(header_of(&pool->opt.regions[i]), header, sizeof(*header));
	}
	wmb();
	for (i = 0; i < pool->opt.nr_regions; i++)
		WRITE_ONCE(header_of(&pool->opt.regions[i])->state, cpu_to_le64(DMEMFS_SEALED));
	wmb();
	pr_info("dmemfs: %u:%u: left %u files and directories in %llu bytes\n", MAJOR(sb->s_dev),
		MINOR(sb->s_dev), inodes, writer.used);
out:
	kfree_sensitive(header);
}

/* -- reading */

struct restoring {
	struct super_block *sb;
	struct dmemfs_cursor cursor;
	void *table;		/* a copy: nobody can change it between a check and its use */
	u8 *types;
	struct dentry **dentries;	/* by number */
	struct inode *inode;	/* the last, which has no name yet */
};

static int add_run(struct dmemfs_pool *pool, struct dmemfs_inode *info,
		   const struct dmemfs_record *record)
{
	struct dmemfs_extent *extent;

	/* in the pool, and no other run's */
	if (!dmemfs_claim(pool, record->page, record->count))
		return -EUCLEAN;
	extent = dmemfs_new_extent();
	if (!extent) {
		dmemfs_give_back(pool, record->page, record->count, false, false);
		return -ENOMEM;
	}
	extent->index = record->index;
	extent->page = record->page;
	extent->count = record->count;
	info->owned += record->count;
	if (record->kind == DMEMFS_RUN)
		dmemfs_insert(pool, info, extent);
	else
		dmemfs_hold(pool, info, extent);
	return 0;
}

static int add_inode(struct restoring *of, const struct dmemfs_record *record)
{
	struct inode *inode = dmemfs_new_inode(of->sb, NULL, record->mode);
	struct timespec64 mtime = { .tv_sec = record->mtime, .tv_nsec = record->mtime_ns };

	if (!inode)
		return -ENOMEM;
	of->inode = inode;
	inode->i_uid = make_kuid(&init_user_ns, record->uid);
	inode->i_gid = make_kgid(&init_user_ns, record->gid);
	DMEMFS_I(inode)->most = record->most;
	DMEMFS_I(inode)->mapped = record->flags & DMEMFS_WAS_MAPPED;
	dmemfs_set_mtime(inode, mtime);
	if (S_ISLNK(record->mode)) {
		inode->i_link = kmemdup_nul(record->text, record->length, GFP_KERNEL);
		if (!inode->i_link)
			return -ENOMEM;
	}
	if (!S_ISDIR(record->mode))
		i_size_write(inode, record->size);
	return 0;
}

static int add_name(struct restoring *of, const struct dmemfs_record *record)
{
	struct qstr name = QSTR_INIT(record->text, record->length);
	struct dentry *parent = of->dentries[record->parent], *dentry;
	struct inode *inode = of->inode;

	name.hash = full_name_hash(parent, name.name, name.len);
	dentry = d_lookup(parent, &name);
	if (dentry) {
		dput(dentry);
		of->cursor.reason = "a directory has a name twice";
		return -EUCLEAN;
	}
	dentry = d_alloc(parent, &name);
	if (!dentry)
		return -ENOMEM;
	if (inode) {
		of->inode = NULL;
		of->dentries[record->inode] = dentry;
		if (S_ISDIR(inode->i_mode))
			inc_nlink(d_inode(parent));
	} else {
		inode = d_inode(of->dentries[record->inode]);
		ihold(inode);
		inc_nlink(inode);
	}
	dmemfs_add_name(dentry, inode);
	return 0;
}

static int restore_files(struct restoring *of)
{
	struct dmemfs_pool *pool = of->sb->s_fs_info;
	struct dmemfs_record record;
	int got = 0, err = 0;

	of->dentries[0] = of->sb->s_root;
	while (!err && (got = dmemfs_next_record(&of->cursor, &record)) > 0) {
		switch (record.kind) {
		case DMEMFS_INODE:
			err = add_inode(of, &record);
			break;
		case DMEMFS_NAME:
			err = add_name(of, &record);
			break;
		default:
			err = add_run(pool, DMEMFS_I(of->inode), &record);
			if (err == -EUCLEAN)
				of->cursor.reason = "a run of pages is not in the regions, or is another's";
		}
		cond_resched();
	}
	if (!err && got < 0)
		err = -EUCLEAN;
	if (of->inode)
		iput(of->inode);
	return err;
}

static int read_headers(struct dmemfs_pool *pool, struct dmemfs_header *first, const char **reason)
{
	struct dmemfs_header *header = kmalloc(2 * sizeof(*header), GFP_KERNEL);
	struct dmemfs_header *expected = header + 1;
	unsigned int i;
	int err = 0;

	if (!header)
		return -ENOMEM;
	for (i = 0; i < pool->opt.nr_regions && !err; i++) {
		describe(pool, expected, i, pool->opt.token);
		memcpy(header, header_of(&pool->opt.regions[i]), sizeof(*header));
		switch (dmemfs_check_header(header, expected, table_room(&pool->opt), reason)) {
		case DMEMFS_GOOD:
			break;
		case DMEMFS_UNPROVEN:
			err = -EKEYREJECTED;
			break;
		case DMEMFS_DAMAGED:
			err = -EUCLEAN;
			break;
		}
		if (!err && !i)
			*first = *header;
		if (!err && !dmemfs_same_table(first, header)) {
			*reason = "its regions are not all of the same table";
			err = -EUCLEAN;
		}
	}
	kfree_sensitive(header);
	return err;
}

static int restore(struct super_block *sb, const struct dmemfs_header *header, const char **reason)
{
	struct dmemfs_pool *pool = sb->s_fs_info;
	u64 size = le64_to_cpu(header->table_bytes);
	u32 most = dmemfs_most_inodes(size);
	struct restoring of = { .sb = sb };
	int err = -ENOMEM;

	of.table = kvmalloc(size + 1, GFP_KERNEL);
	of.types = kvcalloc(most, sizeof(*of.types), GFP_KERNEL);
	of.dentries = kvcalloc(most, sizeof(*of.dentries), GFP_KERNEL);
	if (!of.table || !of.types || !of.dentries)
		goto out;
	memcpy(of.table, table_of(pool), size);
	err = -EUCLEAN;
	*reason = "its table is damaged";
	if (!dmemfs_is_table(header, of.table))
		goto out;
	dmemfs_open_table(&of.cursor, of.table, size, pool->page_shift, of.types);
	err = restore_files(&of);
	*reason = of.cursor.reason;
	if (!err)
		pr_info("dmemfs: %u:%u: found %u files and directories again\n", MAJOR(sb->s_dev),
			MINOR(sb->s_dev), of.cursor.inodes);
out:
	kvfree(of.dentries);
	kvfree(of.types);
	kvfree(of.table);
	return err;
}

/*
 * Find what a mount with this token as its next one left. EKEYREJECTED:
 * nothing shows that this host did so for this mount. EUCLEAN: it did, and it
 * cannot be read. Nothing of the memory has been changed then.
 */
int dmemfs_restore(struct super_block *sb, struct fs_context *fc)
{
	struct dmemfs_pool *pool = sb->s_fs_info;
	struct dmemfs_header *header = kzalloc(sizeof(*header), GFP_KERNEL);
	const char *reason = NULL;
	int err;

	if (!header)
		return -ENOMEM;
	err = read_headers(pool, header, &reason);
	if (!err)
		err = restore(sb, header, &reason);
	pool->generation = le64_to_cpu(header->generation);
	kfree_sensitive(header);
	if (err == -EKEYREJECTED || err == -EUCLEAN) {
		if (fc->log.log)
			pr_err("dmemfs: region 0x%llx+0x%llx is not mounted with persist=: %s; persist=new:TOKEN begins anew, without files\n",
			       (u64)last_region(pool)->start, last_region(pool)->size, reason);
		errorf(fc, "dmemfs: region 0x%llx+0x%llx is not mounted with persist=: %s; persist=new:TOKEN begins anew, without files",
		       (u64)last_region(pool)->start, last_region(pool)->size, reason);
	}
	return err;
}
