// SPDX-License-Identifier: GPL-2.0-only
/* Mount options: parse and show them. */

#include <linux/fs_parser.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "dmemfs.h"

enum { OPT_REGION, OPT_PAGESIZE, OPT_COMPAT, OPT_PERSIST, OPT_MODE, OPT_UID, OPT_GID };

static const struct fs_parameter_spec dmemfs_parameters[] = {
	fsparam_string("region", OPT_REGION),
	fsparam_string("pagesize", OPT_PAGESIZE),
	fsparam_string("compat", OPT_COMPAT),
	fsparam_string("persist", OPT_PERSIST),
	fsparam_u32oct("mode", OPT_MODE),
	fsparam_u32("uid", OPT_UID),
	fsparam_u32("gid", OPT_GID),
	{}
};

#define NO_REGION	"dmemfs: region=%s: a region is BASE+SIZE, as in 0x100000000+4G"

/* BASE+SIZE, then perhaps ":region=BASE+SIZE" and so on. */
static int parse_regions(struct fs_context *fc, struct dmemfs_options *opt, const char *text)
{
	const char *at = text;

	for (;;) {
		struct dmemfs_region *region = &opt->regions[opt->nr_regions];
		char *end;

		if (opt->nr_regions == DMEMFS_MAX_REGIONS)
			return invalf(fc, "dmemfs: more than %d regions", DMEMFS_MAX_REGIONS);
		region->start = memparse(at, &end);
		if (end == at || *end != '+')
			return invalf(fc, NO_REGION, text);
		at = end + 1;
		region->size = memparse(at, &end);
		if (end == at || !region->size)
			return invalf(fc, NO_REGION, text);
		opt->nr_regions++;
		if (!*end)
			return 0;
		if (strncmp(end, ":region=", 8))
			return invalf(fc, "dmemfs: region=%s: \"%s\" is no \":region=BASE+SIZE\"",
				      text, end);
		at = end + 8;
	}
}

static int parse_page_size(struct fs_context *fc, struct dmemfs_options *opt, const char *text)
{
	char *end;
	u64 size = memparse(text, &end);

	if (*end || (size != PAGE_SIZE && size != PMD_SIZE && size != PUD_SIZE))
		return invalf(fc, "dmemfs: pagesize=%s is none of 4K, 2M and 1G", text);
	opt->page_shift = ilog2(size);
	return 0;
}

/* 128 random bits in hexadecimal; not shown when they are wrong, as they are secret. */
static bool parse_token(u8 *token, const char *text, size_t length)
{
	return length == 2 * DMEMFS_TOKEN_BYTES && !hex2bin(token, text, DMEMFS_TOKEN_BYTES) &&
	       memchr_inv(token, 0, DMEMFS_TOKEN_BYTES);
}

/*
 * "OLD:NEXT" finds the files that were left for the token OLD, "new:NEXT"
 * begins without; both leave them for NEXT. "on" is what is shown of either.
 */
static int parse_persist(struct fs_context *fc, struct dmemfs_options *opt, const char *text)
{
	const char *next = strchr(text, ':');

	if (!strcmp(text, "on")) {
		opt->persist = DMEMFS_SHOWN;
		return 0;
	}
	if (!next || !parse_token(opt->next_token, next + 1, strlen(next + 1)))
		return invalf(fc, "dmemfs: persist= is OLD:NEXT or new:NEXT, each token of 32 hexadecimal digits");
	if (next - text == 3 && !memcmp(text, "new", 3)) {
		opt->persist = DMEMFS_BEGIN;
		return 0;
	}
	if (!parse_token(opt->token, text, next - text))
		return invalf(fc, "dmemfs: persist= is OLD:NEXT or new:NEXT, each token of 32 hexadecimal digits");
	if (!memcmp(opt->token, opt->next_token, sizeof(opt->token)))
		return invalf(fc, "dmemfs: persist= was given one token twice: each is good for one mount");
	opt->persist = DMEMFS_FIND;
	return 0;
}

#define NO_HOST		"dmemfs: not supported on this host: %s"

/* The reason goes where those of region.c go: to the caller of mount and to the kernel log. */
static int check_host(struct fs_context *fc)
{
	const char *reason = dmemfs_unsupported();

	if (!reason)
		return 0;
	if (fc->log.log)
		pr_err(NO_HOST "\n", reason);
	errorf(fc, NO_HOST, reason);
	return -EOPNOTSUPP;
}

