/* monitor PATH COMMAND: sends one line to a human monitor (HMP) on a Unix socket and prints the answer.
 *   monitor /tmp/monitor "info iommu"
 *
 * Exit status 1: no monitor listens, or it does not answer within 20 s.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static const char prompt[] = "(qemu) ";

/* Reads up to the prompt. If shows is set, prints the text before the prompt, without carriage returns. */
static int answer(int monitor, int shows)
{
	static char text[1 << 20];
	size_t length = 0;
	while (length < sizeof prompt - 1 || memcmp(text + length - (sizeof prompt - 1), prompt, sizeof prompt - 1)) {
		ssize_t more = length < sizeof text ? read(monitor, text + length, sizeof text - length) : 0;
		if (more <= 0)
			return 0;
		length += more;
	}
	for (size_t i = 0; shows && i < length - (sizeof prompt - 1); i++)
		if (text[i] != '\r')
			putchar(text[i]);
	return 1;
}

int main(int count, char **words)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = 20};
	if (count != 3 || strlen(words[1]) >= sizeof name.sun_path) {
		fprintf(stderr, "usage: monitor PATH COMMAND\n");
		return 2;
	}
	strcpy(name.sun_path, words[1]);
	int monitor = socket(AF_UNIX, SOCK_STREAM, 0);
	setsockopt(monitor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (monitor < 0 || connect(monitor, (struct sockaddr *)&name, sizeof name) < 0) {
		perror(words[1]);
		return 1;
	}
	if (!answer(monitor, 0) || dprintf(monitor, "%s\n", words[2]) < 0)
		return 1;
	/* quit ends the machine, so its answer may not arrive. */
	return !answer(monitor, 1) && strcmp(words[2], "quit");
}
