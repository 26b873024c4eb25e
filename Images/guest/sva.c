/* sva: hands pointers into its own memory to dma-engine, and compares what the engine copied.
 *   sva 1000 4
 *
 *   sva [--touched] [--killed N] COPIES PROCESSES
 *   sva [--touched] --until-gone PROCESSES
 *
 * Each process opens the driver of Images/dma-engine and binds its address space. The copies have random offsets and
 * lengths. The kinds take turns:
 *   untouched   the source, the destination or both have no pages yet: new memory, or a mapping of a file
 *   dontneed    the process has used both, and then released their pages with MADV_DONTNEED
 *   forked      a child shares the pages: the engine's write must reach the parent's memory, and not the child's
 *   read-only   the source is read-only; or the destination, and the engine must not write to it
 *   unmapped    one page of the source or of the destination has been unmapped after a copy; the engine must copy up to
 *               this page, and no further
 *   kernel      the source or the destination is the kernel's memory, which the engine must not reach
 *   present     both are locked in memory. The engine's accesses are untranslated, so only the IOMMU decides
 *   gone        the same with an unmapped page, like `unmapped`; the kernel logs a fault
 * With --touched, `touched` replaces the first three, for an engine that cannot request pages: all pages are locked in
 * memory, and translated by ATS if it is there.
 * With --killed, N more processes, one after the other, copy without end, and are killed. Afterwards a new process gets
 * one of the lowest PASIDs, because those of the killed ones are free again.
 * Before all that, one process checks the driver's own rules.
 * With --until-gone, the processes copy without end, until the driver is unbound from the engine.
 *
 * Prints a line for each kind, and "passed" or "FAILED". Exit status 0: every copy had the right result.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "../dma-engine/dma_engine.h"

enum { PAGE = 4096, PAGES = 6, AREA = PAGES * PAGE, LONGEST = 3 * PAGE, LONG = 2 << 20 };

enum kind { UNTOUCHED, DONTNEED, FORKED, TOUCHED, READ_ONLY, UNMAPPED, KERNEL, PRESENT, GONE, KINDS };
static const char *const names[KINDS] = {"untouched", "dontneed", "forked",  "touched", "read-only",
					 "unmapped",  "kernel",   "present", "gone"};

/* What all processes count together. */
static struct { uint64_t copies, served, refused, wrong, bytes; } *counts;
/* Also common: the PASID of each process, once it is bound. */
enum { MOST = 64 };
static uint32_t *pasids;
static int engine, file, touched;
static uint32_t pasid;
static uint64_t state;
static char expected_source[AREA], expected[AREA];

static void print_line(const char *format, ...)
{
	char line[256];
	va_list list;
	va_start(list, format);
	int size = vsnprintf(line, sizeof line - 1, format, list);
	va_end(list);
	if (size > (int)sizeof line - 2)
		size = sizeof line - 2;
	line[size++] = '\n';
	if (write(1, line, size) != size)
		_exit(1);
}

static void fail(const char *what)
{
	print_line("FAIL sva: %s: %s", what, strerror(errno));
	_exit(1);
}

static uint64_t random_below(uint64_t limit)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % limit;
}

static void fill(char *bytes, size_t size)
{
	for (size_t at = 0; at < size; at += 8) {
		uint64_t word = random_below(UINT64_MAX);
		memcpy(bytes + at, &word, 8);
	}
}

/* Maps an area. `from` is the file for a private mapping of it, or -1 for new memory. */
static char *map(int flags, int from)
{
	char *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, flags | (from < 0 ? MAP_ANONYMOUS : 0), from, 0);
	if (area == MAP_FAILED)
		fail("mmap");
	return area;
}

static void check(int result, const char *what)
{
	if (result < 0)
		fail(what);
}

static void store(const char *bytes)
{
	if (pwrite(file, bytes, AREA, 0) != AREA)
		fail("the file");
}

