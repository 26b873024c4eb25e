// The functions of QEMU's utilities that libqtest needs, namely messages on standard error and sockets. Writing them
// again is simpler than compiling QEMU's with all their dependencies.

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "qemu/sockets.h"

int error_vprintf(const char *format, va_list arguments) { return vfprintf(stderr, format, arguments); }

int error_printf(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int count = vfprintf(stderr, format, arguments);
  va_end(arguments);
  return count;
}

static void report(const char *format, va_list arguments) {
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
}

void error_report(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(format, arguments);
  va_end(arguments);
}

void warn_report(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(format, arguments);
  va_end(arguments);
}

// libqos registers its drivers in QEMU's test graph, which is not used here.
void register_module_init(void (*announce)(void), module_init_type type) {}

int socket_init(void) { return 0; }

void qemu_set_cloexec(int descriptor) { fcntl(descriptor, F_SETFD, fcntl(descriptor, F_GETFD) | FD_CLOEXEC); }

ssize_t qemu_send_full(int socket, const void *bytes, size_t count) {
  size_t done = 0;
  while (done < count) {
    ssize_t sent = send(socket, (const char *)bytes + done, count - done, 0);
    if (sent < 0 && errno == EINTR) {
      continue;
    }
    if (sent <= 0) {
      break;
    }
    done += sent;
  }
  return done;
}
