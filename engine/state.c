/* The tables of the job's state machine. States are numbered sparsely (2-12
 * and 32768), the tables densely: position() translates.
 *
 * The request matrix holds what a request gets before anything else is known
 * about the job. Three cells depend on more, and the engine decides them:
 * Suspend of a Suspended job is accepted while that job only waits (it becomes
 * held), Terminate of a job that is Shutting Down is Busy (4099) unless it is
 * terminating already, and whatever a kind of job cannot do is Not Supported
 * (1). Kill answers 4096 instead of 0 when something must be waited for. */
#include "state.h"

#include <stddef.h>

#include "cim.h"

enum { STATE_COUNT = 12, REQUEST_COUNT = 5 };

/* The row of a state, or -1. */
static int position(int state)
{
  if (state >= CAIRN_NEW && state <= CAIRN_QUERY_PENDING)
    return state - CAIRN_NEW;
  return state == CAIRN_COMPLETED_WITH_WARNINGS ? STATE_COUNT - 1 : -1;
}

/* clang-format off */

static const uint8_t can_change[STATE_COUNT][STATE_COUNT] = {
/*  to:          New Sta Run Sus Shu Com Ter Kil Exc Ser Que War */
/* New        */ {0,  1,  0,  1,  1,  0,  1,  1,  1,  1,  0,  0},
/* Starting   */ {0,  0,  1,  0,  1,  0,  0,  1,  1,  0,  0,  0},
/* Running    */ {0,  0,  0,  1,  1,  0,  0,  1,  1,  1,  1,  0},
/* Suspended  */ {0,  1,  0,  0,  1,  0,  0,  1,  1,  1,  0,  0},
/* ShutDown   */ {0,  0,  0,  0,  0,  1,  1,  1,  1,  0,  0,  1},
/* Completed  */ {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0},
/* Terminated */ {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0},
/* Killed     */ {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0},
/* Exception  */ {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0},
/* Service    */ {0,  1,  0,  0,  1,  0,  0,  1,  1,  0,  0,  0},
/* QueryPend  */ {0,  0,  1,  0,  1,  0,  0,  1,  1,  0,  0,  0},
/* Warnings   */ {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0},
};

#define DONE CAIRN_RC_COMPLETED
#define SOON CAIRN_RC_STARTED
#define NO   CAIRN_RC_INVALID_TRANSITION

static const uint16_t request_codes[STATE_COUNT][REQUEST_COUNT] = {
/*                Start Susp. Term. Kill  Service */
/* New        */ {SOON, DONE, DONE, DONE, DONE},
/* Starting   */ {NO,   SOON, SOON, DONE, NO},
/* Running    */ {NO,   SOON, SOON, DONE, SOON},
/* Suspended  */ {SOON, NO,   SOON, DONE, DONE},
/* ShutDown   */ {NO,   NO,   SOON, DONE, NO},
/* Completed  */ {NO,   NO,   NO,   NO,   NO},
/* Terminated */ {NO,   NO,   NO,   NO,   NO},
/* Killed     */ {NO,   NO,   NO,   NO,   NO},
/* Exception  */ {NO,   NO,   NO,   NO,   NO},
/* Service    */ {SOON, NO,   SOON, DONE, NO},
/* QueryPend  */ {NO,   NO,   SOON, DONE, NO},
/* Warnings   */ {NO,   NO,   NO,   NO,   NO},
};

/* clang-format on */

int cairn_state_can_change(int from, int to)
{
  int row = position(from), column = position(to);
  return row >= 0 && column >= 0 && can_change[row][column];
}

uint32_t cairn_state_request_code(int state, int request)
{
  if (request < CAIRN_REQUEST_START || request > CAIRN_REQUEST_SERVICE)
    return CAIRN_RC_INVALID_PARAMETER;
  int row = position(state);
  return row < 0 ? NO : request_codes[row][request - CAIRN_REQUEST_START];
}

int cairn_state_is_final(int state)
{
  return (state >= CAIRN_COMPLETED && state <= CAIRN_EXCEPTION) ||
         state == CAIRN_COMPLETED_WITH_WARNINGS;
}

/* The vendor's list has no code for "started" and none for the time-out
 * parameter. Both stay as they are: its jobs answer 4096 although the list
 * lacks it, and the parameter's own text demands 4098. A code that the DMTF
 * does not define becomes "Status is unknown"; one that is a vendor's already
 * is left alone. */
