/* A TUN device in a network namespace of its own, both gone as soon as their descriptors and users are. */
#ifndef WAN_TUN_DEVICE_H
#define WAN_TUN_DEVICE_H

struct wan_tun {
    int fd;           /* non-blocking; one read or write is one frame (segments.h) */
    int namespace_fd; /* the only thing that keeps the namespace while no process is in it */
};

/* 0, or an errno with *step naming the call that failed. The thread is in its old namespace again either way. */
int wan_tun_open(struct wan_tun *tun, const char *interface, const char **step);
void wan_tun_close(struct wan_tun *tun);

#endif
