/*
 * A namespace without a name lives as long as a descriptor or a process refers to it. So nothing has to be cleaned up
 * when the emulator dies, however it dies; others enter it as /proc/PID/fd/N.
 */
#define _GNU_SOURCE 1
#include "tun_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int open_here(struct wan_tun *tun, const char *interface, const char **step) {
    *step = "open /proc/self/ns/net";
    tun->namespace_fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (tun->namespace_fd < 0) return errno;
    *step = "open /dev/net/tun";
    tun->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tun->fd < 0) return errno;
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    (void)snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    *step = "TUNSETIFF";
    if (ioctl(tun->fd, TUNSETIFF, &request) != 0) return errno;
    *step = "TUNSETOFFLOAD";
    return ioctl(tun->fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) == 0 ? 0 : errno;
}

int wan_tun_open(struct wan_tun *tun, const char *interface, const char **step) {
    tun->fd = tun->namespace_fd = -1;
    *step = "open /proc/self/ns/net";
    const int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (home < 0) return errno;
    *step = "unshare";
    int failure = 0;
    if (unshare(CLONE_NEWNET) != 0) {
        failure = errno;
    } else {
        failure = open_here(tun, interface, step);
        if (setns(home, CLONE_NEWNET) != 0 && failure == 0) {
            *step = "setns";
            failure = errno;
        }
    }
    (void)close(home);
    if (failure != 0) wan_tun_close(tun);
    return failure;
}

void wan_tun_close(struct wan_tun *tun) {
    if (tun->fd >= 0) (void)close(tun->fd);
    if (tun->namespace_fd >= 0) (void)close(tun->namespace_fd);
    tun->fd = tun->namespace_fd = -1;
}
