/* A server program that reads an image for us (qemu-nbd), and its leash.
 *
 * It listens on a socket that we made and hand to it, inherits the files that
 * it may read, and nothing else; it has its own process group, so that a
 * terminal's Ctrl-C is ours alone; the kernel kills it when the thread that
 * started it ends. What it writes to standard error is kept.
 *
 * While it runs, its work directory holds "nbd-N.sock" and "nbd-N.pid". The
 * latter says which process it is (pid, start time, boot, program), so that
 * whoever finds the directory left over can end that process and no other. */
#ifndef CAIRN_EXPORT_SERVER_H
#define CAIRN_EXPORT_SERVER_H

#include <stddef.h>
#include <sys/types.h>

#include "cairn.h"
#include "io.h"

#define CAIRN__SERVER_FILES 64

struct cairn__server {
  const struct cairn_io *io;
  char *program;           /* absolute */
  char *private_directory; /* made for want of a work directory, or NULL */
  int dirfd, listen_fd, error_fd, pidfd;
  pid_t pid;
  char socket_name[32], record_name[32];
  int files[CAIRN__SERVER_FILES]; /* duplicates, until it is started */
  int numbers[CAIRN__SERVER_FILES];
  size_t file_count;
};

void cairn__server_init(struct cairn__server *s);
/* Finds the program in PATH (HELPER_MISSING names the package), makes the
 * socket and settles under which number the server will have each file.
 * directory: absolute, or NULL for a private one. */
int cairn__server_prepare(struct cairn__server *s, const struct cairn_io *io,
                          const char *program, const char *package,
                          const char *directory, const int *files, size_t count,
                          struct cairn_error *err);
int cairn__server_child_fd(const struct cairn__server *s, size_t index);
/* The calling thread has to live until cairn__server_stop. */
int cairn__server_start(struct cairn__server *s, const char *const *argv,
                        struct cairn_error *err);
/* A connected, non-blocking socket, or -1 with errno. Any thread. */
int cairn__server_connect(const struct cairn__server *s);
/* 1 when it has ended, waiting at most so long for it. Any thread. */
int cairn__server_wait(const struct cairn__server *s, int timeout_ms);
/* How it has ended: "was killed by signal 9", "has ended with exit code 1";
 * the signal, or 0. Only after cairn__server_wait has said 1. */
int cairn__server_end_of(const struct cairn__server *s, char *text,
                         size_t size);
/* The last few lines that it wrote to standard error, each once, in one line,
 * or "". */
void cairn__server_last_words(const struct cairn__server *s, char *text,
                              size_t size);
/* Ends it and removes what it had in the directory. Idempotent. */
void cairn__server_stop(struct cairn__server *s);

/* 1 when `name` is a record of a server. */
int cairn__server_is_record(const char *name);
/* Ends the process of a record in a directory left over, if it still is that
 * process. */
void cairn__server_end_recorded(const struct cairn_io *io, int dirfd,
                                const char *name);

#endif
