/* load DEVICE SECONDS THREADS: writes and reads a block device without the page cache, in several threads, and checks
 * every word that it reads.
 *   load /dev/vda 10 4
 *
 * Each thread has a separate region of the device. The words of a 4 KiB block are computed from the block's number and
 * from the number of writes to it, so the check finds old data and data of another block. Buffers begin at random pages
 * of a larger piece of memory, and sizes vary, so that each request maps and unmaps different pages for the device. At
 * the end each thread reads its region once more. Exit status 0: every word was right.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, REGION_BLOCKS = 1024, MOST_BLOCKS = 64, POOL_BLOCKS = 512, MOST_THREADS = 8 };

static int device;
static time_t end;
static _Atomic uint64_t written, read_back, requests;
static _Atomic int wrong;

struct region {
	uint64_t first; /* block */
	uint64_t state; /* of the region's random numbers */
	uint32_t generation[REGION_BLOCKS];
	unsigned char *pool;
};

static uint64_t next(struct region *region)
{
	uint64_t x = region->state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return region->state = x;
}

static uint64_t seed(uint64_t block, uint32_t generation)
{
	return (block << 32 | generation) * 0x9e3779b97f4a7c15u + 0x1234567;
}

static void fill(uint64_t *words, uint64_t block, uint32_t generation)
{
	uint64_t value = seed(block, generation);
	for (int i = 0; i < BLOCK / 8; i++, value += 0x632be59bd9b4e019u)
		words[i] = value;
}

static int matches(const uint64_t *words, uint64_t block, uint32_t generation)
{
	uint64_t value = seed(block, generation);
	for (int i = 0; i < BLOCK / 8; i++, value += 0x632be59bd9b4e019u)
		if (words[i] != value)
			return 0;
	return 1;
}

static void fail(const char *what, uint64_t block)
{
	if (!atomic_fetch_add(&wrong, 1))
		printf("guest: FAIL load: %s at block %llu: %s\n", what, (unsigned long long)block, strerror(errno));
}

/* Writes new content to blocks, or reads them and checks their content. */
static void transfer(struct region *region, unsigned start, unsigned count, int writes)
{
	unsigned char *buffer = region->pool + next(region) % (POOL_BLOCKS - count) * BLOCK;
	size_t size = (size_t)count * BLOCK;
	off_t place = (off_t)(region->first + start) * BLOCK;

	errno = 0;
	if (writes) {
		for (unsigned i = 0; i < count; i++)
			fill((uint64_t *)(buffer + i * BLOCK), region->first + start + i, ++region->generation[start + i]);
		if (pwrite(device, buffer, size, place) != (ssize_t)size)
			fail("write", region->first + start);
		written += size;
	} else {
		memset(buffer, 0xee, size);
		if (pread(device, buffer, size, place) != (ssize_t)size)
			fail("read", region->first + start);
		for (unsigned i = 0; i < count; i++)
			if (!matches((uint64_t *)(buffer + i * BLOCK), region->first + start + i, region->generation[start + i]))
				fail("the data read differs from the data written", region->first + start + i);
		read_back += size;
	}
	requests++;
}

/* Ends the program when no request has completed for 30 s: a device or an interrupt was lost. */
static void *watch(void *argument)
{
	(void)argument;
	uint64_t before = requests;
	for (int still = 0; still < 6; still++) {
		sleep(5);
		if (requests != before)
			still = -1;
		before = requests;
	}
	printf("guest: FAIL load: no request completed for 30 s, after %llu\n", (unsigned long long)before);
	_exit(1);
}

static void *work(void *argument)
{
	struct region *region = argument;
	for (unsigned start = 0; start < REGION_BLOCKS; start += MOST_BLOCKS)
		transfer(region, start, MOST_BLOCKS, 1);
	while (time(0) < end && !wrong) {
		unsigned count = 1 + next(region) % MOST_BLOCKS;
		/* Makes half of the requests small. */
		if (next(region) & 1)
			count = 1 + count % 4;
		transfer(region, next(region) % (REGION_BLOCKS - count + 1), count, next(region) % 5 < 2);
	}
	for (unsigned start = 0; start < REGION_BLOCKS && !wrong; start += MOST_BLOCKS)
		transfer(region, start, MOST_BLOCKS, 0);
	return 0;
}

int main(int count, char **words)
{
	int threads = count == 4 ? atoi(words[3]) : 0;
	if (threads < 1 || threads > MOST_THREADS) {
		fprintf(stderr, "usage: load DEVICE SECONDS THREADS\n");
		return 2;
	}
	device = open(words[1], O_RDWR | O_DIRECT);
	if (device < 0) {
		perror(words[1]);
		return 2;
	}
	end = time(0) + atoi(words[2]);
	static struct region regions[MOST_THREADS];
	pthread_t handles[MOST_THREADS], watcher;
	pthread_create(&watcher, 0, watch, 0);
	for (int i = 0; i < threads; i++) {
		regions[i].first = (uint64_t)i * REGION_BLOCKS;
		regions[i].state = 0x2545f4914f6cdd1du + i;
		regions[i].pool = aligned_alloc(BLOCK, POOL_BLOCKS * BLOCK);
		if (!regions[i].pool || pthread_create(&handles[i], 0, work, &regions[i])) {
			perror("a thread");
			return 2;
		}
	}
	for (int i = 0; i < threads; i++)
		pthread_join(handles[i], 0);
	fsync(device);
	printf("guest: %d threads wrote %llu MiB and read %llu MiB in %llu requests\n", threads,
	       (unsigned long long)written >> 20, (unsigned long long)read_back >> 20, (unsigned long long)requests);
	return wrong != 0;
}