/* A copy: `from` and `to` are offsets in the two areas. */
struct copy {
	enum kind kind;
	char *source, *destination;
	size_t from, to, length;
	uint32_t flags;
	struct dma_engine_wait outcome;
	int error;
};

/* Runs the copy. Does not read or write the areas. */
static void run(struct copy *copy)
{
	struct dma_engine_copy order = {(uintptr_t)copy->source + copy->from, (uintptr_t)copy->destination + copy->to,
					copy->length, copy->flags, 0};
	check(ioctl(engine, DMA_ENGINE_SUBMIT, &order), "submit");
	copy->outcome = (struct dma_engine_wait){.job = order.job};
	copy->error = ioctl(engine, DMA_ENGINE_WAIT, &copy->outcome) ? errno : 0;
}

static void wrong(struct copy *copy, const char *what)
{
	if (__atomic_add_fetch(&counts[copy->kind].wrong, 1, __ATOMIC_RELAXED) > 3)
		return;
	print_line("FAIL sva: %s, PASID %u: %s; 0x%zx bytes from %p to %p: %s, result %u, %llu done, fault at 0x%llx",
		   names[copy->kind], pasid, what, copy->length, copy->source + copy->from,
		   copy->destination + copy->to, copy->error ? strerror(copy->error) : "no error", copy->outcome.result,
		   (unsigned long long)copy->outcome.done, (unsigned long long)copy->outcome.fault);
}

/* The copy must succeed. */
static int serves(struct copy *copy)
{
	run(copy);
	if (copy->error || copy->outcome.done != copy->length || copy->outcome.fault) {
		wrong(copy, "it was not served");
		return 0;
	}
	memcpy(expected + copy->to, expected_source + copy->from, copy->length);
	__atomic_add_fetch(&counts[copy->kind].served, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&counts[copy->kind].bytes, copy->length, __ATOMIC_RELAXED);
	return 1;
}

/* The copy must fail at the page that has `address`, after the bytes before it. */
static int refuses(struct copy *copy, uint64_t address, size_t before)
{
	run(copy);
	if (copy->error != EFAULT || copy->outcome.fault / PAGE != address / PAGE || copy->outcome.done > before) {
		wrong(copy, "it was not refused there");
		return 0;
	}
	if (expected_source + copy->from + copy->outcome.done <= expected_source + AREA)
		memcpy(expected + copy->to, expected_source + copy->from, copy->outcome.done);
	__atomic_add_fetch(&counts[copy->kind].refused, 1, __ATOMIC_RELAXED);
	return 1;
}

/* Compares all of the destination, except a page that is not there. */
static void compare(struct copy *copy, size_t hole)
{
	for (size_t at = 0; at < AREA; at++)
		if (at / PAGE != hole / PAGE && copy->destination[at] != expected[at]) {
			char text[96];
			snprintf(text, sizeof text, "the destination's byte 0x%zx is 0x%02x, not 0x%02x", at,
				 copy->destination[at] & 255, expected[at] & 255);
			wrong(copy, text);
			return;
		}
}

enum { NO_HOLE = AREA };

static void untouched(struct copy *copy)
{
	uint64_t way = random_below(3);
	/* Does the source have content that the process has not touched, or none? */
	if (way) {
		fill(expected_source, AREA);
		store(expected_source);
		copy->source = map(way == 1 ? MAP_PRIVATE : MAP_SHARED, file);
	} else {
		memset(expected_source, 0, AREA);
		copy->source = map(MAP_PRIVATE, -1);
	}
	copy->destination = map(MAP_PRIVATE, -1);
	memset(expected, 0, AREA);
	if (!way || random_below(2)) {
		fill(expected, AREA);
		memcpy(copy->destination, expected, AREA);
	}
	if (serves(copy))
		compare(copy, NO_HOLE);
}

