/* fault FOLDER IOVA: makes a virtio-pci device without a driver read its first queue at IOVA.
 * fault FOLDER queue: prints the address of the first queue's descriptors, as the driver has given it to the device.
 *   fault /sys/bus/pci/devices/0000:00:02.0 0xdead0000
 *
 * FOLDER is the function's folder in sysfs. IOVA is not mapped, or not mapped any more, so the IOMMU must refuse the
 * device's read of the ring and record a fault. The program writes the common configuration (virtio 1.2, 4.1.4) as a
 * driver would, features first. So only the IOMMU can stop the read. Exit status 0: the device was notified, or the
 * address was printed.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COMMON = 1, NOTIFY = 2 }; /* cfg_type of struct virtio_pci_cap */
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

static int config;

static void die(const char *why)
{
	fprintf(stderr, "guest: FAIL fault: %s\n", why);
	exit(1);
}

static uint32_t config_read(int offset, int width)
{
	uint32_t value = 0;
	if (pread(config, &value, width, offset) != width)
		die("configuration space cannot be read");
	return value;
}

/* Maps the registers that the first capability of a type points at. extra receives the word after that capability. */
static volatile uint8_t *window(const char *folder, int type, uint32_t *extra)
{
	for (int at = config_read(0x34, 1), seen = 0; at && seen < 48; at = config_read(at + 1, 1), seen++) {
		if (config_read(at, 1) != 0x09 || (int)config_read(at + 3, 1) != type)
			continue;
		char path[256];
		snprintf(path, sizeof path, "%s/resource%u", folder, config_read(at + 4, 1));
		int file = open(path, O_RDWR);
		struct stat info;
		if (file < 0 || fstat(file, &info) < 0)
			die(path);
		uint8_t *bar = mmap(0, info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		if (bar == MAP_FAILED)
			die("a BAR cannot be mapped");
		*extra = config_read(at + 16, 4);
		return bar + config_read(at + 8, 4);
	}
	die("no virtio capability");
	return 0;
}

static void put8(volatile uint8_t *base, int offset, uint8_t value) { base[offset] = value; }
static void put16(volatile uint8_t *base, int offset, uint16_t value) { *(volatile uint16_t *)(base + offset) = value; }
static void put32(volatile uint8_t *base, int offset, uint32_t value) { *(volatile uint32_t *)(base + offset) = value; }

static void put_address(volatile uint8_t *base, int offset, uint64_t value)
{
	put32(base, offset, value);
	put32(base, offset + 4, value >> 32);
}

int main(int count, char **words)
{
	if (count != 3)
		die("usage: fault FOLDER IOVA, or fault FOLDER queue");
	const char *folder = words[1];
	int asks = !strcmp(words[2], "queue");
	uint64_t iova = strtoull(words[2], 0, 0);
	char path[256];
	snprintf(path, sizeof path, "%s/config", folder);
	config = open(path, O_RDWR);
	if (config < 0)
		die(path);
	uint32_t multiplier, unused;
	if (asks) {
		volatile uint8_t *common = window(folder, COMMON, &unused);
		put16(common, 22, 0); /* queue_select */
		uint64_t low = *(volatile uint32_t *)(common + 32), high = *(volatile uint32_t *)(common + 36);
		printf("0x%llx\n", (unsigned long long)(high << 32 | low));
		return 0;
	}

	/* Memory Space and Bus Master: unbinding the driver cleared Bus Master. */
	uint16_t command = config_read(4, 2) | 6;
	if (pwrite(config, &command, 2, 4) != 2)
		die("the command register cannot be written");

	volatile uint8_t *common = window(folder, COMMON, &unused);
	volatile uint8_t *notify = window(folder, NOTIFY, &multiplier);

	put8(common, 20, 0); /* device_status: reset */
	for (int tries = 0; common[20] && tries < 1000; tries++)
		usleep(1000);
	put8(common, 20, ACKNOWLEDGE | DRIVER);
	/* device_feature_select, device_feature; driver_feature_select, driver_feature: bits 31:0.
	 * EVENT_IDX (29) is accepted if offered: without it, the device first writes a flag to the used
	 * ring, and the fault would be of a write. */
	put32(common, 0, 0);
	uint32_t offered = *(volatile uint32_t *)(common + 4);
	put32(common, 8, 0);
	put32(common, 12, offered & 1u << 29);
	put32(common, 8, 1); /* bits 63:32: VERSION_1 (32) and ACCESS_PLATFORM (33) */
	put32(common, 12, 3);
	put8(common, 20, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	if (!(common[20] & FEATURES_OK))
		die("the device refused VERSION_1 and ACCESS_PLATFORM");
	put16(common, 22, 0); /* queue_select */
	uint16_t size = *(volatile uint16_t *)(common + 24);
	if (!size)
		die("the device has no queue 0");
	put_address(common, 32, iova); /* queue_desc, queue_driver, queue_device: all in one page */
	put_address(common, 40, iova);
	put_address(common, 48, iova);
	put16(common, 28, 1);                   /* queue_enable */
	put8(common, 20, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	uint16_t offset = *(volatile uint16_t *)(common + 30); /* queue_notify_off */
	put16(notify, offset * multiplier, 0);
	return 0;
}
