/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dmemfs: files on RAM that was withheld from the kernel at boot.
 *
 * Words: a region is a range of physical memory named at mount, a span the
 * part of a region on one NUMA node, a page one page of the pool (pagesize=),
 * an extent a run of pages that a file has. Pages are counted by their
 * physical address divided by the page size ("page number", not PFN).
 * Held pages were punched or truncated from a file that was ever mapped: they
 * are in no place of it any more, and given to no other file while it exists.
 */
#ifndef DMEMFS_H
#define DMEMFS_H

#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/nodemask.h>
#include <linux/rbtree.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "compat.h"
#include "table.h"

#define DMEMFS_MAGIC		0x2ace90c6
#define DMEMFS_MAX_REGIONS	64
#define DMEMFS_FAULT_LOCKS	64

enum dmemfs_entry { DMEMFS_4K, DMEMFS_2M, DMEMFS_1G, DMEMFS_ENTRIES };

/* A range of physical memory, claimed as long as the mount exists. */
struct dmemfs_region {
	phys_addr_t start;
	u64 size;
	u64 used;		/* by pages; persist= has the rest */
	struct resource *claim;
	void *va;		/* the one write-back mapping */
};

/* A range of the firmware's map of memory. */
struct dmemfs_range {
	u64 start;
	u64 end;
	bool ram;
	char what[32];		/* in the firmware's words */
};

struct dmemfs_map {
	struct dmemfs_range *ranges;
	unsigned int count;
	unsigned int room;
};

struct dmemfs_node;

/*
 * A run of pages on one node. A page is clean (free and zero), dirty (free,
 * not zeroed yet) or neither: a file's, or just being zeroed.
 */
struct dmemfs_span {
	struct list_head list;		/* of its node */
	struct dmemfs_node *node;
	unsigned long first;		/* page number */
	unsigned long pages;
	unsigned long next_clean;	/* where to look first */
	unsigned long next_dirty;
	unsigned long *clean;
	unsigned long *dirty;
	void *va;
};

struct dmemfs_node {
	int nid;
	struct dmemfs_pool *pool;
	struct kobject kobj;
	spinlock_t lock;		/* all counts and bitmaps of the node */
	struct list_head spans;
	unsigned long pages;
	unsigned long clean;
	unsigned long dirty;
	unsigned long scrubbing;
	unsigned long held;
	wait_queue_head_t wait;		/* for pages that are being scrubbed */
	wait_queue_head_t work;		/* the scrubber's own */
	struct task_struct *scrubber;
};

enum dmemfs_persist { DMEMFS_FORGET, DMEMFS_BEGIN, DMEMFS_FIND, DMEMFS_SHOWN };

struct dmemfs_options {
	struct dmemfs_region regions[DMEMFS_MAX_REGIONS];
	unsigned int nr_regions;
	unsigned int page_shift;
	bool hugetlbfs;			/* statfs answers as hugetlbfs does */
	enum dmemfs_persist persist;
	u8 token[DMEMFS_TOKEN_BYTES];		/* of the files to be found */
	u8 next_token[DMEMFS_TOKEN_BYTES];	/* under which they are left */
	umode_t mode;
	kuid_t uid;
	kgid_t gid;
};

struct dmemfs_pool {
	struct kobject kobj;
	struct dmemfs_options opt;
	unsigned int page_shift;
	unsigned long page_size;
	unsigned int nr_spans;
	struct dmemfs_span *spans;	/* by address */
	struct dmemfs_node *nodes[MAX_NUMNODES];
	nodemask_t node_mask;
	bool huge;			/* entries above 4K are supported */
	bool keep;			/* leave the files for another mount */
	u64 generation;			/* of the table that was found */
	/*
	 * Read by each fallocate(), which holds pages that no file has yet;
	 * written by a fault that finds none left, so that it looks again
	 * when all of them are over.
	 */
	struct rw_semaphore allocating;
	struct mutex fault_locks[DMEMFS_FAULT_LOCKS];
	atomic_long_t faults[DMEMFS_ENTRIES];
	atomic_long_t faults_failed;
};

struct dmemfs_extent {
	union {
		struct rb_node rb;
		struct list_head list;	/* before a file has it */
	};
	unsigned long index;		/* of the file, in pages of the pool; none if held */
	unsigned long page;
	unsigned long count;
};

struct dmemfs_run {
	unsigned long page;
	unsigned long count;
	bool dirty;
	bool held;		/* by the file until now; else the pool's */
};

struct dmemfs_inode {
	struct inode vfs;
	spinlock_t lock;		/* all of the below; taken before a node's */
	struct rb_root extents;
	struct rb_root held;		/* by page */
	unsigned long pages;		/* of extents */
	unsigned long owned;		/* all that the pool gave it and has not got back */
	unsigned long most;		/* the greatest size, or end of memory, so far */
	bool mapped;			/* ever: a driver may know its page frames */
	u32 number;			/* in the table that is being written */
};

static inline struct dmemfs_inode *DMEMFS_I(const struct inode *inode)
{
	return container_of(inode, struct dmemfs_inode, vfs);
}

static inline struct dmemfs_pool *dmemfs_pool(const struct inode *inode)
{
	return inode->i_sb->s_fs_info;
}

/* super.c */
int dmemfs_fill_super(struct super_block *sb, struct fs_context *fc);

/* options.c */
int dmemfs_init_fs_context(struct fs_context *fc);
int dmemfs_show_options(struct seq_file *m, struct dentry *root);

/* region.c */
int dmemfs_claim_region(struct fs_context *fc, struct dmemfs_region *region,
			unsigned int page_shift);