static void dontneed(struct copy *copy)
{
	/* The pages of the file keep their content, the others lose it. */
	copy->source = map(MAP_SHARED, file);
	fill(expected_source, AREA);
	memcpy(copy->source, expected_source, AREA);
	copy->destination = map(MAP_PRIVATE, -1);
	fill(expected, AREA);
	memcpy(copy->destination, expected, AREA);
	/* Afterwards the device TLB has the pages that are released next. */
	if (!serves(copy))
		return;
	compare(copy, NO_HOLE);
	check(madvise(copy->source, AREA, MADV_DONTNEED), "madvise");
	check(madvise(copy->destination, AREA, MADV_DONTNEED), "madvise");
	memset(expected, 0, AREA);
	if (serves(copy))
		compare(copy, NO_HOLE);
}

/* Maps two areas with content, and locks them in memory if `locked` is set. */
static void prepare(struct copy *copy, int locked)
{
	copy->source = map(MAP_PRIVATE, -1);
	copy->destination = map(MAP_PRIVATE, -1);
	fill(expected_source, AREA);
	fill(expected, AREA);
	memcpy(copy->source, expected_source, AREA);
	memcpy(copy->destination, expected, AREA);
	if (locked) {
		check(mlock(copy->source, AREA), "mlock");
		check(mlock(copy->destination, AREA), "mlock");
	}
}

static void forked(struct copy *copy)
{
	int to_child[2], status;
	char byte;
	prepare(copy, 0);
	/* The engine may hold translations that permit writes. The fork withdraws the permission. */
	if (!serves(copy))
		return;
	check(pipe(to_child), "pipe");
	pid_t child = fork();
	check(child, "fork");
	if (!child) {
		close(to_child[1]);
		if (read(to_child[0], &byte, 1) != 0)
			_exit(2);
		_exit(!!memcmp(copy->destination, expected, AREA));
	}
	close(to_child[0]);
	fill(expected_source, AREA);
	memcpy(copy->source, expected_source, AREA);
	if (serves(copy))
		compare(copy, NO_HOLE);
	close(to_child[1]);
	check(waitpid(child, &status, 0), "waitpid");
	if (status)
		wrong(copy, "the child's memory has changed");
}

static void touched_memory(struct copy *copy)
{
	prepare(copy, 1);
	if (serves(copy))
		compare(copy, NO_HOLE);
}

static void read_only(struct copy *copy)
{
	prepare(copy, touched);
	if (random_below(2)) {
		check(mprotect(copy->source, AREA, PROT_READ), "mprotect");
		if (serves(copy))
			compare(copy, NO_HOLE);
	} else {
		/* Once writable, and cached as such. */
		if (!serves(copy))
			return;
		check(mprotect(copy->destination, AREA, PROT_READ), "mprotect");
		if (refuses(copy, (uintptr_t)copy->destination + copy->to, 0))
			compare(copy, NO_HOLE);
	}
}

static void unmapped(struct copy *copy)
{
	prepare(copy, touched || copy->kind == GONE);
	if (!serves(copy))
		return;
	int of_source = random_below(2);
	char *area = of_source ? copy->source : copy->destination;
	size_t begin = of_source ? copy->from : copy->to;
	size_t page = begin / PAGE + random_below((begin + copy->length - 1) / PAGE - begin / PAGE + 1);
	check(munmap(area + page * PAGE, PAGE), "munmap");
	/* Change the source, to see what the second copy has copied. */
	fill(expected_source, AREA);
	for (size_t at = 0; at < PAGES; at++)
		if (!of_source || at != page)
			memcpy(copy->source + at * PAGE, expected_source + at * PAGE, PAGE);
	size_t before = page * PAGE > begin ? page * PAGE - begin : 0;
	if (refuses(copy, (uintptr_t)area + page * PAGE, before)) {
		if (copy->outcome.done != before)
			wrong(copy, "it ended before the unmapped page");
		compare(copy, of_source ? NO_HOLE : page * PAGE);
	}
}

