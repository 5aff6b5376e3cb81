/* The form of qcow2 that we write and read: version 3, clusters of 64 KiB (one
 * of our blocks), refcounts of 16 bits, nothing optional. Numbers are big
 * endian. The public description is QEMU's docs/interop/qcow2; our own header
 * extension is described in docs/export-format.md. */
#ifndef CAIRN_EXPORT_QCOW2_H
#define CAIRN_EXPORT_QCOW2_H

#include <stdint.h>

#include "digest.h"

#define CAIRN__QCOW2_MAGIC          0x514649fbu /* "QFI\xfb" */
#define CAIRN__QCOW2_CLUSTER_BITS   16
#define CAIRN__QCOW2_HEADER_LENGTH  112
#define CAIRN__QCOW2_REFCOUNT_ORDER 4
#define CAIRN__QCOW2_REFCOUNTS      32768u /* of one refcount block */
/* QEMU takes no larger L1 table than 32 MiB. */
#define CAIRN__QCOW2_L1_MAX       (32u << 20)
#define CAIRN__QCOW2_BACKING_MAX  1023
#define CAIRN__QCOW2_FORMAT_MAX   15
#define CAIRN__QCOW2_EXT_END      0u
#define CAIRN__QCOW2_EXT_BACKING  0xe2792acau
#define CAIRN__QCOW2_EXT_ORIGIN   0x4341524eu /* "CARN" */
#define CAIRN__QCOW2_ORIGIN_SIZE  40u
#define CAIRN__QCOW2_ORIGIN_POINT 1u
#define CAIRN__QCOW2_ORIGIN_BASE  2u
#define CAIRN__QCOW2_COPIED       (UINT64_C(1) << 63)
#define CAIRN__QCOW2_ZERO         UINT64_C(1)

/* Bytes of an image that we write: its tables follow from how many blocks it
 * holds and in how many slices of 8192 blocks it has any DATA or ZERO. */
uint64_t cairn__qcow2_file_size(uint64_t virtual_size, uint64_t data_blocks,
                                uint64_t slices);

/* Offsets of the header's fields. */
enum {
  CAIRN__QCOW2_AT_MAGIC = 0,
  CAIRN__QCOW2_AT_VERSION = 4,
  CAIRN__QCOW2_AT_BACKING_OFFSET = 8,
  CAIRN__QCOW2_AT_BACKING_SIZE = 16,
  CAIRN__QCOW2_AT_CLUSTER_BITS = 20,
  CAIRN__QCOW2_AT_SIZE = 24,
  CAIRN__QCOW2_AT_CRYPT = 32,
  CAIRN__QCOW2_AT_L1_SIZE = 36,
  CAIRN__QCOW2_AT_L1_OFFSET = 40,
  CAIRN__QCOW2_AT_REFCOUNT_OFFSET = 48,
  CAIRN__QCOW2_AT_REFCOUNT_CLUSTERS = 56,
  CAIRN__QCOW2_AT_SNAPSHOTS = 60,
  CAIRN__QCOW2_AT_SNAPSHOTS_OFFSET = 64,
  CAIRN__QCOW2_AT_INCOMPATIBLE = 72,
  CAIRN__QCOW2_AT_COMPATIBLE = 80,
  CAIRN__QCOW2_AT_AUTOCLEAR = 88,
  CAIRN__QCOW2_AT_REFCOUNT_ORDER = 96,
  CAIRN__QCOW2_AT_HEADER_LENGTH = 100,
  CAIRN__QCOW2_AT_COMPRESSION = 104
};

static inline void cairn__put_be32(unsigned char *p, uint32_t v)
{
  p[0] = (unsigned char)(v >> 24);
  p[1] = (unsigned char)(v >> 16);
  p[2] = (unsigned char)(v >> 8);
  p[3] = (unsigned char)v;
}

static inline void cairn__put_be64(unsigned char *p, uint64_t v)
{
  cairn__put_be32(p, (uint32_t)(v >> 32));
  cairn__put_be32(p + 4, (uint32_t)v);
}

static inline uint32_t cairn__get_be32(const unsigned char *p)
{
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
         (uint32_t)p[3];
}

static inline uint64_t cairn__get_be64(const unsigned char *p)
{
  return (uint64_t)cairn__get_be32(p) << 32 | cairn__get_be32(p + 4);
}

#endif
