/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * virt-dmem-hook: serve libvirt's hook for a domain with pool memory, after the shell script
 * (hooks/qemu.d/50-virt-dmem) has found that it is one.
 *
 * It makes one varlink call to virt-dmemd, then verifies the returned links in libvirtd's own mount namespace. The
 * reason for which a domain must not start is one line on standard error. Only a complete and valid reply ends with
 * status 0: no domain starts without its memory.
 *
 * It runs three times at each start, with the domain locked, so it uses nothing that is slow to load.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#ifndef VIRT_DMEM_VERSION
#define VIRT_DMEM_VERSION "unknown"
#endif
#ifndef ANSWER_SECONDS
#define ANSWER_SECONDS 10 /* without any message; progress messages may continue for any time */
#endif
#define TEXT_OF(macro) TEXT(macro)
#define TEXT(value) #value
#define MOST ((size_t)64 << 20)	 /* of XML, and of one reply; libvirt itself accepts 4 MiB of XML */
#define PIECE ((size_t)64 << 10) /* bytes read at a time */

enum status { DONE = 0, FAILED = 1, USAGE = 2 };

/* A growing buffer. */
struct text {
	char *at;
	size_t size, room;
};

/* All heap memory, so that it is still referenced when the program exits early. */
static struct {
	const char *path; /* of virt-dmemd's socket */
	int fd;
	struct text xml, heard;
	struct json_tokener *parser;
	struct json_object *request, *answer;
} work = {.path = "/run/virt-dmem/sock"};

/* --- the ends --- */

/* Read the UTF-8 character that begins here (RFC 3629); return its length in bytes, 0 where there is none. */
static size_t character(const unsigned char *text, size_t left, uint32_t *point)
{
	static const uint32_t least[] = {[2] = 0x80, [3] = 0x800, [4] = 0x10000};
	*point = *text;
	if (*text < 0x80)
		return 1;
	size_t size = *text < 0xe0 ? 2 : *text < 0xf0 ? 3 : 4;
	if (*text < 0xc0 || *text > 0xf4 || size > left)
		return 0;
	*point = *text & (0x7fU >> size);
	for (size_t i = 1; i < size; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		*point = *point << 6 | (text[i] & 0x3f);
	}
	bool surrogate = *point >= 0xd800 && *point < 0xe000;
	return *point < least[size] || *point > 0x10ffff || surrogate ? 0 : size;
}

/* Whether a character has no glyph, and may be obeyed: Unicode's controls, formats, and separators of lines. */
static bool unseen(uint32_t point)
{
	static const uint32_t ranges[][2] = {
		{0, 0x1f},	    {0x7f, 0x9f},	{0xad, 0xad},	    {0x600, 0x605},	{0x61c, 0x61c},
		{0x6dd, 0x6dd},	    {0x70f, 0x70f},	{0x890, 0x891},	    {0x8e2, 0x8e2},	{0x180e, 0x180e},
		{0x200b, 0x200f},   {0x2028, 0x202e},	{0x2060, 0x206f},   {0xfeff, 0xfeff},	{0xfff9, 0xfffb},
		{0x110bd, 0x110bd}, {0x110cd, 0x110cd}, {0x13430, 0x1343f}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a},
		{0xe0000, 0xe0fff},
	};
	for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
		if (point >= ranges[i][0] && point <= ranges[i][1])
			return true;
	return false;
}

/* Replace what is not printable or not UTF-8 by blanks: one line, without control sequences for a terminal. */
static void make_one_line(char *sentence)
{
	unsigned char *text = (unsigned char *)sentence;
	size_t left = strlen(sentence), size;
	uint32_t point;
	for (; left; text += size, left -= size) {
		size = character(text, left, &point);
		if (!size || unseen(point)) {
			size = size ? size : 1;
			memset(text, ' ', size);
		}
	}
}