void dmemfs_release_region(struct dmemfs_region *region);

/* firmware.c */
int dmemfs_read_firmware_map(struct dmemfs_map *map);
void dmemfs_free_firmware_map(struct dmemfs_map *map);
ssize_t dmemfs_show_firmware_ram(char *page);	/* but on x86, where sysfs has the map */

/* support.c */
const char *dmemfs_unsupported(void);

/* pool.c */
struct dmemfs_pool *dmemfs_create_pool(struct fs_context *fc, struct dmemfs_options *opt);
void dmemfs_destroy_pool(struct dmemfs_pool *pool);
struct dmemfs_span *dmemfs_find_span(struct dmemfs_pool *pool, unsigned long page);
bool dmemfs_continues(struct dmemfs_pool *pool, const struct dmemfs_extent *a,
		      const struct dmemfs_extent *b);
void *dmemfs_page_va(struct dmemfs_pool *pool, unsigned long page);
bool dmemfs_claim(struct dmemfs_pool *pool, u64 page, u64 count);
bool dmemfs_take_from(struct dmemfs_node *node, unsigned long want, unsigned long hint,
		      struct dmemfs_run *run);
void dmemfs_give_back(struct dmemfs_pool *pool, unsigned long page, unsigned long count, bool clean,
		      bool scrubbed);
void dmemfs_count(struct dmemfs_pool *pool, u64 *total, u64 *available);

/* scrub.c */
void dmemfs_zero(struct dmemfs_pool *pool, const struct dmemfs_run *run);
int dmemfs_start_scrubbers(struct dmemfs_pool *pool);
void dmemfs_stop_scrubbers(struct dmemfs_pool *pool);

/* policy.c */
struct mempolicy;
bool dmemfs_could_take(struct dmemfs_pool *pool, struct mempolicy *policy, unsigned long pages);
int dmemfs_take(struct dmemfs_pool *pool, struct dmemfs_inode *info, struct mempolicy *policy,
		unsigned long index, unsigned long want, unsigned long limit, unsigned long hint,
		struct dmemfs_run *run);
struct mempolicy *dmemfs_vma_policy(struct vm_area_struct *vma);
struct mempolicy *dmemfs_task_policy(void);

/* extent_cache.c */
int dmemfs_init_extents(void);
void dmemfs_exit_extents(void);
struct dmemfs_extent *dmemfs_new_extent(void);
void dmemfs_free_extent(struct dmemfs_extent *extent);

/* extent.c */
bool dmemfs_lookup(struct dmemfs_inode *info, unsigned long index, unsigned long *page,
		   unsigned long *hint);
bool dmemfs_next_data(struct dmemfs_inode *info, unsigned long index, unsigned long *start,
		      unsigned long *end);
bool dmemfs_next_extent(struct dmemfs_inode *info, unsigned long index,
			struct dmemfs_extent *found);
void dmemfs_insert(struct dmemfs_pool *pool, struct dmemfs_inode *info,
		   struct dmemfs_extent *extent);
int dmemfs_remove(struct dmemfs_pool *pool, struct dmemfs_inode *info, unsigned long index,
		  unsigned long end);
void dmemfs_remove_all(struct dmemfs_pool *pool, struct dmemfs_inode *info);

/* held.c */
void dmemfs_hold(struct dmemfs_pool *pool, struct dmemfs_inode *info,
		 struct dmemfs_extent *extent);
bool dmemfs_take_held(struct dmemfs_inode *info, struct dmemfs_node *node, unsigned long want,
		      unsigned long hint, struct dmemfs_run *run);
bool dmemfs_take_any_held(struct dmemfs_pool *pool, struct dmemfs_inode *info, unsigned long want,
			  struct dmemfs_run *run);
bool dmemfs_next_held(struct dmemfs_inode *info, unsigned long page, struct dmemfs_extent *found);
void dmemfs_let_go(struct dmemfs_pool *pool, struct dmemfs_inode *info);
unsigned long dmemfs_charge(struct dmemfs_inode *info, unsigned long want, unsigned long limit);
void dmemfs_uncharge(struct dmemfs_inode *info, unsigned long pages);

/* inode.c */
extern const struct inode_operations dmemfs_dir_inode_operations;
struct inode *dmemfs_new_inode(struct super_block *sb, const struct inode *dir, umode_t mode);

/* file.c */
extern const struct file_operations dmemfs_file_operations;
int dmemfs_truncate(struct inode *inode, loff_t size);

/* fault.c */
extern const struct vm_operations_struct dmemfs_vm_ops;

/* guard.c */
bool dmemfs_guard_on(void);
void dmemfs_init_guard(void);
void dmemfs_exit_guard(void);

/* xattr.c */
extern const struct xattr_handler *dmemfs_xattr_handlers[];

/* persist.c */
int dmemfs_make_room(struct fs_context *fc, struct dmemfs_options *opt);
void dmemfs_forget(struct dmemfs_pool *pool);
int dmemfs_restore(struct super_block *sb, struct fs_context *fc);
void dmemfs_take_over(struct dmemfs_pool *pool);
void dmemfs_keep(struct super_block *sb);

/* sysfs.c */
int dmemfs_init_sysfs(void);
void dmemfs_exit_sysfs(void);
void dmemfs_init_pool_kobject(struct dmemfs_pool *pool);
void dmemfs_init_node_kobject(struct dmemfs_node *node);
int dmemfs_show_pool(struct dmemfs_pool *pool, dev_t dev);
void dmemfs_hide_pool(struct dmemfs_pool *pool);

#endif
