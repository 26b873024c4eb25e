/* hotplug: prints a line as soon as a disk or PCI function appears or disappears, and uses each of them.
 *   printf 'io 1\n' | hotplug
 *
 * The program reads the kernel's uevents. In the lines below, T is the guest's uptime in ms, and PLACE is
 * PORT/FUNCTION: the PCI addresses of the root port and of the function below it.
 *   guest: + T vda PLACE           a disk appeared, or was there at the start
 *   guest: - T vda PLACE           a disk disappeared
 *   guest: + T pci PLACE VVVV:DDDD a PCI function below a port appeared; "-" instead of "+": it disappeared. The
 *                                  function of a disk has no such line
 *   guest: ok T vda SEED GENERATION  the disk holds the pattern of SEED; the program has written 64 KiB of pattern
 *                                  GENERATION to it from 1 MiB on, and read them back
 *   guest: ok T PLACE edu          edu's registers work
 *   guest: end T NAME COUNT        a worker was using the device when it disappeared, after COUNT requests
 *   guest: ready T                 every device that was there at the start has its line
 *   guest: FAIL ...                a failure
 * Each line of standard input is a command:
 *   io N       N workers use each disk and edu that appears from now on, until it disappears
 *   mark TEXT  prints "guest: mark T TEXT", and writes it to the kernel's log
 *   log        prints the kernel's log, each line after "guest: log: ", then "guest: log ends", and empties the log
 *   pci        prints "guest: pci ADDRESS..." with all functions
 *   sum N      prints "guest: sha256 of N MiB of /dev/vda: ..., domain ..." for each disk, then "guest: sums end". The
 *              summed bytes start at 8 MiB, after the pattern and the program's writes, and bypass the page cache. The
 *              domain is the type of the disk's IOMMU group, if it has one.
 *   reboot     resets the machine
 *   end        ends the program
 * Images/hotplug_machine.py writes the disks: 4 KiB blocks of 64-bit words. The first 64 blocks hold the pattern of
 * generation 0, except for the magic number and the seed in the first two words.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, WORDS = BLOCK / 8, PIECE = 16, FIXED = 64, WRITTEN = 256, LOOSE = 512, BLOCKS = 2048, MOST = 128 };
static const uint64_t MAGIC = 0x676c7074756f6821; /* as in hotplug_machine.py */

static int workers;
static char known[MOST][80]; /* each "vda PLACE" and "pci PLACE" that is present and whose "+" line was printed */

static double uptime(void)
{
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/* Prints a line with one write, so that lines of several processes do not mix. */
static void print_line(const char *format, ...)
{
	char line[512];
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

/* Returns the first line of a file, or an empty string. */
static char *first_line(char *buffer, int size, const char *format, ...)
{
	char path[256];
	va_list list;
	va_start(list, format);
	vsnprintf(path, sizeof path, format, list);
	va_end(list);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = file < 0 ? 0 : read(file, buffer, size - 1);
	if (file >= 0)
		close(file);
	buffer[got > 0 ? got : 0] = 0;
	buffer[strcspn(buffer, "\n")] = 0;
	return buffer;
}

static void put_line(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, text, strlen(text)) < 0)
		print_line("guest: FAIL %s: %s", path, strerror(errno));
	if (file >= 0)
		close(file);
}

static uint64_t word(uint64_t seed, uint64_t block, uint64_t generation, int index)
{
	return (seed << 48 ^ block << 32 ^ generation) * 0x9e3779b97f4a7c15u + index * 0x632be59bd9b4e019u;
}

/* The pattern of count blocks from first on: fill writes it to a buffer, matches compares a buffer with it. */
static void fill(uint64_t *words, uint64_t seed, uint64_t first, int count, uint64_t generation)
{
	for (int i = 0; i < count * WORDS; i++)
		words[i] = word(seed, first + i / WORDS, generation, i % WORDS);
}

static int matches(const uint64_t *words, uint64_t seed, uint64_t first, int count, uint64_t generation)
{
	for (int i = 0; i < count * WORDS; i++)
		if (words[i] != word(seed, first + i / WORDS, generation, i % WORDS) && !(first == 0 && i < 2))
			return 0;
	return 1;
}

/* Handles a failed request, and ends the process. The failure is correct if the disk disappears within 10 s. */
static void failed(const char *name, const char *sequence, const char *what, long count)
{
	int error = errno;
	char now[32];
	for (int i = 0; i < 1000; i++, usleep(10000))
		if (strcmp(first_line(now, sizeof now, "/sys/block/%s/diskseq", name), sequence)) {
			print_line("guest: end %.3f %s %ld", uptime(), name, count);
			_exit(0);
		}
	print_line("guest: FAIL %.3f %s %s: %s, but the disk is still there", uptime(), name, what, strerror(error));
	_exit(1);
}

