/* pointer: hands one pointer of a process to dma-engine, step by step, for a reader (Images/demo sva).
 *   pointer SECONDS
 *
 * The process maps 16 pages of a file and 16 new pages, and touches none of them. The engine copies from the first to
 * the second, so it must request every page. Then the process waits for SECONDS, in which the tables can be inspected.
 * It unmaps the new pages, and lets the engine copy once more, which must be refused. Prints a line for each step; lines
 * "FAIL ..." name a step that went wrong. Exit status 0: none did.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../dma-engine/dma_engine.h"

enum { PAGE = 4096, PAGES = 16, SIZE = PAGES * PAGE };

static void check(int correct, const char *what)
{
	if (correct)
		return;
	printf("FAIL pointer: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The number of an area's pages that the process's own tables have (Documentation/admin-guide/mm/pagemap.rst). */
static int present(const void *area)
{
	uint64_t entries[PAGES];
	int file = open("/proc/self/pagemap", O_RDONLY), count = 0;
	check(file >= 0, "/proc/self/pagemap");
	check(pread(file, entries, sizeof entries, (uintptr_t)area / PAGE * 8) == sizeof entries, "/proc/self/pagemap");
	close(file);
	for (int page = 0; page < PAGES; page++)
		count += entries[page] >> 63;
	return count;
}

/* Lets the engine copy all of an area. Returns the errno of the copy. */
static int copy(int engine, const void *source, void *destination, struct dma_engine_wait *outcome)
{
	struct dma_engine_copy order = {(uintptr_t)source, (uintptr_t)destination, SIZE, 0, 0};
	check(!ioctl(engine, DMA_ENGINE_SUBMIT, &order), "submit");
	*outcome = (struct dma_engine_wait){.job = order.job};
	return ioctl(engine, DMA_ENGINE_WAIT, outcome) ? errno : 0;
}

int main(int count, char **words)
{
	static char content[SIZE];
	struct dma_engine_wait outcome;
	uint32_t pasid;
	glob_t found;
	setvbuf(stdout, NULL, _IOLBF, 0);
	check(count == 2, "usage: pointer SECONDS");
	check(!glob("/dev/dma-engine-*", 0, NULL, &found), "/dev/dma-engine-*");
	int engine = open(found.gl_pathv[0], O_RDWR | O_CLOEXEC), file = memfd_create("pointer", 0);
	check(engine >= 0 && !ioctl(engine, DMA_ENGINE_BIND, &pasid), "bind");
	for (int at = 0; at < SIZE; at++)
		content[at] = at * 2654435761u >> 13;
	check(file >= 0 && write(file, content, SIZE) == SIZE, "the file");
	char *source = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, file, 0);
	char *destination = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(source != MAP_FAILED && destination != MAP_FAILED, "mmap");
	printf("PASID %u: %d pages of a file at %p, %d new pages at %p; %d and %d are present\n", pasid, PAGES, source,
	       PAGES, destination, present(source), present(destination));

	int error = copy(engine, source, destination, &outcome);
	printf("the engine has copied %llu of %d bytes; now %d and %d pages are present\n",
	       (unsigned long long)outcome.done, SIZE, present(source), present(destination));
	errno = error;
	check(!error, "the copy");
	check(!memcmp(destination, content, SIZE), "the bytes at the destination differ from the file's");
	printf("each byte is the file's\n");
	printf("inspect PASID %u at %p\n", pasid, destination + SIZE / 2);
	sleep(atoi(words[1]));

	check(!munmap(destination, SIZE), "munmap");
	error = copy(engine, source, destination, &outcome);
	errno = error;
	check(error == EFAULT && outcome.done == 0, "the copy to unmapped memory is not refused");
	check(outcome.fault == (uintptr_t)destination, "the copy to unmapped memory has another fault");
	printf("after munmap, the engine's next access is refused: %s, result %u, at 0x%llx\n", strerror(error),
	       outcome.result, (unsigned long long)outcome.fault);
	return 0;
}