static int dmemfs_parse(struct fs_context *fc, struct fs_parameter *param)
{
	struct dmemfs_options *opt = fc->fs_private;
	struct fs_parse_result result;
	int what = check_host(fc);

	if (what)
		return what;	/* before an option is found wrong that is only so here */
	what = fs_parse(fc, dmemfs_parameters, param, &result);
	switch (what) {
	case OPT_REGION:
		return parse_regions(fc, opt, param->string);
	case OPT_PAGESIZE:
		return parse_page_size(fc, opt, param->string);
	case OPT_COMPAT:
		if (strcmp(param->string, "hugetlbfs"))
			return invalf(fc,
				      "dmemfs: compat=%s is not known; there is compat=hugetlbfs",
				      param->string);
		opt->hugetlbfs = true;
		return 0;
	case OPT_PERSIST:
		return parse_persist(fc, opt, param->string);
	case OPT_MODE:
		opt->mode = result.uint_32 & 07777;
		return 0;
	case OPT_UID:
		opt->uid = make_kuid(fc->user_ns, result.uint_32);
		if (!uid_valid(opt->uid))
			return invalf(fc, "dmemfs: uid=%u is not known here", result.uint_32);
		return 0;
	case OPT_GID:
		opt->gid = make_kgid(fc->user_ns, result.uint_32);
		if (!gid_valid(opt->gid))
			return invalf(fc, "dmemfs: gid=%u is not known here", result.uint_32);
		return 0;
	}
	return what;
}

static const char *page_size_name(unsigned int shift)
{
	if (shift == PUD_SHIFT)
		return "1G";
	return shift == PMD_SHIFT ? "2M" : "4K";
}

int dmemfs_show_options(struct seq_file *m, struct dentry *root)
{
	const struct dmemfs_pool *pool = root->d_sb->s_fs_info;
	const struct dmemfs_options *opt = &pool->opt;
	unsigned int i;

	for (i = 0; i < opt->nr_regions; i++)
		seq_printf(m, "%sregion=0x%llx+0x%llx", i ? ":" : ",",
			   (u64)opt->regions[i].start, opt->regions[i].size);
	seq_printf(m, ",pagesize=%s", page_size_name(pool->page_shift));
	if (opt->hugetlbfs)
		seq_puts(m, ",compat=hugetlbfs");
	if (opt->persist != DMEMFS_FORGET)
		seq_puts(m, ",persist=on");
	if (opt->mode != 0755)
		seq_printf(m, ",mode=%o", opt->mode);
	if (!uid_eq(opt->uid, GLOBAL_ROOT_UID))
		seq_printf(m, ",uid=%u", from_kuid_munged(&init_user_ns, opt->uid));
	if (!gid_eq(opt->gid, GLOBAL_ROOT_GID))
		seq_printf(m, ",gid=%u", from_kgid_munged(&init_user_ns, opt->gid));
	return 0;
}

/* A remount may change the VFS's options (ro, nosuid), and no option of dmemfs. */
static int dmemfs_reconfigure(struct fs_context *fc)
{
	const struct dmemfs_options *opt = fc->fs_private;
	const struct dmemfs_pool *pool = fc->root->d_sb->s_fs_info;
	unsigned int i;

	if (opt->page_shift && opt->page_shift != pool->page_shift)
		return invalf(fc, "dmemfs: a remount cannot change pagesize=");
	if (opt->hugetlbfs && !pool->opt.hugetlbfs)
		return invalf(fc, "dmemfs: a remount cannot change compat=");
	if (opt->persist != DMEMFS_FORGET &&
	    (opt->persist != DMEMFS_SHOWN || pool->opt.persist == DMEMFS_FORGET))
		return invalf(fc, "dmemfs: a remount cannot change persist=");
	if (!opt->nr_regions)
		return 0;
	if (opt->nr_regions != pool->opt.nr_regions)
		return invalf(fc, "dmemfs: a remount cannot change the regions");
	for (i = 0; i < opt->nr_regions; i++)
		if (opt->regions[i].start != pool->opt.regions[i].start ||
		    opt->regions[i].size != pool->opt.regions[i].size)
			return invalf(fc, "dmemfs: a remount cannot change the regions");
	return 0;
}

static void dmemfs_free_fc(struct fs_context *fc)
{
	kfree_sensitive(fc->fs_private);
}

static int dmemfs_get_tree(struct fs_context *fc)
{
	struct dmemfs_options *opt = fc->fs_private;
	int err = check_host(fc);

	if (err)
		return err;
	if (!opt->nr_regions)
		return invalf(fc, "dmemfs: region=BASE+SIZE is missing");
	if (opt->persist == DMEMFS_SHOWN)
		return invalf(fc, "dmemfs: persist=on is only shown: to mount, give OLD:NEXT or new:NEXT");
	if (!opt->page_shift)
		opt->page_shift = PMD_SHIFT;
	return get_tree_nodev(fc, dmemfs_fill_super);
}

static const struct fs_context_operations dmemfs_context_operations = {
	.parse_param	= dmemfs_parse,
	.get_tree	= dmemfs_get_tree,
	.reconfigure	= dmemfs_reconfigure,
	.free		= dmemfs_free_fc,
};

int dmemfs_init_fs_context(struct fs_context *fc)
{
	struct dmemfs_options *opt = kzalloc(sizeof(*opt), GFP_KERNEL);

	if (!opt)
		return -ENOMEM;
	opt->mode = 0755;
	opt->uid = GLOBAL_ROOT_UID;
	opt->gid = GLOBAL_ROOT_GID;
	fc->fs_private = opt;
	fc->ops = &dmemfs_context_operations;
	return 0;
}