uint32_t cairn_vendor_code(uint32_t dmtf_code)
{
  switch (dmtf_code) {
  case CAIRN_RC_COMPLETED:
  case CAIRN_RC_STARTED:
  case CAIRN_RC_TIMEOUT_NOT_SUPPORTED:
    return dmtf_code;
  case CAIRN_RC_NOT_SUPPORTED:
    return CAIRN__VENDOR_NOT_SUPPORTED;
  case CAIRN_RC_TIMEOUT:
    return CAIRN__VENDOR_TIMEOUT;
  case CAIRN_RC_FAILED:
    return CAIRN__VENDOR_FAILED;
  case CAIRN_RC_INVALID_PARAMETER:
    return CAIRN__VENDOR_INVALID_PARAMETER;
  case CAIRN_RC_IN_USE:
  case CAIRN_RC_BUSY:
    return CAIRN__VENDOR_SYSTEM_IS_IN_USE;
  case CAIRN_RC_INVALID_TRANSITION:
    return CAIRN__VENDOR_INVALID_STATE_FOR_THIS_OPERATION;
  default:
    return dmtf_code >= CAIRN__VENDOR_FAILED ? dmtf_code
                                             : CAIRN__VENDOR_STATUS_IS_UNKNOWN;
  }
}

/* ---- status properties --------------------------------------------------- */

/* Status of the primary element of OperationalStatus. There are no words for
 * Aborted, Dormant and others: the nearest one stands in. */
static const uint8_t status_words[] = {
    [CAIRN__OPERATIONAL_UNKNOWN] = CAIRN__STATUS_UNKNOWN,
    [CAIRN__OPERATIONAL_OTHER] = CAIRN__STATUS_UNKNOWN,
    [CAIRN__OPERATIONAL_OK] = CAIRN__STATUS_OK,
    [CAIRN__OPERATIONAL_DEGRADED] = CAIRN__STATUS_DEGRADED,
    [CAIRN__OPERATIONAL_STRESSED] = CAIRN__STATUS_STRESSED,
    [CAIRN__OPERATIONAL_PREDICTIVE_FAILURE] = CAIRN__STATUS_PRED_FAIL,
    [CAIRN__OPERATIONAL_ERROR] = CAIRN__STATUS_ERROR,
    [CAIRN__OPERATIONAL_NON_RECOVERABLE_ERROR] = CAIRN__STATUS_NONRECOVER,
    [CAIRN__OPERATIONAL_STARTING] = CAIRN__STATUS_STARTING,
    [CAIRN__OPERATIONAL_STOPPING] = CAIRN__STATUS_STOPPING,
    [CAIRN__OPERATIONAL_STOPPED] = CAIRN__STATUS_STOPPED,
    [CAIRN__OPERATIONAL_IN_SERVICE] = CAIRN__STATUS_SERVICE,
    [CAIRN__OPERATIONAL_NO_CONTACT] = CAIRN__STATUS_NO_CONTACT,
    [CAIRN__OPERATIONAL_LOST_COMMUNICATION] = CAIRN__STATUS_LOST_COMM,
    [CAIRN__OPERATIONAL_ABORTED] = CAIRN__STATUS_ERROR,
    [CAIRN__OPERATIONAL_DORMANT] = CAIRN__STATUS_STOPPED,
    [CAIRN__OPERATIONAL_SUPPORTING_ENTITY_IN_ERROR] = CAIRN__STATUS_ERROR,
    [CAIRN__OPERATIONAL_COMPLETED] = CAIRN__STATUS_OK,
    [CAIRN__OPERATIONAL_POWER_MODE] = CAIRN__STATUS_OK,
};

