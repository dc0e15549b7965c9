// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where a device of VFIO writes when a file has lost the memory that it was
 * given: vfiotest DIR GROUP DEVICE punch|truncate|remove. The device is QEMU's
 * "edu" (docs/specs/edu.rst there), which copies up to 4 KiB between a buffer
 * of its own and an address of the bus. All of the pool's other memory is put
 * into a file, which the device must not reach.
 */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/vfio.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define IOVA	0x100000UL
#define BUFFER	0x40000UL
#define WRITES	16

static volatile uint64_t *regs;

static void copy(uint64_t from, uint64_t to, uint64_t command)
{
	regs[0x80 / 8] = from;
	regs[0x88 / 8] = to;
	regs[0x90 / 8] = 4096;
	regs[0x98 / 8] = command;
	while (regs[0x98 / 8] & 1)
		usleep(1000);
}

int main(int argc, char **argv)
{
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX };
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, .iova = IOVA,
	};
	int container = open("/dev/vfio/vfio", O_RDWR), group, device, fd, other, hits = 0;
	volatile unsigned char *at, *there;
	struct statfs fs;
	unsigned long page, rest;
	uint16_t command = 6;
	char name[4096];
	bool remove;

	if (argc < 5)
		errx(2, "usage: vfiotest DIR GROUP DEVICE punch|truncate|remove");
	setvbuf(stdout, NULL, _IOLBF, 0);
	remove = !strcmp(argv[4], "remove");
	group = open(argv[2], O_RDWR);
	if (container < 0 || group < 0)
		err(1, "open");
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) || ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		err(1, "container");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[3]);
	if (device < 0 || ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) ||
	    ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
		err(1, "device");
	if (pwrite(device, &command, 2, config.offset + 4) != 2)
		err(1, "config");
	regs = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar.offset);
	if (regs == MAP_FAILED)
		err(1, "bar");
	if (statfs(argv[1], &fs))
		err(1, "statfs");
	page = fs.f_bsize;
	snprintf(name, sizeof(name), "%s/dma", argv[1]);
	fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, page))
		err(1, "%s", name);
	at = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		err(1, "mmap");
	memset((void *)at, 0x5a, 4096);
	map.vaddr = (uintptr_t)at;
	map.size = page;
	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map)) {
		printf("MAP_DMA refused: %m\n");
		unlink(name);
		return 0;
	}
	copy(IOVA, BUFFER, 1);		/* into the device */
	memset((void *)at, 0, 4096);
	copy(BUFFER, IOVA, 3);		/* and back */
	if (at[0] != 0x5a || at[4095] != 0x5a)
		errx(1, "the device does not write at all");
	if (!strcmp(argv[4], "punch") && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page))
		err(1, "punch");
	if (!strcmp(argv[4], "truncate") && (ftruncate(fd, 0) || ftruncate(fd, page)))
		err(1, "truncate");
	if (remove && (munmap((void *)at, page) || close(fd) || unlink(name)))
		err(1, "remove");
	snprintf(name, sizeof(name), "%s/victim", argv[1]);
	other = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	statfs(argv[1], &fs);
	rest = fs.f_bfree * page;
	if (other < 0 || ftruncate(other, rest) || fallocate(other, 0, 0, rest))
		err(1, "%s", name);
	there = mmap(NULL, rest, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
	if (there == MAP_FAILED)
		err(1, "mmap");
	for (int i = 0; i < WRITES; i++) {
		copy(BUFFER, IOVA, 3);
		for (unsigned long j = 0; j < rest; j += 4096)
			if (there[j] == 0x5a) {
				hits++;
				there[j] = 0;
				break;
			}
	}
	printf("writes in the other file: %d of %d\n", hits, WRITES);
	unlink(name);
	if (remove)
		return 0;
	/* its own memory comes back zero, and is what the device writes to */
	printf("back: %d", at[0]);
	copy(BUFFER, IOVA, 3);
	printf(", then %d\n", at[0]);
	snprintf(name, sizeof(name), "%s/dma", argv[1]);
	unlink(name);
	return 0;
}
