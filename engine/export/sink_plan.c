/* sink_plan.c: see sink_plan.h. */
#include "sink_plan.h"

#include <string.h>

#include "error.h"
#include "journal.h"
#include "qcow2.h"

#define NO_SLICE     UINT64_MAX
#define JOURNAL_PAGE 4096u

static int end_range(struct cairn__sink_plan *p, struct cairn_error *err)
{
  uint64_t offset = p->first * CAIRN__BLOCK, end = p->next * CAIRN__BLOCK;

  if (p->first == p->next)
    return 0;
  p->first = p->next;
  if (json_array_size(p->ranges) == CAIRN__PLAN_RANGES) {
    p->ranges_left_out++;
    return 0;
  }
  if (end > p->length)
    end = p->length;
  if (json_array_append_new(
          p->ranges, json_pack("{s:I, s:I, s:s}", "offset", (json_int_t)offset,
                               "length", (json_int_t)(end - offset), "state",
                               p->state == CAIRN__DATA ? "data" : "zero")) != 0)
    return cairn__fail_memory(err);
  return 0;
}

/* Blocks come in ascending order, the header's page is counted already. */
static void count_journal(struct cairn__sink_plan *p, uint64_t block)
{
  uint64_t from, to, page;

  cairn__journal_place(p->digest_size, block, &from, &to);
  page = from / JOURNAL_PAGE;
  if (page <= p->last_page)
    page = p->last_page + 1;
  for (; page * JOURNAL_PAGE < to; page++) {
    p->journal_pages++;
    p->last_page = page;
  }
}

static int plan_reserve(struct cairn__sink *s, uint64_t first, size_t count,
                        const uint8_t *states, const unsigned char *digests,
                        uint64_t *positions, struct cairn_error *err)
{
  struct cairn__sink_plan *p = (struct cairn__sink_plan *)s;

  (void)digests;
  memset(positions, 0, count * sizeof *positions);
  for (size_t i = 0; i < count; i++) {
    uint64_t block = first + i;

    if (states[i] == CAIRN__UNCHANGED)
      continue;
    if (states[i] == CAIRN__DATA) {
      count_journal(p, block);
      p->data_blocks++;
      p->last_data = block;
    } else {
      p->zero_blocks++;
    }
    if (block / CAIRN__PAGE_BLOCKS != p->last_slice) {
      p->last_slice = block / CAIRN__PAGE_BLOCKS;
      p->slices++;
    }
    if (p->first == p->next || p->next != block || p->state != states[i]) {
      if (end_range(p, err) != 0)
        return -1;
      p->first = block;
      p->state = states[i];
    }
    p->next = block + 1;
  }
  return 0;
}

static int plan_write(struct cairn__sink *s, uint64_t first, size_t count,
                      const uint8_t *states, const uint64_t *positions,
                      const unsigned char *buf, struct cairn_error *err)
{
  (void)s;
  (void)first;
  (void)count;
  (void)states;
  (void)positions;
  (void)buf;
  (void)err;
  return 0;
}

static int plan_finish(struct cairn__sink *s, struct cairn__file_result *result,
                       struct cairn_error *err)
{
  (void)s;
  (void)err;
  memset(result, 0, sizeof *result);
  return 0;
}

static void plan_abort(struct cairn__sink *s)
{
  (void)s;
}

static const struct cairn__sink_ops plan_ops = {.reserve = plan_reserve,
                                                .write = plan_write,
                                                .finish = plan_finish,
                                                .abort = plan_abort};

int cairn__sink_plan_init(struct cairn__sink_plan *p, uint64_t length,
                          uint64_t virtual_size, unsigned digest_size,
                          struct cairn_error *err)
{
  *p = (struct cairn__sink_plan){.sink = {.ops = &plan_ops},
                                 .length = length,
                                 .virtual_size = virtual_size,
                                 .digest_size = digest_size,
                                 .journal_pages = 1,
                                 .last_slice = NO_SLICE};
  p->ranges = json_array();
  return p->ranges ? 0 : cairn__fail_memory(err);
}

int cairn__sink_plan_end(struct cairn__sink_plan *p, int is_raw, uint64_t *size,
                         struct cairn_error *err)
{
  uint64_t rest = p->length % CAIRN__BLOCK;
  int is_cut = rest != 0 && p->data_blocks > 0 &&
               p->last_data == p->length / CAIRN__BLOCK;

  if (end_range(p, err) != 0)
    return -1;
  if (is_raw)
    *size = p->data_blocks * CAIRN__BLOCK -
            (is_cut ? CAIRN__BLOCK - (rest + 4095) / 4096 * 4096 : 0);
  else
    *size = cairn__qcow2_file_size(p->virtual_size, p->data_blocks, p->slices);
  return 0;
}

void cairn__sink_plan_free(struct cairn__sink_plan *p)
{
  json_decref(p->ranges);
  p->ranges = NULL;
}