#define ONE(a, description)                                                    \
  .operational_status = {CAIRN__OPERATIONAL_##a},                              \
  .descriptions = {description}, .count = 1
#define TWO(a, b, first, second)                                               \
  .operational_status = {CAIRN__OPERATIONAL_##a, CAIRN__OPERATIONAL_##b},      \
  .descriptions = {first, second}, .count = 2
#define LIGHT(primary, operating, health, detail)                              \
  .primary_status = CAIRN__PRIMARY_##primary,                                  \
  .operating_status = CAIRN__OPERATING_##operating,                            \
  .health_state = CAIRN__HEALTH_##health,                                      \
  .detailed_status = CAIRN__DETAILED_##detail,                                 \
  .communication_status = CAIRN__COMMUNICATION_COMMUNICATION_OK

/* Without flags. DetailedStatus is "no more to say" where PrimaryStatus says
 * all; an Exception needs a person unless the flags know better, and an open
 * question is waiting for one. */
static const struct cairn__status plain[STATE_COUNT] = {
    {ONE(DORMANT, "not started yet"),
     LIGHT(OK, DORMANT, OK, NO_ADDITIONAL_INFORMATION)},
    {ONE(STARTING, "starting"),
     LIGHT(OK, STARTING, OK, NO_ADDITIONAL_INFORMATION)},
    {ONE(OK, "running"), LIGHT(OK, IN_SERVICE, OK, NO_ADDITIONAL_INFORMATION)},
    {ONE(OK, "suspended"), LIGHT(OK, DORMANT, OK, NO_ADDITIONAL_INFORMATION)},
    {ONE(STOPPING, "ending in order"),
     LIGHT(OK, STOPPING, OK, NO_ADDITIONAL_INFORMATION)},
    {TWO(OK, COMPLETED, "without errors", "completed"),
     LIGHT(OK, COMPLETED, OK, NO_ADDITIONAL_INFORMATION)},
    {ONE(STOPPED, "terminated at a client's request"),
     LIGHT(OK, STOPPED, OK, NO_ADDITIONAL_INFORMATION)},
    {ONE(ABORTED, "killed at a client's request; work may be left over"),
     LIGHT(ERROR, ABORTED, MINOR_FAILURE, NO_ADDITIONAL_INFORMATION)},
    {TWO(ERROR, COMPLETED, "failed", "ended"),
     LIGHT(ERROR, COMPLETED, CRITICAL_FAILURE, NON_RECOVERABLE_ERROR)},
    {ONE(IN_SERVICE, "in service"),
     LIGHT(OK, SERVICING, OK, NO_ADDITIONAL_INFORMATION)},
    {ONE(STRESSED, "waiting for an answer"),
     LIGHT(DEGRADED, TRANSITIONING, OK, STRESSED)},
    {TWO(DEGRADED, COMPLETED, "with warnings", "completed"),
     LIGHT(DEGRADED, COMPLETED, DEGRADED_WARNING, NO_ADDITIONAL_INFORMATION)},
};

static const struct cairn__status unknown = {
    ONE(UNKNOWN, "unknown state"),
    .detailed_status = CAIRN__DETAILED_NOT_AVAILABLE,
};

static void apply_suspended(struct cairn__status *s,
                            struct cairn__status_flags flags)
{
  if (flags.is_held) {
    s->operational_status[0] = CAIRN__OPERATIONAL_STOPPED;
    s->descriptions[0] = "held by a client";
  } else if (flags.is_waiting) {
    s->operational_status[0] = CAIRN__OPERATIONAL_DORMANT;
    s->descriptions[0] = "waiting for its next run";
  }
  if (!flags.run_failed)
    return;
  s->operational_status[1] = CAIRN__OPERATIONAL_ERROR;
  s->descriptions[1] = "the last run failed";
  s->count = 2;
  /* the run is lost, the job goes on: yellow, not red */
  s->primary_status = CAIRN__PRIMARY_DEGRADED;
  s->health_state = CAIRN__HEALTH_MAJOR_FAILURE;
  if (flags.is_cause_outside)
    s->detailed_status = CAIRN__DETAILED_SUPPORTING_ENTITY_IN_ERROR;
}

static void apply_exception(struct cairn__status *s,
                            struct cairn__status_flags flags)
{
  if (flags.is_retryable) {
    s->health_state = CAIRN__HEALTH_MAJOR_FAILURE;
    s->detailed_status = CAIRN__DETAILED_NO_ADDITIONAL_INFORMATION;
  }
  if (flags.is_cause_outside)
    s->detailed_status = CAIRN__DETAILED_SUPPORTING_ENTITY_IN_ERROR;
}

struct cairn__status cairn__status_of(int state,
                                      struct cairn__status_flags flags)
{
  int row = position(state);
  struct cairn__status s = row < 0 ? unknown : plain[row];
  if (state == CAIRN_SUSPENDED) {
    apply_suspended(&s, flags);
  } else if (state == CAIRN_EXCEPTION) {
    apply_exception(&s, flags);
  } else if (state == CAIRN_SHUTTING_DOWN && flags.is_killing) {
    s.operating_status = CAIRN__OPERATING_SHUTTING_DOWN;
    s.descriptions[0] = "being killed";
  }
  s.status = cairn_value_label(cairn_property_at(CAIRN_PROPERTY_Status - 1),
                               status_words[s.operational_status[0]]);
  return s;
}

int cairn__cause_is_outside(int error_id)
{
  const struct cairn_error_info *info = cairn_error_info(error_id);
  if (info == NULL)
    return 0;
  return info->error_type == CAIRN__ERROR_TYPE_COMMUNICATIONS_ERROR ||
         info->error_type == CAIRN__ERROR_TYPE_HARDWARE_ERROR ||
         info->error_type == CAIRN__ERROR_TYPE_ENVIRONMENTAL_ERROR ||
         info->error_type == CAIRN__ERROR_TYPE_UNAVAILABLE_RESOURCE_ERROR;
}