__attribute__((format(printf, 1, 2), noreturn)) static void refuse(const char *format, ...)
{
	char *sentence;
	va_list args;
	va_start(args, format);
	int length = vasprintf(&sentence, format, args);
	va_end(args);
	if (length < 0)
		_exit(FAILED);
	make_one_line(sentence);
	dprintf(STDERR_FILENO, "virt-dmem: %s\n", sentence);
	free(sentence);
	exit(FAILED);
}

__attribute__((noreturn)) static void no_memory(void)
{
	refuse("The hook ran out of memory.");
}

__attribute__((noreturn)) static void unreachable(const char *reason)
{
	refuse("virt-dmemd does not answer at %s: %s. Start it with 'systemctl restart virt-dmemd.socket'."
	       " [daemon-unreachable]",
	       work.path, reason);
}

__attribute__((noreturn)) static void unreachable_by(int error)
{
	if (error == EAGAIN) /* a socket's timeout */
		refuse("virt-dmemd does not answer at %s: timed out after " TEXT_OF(ANSWER_SECONDS) " s without a reply. "
		       "Restart it with 'systemctl restart virt-dmemd.service'; running guests are not affected. "
		       "[daemon-unreachable]",
		       work.path);
	unreachable(strerror(error));
}

__attribute__((noreturn)) static void invalid_reply(const char *what)
{
	refuse("virt-dmemd at %s sent an invalid reply (%s). Install virt-dmem again: hook and daemon have to be of the "
	       "same version.",
	       work.path, what);
}

/* --- text --- */

/* Return the place for the next PIECE, after making room for it. */
static char *room(struct text *text, const char *whose)
{
	if (text->size > MOST)
		refuse("%s is larger than %zu MiB.", whose, MOST >> 20);
	if (text->room - text->size < PIECE) {
		text->room = 2 * text->room + PIECE;
		text->at = realloc(text->at, text->room);
		if (!text->at)
			no_memory();
	}
	return text->at + text->size;
}

/* Return the length of the valid UTF-8 at the beginning, in bytes. */
static size_t utf8(const char *text, size_t size)
{
	size_t good = 0, next;
	uint32_t point;
	while (good < size && (next = character((const unsigned char *)text + good, size - good, &point)))
		good += next;
	return good;
}

static void read_xml(void)
{
	ssize_t count;
	while ((count = TEMP_FAILURE_RETRY(read(STDIN_FILENO, room(&work.xml, "The XML of the domain"), PIECE))) > 0)
		work.xml.size += (size_t)count;
	if (count < 0)
		refuse("The XML of the domain cannot be read: %s.", strerror(errno));
	if (work.xml.size && work.xml.at[work.xml.size - 1] == '\n') /* the here-document's, not libvirt's */
		work.xml.size--;
	size_t good = utf8(work.xml.at, work.xml.size);
	if (good < work.xml.size)
		refuse("The XML of the domain is not valid UTF-8 at byte %zu.", good);
}

/* --- the call --- */

static void add(struct json_object *to, const char *name, struct json_object *value)
{
	if (!to || !value || json_object_object_add(to, name, value))
		no_memory();
}

/* Return when the shell script began, in seconds since the epoch, to a clock tick; 0 if unknown. */
static double began(const char *pid)
{
	char path[64], stat[1024];
	snprintf(path, sizeof path, "/proc/%d/stat", atoi(pid));
	FILE *file = fopen(path, "r");
	if (!file)
		return 0;
	size_t size = fread(stat, 1, sizeof stat - 1, file);
	fclose(file);
	stat[size] = 0;
	char *field = strrchr(stat, ')'); /* the second of proc_pid_stat(5), and the start is the 22nd */
	for (int i = 2; field && i < 22; i++)
		field = strchr(field + 1, ' ');
	struct timespec now, up;
	if (!field || clock_gettime(CLOCK_REALTIME, &now) || clock_gettime(CLOCK_BOOTTIME, &up))
		return 0;
	double boot = (double)(now.tv_sec - up.tv_sec) + (double)(now.tv_nsec - up.tv_nsec) / 1e9;
	return boot + strtod(field, NULL) / (double)sysconf(_SC_CLK_TCK);
}