static void wrong(const char *name, const char *what)
{
	print_line("guest: FAIL %.3f %s: %s", uptime(), name, what);
	_exit(1);
}

/* Runs in a separate process: reads the disk's pattern, writes another one and reads it back, then uses the disk with as
 * many workers as `workers` says. */
static void use_disk(const char *name)
{
	char path[64], sequence[32];
	uint64_t *buffer = aligned_alloc(BLOCK, PIECE * BLOCK);
	first_line(sequence, sizeof sequence, "/sys/block/%s/diskseq", name);
	snprintf(path, sizeof path, "/dev/%s", name);
	int disk = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (disk < 0)
		failed(name, sequence, "open", 0);
	const ssize_t size = PIECE * BLOCK;
	uint64_t seed = 0, generation = (uint64_t)uptime();
	for (int first = 0; first < FIXED; first += PIECE) {
		if (pread(disk, buffer, size, (off_t)first * BLOCK) != size)
			failed(name, sequence, "read", 0);
		if (first == 0) {
			seed = buffer[1];
			if (buffer[0] != MAGIC)
				wrong(name, "no pattern");
		}
		if (!matches(buffer, seed, first, PIECE, 0))
			wrong(name, "another pattern");
	}
	fill(buffer, seed, WRITTEN, PIECE, generation);
	if (pwrite(disk, buffer, size, (off_t)WRITTEN * BLOCK) != size)
		failed(name, sequence, "write", 0);
	memset(buffer, 0xee, size);
	if (pread(disk, buffer, size, (off_t)WRITTEN * BLOCK) != size)
		failed(name, sequence, "read", 0);
	if (!matches(buffer, seed, WRITTEN, PIECE, generation))
		wrong(name, "the data read differs from the data written");
	print_line("guest: ok %.3f %s %llu %llu", uptime(), name, (unsigned long long)seed, (unsigned long long)generation);
	if (!workers)
		_exit(0);
	int mine = 0;
	while (mine + 1 < workers && fork() > 0)
		mine++;
	unsigned share = (BLOCKS - LOOSE) / workers, first = LOOSE + mine * share, random = getpid() * 2654435761u;
	for (long count = 0;; count++) {
		random = random * 1664525u + 1013904223u;
		int blocks = 1 + (random >> 16) % PIECE;
		unsigned place = first + (random >> 20) % (share - blocks);
		fill(buffer, seed, place, blocks, ++generation);
		if (pwrite(disk, buffer, blocks * BLOCK, (off_t)place * BLOCK) != blocks * BLOCK)
			failed(name, sequence, "write", count);
		memset(buffer, 0xee, size);
		if (pread(disk, buffer, blocks * BLOCK, (off_t)place * BLOCK) != blocks * BLOCK)
			failed(name, sequence, "read", count);
		if (!matches(buffer, seed, place, blocks, generation))
			wrong(name, "the data read differs from the data written");
	}
}

static sigjmp_buf unplugged;
static void on_bus_error(int signal)
{
	(void)signal;
	siglongjmp(unplugged, 1);
}

/* Runs in a separate process: checks edu's identity and liveness register once, or until edu disappears if there are
 * workers. */
