/* unmapped FOLDER type1|iommufd|nested ROUNDS: checks that a device cannot reach a page after the page is unmapped.
 * unmapped FOLDER thousand 1: maps 1,000 pages with VFIO's type 1 and unmaps them together. It prints a line after each
 * step and pauses, so that level 2 can read the unit's counters.
 *   unmapped /sys/bus/pci/devices/0000:00:03.0 nested 100
 *
 * FOLDER is the sysfs folder of edu, bound to vfio-pci. Each round maps a page for edu:
 *   type1    with VFIO's type 1
 *   iommufd  with iommufd
 *   nested   with a first-stage table of this program, in memory that iommufd maps (VT-d 3.8)
 * edu's write to the page must arrive. Then the round unmaps the page, or clears and invalidates its entry, and edu
 * writes again at once. This write must not arrive. Exit status 0: in every round the first write arrived and the
 * second did not. The caller checks the faults, in the kernel's log and in the unit's counters.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <dirent.h>

enum { PAGE = 4096, COUNT = 64, SOURCE = 0, TARGET, PML4, DIRECTORY_POINTERS, DIRECTORY, TABLE, PAGES };
enum { EDU_SOURCE = 0x80, EDU_DESTINATION = 0x88, EDU_COUNT = 0x90, EDU_COMMAND = 0x98, EDU_BUFFER = 0x40000 };

/* The I/O address of the page that edu reads. The page that edu writes is one of the 509 pages after it. */
static const uint64_t base = 0x5a12200000;
/* With nested: the addresses at which the second stage maps this program's memory. */
static const uint64_t physical = 0x3000000000;

static enum { TYPE1, IOMMUFD, NESTED } mode;
static int container, device;
static uint32_t ioas, nested;
static unsigned char *memory;
static volatile unsigned char *registers;

static void die(const char *why)
{
	printf("guest: FAIL unmapped: %s: %s\n", why, strerror(errno));
	exit(1);
}

#define CALL(file, request, argument) ({ int result_ = ioctl(file, request, argument); if (result_ < 0) die(#request); result_; })

static void map_below(uint64_t address, int page)
{
	if (mode == TYPE1) {
		struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
			.vaddr = (uintptr_t)memory + page * PAGE, .iova = address, .size = PAGE};
		CALL(container, VFIO_IOMMU_MAP_DMA, &map);
	} else {
		struct iommu_ioas_map map = {.size = sizeof map,
			.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE, .ioas_id = ioas,
			.user_va = (uintptr_t)memory + page * PAGE, .length = PAGE, .iova = address};
		CALL(container, IOMMU_IOAS_MAP, &map);
	}
}

static void unmap_below(uint64_t address)
{
	if (mode == TYPE1) {
		struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = address, .size = PAGE};
		CALL(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
	} else {
		struct iommu_ioas_unmap unmap = {.size = sizeof unmap, .ioas_id = ioas, .iova = address, .length = PAGE};
		CALL(container, IOMMU_IOAS_UNMAP, &unmap);
	}
}

/* Sets an entry of the first stage: present, writable, user. */
static void set(int table, uint64_t index, int page)
{
	((volatile uint64_t *)(memory + table * PAGE))[index & 511] = page < 0 ? 0 : (physical + page * PAGE) | 7;
}

static void map(uint64_t address, int page)
{
	if (mode == NESTED)
		set(TABLE, address / PAGE, page);
	else
		map_below(address, page);
}

/* With nested, alternates between clearing the first-stage entry and unmapping the second-stage page below it. */
static void unmap(uint64_t address, unsigned round)
{
	if (mode != NESTED) {
		unmap_below(address);
	} else if (round % 2) {
		unmap_below(physical + TARGET * PAGE);
	} else {
		set(TABLE, address / PAGE, -1);
		struct iommu_hwpt_vtd_s1_invalidate entry = {.addr = address, .npages = 1};
		struct iommu_hwpt_invalidate invalidate = {.size = sizeof invalidate, .hwpt_id = nested,
			.data_uptr = (uintptr_t)&entry, .data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
			.entry_len = sizeof entry, .entry_num = 1};
		CALL(container, IOMMU_HWPT_INVALIDATE, &invalidate);
	}
}

