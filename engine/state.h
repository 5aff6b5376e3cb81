/* The job's state machine as data: which state may follow which, what a
 * request gets in which state, and which status properties a state stands for.
 * Everything is a table looked up in constant time; nothing here changes a
 * job. The matrices themselves are public: cairn_state_can_change(),
 * cairn_state_request_code(). */
#ifndef CAIRN_STATE_H
#define CAIRN_STATE_H

#include <stdint.h>

#include "cairn.h"

/* What a state alone does not tell. A zeroed struct is a plain case. */
struct cairn__status_flags {
  unsigned is_waiting : 1;   /* Suspended: for a due time (also back-off) */
  unsigned is_held : 1;      /* Suspended: by a client, stronger than waiting */
  unsigned is_killing : 1;   /* Shutting Down: because of a Kill */
  unsigned is_retryable : 1; /* Exception: the same work may succeed again */
  unsigned run_failed : 1;   /* Suspended: the last run has failed */
  unsigned is_cause_outside : 1; /* the error lies in something the job depends
                                    on: cairn__cause_is_outside() */
};

struct cairn__status {
  uint16_t operational_status[2]; /* the first is the primary one */
  const char *descriptions[2];    /* StatusDescriptions, index-parallel */
  uint8_t count;                  /* of both: 1 or 2 */
  const char *status;             /* Status; from operational_status[0] */
  uint16_t health_state;
  uint16_t communication_status; /* 2; the engine may set 3 when it has lost a
                                    worker that answered before */
  uint16_t detailed_status;
  uint16_t operating_status;
  uint16_t primary_status;
};

/* An unknown state gives Unknown everywhere. */
struct cairn__status cairn__status_of(int state,
                                      struct cairn__status_flags flags);

/* 1 when the error (a CAIRN_E_ id) is one of the job's surroundings: devices,
 * connections, storage, things missing or in use. */
int cairn__cause_is_outside(int error_id);

#endif
