/* SQLite's file system with faults: calls are counted, the chosen one fails,
 * and syncing can be held up. Becomes SQLite's default, under which the store
 * opens its files. */
#ifndef CAIRN_TESTS_FAULTY_VFS_H
#define CAIRN_TESTS_FAULTY_VFS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include <sqlite3.h>

static struct {
  _Atomic long calls;     /* seen since the last vfs_arm() */
  _Atomic long at;        /* the one that fails; 0: none */
  _Atomic int is_lasting; /* and every one after it */
  _Atomic int code;       /* SQLITE_IOERR_..., SQLITE_FULL */
  _Atomic int has_fired;
  _Atomic int kills; /* the call ends the process instead */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int is_held; /* syncs wait; under lock */
  int waiting;
} vfs_fault = {.lock = PTHREAD_MUTEX_INITIALIZER,
               .changed = PTHREAD_COND_INITIALIZER};

static sqlite3_vfs *vfs_real, vfs_faulty;

struct vfs_file {
  sqlite3_file file; /* first */
  sqlite3_file *real;
};

static int vfs_fails(int *code)
{
  long n = atomic_fetch_add(&vfs_fault.calls, 1) + 1, at = vfs_fault.at;

  if (at == 0 || n < at || (n > at && !vfs_fault.is_lasting))
    return 0;
  if (vfs_fault.kills)
    _exit(137);
  vfs_fault.has_fired = 1;
  *code = vfs_fault.code;
  return 1;
}

/* The at-th call from now on fails so; 0: none does. */
static inline void vfs_arm(long at, int code, int is_lasting)
{
  vfs_fault.at = 0;
  vfs_fault.calls = 0;
  vfs_fault.has_fired = 0;
  vfs_fault.code = code;
  vfs_fault.is_lasting = is_lasting;
  vfs_fault.at = at;
}

static inline void vfs_hold(int is_held)
{
  pthread_mutex_lock(&vfs_fault.lock);
  vfs_fault.is_held = is_held;
  pthread_cond_broadcast(&vfs_fault.changed);
  pthread_mutex_unlock(&vfs_fault.lock);
}

#define REAL(f) (((struct vfs_file *)(void *)(f))->real)

static int vfs_close(sqlite3_file *f)
{
  int code = REAL(f)->pMethods ? REAL(f)->pMethods->xClose(REAL(f)) : 0;

  sqlite3_free(REAL(f));
  return code;
}

static int vfs_read(sqlite3_file *f, void *p, int n, sqlite3_int64 offset)
{
  int code;

  return vfs_fails(&code) ? SQLITE_IOERR_READ
                          : REAL(f)->pMethods->xRead(REAL(f), p, n, offset);
}

static int vfs_write(sqlite3_file *f, const void *p, int n,
                     sqlite3_int64 offset)
{
  int code;

  return vfs_fails(&code) ? code
                          : REAL(f)->pMethods->xWrite(REAL(f), p, n, offset);
}

static int vfs_truncate(sqlite3_file *f, sqlite3_int64 size)
{
  int code;

  return vfs_fails(&code) ? SQLITE_IOERR_TRUNCATE
                          : REAL(f)->pMethods->xTruncate(REAL(f), size);
}

static int vfs_sync(sqlite3_file *f, int flags)
{
  int code;

  pthread_mutex_lock(&vfs_fault.lock);
  vfs_fault.waiting++;
  pthread_cond_broadcast(&vfs_fault.changed);
  while (vfs_fault.is_held)
    pthread_cond_wait(&vfs_fault.changed, &vfs_fault.lock);
  vfs_fault.waiting--;
  pthread_mutex_unlock(&vfs_fault.lock);
  return vfs_fails(&code) ? SQLITE_IOERR_FSYNC
                          : REAL(f)->pMethods->xSync(REAL(f), flags);
}

