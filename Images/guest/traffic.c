/* traffic: sends and receives data over a network, and checks every word that it receives.
 *   traffic serve 5001 & traffic both 127.0.0.1 5001 5s
 *
 *   traffic serve PORT                        answers the other commands of any number of clients, until it is killed
 *   traffic send ADDRESS PORT AMOUNT          sends a stream over TCP. AMOUNT is a duration (5s) or a size (40M, MiB)
 *   traffic receive ADDRESS PORT AMOUNT       receives a stream over TCP
 *   traffic both ADDRESS PORT AMOUNT          sends and receives at the same time, over two connections
 *   traffic echo ADDRESS PORT COUNT SIZE      sends UDP datagrams of SIZE bytes, each after the answer to the last one
 *   traffic ping ADDRESS COUNT SIZE           the same with ICMP echo requests, which the other kernel answers
 *
 * A stream consists of blocks of 64 KiB. Each 64-bit word is computed from the stream's seed and from the word's
 * position, so the check finds lost, repeated and exchanged data. The receiver answers the last block with the number of
 * correct blocks, and the sender's time ends with this answer. Lines on standard output (MB are 10^6 bytes):
 *   serving PORT                                    the server is ready
 *   sent 41.9 MB to ADDRESS in 1.734 s, 24.19 MB/s  from the client only; also "received ... from ..."
 *   ping ADDRESS: 1000 sent, 0 lost, RTT 0.113 min 0.140 median 2.310 max ms    it stops after 5 losses
 *   FAIL ...                                        the first error of a connection, from both sides
 * Exit status 0: every stream was complete and every word was correct; or every datagram was answered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip_icmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Limits of time in seconds. They are long enough for a process that a busy machine does not run for a while, and for
 * TCP's retransmission after a card was unplugged for some seconds. */
enum { PATIENCE = 150, ANSWER = 20, BIND = 20 };
enum { WORDS = 8192, BLOCK = WORDS * 8, MOST = 60000 /* bytes */, MOST_LOST = 5 };
static const uint64_t MAGIC = 0x63696666617274ff, STEP = 0x632be59bd9b4e019u;

struct request {
	uint64_t magic, seed;
	uint64_t blocks, milliseconds; /* the amount: one of them is 0 */
	uint64_t client_sends;
};

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Prints a line with one write, so that lines of several processes do not mix. */
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

/* Prints what failed, with errno's text unless errno is 0, and ends the process. */
static void fail(const char *what)
{
	print_line("FAIL traffic: %s%s%s", what, errno ? ": " : "", errno == EAGAIN ? "no progress" : errno ? strerror(errno) : "");
	_exit(1);
}