static void connect_to_daemon(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(work.path) >= sizeof address.sun_path)
		unreachable_by(ENAMETOOLONG);
	strcpy(address.sun_path, work.path);
	work.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = {.tv_sec = ANSWER_SECONDS};
	if (work.fd < 0 || setsockopt(work.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) ||
	    setsockopt(work.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) ||
	    TEMP_FAILURE_RETRY(connect(work.fd, (struct sockaddr *)&address, sizeof address)))
		unreachable_by(errno);
}

/* Send one call with the XML, and with the operation and its beginning if there are any. */
static void call(const char *method, const char *operation, double beginning)
{
	work.request = json_object_new_object();
	struct json_object *parameters = json_object_new_object();
	add(work.request, "parameters", parameters);
	add(work.request, "method", json_object_new_string(method));
	add(work.request, "more", json_object_new_boolean(operation != NULL));
	add(parameters, "xml", json_object_new_string_len(work.xml.at, (int)work.xml.size));
	if (operation)
		add(parameters, "operation", json_object_new_string(operation));
	if (beginning)
		add(parameters, "began", json_object_new_double(beginning));
	size_t size, sent = 0;
	const char *line = json_object_to_json_string_length(work.request, JSON_C_TO_STRING_NOSLASHESCAPE, &size);
	if (!line)
		no_memory();
	size++; /* the NUL behind it ends the message */
	connect_to_daemon();
	while (sent < size) {
		ssize_t count = TEMP_FAILURE_RETRY(send(work.fd, line + sent, size - sent, MSG_NOSIGNAL));
		if (count < 0)
			unreachable_by(errno);
		sent += (size_t)count;
	}
}

/* --- the reply --- */

static bool has(struct json_object *object, const char *name)
{
	return json_object_object_get_ex(object, name, NULL);
}

static struct json_object *member(struct json_object *object, const char *name, enum json_type type)
{
	struct json_object *found = json_object_object_get(object, name);
	if (!json_object_is_type(found, type))
		invalid_reply(name);
	return found;
}

/* Return a member that is a string without a NUL. */
static const char *string(struct json_object *object, const char *name)
{
	struct json_object *found = member(object, name, json_type_string);
	const char *text = json_object_get_string(found);
	if (strlen(text) != (size_t)json_object_get_string_len(found))
		invalid_reply(name);
	return text;
}

static uint64_t number(struct json_object *object, const char *name)
{
	struct json_object *found = member(object, name, json_type_int);
	if (json_object_get_int64(found) < 0)
		invalid_reply(name);
	return json_object_get_uint64(found);
}

/* Parse the first received message, and remove it from the buffer. */
static void parse(size_t size)
{
	size_t whole = size + 1; /* with its NUL, which tells the parser that nothing follows */
	if (utf8(work.heard.at, size) < size)
		invalid_reply("not UTF-8");
	json_object_put(work.answer);
	json_tokener_reset(work.parser);
	work.answer = json_tokener_parse_ex(work.parser, work.heard.at, (int)whole);
	if (!json_object_is_type(work.answer, json_type_object))
		invalid_reply("not a JSON object");
	work.heard.size -= whole;
	memmove(work.heard.at, work.heard.at + whole, work.heard.size);
}

/* Wait for the next message, which becomes work.answer. */
static void receive(void)
{
	char *next = room(&work.heard, "The reply of virt-dmemd"), *end;
	size_t looked = 0;
	while (!(end = memchr(work.heard.at + looked, 0, work.heard.size - looked))) {
		looked = work.heard.size;
		ssize_t count = TEMP_FAILURE_RETRY(recv(work.fd, next, PIECE, 0));
		if (count < 0)
			unreachable_by(errno);
		if (!count)
			unreachable("it closed the connection");
		work.heard.size += (size_t)count;
		next = room(&work.heard, "The reply of virt-dmemd");
	}
	parse((size_t)(end - work.heard.at));
}

