/* qmp PATH COMMAND [NAME=VALUE...] [-- TEXT...]: sends one command to a QMP server on a Unix socket and prints its answer.
 *   qmp /tmp/qmp device_del id=d0 -- DEVICE_DELETED '"d0"'
 *
 *   NAME=VALUE  an argument of the command; the value is sent as a string
 *   -- TEXT...  also waits for an event and prints it: the first one after the command whose line contains all TEXTs
 *
 * Exit status 1: the server answers with an error, or 60 s pass.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static FILE *server;

/* Returns the next message, a line. */
static const char *message(void)
{
	static char line[1 << 16];
	if (!fgets(line, sizeof line, server)) {
		fprintf(stderr, "qmp: the server has closed the connection\n");
		exit(1);
	}
	return line;
}

/* Returns whether a message is an event that contains all texts. Prints such an event. */
static int is_event(const char *line, char **texts)
{
	if (!*texts || !strstr(line, "\"event\""))
		return 0;
	for (; *texts; texts++)
		if (!strstr(line, *texts))
			return 0;
	fputs(line, stdout);
	return 1;
}

int main(int count, char **words)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	static char command[4096];
	int size = 0, at = 3;
	char *none[] = {0};
	if (count < 3 || strlen(words[1]) >= sizeof name.sun_path) {
		fprintf(stderr, "usage: qmp PATH COMMAND [NAME=VALUE...] [-- TEXT...]\n");
		return 2;
	}
	size = snprintf(command, sizeof command, "{\"execute\":\"%s\",\"arguments\":{", words[2]);
	for (; at < count && strcmp(words[at], "--"); at++) {
		int length = strcspn(words[at], "=");
		if (!words[at][length] || size + strlen(words[at]) + 16 > sizeof command)
			return 2;
		size += sprintf(command + size, "%s\"%.*s\":\"%s\"", at > 3 ? "," : "", length, words[at], words[at] + length + 1);
	}
	char **texts = at < count ? words + at + 1 : none;
	strcpy(name.sun_path, words[1]);
	int file = socket(AF_UNIX, SOCK_STREAM, 0);
	alarm(60);
	if (file < 0 || connect(file, (struct sockaddr *)&name, sizeof name) < 0) {
		perror(words[1]);
		return 1;
	}
	server = fdopen(file, "r");
	message(); /* its greeting */
	dprintf(file, "{\"execute\":\"qmp_capabilities\"}\n");
	message(); /* an empty return */
	dprintf(file, "%s}}\n", command);
	/* The event may come before the answer. */
	for (int is_answered = 0, waits = *texts != 0; !is_answered || waits;) {
		const char *line = message();
		if (is_event(line, texts)) {
			waits = 0;
		} else if (!strncmp(line, "{\"return\"", 9) || !strncmp(line, "{\"error\"", 8)) {
			fputs(line, stdout);
			is_answered = 1;
			if (line[2] == 'e')
				return 1;
		}
	}
	return 0;
}