static void set_timeout(int socket, int seconds)
{
	struct timeval limit = {.tv_sec = seconds};
	setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static struct sockaddr_in address_of(const char *text, const char *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	errno = 0;
	if (inet_pton(AF_INET, text, &address.sin_addr) != 1)
		fail("ADDRESS is not an IPv4 address");
	return address;
}

static int new_socket(int type, int protocol)
{
	int made = socket(AF_INET, type | SOCK_CLOEXEC, protocol);
	if (made < 0)
		fail("socket");
	set_timeout(made, PATIENCE);
	return made;
}

static void send_all(int socket, const void *data, size_t size)
{
	while (size) {
		ssize_t count = send(socket, data, size, MSG_NOSIGNAL);
		if (count < 0)
			fail("send");
		data = (const char *)data + count;
		size -= count;
	}
}

static void receive_all(int socket, void *data, size_t size)
{
	while (size) {
		errno = 0;
		ssize_t count = recv(socket, data, size, MSG_WAITALL);
		if (count <= 0)
			fail(count ? "receive" : "the stream ended before its last block");
		data = (char *)data + count;
		size -= count;
	}
}

/* The second word of a stream's last block is inverted. */
static void fill(uint64_t *words, uint64_t seed, uint64_t block, int last)
{
	uint64_t value = (seed + block * WORDS) * STEP;
	for (int i = 0; i < WORDS; i++, value += STEP)
		words[i] = value;
	if (last)
		words[1] = ~words[1];
}

/* Returns whether the block is correct; sets *last. */
static int matches(const uint64_t *words, uint64_t seed, uint64_t block, int *last)
{
	uint64_t value = (seed + block * WORDS) * STEP, difference = words[0] ^ value;
	*last = words[1] == ~(value + STEP);
	difference |= *last ? 0 : words[1] ^ (value + STEP);
	value += 2 * STEP;
	for (int i = 2; i < WORDS; i++, value += STEP)
		difference |= words[i] ^ value;
	return !difference;
}

/* Prints a line about the stream if `peer` is not null. */
static void send_stream(int socket, const struct request *request, const char *peer)
{
	static uint64_t words[WORDS];
	double begun = now(), end = begun + request->milliseconds / 1e3;
	uint64_t block = 0, answer;
	for (int last = 0; !last; block++) {
		last = request->blocks ? block + 1 == request->blocks : now() >= end;
		fill(words, request->seed, block, last);
		send_all(socket, words, BLOCK);
	}
	receive_all(socket, &answer, sizeof answer);
	double took = now() - begun, size = block * (double)BLOCK / 1e6;
	errno = 0;
	if (answer != block)
		fail("the receiver did not find each block correct");
	if (peer)
		print_line("sent %.1f MB to %s in %.3f s, %.2f MB/s", size, peer, took, size / took);
}

static void receive_stream(int socket, const struct request *request, const char *peer)
{
	static uint64_t words[WORDS];
	double begun = now();
	uint64_t block = 0;
	for (int last = 0; !last; block++) {
		receive_all(socket, words, BLOCK);
		if (!matches(words, request->seed, block, &last)) {
			send_all(socket, &block, sizeof block);
			errno = 0;
			fail("the data received differs from the data sent");
		}
	}
	double took = now() - begun, size = block * (double)BLOCK / 1e6;
	send_all(socket, &block, sizeof block);
	if (peer)
		print_line("received %.1f MB from %s in %.3f s, %.2f MB/s", size, peer, took, size / took);
}

/* Answers one TCP client. */
static void answer(int socket)
{
	struct request request;
	set_timeout(socket, PATIENCE);
	receive_all(socket, &request, sizeof request);
	errno = 0;
	if (request.magic != MAGIC)
		fail("the client's request is wrong");
	(request.client_sends ? receive_stream : send_stream)(socket, &request, 0);
}

/* Binds the socket. A killed server's children may still have the port; they end soon. */
static void bind_to(int socket, struct sockaddr_in address)
{
	double end = now() + BIND;
	while (bind(socket, (struct sockaddr *)&address, sizeof address)) {
		if (errno != EADDRINUSE || now() > end)
			fail("bind");
		usleep(100000);
	}
}

static void echo_datagrams(int made)
{
	static char data[1 << 16];
	for (;;) {
		struct sockaddr_in client;
		socklen_t length = sizeof client;
		ssize_t size = recvfrom(made, data, sizeof data, 0, (struct sockaddr *)&client, &length);
		if (size >= 0)
			sendto(made, data, size, 0, (struct sockaddr *)&client, length);
	}
}

static void serve(const char *port)
{
	struct sockaddr_in address = address_of("0.0.0.0", port);
	int made = new_socket(SOCK_STREAM, 0), datagrams = new_socket(SOCK_DGRAM, 0), on = 1;
	set_timeout(made, 0);
	setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	bind_to(made, address);
	if (listen(made, 16))
		fail("listen");
	bind_to(datagrams, address);
	pid_t parent = getpid();
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			echo_datagrams(datagrams);
		_exit(0);
	}
	close(datagrams);
	signal(SIGCHLD, SIG_IGN);
	print_line("serving %s", port);
	for (;;) {
		int connection = accept4(made, 0, 0, SOCK_CLOEXEC);
		if (connection < 0)
			continue;
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			answer(connection);
			_exit(0);
		}
		close(connection);
	}
}

/* Sends or receives one stream as a client. */
static void transfer(int client_sends, char **words)
{
	struct sockaddr_in address = address_of(words[0], words[1]);
	struct request request = {.magic = MAGIC, .client_sends = client_sends};
	char *unit;
	uint64_t amount = strtoull(words[2], &unit, 10);
	errno = 0;
	if (!amount || amount > 1 << 20 || (strcmp(unit, "s") && strcmp(unit, "M")))
		fail("AMOUNT is neither seconds (5s) nor MiB (40M)");
	if (*unit == 's')
		request.milliseconds = amount * 1000;
	else
		request.blocks = amount * (1 << 20) / BLOCK;
	request.seed = (uint64_t)(now() * 1e9) * 2 + client_sends;
	int socket = new_socket(SOCK_STREAM, 0);
	if (connect(socket, (struct sockaddr *)&address, sizeof address))
		fail("connect");
	send_all(socket, &request, sizeof request);
	(client_sends ? send_stream : receive_stream)(socket, &request, words[0]);
	/* The server closes first. If both ends close at the same time, passt of March 2023 can loop without an end. */
	char rest;
	errno = 0;
	ssize_t count = recv(socket, &rest, 1, 0);
	if (count)
		fail(count < 0 ? "waiting for the server to close" : "the server sent more than the stream");
}