static void use_edu(const char *place)
{
	const char *slash = strrchr(place, '/');
	static long count; /* static: a jump out of the loop keeps it */
	char path[128];
	int file = -1;
	/* The kernel creates the file a moment after the uevent of the function. */
	for (int i = 0; i < 500 && file < 0; i++, usleep(10000)) {
		snprintf(path, sizeof path, "/sys/bus/pci/devices/0000:%s/enable", slash ? slash + 1 : place);
		int enable = open(path, O_WRONLY | O_CLOEXEC);
		if (enable < 0 || write(enable, "1", 1) != 1) {
			if (enable >= 0)
				close(enable);
			continue;
		}
		close(enable);
		snprintf(path, sizeof path, "/sys/bus/pci/devices/0000:%s/resource0", slash ? slash + 1 : place);
		file = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
	}
	if (file < 0)
		wrong(place, "no BAR to map");
	volatile uint32_t *registers = mmap(0, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (registers == MAP_FAILED)
		wrong(place, "its BAR cannot be mapped");
	signal(SIGBUS, on_bus_error);
	if (!sigsetjmp(unplugged, 1)) {
		/* A read of a removed device gives all ones with Nestling, and zero with QEMU. */
		while (registers[0] == 0x010000ed) {
			registers[1] = 0x12340000 + count;
			if (registers[1] != ~(uint32_t)(0x12340000 + count) && registers[0] == 0x010000ed)
				wrong(place, "edu's liveness register is wrong");
			if (count++ == 0)
				print_line("guest: ok %.3f %s edu", uptime(), place);
			if (!workers)
				_exit(0);
		}
	}
	/* edu may have disappeared, or may do so within 10 s. */
	for (int i = 0; i < 1000 && !access(path, F_OK); i++)
		usleep(10000);
	if (!access(path, F_OK))
		wrong(place, "edu does not answer, but it is still there");
	print_line("guest: end %.3f %s %ld", uptime(), place, count);
	_exit(0);
}

static void start(void (*use)(const char *), const char *name)
{
	if (fork() == 0) {
		use(name);
		_exit(0);
	}
}

/* Adds key to the known devices, or removes it. Returns whether it was known before. */
static int was_known(const char *key, int is_there)
{
	int free_place = -1;
	for (int i = 0; i < MOST; i++) {
		if (!strcmp(known[i], key)) {
			if (!is_there)
				known[i][0] = 0;
			return 1;
		}
		if (!known[i][0])
			free_place = i;
	}
	if (is_there && free_place >= 0)
		snprintf(known[free_place], sizeof known[0], "%s", key);
	return 0;
}

/* Extracts the PCI addresses from a path in sysfs, without the domain, separated by slashes. */
static void place_of(const char *path, char *place, int size)
{
	unsigned domain, bus, device, function;
	int end;
	place[0] = 0;
	for (const char *part = path; (part = strchr(part, '/')); part++) {
		if (sscanf(part, "/%4x:%2x:%2x.%1x%n", &domain, &bus, &device, &function, &end) != 4 || (part[end] && part[end] != '/'))
			continue;
		int length = strlen(place);
		snprintf(place + length, size - length, "%s%02x:%02x.%x", length ? "/" : "", bus, device, function);
	}
}

static void disk_event(int is_there, const char *name, const char *path)
{
	char place[48], key[80];
	place_of(path, place, sizeof place);
	snprintf(key, sizeof key, "%.20s %.48s", name, place);
	if (was_known(key, is_there) == is_there)
		return;
	print_line("guest: %c %.3f %s", is_there ? '+' : '-', uptime(), key);
	if (is_there)
		start(use_disk, name);
}

/* identity is "VVVV:DDDD". The functions of disks have no line, because each character costs time. */
static void function_event(int is_there, const char *path, const char *identity, unsigned class)
{
	char place[48], key[80], small[16];
	place_of(path, place, sizeof place);
	if (!strchr(place, '/') || class >> 16 == 1)
		return;
	snprintf(key, sizeof key, "pci %.48s", place);
	if (was_known(key, is_there) == is_there)
		return;
	snprintf(small, sizeof small, "%.9s", identity);
	for (char *c = small; *c; c++)
		*c |= 0x20;
	print_line("guest: %c %.3f %s %s", is_there ? '+' : '-', uptime(), key, small);
	if (is_there && !strcmp(small, "1234:11e8"))
		start(use_edu, place);
}

/* Handles a message of the kernel: strings, each with a zero after it. */
static void uevent(const char *message, int size)
{
	const char *action = "", *subsystem = "", *type = "", *name = "", *path = "", *identity = "", *class = "0";
	for (const char *at = message; at < message + size; at += strlen(at) + 1) {
		if (!strncmp(at, "ACTION=", 7)) action = at + 7;
		if (!strncmp(at, "SUBSYSTEM=", 10)) subsystem = at + 10;
		if (!strncmp(at, "DEVTYPE=", 8)) type = at + 8;
		if (!strncmp(at, "DEVNAME=", 8)) name = at + 8;
		if (!strncmp(at, "DEVPATH=", 8)) path = at + 8;
		if (!strncmp(at, "PCI_ID=", 7)) identity = at + 7;
		if (!strncmp(at, "PCI_CLASS=", 10)) class = at + 10;
	}
	int is_there = !strcmp(action, "add");
	if (!is_there && strcmp(action, "remove"))
		return;
	if (!strcmp(subsystem, "block") && !strcmp(type, "disk"))
		disk_event(is_there, name, path);
	if (!strcmp(subsystem, "pci"))
		function_event(is_there, path, identity, strtoul(class, 0, 16));
}

/* Reports the disks and functions that are there at the start. */
static void report_present(void)
{
	char link[512], vendor[16], device[16], class[16], identity[16];
	DIR *folder = opendir("/sys/block");
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		char path[300];
		snprintf(path, sizeof path, "/sys/block/%s", entry->d_name);
		ssize_t size = readlink(path, link, sizeof link - 1);
		if (size <= 0)
			continue;
		link[size] = 0;
		if (strstr(link, "/pci"))
			disk_event(1, entry->d_name, link);
	}
	if (folder)
		closedir(folder);
	folder = opendir("/sys/bus/pci/devices");
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		char path[300];
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s", entry->d_name);
		ssize_t size = readlink(path, link, sizeof link - 1);
		if (size <= 0)
			continue;
		link[size] = 0;
		first_line(vendor, sizeof vendor, "%s/vendor", path);
		first_line(device, sizeof device, "%s/device", path);
		first_line(class, sizeof class, "%s/class", path);
		if (strlen(vendor) < 3 || strlen(device) < 3)
			continue;
		snprintf(identity, sizeof identity, "%.4s:%.4s", vendor + 2, device + 2);
		function_event(1, link, identity, strtoul(class, 0, 16));
	}
	if (folder)
		closedir(folder);
}

