/* A plain file as a watchdog: WDIOC_SETTIMEOUT writes what it was asked for into it, and takes WATCHDOG_TAKES. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/watchdog.h>
int ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    int *seconds = va_arg(arguments, int *);
    va_end(arguments);
    if ((unsigned int)request != (unsigned int)WDIOC_SETTIMEOUT) return syscall(SYS_ioctl, fd, request, seconds);
    dprintf(fd, "set %d ", *seconds);
    *seconds = atoi(getenv("WATCHDOG_TAKES"));
    return 0;
}