static int both(char **words)
{
	pid_t child = fork();
	if (child == 0) {
		transfer(0, words);
		_exit(0);
	}
	transfer(1, words);
	int status;
	return child < 0 || waitpid(child, &status, 0) != child || status;
}

static uint16_t checksum(const void *data, size_t size)
{
	const uint16_t *halves = data;
	uint32_t sum = 0;
	for (; size > 1; size -= 2)
		sum += *halves++;
	if (size)
		sum += *(const uint8_t *)halves;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* Sends datagrams one after the other, with ICMP if `icmp` is set, and waits up to ANSWER seconds for each answer.
 * Stops when MOST_LOST of them are lost. */
static int ping(int icmp, struct sockaddr_in address, const char *peer, int count, int size)
{
	static char sent[MOST], received[1 << 16];
	int head = sizeof(struct icmphdr), number, lost = 0, answered = 0, offset = 0;
	errno = 0;
	if (count < 1 || count > 60000 || size < head + 8 || size > MOST)
		fail("COUNT or SIZE is out of range");
	double *times = calloc(count, sizeof *times);
	int socket = icmp ? new_socket(SOCK_RAW, IPPROTO_ICMP) : new_socket(SOCK_DGRAM, 0);
	if (!times || connect(socket, (struct sockaddr *)&address, sizeof address))
		fail("connect");
	struct icmphdr *header = (struct icmphdr *)sent;
	for (number = 0; number < count && lost < MOST_LOST; number++) {
		uint64_t value = (number + 1) * STEP;
		for (int i = head; i < size; i++, value += STEP)
			sent[i] = value >> 56;
		*header = (struct icmphdr){.type = icmp ? ICMP_ECHO : 0, .un.echo = {.id = getpid(), .sequence = number}};
		header->checksum = checksum(sent, size);
		double begun = now(), rest;
		if (send(socket, sent, size, 0) != size && errno != ECONNREFUSED)
			fail("send");
		/* From here on, `sent` is the expected answer. */
		if (icmp) {
			header->type = ICMP_ECHOREPLY;
			header->checksum = 0;
			header->checksum = checksum(sent, size);
		}
		for (;;) {
			rest = begun + ANSWER - now();
			int flags = 0;
			if (rest > 0) {
				struct timeval limit = {.tv_sec = (int)rest, .tv_usec = (rest - (int)rest) * 1e6 + 1};
				setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
			} else {
				/* The answer may be in the socket already, if this process did not run for a while. */
				flags = MSG_DONTWAIT;
			}
			ssize_t length = recv(socket, received, sizeof received, flags);
			if (length < 0 && rest <= 0) {
				lost++;
				break;
			}
			/* A raw socket receives the IP header, too, and other processes' answers. */
			offset = icmp && length > 0 ? (received[0] & 15) * 4 : 0;
			if (length == offset + size && !memcmp(received + offset, sent, size)) {
				times[answered++] = (now() - begun) * 1e3;
				break;
			}
		}
	}
	qsort(times, answered, sizeof *times, by_value);
	print_line("%s %s: %d sent, %d lost, RTT %.3f min %.3f median %.3f max ms", icmp ? "ping" : "echo", peer, number, lost,
		   answered ? times[0] : 0.0, answered ? times[answered / 2] : 0.0, answered ? times[answered - 1] : 0.0);
	return lost != 0;
}

int main(int count, char **words)
{
	const char *name = count > 1 ? words[1] : "";
	if (!strcmp(name, "serve") && count == 3)
		serve(words[2]);
	else if ((!strcmp(name, "send") || !strcmp(name, "receive")) && count == 5)
		return transfer(*name == 's', words + 2), 0;
	else if (!strcmp(name, "both") && count == 5)
		return both(words + 2);
	else if (!strcmp(name, "echo") && count == 6)
		return ping(0, address_of(words[2], words[3]), words[2], atoi(words[4]), atoi(words[5]));
	else if (!strcmp(name, "ping") && count == 5)
		return ping(1, address_of(words[2], "0"), words[2], atoi(words[3]), atoi(words[4]));
	print_line("FAIL usage: traffic serve PORT; send, receive or both ADDRESS PORT AMOUNT; "
		   "echo ADDRESS PORT COUNT SIZE; ping ADDRESS COUNT SIZE");
	return 2;
}