__attribute__((noreturn)) static void pass_on(struct json_object *refusal)
{
	if (!has(refusal, "message"))
		refuse("%s", string(work.answer, "error"));
	if (!has(refusal, "hint"))
		refuse("%s", string(refusal, "message"));
	if (!has(refusal, "code"))
		refuse("%s %s", string(refusal, "message"), string(refusal, "hint"));
	refuse("%s %s [%s]", string(refusal, "message"), string(refusal, "hint"), string(refusal, "code"));
}

/* Return the parameters of the next reply, and whether more replies follow; exit if it is an error. */
static struct json_object *reply(bool *more)
{
	receive();
	if (has(work.answer, "error"))
		pass_on(json_object_object_get(work.answer, "parameters"));
	*more = has(work.answer, "continues") &&
		json_object_get_boolean(member(work.answer, "continues", json_type_boolean));
	return member(work.answer, "parameters", json_type_object);
}

/* --- the two calls --- */

/* Verify a link in libvirtd's mount namespace: QEMU spins for ever on a dangling one, with the domain locked. */
static void check_link(struct json_object *link)
{
	const char *path = string(link, "path");
	uint64_t device = number(link, "device"), inode = number(link, "inode");
	struct stat found;
	if (stat(path, &found))
		refuse("%s does not resolve to the pool in libvirtd's mount namespace: %s. Mount the pool where libvirtd "
		       "sees it, and restart libvirtd if it has a mount namespace of its own.",
		       path, strerror(errno));
	if (found.st_dev != device || found.st_ino != inode)
		refuse("%s resolves to another file than virt-dmemd prepared. Restart libvirtd.", path);
}

static void serve(const char *operation, const char *shell)
{
	bool more = true;
	call("dev.virt-dmem.Hook", operation, began(shell));
	while (more) {
		struct json_object *report = member(reply(&more), "reply", json_type_object);
		struct json_object *links = member(report, "links", json_type_array);
		for (size_t i = 0; i < json_object_array_length(links); i++)
			check_link(json_object_array_get_idx(links, i));
	}
}

/* Print the XML of an incoming domain adapted to this host; nothing if it needs no change. */
static void filter(void)
{
	bool more;
	call("dev.virt-dmem.FilterXml", NULL, 0);
	struct json_object *xml = member(reply(&more), "xml", json_type_string);
	if (more)
		invalid_reply("more than one");
	const char *text = json_object_get_string(xml);
	size_t size = (size_t)json_object_get_string_len(xml);
	if (size == work.xml.size && !memcmp(text, work.xml.at, size))
		return;
	if (fwrite(text, 1, size, stdout) != size || fflush(stdout))
		refuse("The adapted XML cannot be written: %s.", strerror(errno));
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts("virt-dmem-hook " VIRT_DMEM_VERSION);
		return DONE;
	}
	if (argc != 3) {
		fputs("usage: virt-dmem-hook OPERATION PID-OF-THE-SHELL <XML\n", stderr);
		return USAGE;
	}
	if (geteuid()) /* a session libvirtd runs the same hooks as a user, and has no pool memory */
		return DONE;
	const char *path = getenv("VIRT_DMEM_SOCKET"), *operation = argv[1];
	if (path)
		work.path = path;
	signal(SIGPIPE, SIG_IGN);
	work.parser = json_tokener_new();
	if (!work.parser)
		no_memory();
	json_tokener_set_flags(work.parser, JSON_TOKENER_STRICT);
	read_xml();
	if (!strcmp(operation, "migrate") || !strcmp(operation, "restore"))
		filter();
	else
		serve(operation, argv[2]);
	return DONE;
}