static void kernel(struct copy *copy)
{
	/* The direct map of all memory, the kernel's text without KASLR, and the hole between the halves. */
	static const uint64_t areas[] = {0xffff888000000000, 0xffffffff80200000, 0x0000900000000000};
	prepare(copy, touched);
	char *area = (char *)(uintptr_t)(areas[random_below(3)] + random_below(256) * PAGE), *own;
	int of_source = random_below(2);
	char **side = of_source ? &copy->source : &copy->destination;
	own = *side;
	*side = area;
	int refused = refuses(copy, (uintptr_t)area + (of_source ? copy->from : copy->to), 0);
	*side = own;
	if (refused)
		compare(copy, NO_HOLE);
}

static void one(enum kind kind)
{
	struct copy copy = {.kind = kind, .from = random_below(AREA - LONGEST), .to = random_below(AREA - LONGEST),
			    .length = 1 + random_below(random_below(4) ? LONGEST : 64),
			    .flags = kind == PRESENT || kind == GONE ? DMA_ENGINE_UNTRANSLATED : 0};
	static void (*const functions[KINDS])(struct copy *) = {
		untouched, dontneed, forked, touched_memory, read_only, unmapped, kernel, touched_memory, unmapped};
	__atomic_add_fetch(&counts[kind].copies, 1, __ATOMIC_RELAXED);
	functions[kind](&copy);
	munmap(copy.source, AREA);
	munmap(copy.destination, AREA);
}

/* A process of its own: its copies are number, number + processes, and so on. */
static void process(const char *path, int number, int copies, int processes)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	state = 0x9e3779b97f4a7c15 * (number + 1);
	engine = open(path, O_RDWR | O_CLOEXEC);
	check(engine, path);
	if (ioctl(engine, DMA_ENGINE_BIND, &pasid)) {
		/* Ends the others' wait. */
		memset(pasids, 0xff, MOST * sizeof *pasids);
		fail("bind");
	}
	file = memfd_create("sva", 0);
	check(file, "memfd_create");
	check(ftruncate(file, AREA), "ftruncate");
	__atomic_store_n(&pasids[number], pasid, __ATOMIC_RELEASE);
	/* All processes have their PASIDs at the same time. */
	for (int other = 0; other < processes; other++)
		while (!__atomic_load_n(&pasids[other], __ATOMIC_ACQUIRE))
			usleep(1000);
	if (!number) {
		char line[1024] = "";
		for (int other = 0; other < processes; other++)
			snprintf(line + strlen(line), sizeof line - strlen(line), " %u", pasids[other]);
		print_line("%d processes have the PASIDs%.200s", processes, line);
	}
	int kind = number % KINDS;
	for (int copy = number; copy < copies; copy += processes) {
		do
			kind = (kind + 1) % KINDS;
		while (touched ? kind == UNTOUCHED || kind == DONTNEED || kind == FORKED : kind == TOUCHED);
		one(kind);
	}
	_exit(0);
}

/* Checks that a request fails with this error, or succeeds if it is 0. Returns the number of failures. */
static int expect(int error, unsigned long request, void *argument, const char *what)
{
	int got = ioctl(engine, request, argument) ? errno : 0;
	if (got == error)
		return 0;
	print_line("FAIL sva: %s: errno %d, not %d", what, got, error);
	return 1;
}