static void map_again(uint64_t address, unsigned round)
{
	if (mode == NESTED && round % 2) {
		map_below(physical + TARGET * PAGE, TARGET);
		set(TABLE, address / PAGE, -1);
		struct iommu_hwpt_vtd_s1_invalidate entry = {.addr = 0, .npages = UINT64_MAX};
		struct iommu_hwpt_invalidate invalidate = {.size = sizeof invalidate, .hwpt_id = nested,
			.data_uptr = (uintptr_t)&entry, .data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
			.entry_len = sizeof entry, .entry_num = 1};
		CALL(container, IOMMU_HWPT_INVALIDATE, &invalidate);
	}
}

/* Reads the last part of a link's target, or the name of the first entry of a folder. */
static void name_of(const char *folder, const char *what, char *name, int is_link)
{
	char path[PATH_MAX], target[PATH_MAX];
	snprintf(path, sizeof path, "%s/%s", folder, what);
	if (is_link) {
		ssize_t length = readlink(path, target, sizeof target - 1);
		if (length < 0)
			die(path);
		target[length] = 0;
		snprintf(name, 64, "%s", strrchr(target, '/') + 1);
		return;
	}
	DIR *entries = opendir(path);
	struct dirent *entry;
	while (entries && (entry = readdir(entries)))
		if (entry->d_name[0] != '.') {
			snprintf(name, 64, "%.63s", entry->d_name);
			return;
		}
	die(path);
}

static void open_type1(const char *folder)
{
	char name[64], path[128];
	name_of(folder, "iommu_group", name, 1);
	snprintf(path, sizeof path, "/dev/vfio/%s", name);
	int group = open(path, O_RDWR);
	if (group < 0)
		die(path);
	container = open("/dev/vfio/vfio", O_RDWR);
	if (container < 0)
		die("/dev/vfio/vfio");
	CALL(group, VFIO_GROUP_SET_CONTAINER, &container);
	CALL(container, VFIO_SET_IOMMU, (void *)VFIO_TYPE1v2_IOMMU);
	device = CALL(group, VFIO_GROUP_GET_DEVICE_FD, strrchr(folder, '/') + 1);
}