static void print_log(void)
{
	static char log[1 << 20];
	int size = klogctl(4, log, sizeof log - 1); /* reads and clears */
	log[size > 0 ? size : 0] = 0;
	for (char *line = strtok(log, "\n"); line; line = strtok(0, "\n")) {
		char *level = *line == '<' ? strchr(line, '>') : 0;
		print_line("guest: log: %.400s", level ? level + 1 : line);
	}
	print_line("guest: log ends");
}

static void print_functions(void)
{
	char line[480] = "guest: pci";
	DIR *folder = opendir("/sys/bus/pci/devices");
	for (struct dirent *entry; folder && (entry = readdir(folder));)
		if (entry->d_name[0] != '.')
			snprintf(line + strlen(line), sizeof line - strlen(line), " %s", entry->d_name + 5);
	if (folder)
		closedir(folder);
	print_line("%s", line);
}

/* Prints the sums. Until they are done, the program handles no uevent, so it prints no other line about a disk. */
static void print_sums(int megabytes)
{
	char script[400];
	snprintf(script, sizeof script,
		 "for disk in /dev/vd?; do type=; read -r type </sys/block/${disk#/dev/}/device/../iommu_group/type;"
		 "sum=$(dd if=$disk bs=1M skip=8 count=%d iflag=direct | sha256sum);"
		 "echo \"guest: sha256 of %d MiB of $disk: ${sum%%%% *}${type:+, domain $type}\"; done 2>/dev/null;"
		 "echo 'guest: sums end'",
		 megabytes, megabytes);
	signal(SIGCHLD, SIG_DFL);
	pid_t child = fork();
	if (child == 0) {
		execl("/bin/busybox", "sh", "-c", script, (char *)0);
		_exit(1);
	}
	int status;
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		print_line("guest: FAIL no sums");
	signal(SIGCHLD, SIG_IGN);
}

/* Carries out a command. Returns whether the program continues. */
static int command(char *line)
{
	char text[300];
	if (!strncmp(line, "io ", 3)) {
		workers = atoi(line + 3);
		print_line("guest: io %d", workers);
	} else if (!strncmp(line, "mark ", 5)) {
		snprintf(text, sizeof text, "<6>mark: %.200s\n", line + 5);
		put_line("/dev/kmsg", text);
		print_line("guest: mark %.3f %s", uptime(), line + 5);
	} else if (!strcmp(line, "log")) {
		print_log();
	} else if (!strcmp(line, "pci")) {
		print_functions();
	} else if (!strncmp(line, "sum ", 4)) {
		print_sums(atoi(line + 4));
	} else if (!strcmp(line, "reboot")) {
		reboot(RB_AUTOBOOT);
	} else if (!strcmp(line, "end")) {
		return 0;
	} else if (line[0]) {
		print_line("guest: FAIL no command '%.40s'", line);
	}
	return 1;
}

int main(void)
{
	struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
	int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT), room = 16 << 20;
	setsockopt(events, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
	if (events < 0 || bind(events, (struct sockaddr *)&address, sizeof address)) {
		print_line("guest: FAIL no uevents: %s", strerror(errno));
		return 1;
	}
	struct termios mode;
	if (!tcgetattr(0, &mode)) {
		mode.c_lflag &= ~ECHO;
		tcsetattr(0, TCSANOW, &mode);
	}
	signal(SIGCHLD, SIG_IGN);
	klogctl(8, 0, 1); /* keeps the kernel's messages off the console, except those of a panic or an Oops */
	report_present();
	print_line("guest: ready %.3f", uptime());
	struct pollfd both[] = {{.fd = events, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
	for (;;) {
		char message[8192];
		poll(both, 2, -1);
		if (both[0].revents) {
			ssize_t size = recv(events, message, sizeof message - 1, 0);
			if (size < 0)
				print_line("guest: FAIL uevents: %s", strerror(errno));
			else
				message[size] = 0, uevent(message, size);
		} else if (both[1].revents) {
			ssize_t size = read(0, message, sizeof message - 1);
			if (size <= 0)
				return size < 0;
			message[size] = 0;
			for (char *line = strtok(message, "\r\n"); line; line = strtok(0, "\r\n"))
				if (!command(line))
					return 0;
		}
	}
}