/* Checks the driver's own rules. Returns the number of failures. */
static int rules(const char *path)
{
	char *bytes = map(MAP_PRIVATE, -1);
	struct dma_engine_copy order = {(uintptr_t)bytes, (uintptr_t)bytes + PAGE, 8, 0, 0}, odd = order, huge = order;
	struct dma_engine_wait outcome = {.job = 0};
	int failures = 0, status;
	memset(bytes, 1, AREA);
	check(mlock(bytes, AREA), "mlock");
	engine = open(path, O_RDWR | O_CLOEXEC);
	check(engine, path);
	failures += expect(EINVAL, DMA_ENGINE_SUBMIT, &order, "a copy before bind");
	failures += expect(0, DMA_ENGINE_BIND, &pasid, "bind");
	failures += expect(EBUSY, DMA_ENGINE_BIND, &pasid, "a second bind");
	failures += expect(EINVAL, DMA_ENGINE_WAIT, &outcome, "a wait for no job");
	failures += expect(ENOTTY, DMA_ENGINE_BIND + 9, &outcome, "an unknown request");
	odd.flags = 2;
	failures += expect(EINVAL, DMA_ENGINE_SUBMIT, &odd, "a copy with an unknown flag");
	pid_t child = fork();
	check(child, "fork");
	if (!child)
		_exit(expect(EPERM, DMA_ENGINE_SUBMIT, &order, "a child's copy in its parent's memory"));
	check(waitpid(child, &status, 0), "waitpid");
	failures += !!status;
	/* The fork has write-protected the page. */
	memset(bytes, 1, AREA);
	huge.length = (1u << 30) + 1;
	failures += expect(0, DMA_ENGINE_SUBMIT, &huge, "a copy of over 1 GiB");
	outcome.job = huge.job;
	failures += expect(EINVAL, DMA_ENGINE_WAIT, &outcome, "the end of a copy of over 1 GiB");
	for (int job = 0; job < DMA_ENGINE_JOBS; job++)
		failures += expect(0, DMA_ENGINE_SUBMIT, &order, "one of 16 copies");
	failures += expect(EBUSY, DMA_ENGINE_SUBMIT, &order, "a 17th copy");
	for (outcome.job = 0; outcome.job < DMA_ENGINE_JOBS; outcome.job++)
		failures += expect(0, DMA_ENGINE_WAIT, &outcome, "the end of one of 16 copies");
	outcome.job = 0;
	failures += expect(EINVAL, DMA_ENGINE_WAIT, &outcome, "a second wait for a job");
	outcome.job = DMA_ENGINE_JOBS;
	failures += expect(EINVAL, DMA_ENGINE_WAIT, &outcome, "a wait for a job that cannot be");
	failures += memcmp(bytes, bytes + PAGE, 8) != 0;
	close(engine);
	munmap(bytes, AREA);
	return failures;
}

/* Starts a process that copies without end, four copies at once. When it does, it writes a byte. It ends with status 0
 * if the engine goes away. */
static pid_t start_endless(const char *path, int ready[2])
{
	check(pipe(ready), "pipe");
	pid_t child = fork();
	check(child, "fork");
	if (child) {
		close(ready[1]);
		return child;
	}
	/* The memory has no pages; with --touched, it has. */
	char *bytes = mmap(NULL, 2 * LONG, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | (touched ? MAP_POPULATE : 0), -1, 0);
	struct dma_engine_copy order = {(uintptr_t)bytes, (uintptr_t)bytes + LONG, LONG, 0, 0};
	engine = open(path, O_RDWR | O_CLOEXEC);
	check(engine, path);
	check(ioctl(engine, DMA_ENGINE_BIND, &pasid), "bind");
	for (int job = 0; job < 4; job++)
		check(ioctl(engine, DMA_ENGINE_SUBMIT, &order), "submit");
	if (write(ready[1], "", 1) != 1)
		_exit(2);
	for (int job = 0;; job = (job + 1) % 4) {
		struct dma_engine_wait outcome = {.job = job};
		if (ioctl(engine, DMA_ENGINE_WAIT, &outcome)) {
			if (errno != ECANCELED)
				fail("the end of an endless copy");
			/* The driver has ended the job, and starts no other. */
			check(ioctl(engine, DMA_ENGINE_SUBMIT, &order) ? 0 : -1, "submit after the end");
			_exit(errno != ENODEV);
		}
		if (!touched)
			check(madvise(bytes, 2 * LONG, MADV_DONTNEED), "madvise");
		if (ioctl(engine, DMA_ENGINE_SUBMIT, &order)) {
			if (errno != ENODEV)
				fail("submit");
			_exit(0);
		}
		if (order.job != (unsigned)job)
			_exit(3);
	}
}