static void open_iommufd(const char *folder)
{
	char name[64], path[128];
	name_of(folder, "vfio-dev", name, 0);
	snprintf(path, sizeof path, "/dev/vfio/devices/%s", name);
	device = open(path, O_RDWR);
	if (device < 0)
		die(path);
	container = open("/dev/iommu", O_RDWR);
	if (container < 0)
		die("/dev/iommu");
	struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = container};
	CALL(device, VFIO_DEVICE_BIND_IOMMUFD, &bind);
	struct iommu_ioas_alloc space = {.size = sizeof space};
	CALL(container, IOMMU_IOAS_ALLOC, &space);
	ioas = space.out_ioas_id;
	struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach, .pt_id = ioas};
	if (mode == NESTED) {
		struct iommu_hwpt_alloc parent = {.size = sizeof parent, .flags = IOMMU_HWPT_ALLOC_NEST_PARENT,
			.dev_id = bind.out_devid, .pt_id = ioas};
		CALL(container, IOMMU_HWPT_ALLOC, &parent);
		for (int page = 0; page < PAGES; page++)
			map_below(physical + page * PAGE, page);
		set(PML4, base >> 39, DIRECTORY_POINTERS);
		set(DIRECTORY_POINTERS, base >> 30, DIRECTORY);
		set(DIRECTORY, base >> 21, TABLE);
		struct iommu_hwpt_vtd_s1 table = {.pgtbl_addr = physical + PML4 * PAGE, .addr_width = 48};
		struct iommu_hwpt_alloc child = {.size = sizeof child, .dev_id = bind.out_devid, .pt_id = parent.out_hwpt_id,
			.data_type = IOMMU_HWPT_DATA_VTD_S1, .data_len = sizeof table, .data_uptr = (uintptr_t)&table};
		CALL(container, IOMMU_HWPT_ALLOC, &child);
		nested = attach.pt_id = child.out_hwpt_id;
	}
	CALL(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

static void start_device(void)
{
	struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
	CALL(device, VFIO_DEVICE_GET_REGION_INFO, &config);
	uint16_t command = 0;
	if (pread(device, &command, 2, config.offset + 4) != 2)
		die("the command register");
	command |= 6; /* Memory Space, Bus Master */
	if (pwrite(device, &command, 2, config.offset + 4) != 2)
		die("the command register");
	struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
	CALL(device, VFIO_DEVICE_GET_REGION_INFO, &bar);
	registers = mmap(0, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar.offset);
	if (registers == MAP_FAILED)
		die("mmap of BAR 0");
	if (*(volatile uint32_t *)registers != 0x010000ed)
		die("the device is not edu");
}

static void transfer(uint64_t from, uint64_t to, uint64_t command)
{
	*(volatile uint64_t *)(registers + EDU_SOURCE) = from;
	*(volatile uint64_t *)(registers + EDU_DESTINATION) = to;
	*(volatile uint64_t *)(registers + EDU_COUNT) = COUNT;
	*(volatile uint64_t *)(registers + EDU_COMMAND) = command;
	for (int tries = 0; *(volatile uint64_t *)(registers + EDU_COMMAND) & 1; tries++) {
		if (tries > 10000)
			die("the transfer does not complete");
		usleep(100);
	}
}

static int is_all(const unsigned char *bytes, unsigned char value, int count)
{
	for (int i = 0; i < count; i++)
		if (((volatile const unsigned char *)bytes)[i] != value)
			return 0;
	return 1;
}

static void thousand(void)
{
	const size_t size = 1000 * PAGE;
	void *pages = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (pages == MAP_FAILED)
		die("mmap");
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)pages, .iova = base, .size = size};
	CALL(container, VFIO_IOMMU_MAP_DMA, &map);
	printf("guest: 1000 pages are mapped\n");
	sleep(4);
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = base, .size = size};
	CALL(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
	printf("guest: 1000 pages are unmapped\n");
	sleep(4);
}

int main(int count, char **words)
{
	if (count != 4)
		die("usage: unmapped FOLDER type1|iommufd|nested ROUNDS");
	setvbuf(stdout, 0, _IOLBF, 0);
	int at_once = !strcmp(words[2], "thousand");
	mode = at_once || !strcmp(words[2], "type1") ? TYPE1 : !strcmp(words[2], "iommufd") ? IOMMUFD : NESTED;
	memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	if (mode == TYPE1)
		open_type1(words[1]);
	else
		open_iommufd(words[1]);
	start_device();
	if (at_once) {
		thousand();
		return 0;
	}
	map(base, SOURCE);

	unsigned rounds = atoi(words[3]);
	for (unsigned round = 0; round < rounds; round++) {
		uint64_t address = base + (1 + round % 509) * PAGE;
		unsigned char *target = memory + TARGET * PAGE;
		memset(memory + SOURCE * PAGE, round | 1, COUNT);
		memset(target, 0, PAGE);
		map(address, TARGET);
		transfer(base, EDU_BUFFER, 1);
		transfer(EDU_BUFFER, address + 128, 3);
		errno = 0;
		if (!is_all(target + 128, round | 1, COUNT) || !is_all(target, 0, 128))
			die("a write to a mapped page did not arrive");
		memset(target, 0x5a, PAGE);
		unmap(address, round);
		transfer(EDU_BUFFER, address + 128, 3);
		if (!is_all(target, 0x5a, PAGE))
			die("a write to an unmapped page arrived");
		map_again(address, round);
	}
	printf("guest: %u writes arrived in mapped pages, none of %u in the same pages unmapped (%s)\n", rounds, rounds, words[2]);
	return 0;
}