static int vfs_size(sqlite3_file *f, sqlite3_int64 *size)
{
  int code;

  return vfs_fails(&code) ? SQLITE_IOERR_FSTAT
                          : REAL(f)->pMethods->xFileSize(REAL(f), size);
}

static int vfs_lock(sqlite3_file *f, int level)
{
  return REAL(f)->pMethods->xLock(REAL(f), level);
}

static int vfs_unlock(sqlite3_file *f, int level)
{
  return REAL(f)->pMethods->xUnlock(REAL(f), level);
}

static int vfs_reserved(sqlite3_file *f, int *out)
{
  return REAL(f)->pMethods->xCheckReservedLock(REAL(f), out);
}

static int vfs_control(sqlite3_file *f, int op, void *p)
{
  return REAL(f)->pMethods->xFileControl(REAL(f), op, p);
}

static int vfs_sector(sqlite3_file *f)
{
  return REAL(f)->pMethods->xSectorSize(REAL(f));
}

static int vfs_device(sqlite3_file *f)
{
  return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}

static int vfs_shm_map(sqlite3_file *f, int page, int size, int extend,
                       void volatile **out)
{
  return REAL(f)->pMethods->xShmMap(REAL(f), page, size, extend, out);
}

static int vfs_shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
  return REAL(f)->pMethods->xShmLock(REAL(f), offset, n, flags);
}

static void vfs_shm_barrier(sqlite3_file *f)
{
  REAL(f)->pMethods->xShmBarrier(REAL(f));
}

static int vfs_shm_unmap(sqlite3_file *f, int is_deleted)
{
  return REAL(f)->pMethods->xShmUnmap(REAL(f), is_deleted);
}

static const sqlite3_io_methods vfs_methods = {
    .iVersion = 2,
    .xShmMap = vfs_shm_map,
    .xShmLock = vfs_shm_lock,
    .xShmBarrier = vfs_shm_barrier,
    .xShmUnmap = vfs_shm_unmap,
    .xClose = vfs_close,
    .xRead = vfs_read,
    .xWrite = vfs_write,
    .xTruncate = vfs_truncate,
    .xSync = vfs_sync,
    .xFileSize = vfs_size,
    .xLock = vfs_lock,
    .xUnlock = vfs_unlock,
    .xCheckReservedLock = vfs_reserved,
    .xFileControl = vfs_control,
    .xSectorSize = vfs_sector,
    .xDeviceCharacteristics = vfs_device,
};

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f,
                    int flags, int *out)
{
  struct vfs_file *file = (struct vfs_file *)(void *)f;
  int code;

  (void)vfs;
  file->file.pMethods = NULL;
  if (vfs_fails(&code))
    return SQLITE_CANTOPEN;
  file->real = sqlite3_malloc(vfs_real->szOsFile);
  if (!file->real)
    return SQLITE_NOMEM;
  memset(file->real, 0, (size_t)vfs_real->szOsFile);
  code = vfs_real->xOpen(vfs_real, name, file->real, flags, out);
  if (code != SQLITE_OK)
    sqlite3_free(file->real);
  else
    file->file.pMethods = &vfs_methods;
  return code;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int is_synced)
{
  int code;

  (void)vfs;
  return vfs_fails(&code) ? SQLITE_IOERR_DELETE
                          : vfs_real->xDelete(vfs_real, name, is_synced);
}

/* Must be called before anything opens a file. */
static inline void vfs_install(void)
{
  sqlite3_initialize();
  vfs_real = sqlite3_vfs_find(NULL);
  vfs_faulty = *vfs_real;
  vfs_faulty.zName = "faulty";
  vfs_faulty.szOsFile = sizeof(struct vfs_file);
  vfs_faulty.pNext = NULL;
  vfs_faulty.xOpen = vfs_open;
  vfs_faulty.xDelete = vfs_delete;
  sqlite3_vfs_register(&vfs_faulty, 1);
}

#undef REAL
#endif