/* Runs endless processes until the engine goes away. */
static int until_gone(const char *path, int processes)
{
	int ready[2], status, failed = 0;
	char byte;
	for (int number = 0; number < processes; number++) {
		start_endless(path, ready);
		failed |= read(ready[0], &byte, 1) != 1;
		close(ready[0]);
	}
	print_line("%d processes copy until the engine is gone", processes);
	while (wait(&status) > 0)
		failed |= status;
	print_line("%d processes have seen the engine go: %s", processes, failed ? "FAILED" : "passed");
	return !!failed;
}

/* Kills an endless process. Returns whether it was copying. */
static int kill_one(const char *path)
{
	int ready[2];
	char byte;
	pid_t child = start_endless(path, ready);
	if (read(ready[0], &byte, 1) == 1)
		usleep(random_below(5000));
	kill(child, SIGKILL);
	close(ready[0]);
	int status;
	check(waitpid(child, &status, 0), "waitpid");
	return WIFSIGNALED(status);
}

int main(int count, char **words)
{
	int killed = 0, endless = 0;
	if (count > 1 && !strcmp(words[1], "--touched")) {
		touched = 1;
		words++;
		count--;
	}
	if (count > 2 && !strcmp(words[1], "--killed")) {
		killed = atoi(words[2]);
		words += 2;
		count -= 2;
	}
	if (count > 2 && !strcmp(words[1], "--until-gone")) {
		endless = 1;
		words[1] = "1";
	}
	int copies = count == 3 ? atoi(words[1]) : 0, processes = count == 3 ? atoi(words[2]) : 0;
	if (copies < 1 || processes < 1 || processes > MOST) {
		print_line("FAIL usage: sva [--touched] [--killed N] COPIES PROCESSES; "
			   "sva [--touched] --until-gone PROCESSES");
		return 2;
	}
	glob_t found;
	if (glob("/dev/dma-engine-*", 0, NULL, &found)) {
		print_line("FAIL sva: there is no /dev/dma-engine-*: no dma-engine, or its driver is not loaded");
		return 2;
	}
	counts = mmap(NULL, KINDS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pasids = mmap(NULL, MOST * sizeof *pasids, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED || pasids == MAP_FAILED)
		fail("mmap");
	const char *path = found.gl_pathv[0];
	if (endless)
		return until_gone(path, processes);
	int failed = rules(path), status;
	struct timespec begun, ended;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (int number = 0; number < processes; number++) {
		pid_t child = fork();
		check(child, "fork");
		if (!child)
			process(path, number, copies, processes);
	}
	state = 1;
	int amid = 0;
	for (int number = 0; number < killed; number++)
		amid += kill_one(path);
	while (wait(&status) > 0)
		failed |= status;
	clock_gettime(CLOCK_MONOTONIC, &ended);
	if (killed) {
		engine = open(path, O_RDWR | O_CLOEXEC);
		check(engine, path);
		check(ioctl(engine, DMA_ENGINE_BIND, &pasid), "bind");
		/* A process that has ended may keep its PASID a moment longer. */
		failed |= amid < killed || pasid > (uint32_t)processes + 2;
		print_line("killed: %d processes, %d amid their copies; the next PASID is %u", killed, amid, pasid);
		close(engine);
	}
	uint64_t all = 0;
	for (int kind = 0; kind < KINDS; kind++) {
		if (!counts[kind].copies)
			continue;
		all += counts[kind].copies;
		print_line("%s: %llu copies, %llu served with %llu bytes, %llu refused, %llu wrong", names[kind],
			   (unsigned long long)counts[kind].copies, (unsigned long long)counts[kind].served,
			   (unsigned long long)counts[kind].bytes, (unsigned long long)counts[kind].refused,
			   (unsigned long long)counts[kind].wrong);
		failed |= !!counts[kind].wrong;
	}
	failed |= all != (uint64_t)copies;
	print_line("%llu copies by %d processes in %.1f s: %s", (unsigned long long)all, processes,
		   ended.tv_sec - begun.tv_sec + (ended.tv_nsec - begun.tv_nsec) / 1e9, failed ? "FAILED" : "passed");
	return !!failed;
}
