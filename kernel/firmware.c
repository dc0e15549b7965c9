// SPDX-License-Identifier: GPL-2.0-only
/*
 * The firmware's map of memory, all of it, whatever the kernel's command line
 * made of it: on x86 what /sys/firmware/memmap shows, elsewhere the memory map
 * of UEFI, or the memory nodes of the device tree if it was not UEFI that
 * booted. See docs/development/decisions/0012-the-firmwares-map.md.
 */

#include <linux/slab.h>

#include "dmemfs.h"

static int add_entry(struct dmemfs_map *map, u64 start, u64 end, bool ram, const char *what)
{
	struct dmemfs_range *range;

	if (map->count == map->room) {
		unsigned int room = map->room ? 2 * map->room : 64;
		struct dmemfs_range *more = krealloc(map->ranges, room * sizeof(*more), GFP_KERNEL);

		if (!more)
			return -ENOMEM;
		map->ranges = more;
		map->room = room;
	}
	range = &map->ranges[map->count++];
	range->start = start;
	range->end = end;
	range->ram = ram;
	strscpy(range->what, what, sizeof(range->what));
	return 0;
}

#ifdef CONFIG_X86_64

#include <linux/kernfs.h>
#include <linux/kobject.h>

/* Let a kobject show an attribute, as sysfs does: a directory is a kobject there, a file its attribute. */
static int show(struct kobject *entry, const char *name, char *page)
{
	struct kernfs_node *file = entry->sd ? kernfs_find_and_get(entry->sd, name) : NULL;
	ssize_t length;

	if (!file)
		return -ENODATA;
	length = entry->ktype->sysfs_ops->show(entry, file->priv, page);
	kernfs_put(file);
	if (length <= 0 || length >= PAGE_SIZE)
		return -ENODATA;
	page[length] = 0;
	strim(page);
	return 0;
}

static int show_number(struct kobject *entry, const char *name, char *page, u64 *number)
{
	int err = show(entry, name, page);

	return err ? err : kstrtou64(page, 0, number);
}

static int read_entry(struct dmemfs_map *map, struct kobject *entry, char *page)
{
	u64 start, last;
	int err = show_number(entry, "start", page, &start);

	if (!err)
		err = show_number(entry, "end", page, &last);
	if (!err)
		err = show(entry, "type", page);
	return err ? err : add_entry(map, start, last + 1, !strcmp(page, "System RAM"), page);
}

/* Get a reference to each entry that there is at one moment. */
static struct kobject **get_entries(struct kset *entries, unsigned int *count)
{
	struct kobject **list, *entry;
	unsigned int room = 0, all;

	spin_lock(&entries->list_lock);
	list_for_each_entry(entry, &entries->list, entry)
		room++;
	spin_unlock(&entries->list_lock);
	room += 8;	/* memory may be plugged in meanwhile */
	list = kcalloc(room, sizeof(*list), GFP_KERNEL);
	if (!list)
		return ERR_PTR(-ENOMEM);
	*count = all = 0;
	spin_lock(&entries->list_lock);
	list_for_each_entry(entry, &entries->list, entry) {
		if (all++ < room && kobject_get_unless_zero(entry))
			list[(*count)++] = entry;
	}
	spin_unlock(&entries->list_lock);
	if (all <= room)
		return list;
	while (*count)
		kobject_put(list[--*count]);
	kfree(list);
	return ERR_PTR(-EAGAIN);
}

static int read_map(struct dmemfs_map *map)
{
	struct kernfs_node *directory = kernfs_find_and_get(firmware_kobj->sd, "memmap");
	char *page = (char *)__get_free_page(GFP_KERNEL);
	struct kobject **list;
	unsigned int count;
	int err = 0;

	if (!directory || !page) {
		err = page ? -ENODATA : -ENOMEM;
		goto out;
	}
	list = get_entries(to_kset((struct kobject *)directory->priv), &count);
	if (IS_ERR(list)) {
		err = PTR_ERR(list);
		goto out;
	}
	while (count) {
		if (!err)
			err = read_entry(map, list[count - 1], page);
		kobject_put(list[--count]);
	}
	kfree(list);
out:
	free_page((unsigned long)page);
	kernfs_put(directory);
	return err;
}

#else

#include <linux/efi.h>
#include <linux/minmax.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/sizes.h>
#include <linux/sort.h>

