/* The errors of a job's last run as instances of CIM_Error (docs/job-model.md
 * 3.6): fifteen properties each, made from the table of errors. */
#include "job.h"

#include <stdio.h>
#include <string.h>

#include "cim.h"
#include "engine.h"
#include "error.h"

static const char *map_label(const char *map, int64_t value)
{
  size_t count;
  const struct cairn_value_label *labels = cairn_value_map(map, &count);

  for (size_t i = 0; i < count; i++) {
    if (labels[i].value == value)
      return labels[i].label;
  }
  return NULL;
}

/* Message arguments: machine, disk, path, offset, cause; "" where unknown. */
static json_t *cim_error(const struct cairn__job *j, int id,
                         const char *message, int severity,
                         const struct cairn__failure *f)
{
  const struct cairn_error_info *info = cairn_error_info(id);
  char offset[24] = "";

  if (!info)
    info = cairn_error_info(CAIRN_E_INTERNAL);
  if (f && f->offset >= 0)
    snprintf(offset, sizeof offset, "%lld", (long long)f->offset);
  return json_pack(
      "{s:i, s:s?, s:s, s:s, s:s, s:[s,s,s,s,s], s:i, s:i, s:s?, s:[s], s:s, "
      "s:i, s:n, s:I, s:s?}",
      "ErrorType", (int)info->error_type, "OtherErrorType",
      info->error_type == CAIRN__ERROR_TYPE_OTHER ? info->summary : NULL,
      "OwningEntity", "Cairn", "MessageID", info->message_id, "Message",
      message, "MessageArguments", f ? f->machine : "", f ? f->disk : "",
      f ? f->path : "", offset,
      f && f->system_errno ? strerror(f->system_errno) : info->summary,
      "PerceivedSeverity", severity, "ProbableCause", (int)info->probable_cause,
      "ProbableCauseDescription",
      map_label("ProbableCause", info->probable_cause), "RecommendedActions",
      cairn__error_advice(info->id, f ? f->system_errno : 0), "ErrorSource",
      j->instance_id, "ErrorSourceFormat", 0, "OtherErrorSourceFormat",
      "CIMStatusCode", (json_int_t)info->cim_status_code,
      "CIMStatusCodeDescription",
      map_label("CIMStatusCode", info->cim_status_code));
}

static int add(json_t *errors, json_t *error)
{
  return json_array_append_new(errors, error); /* NULL fails */
}

static int add_warnings(const struct cairn__job *j, json_t *errors)
{
  json_t *warning;
  size_t i;

  json_array_foreach(j->warnings, i, warning)
  {
    if (add(errors, cim_error(j, CAIRN_E_WARNING, json_string_value(warning),
                              CAIRN__SEVERITY_DEGRADED_WARNING, NULL)) != 0)
      return -1;
  }
  if (j->lost_warnings > 0) {
    char text[80];

    snprintf(text, sizeof text, "%u more warnings were given than are kept",
             j->lost_warnings);
    return add(errors, cim_error(j, CAIRN_E_WARNING, text,
                                 CAIRN__SEVERITY_DEGRADED_WARNING, NULL));
  }
  return 0;
}

static int severity_of(int error_id)
{
  /* A client's own will is nothing to hurry for. */
  return error_id == CAIRN_E_TERMINATED || error_id == CAIRN_E_KILLED
             ? CAIRN__SEVERITY_MINOR
             : CAIRN__SEVERITY_MAJOR;
}

/* A recurring job that waits for its next run tells of the last one. One that
 * is Completed has no error, though its last run may have failed. */
static int tells_error(int state)
{
  return state == CAIRN_SUSPENDED || state == CAIRN_TERMINATED ||
         state == CAIRN_KILLED || state == CAIRN_EXCEPTION;
}

/* The warnings of a run are told when it is over. */
static int tells_warnings(const struct cairn__job *j)
{
  return cairn_state_is_final(j->state) ||
         (j->state == CAIRN_SUSPENDED && !j->is_live && !j->is_interrupted);
}

uint32_t cairn_job_get_errors(cairn_engine *e, cairn_job job, int is_ex,
                              char **out, struct cairn_error *err)
{
  struct cairn__job *j;
  json_t *errors;
  uint32_t code = CAIRN_RC_COMPLETED;
  int is_ok = 1;

  cairn__error_clear(err);
  *out = NULL;
  j = cairn__engine_asked(e, job, err);
  if (!j) {
    code = cairn__engine_absent(e, job, CAIRN_RC_UNKNOWN, CAIRN_RC_FAILED);
    return e->is_vendor_codes ? cairn_vendor_code(code) : code;
  }
  errors = json_array();
  if (!errors || cairn__job_unfold(j) != 0)
    is_ok = 0;
  if (is_ok && j->error_id != CAIRN_OK && tells_error(j->state))
    is_ok = add(errors, cim_error(j, j->error_id, cairn__job_message(j),
                                  severity_of(j->error_id), j->failure)) == 0;
  if (is_ok && is_ex && tells_warnings(j))
    is_ok = add_warnings(j, errors) == 0;
  if (is_ok && json_array_size(errors) == 0) {
    json_decref(errors);
    errors = json_null();
  }
  if (!is_ok) {
    json_decref(errors);
    errors = NULL;
  }
  if (cairn__json_give(errors, out, err) != 0)
    code = CAIRN_RC_FAILED;
  return e->is_vendor_codes ? cairn_vendor_code(code) : code;
}