/*
 * Cacheable, and nobody's since the kernel runs: the loader's code has ended,
 * or is the kernel and thus System RAM. The loader's data may be in use for
 * ever: the kernel's device tree is there, of which kexec makes the next one.
 */
static bool is_free(const efi_memory_desc_t *entry)
{
	switch (entry->type) {
	case EFI_LOADER_CODE:
	case EFI_BOOT_SERVICES_CODE:
	case EFI_BOOT_SERVICES_DATA:
	case EFI_CONVENTIONAL_MEMORY:
		return (entry->attribute & EFI_MEMORY_WB) && !(entry->attribute & EFI_MEMORY_SP);
	}
	return false;
}

static int read_efi(struct dmemfs_map *map)
{
	efi_memory_desc_t *entry;
	int err = 0;

	for_each_efi_memory_desc(entry) {
		u64 end = entry->phys_addr + (entry->num_pages << EFI_PAGE_SHIFT);
		char what[24];

		snprintf(what, sizeof(what), "of EFI type %u", entry->type);
		err = add_entry(map, entry->phys_addr, end, is_free(entry), what);
		if (err)
			break;
	}
	return err;
}

static int read_node(struct dmemfs_map *map, struct device_node *node, bool ram, const char *what)
{
	struct resource res;
	int i, err = 0;

	for (i = 0; !err && !of_address_to_resource(node, i, &res); i++)
		err = add_entry(map, res.start, res.end + 1, ram, what);
	return err;
}

static int read_device_tree(struct dmemfs_map *map)
{
	struct device_node *node = NULL, *reserved = of_find_node_by_path("/reserved-memory");
	int err = 0;

	while (!err && (node = of_find_node_by_type(node, "memory")))
		err = read_node(map, node, true, "memory");
	of_node_put(node);
	node = NULL;
	while (!err && (node = of_get_next_child(reserved, node)))
		err = read_node(map, node, false, "reserved-memory");
	of_node_put(node);
	of_node_put(reserved);
	return err;
}

static int read_map(struct dmemfs_map *map)
{
	int err = efi_enabled(EFI_BOOT) ? efi_enabled(EFI_MEMMAP) ? read_efi(map) : -ENODATA :
					  read_device_tree(map);

	return err ? err : map->count ? 0 : -ENODATA;
}

static int by_start(const void *one, const void *other)
{
	u64 a = ((const struct dmemfs_range *)one)->start;
	u64 b = ((const struct dmemfs_range *)other)->start;

	return a < b ? -1 : a > b;
}

/* A line for a range that is large enough for a pool; what does not fit in the page is left out. */
static ssize_t emit(char *page, ssize_t used, u64 start, u64 end)
{
	if (end < start + SZ_2M || used > PAGE_SIZE - 64)
		return 0;
	return sysfs_emit_at(page, used, "0x%llx+0x%llx\n", start, end - start);
}

/* The firmware's RAM by address, neighbours joined, without what lies in it and is none. */
ssize_t dmemfs_show_firmware_ram(char *page)
{
	u64 start = 0, end = 0;	/* of the RAM that is not shown yet */
	u64 taken = 0;		/* where what is no RAM ends */
	struct dmemfs_map map;
	ssize_t used = 0;
	unsigned int i;
	int err = dmemfs_read_firmware_map(&map);

	if (!err)
		sort(map.ranges, map.count, sizeof(*map.ranges), by_start, NULL);
	for (i = 0; !err && i < map.count; i++) {
		const struct dmemfs_range *range = &map.ranges[i];

		if (!range->ram) {
			if (range->start < end) {
				used += emit(page, used, start, range->start);
				start = max(start, range->end);
			}
			taken = max(taken, range->end);
		} else if (range->start <= end && range->start >= taken) {
			end = max(end, range->end);
		} else {
			used += emit(page, used, start, end);
			start = max3(range->start, end, taken);
			end = max(end, range->end);
		}
	}
	if (!err)
		used += emit(page, used, start, end);
	dmemfs_free_firmware_map(&map);
	return err ? err : used;
}

#endif

/* Read the whole map, in no order. Free it with dmemfs_free_firmware_map() in any case. */
int dmemfs_read_firmware_map(struct dmemfs_map *map)
{
	memset(map, 0, sizeof(*map));
	return read_map(map);
}

void dmemfs_free_firmware_map(struct dmemfs_map *map)
{
	kfree(map->ranges);
}
