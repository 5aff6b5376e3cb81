/* cairn-reference: keeps the tables of the documents equal to the tables of
 * the engine. A document marks the place of a table,
 *
 *   <!-- generated: errors -->
 *   ...
 *   <!-- /generated -->
 *
 * and this program writes what stands between. It knows no number and no label
 * itself: all of it is asked of libcairn.
 *
 *   cairn-reference FILE...           rewrites the files in place
 *   cairn-reference --check FILE...   changes nothing; 1 when one is out of
 * date cairn-reference --list            the names of the tables
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cairn.h"
#include "cim.h"
#include "state.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- the tables ---------------------------------------------------------- */

static const char *label_of(const char *map, int64_t value)
{
  size_t count;
  const struct cairn_value_label *v = cairn_value_map(map, &count);
  for (size_t i = 0; i < count; i++)
    if (v[i].value == value)
      return v[i].label;
  return "?";
}

static const char *property_label(int id, int64_t value)
{
  const char *label =
      cairn_value_label(cairn_property_at((size_t)id - 1), value);
  return label != NULL ? label : "?";
}

static void write_range(FILE *out, const struct cairn_property_info *p)
{
  if (p->has_range)
    fprintf(out, "%lld to %lld", (long long)p->min, (long long)p->max);
  else if (p->max_length != 0)
    fprintf(out, "at most %u characters", p->max_length);
  else if (p->is_interval)
    fprintf(out, "an interval");
}

static const char *type_name(const struct cairn_property_info *p)
{
  static const char *const names[] = {
      [CAIRN_TYPE_STRING] = "string",   [CAIRN_TYPE_DATETIME] = "datetime",
      [CAIRN_TYPE_BOOLEAN] = "boolean", [CAIRN_TYPE_UINT8] = "uint8",
      [CAIRN_TYPE_SINT8] = "sint8",     [CAIRN_TYPE_UINT16] = "uint16",
      [CAIRN_TYPE_UINT32] = "uint32",   [CAIRN_TYPE_UINT64] = "uint64",
      [CAIRN_TYPE_REAL64] = "real64"};
  return names[p->type];
}

static void write_marks(FILE *out, const struct cairn_property_info *p)
{
  if (p->is_key)
    fputs(", key", out);
  if (p->is_required)
    fputs(", required", out);
  if (p->is_deprecated)
    fputs(", deprecated", out);
}

static void write_property_table(FILE *out, int is_addition)
{
  fputs("| # | name | type | access | default | limits | meaning |\n"
        "|---|---|---|---|---|---|---|\n",
        out);
  for (size_t i = 0; cairn_property_at(i) != NULL; i++) {
    const struct cairn_property_info *p = cairn_property_at(i);
    if (p->is_addition != is_addition)
      continue;
    fprintf(out, "| %d | `%s` | %s%s | %s", p->id, p->name, type_name(p),
            p->is_array ? "[]" : "", p->is_writable ? "read/write" : "read");
    write_marks(out, p);
    fputs(" | ", out);
    if (p->default_text != NULL)
      fprintf(out, "`%s`", p->default_text);
    fputs(" | ", out);
    write_range(out, p);
    fprintf(out, " | %s |\n", p->description);
  }
}

static void write_properties(FILE *out)
{
  write_property_table(out, 0);
}

static void write_additions(FILE *out)
{
  write_property_table(out, 1);
}

static void write_labels(FILE *out, const struct cairn_value_label *v,
                         size_t count, int is_numbered)
{
  for (size_t i = 0; i < count; i++) {
    if (i > 0)
      fputs(" · ", out);
    if (is_numbered)
      fprintf(out, "%lld ", (long long)v[i].value);
    fprintf(out, "%s", v[i].label);
  }
}

static int is_listed(const struct cairn_property_info *p, int64_t value)
{
  for (size_t i = 0; i < p->value_count; i++)
    if (p->values[i].value == value)
      return 1;
  return 0;
}

/* Reserved numbers have labels without standing in the map: found by asking
 * for all of them. */
static void write_reserved(FILE *out, const struct cairn_property_info *p)
{
  const char *shown = NULL;
  for (int64_t n = 0; n <= UINT16_MAX; n++) {
    const char *label = is_listed(p, n) ? NULL : cairn_value_label(p, n);
    if (label != NULL && (shown == NULL || strcmp(shown, label) != 0)) {
      fprintf(out, " · others from %lld: %s", (long long)n, label);
      shown = label;
    }
  }
}

static void write_values(FILE *out)
{
  fputs("| property | values |\n|---|---|\n", out);
  for (size_t i = 0; cairn_property_at(i) != NULL; i++) {
    const struct cairn_property_info *p = cairn_property_at(i);
    if (p->values == NULL)
      continue;
    fprintf(out, "| `%s` | ", p->name);
    write_labels(out, p->values, p->value_count, p->type != CAIRN_TYPE_STRING);
    if (p->type != CAIRN_TYPE_STRING)
      write_reserved(out, p);
    fputs(" |\n", out);
  }
}

static void write_maps(FILE *out, const char *heading, const char *const *names,
                       size_t name_count)
{
  fprintf(out, "| %s | values |\n|---|---|\n", heading);
  for (size_t i = 0; i < name_count; i++) {
    size_t count;
    const struct cairn_value_label *v = cairn_value_map(names[i], &count);
    fprintf(out, "| `%s` | ", names[i]);
    write_labels(out, v, count, 1);
    fputs(" |\n", out);
  }
}

static void write_error_values(FILE *out)
{
  static const char *const names[] = {"ErrorType", "PerceivedSeverity",
                                      "ErrorSourceFormat", "CIMStatusCode",
                                      "ProbableCause"};
  write_maps(out, "property of CIM_Error", names, COUNT(names));
}

static void write_method_codes(FILE *out)
{
  static const char *const names[] = {"KillJob", "GetError"};
  write_maps(out, "method", names, COUNT(names));
}

static void write_states(FILE *out)
{
  size_t count;
  const struct cairn_value_label *v = cairn_value_map("JobState", &count);
  fputs("| from \\ to |", out);
  for (size_t i = 0; i < count; i++)
    fprintf(out, " %lld |", (long long)v[i].value);
  fputs("\n|---|", out);
  for (size_t i = 0; i < count; i++)
    fputs(":-:|", out);
  fputc('\n', out);
  for (size_t i = 0; i < count; i++) {
    fprintf(out, "| %lld %s |", (long long)v[i].value, v[i].label);
    for (size_t k = 0; k < count; k++)
      fputs(cairn_state_can_change((int)v[i].value, (int)v[k].value) ? " × |"
                                                                     : "  |",
            out);
    fputc('\n', out);
  }
}

static void write_requests(FILE *out)
{
  size_t count, request_count;
  const struct cairn_value_label *v = cairn_value_map("JobState", &count);
  const struct cairn_value_label *r =
      cairn_value_map("RequestedState", &request_count);
  fputs("| JobState |", out);
  for (size_t i = 0; i < request_count; i++)
    fprintf(out, " %s %lld |", r[i].label, (long long)r[i].value);
  fputs("\n|---|", out);
  for (size_t i = 0; i < request_count; i++)
    fputs("---|", out);
  fputc('\n', out);
  for (size_t i = 0; i < count; i++) {
    fprintf(out, "| %lld %s |", (long long)v[i].value, v[i].label);
    for (size_t k = 0; k < request_count; k++)
      fprintf(out, " %u |",
              cairn_state_request_code((int)v[i].value, (int)r[k].value));
    fputc('\n', out);
  }
}

static void write_return_codes(FILE *out)
{
  size_t count;
  const struct cairn_value_label *v =
      cairn_value_map("RequestStateChange", &count);
  fputs("| code | meaning | vendor's code | the vendor's meaning |\n"
        "|---|---|---|---|\n",
        out);
  for (size_t i = 0; i < count; i++) {
    uint32_t vendor = cairn_vendor_code((uint32_t)v[i].value);
    fprintf(out, "| %lld | %s | %u | %s |\n", (long long)v[i].value, v[i].label,
            vendor, label_of("VendorReturnCode", vendor));
  }
}

static void write_status_row(FILE *out, const char *when, int state,
                             struct cairn__status_flags flags)
{
  struct cairn__status s = cairn__status_of(state, flags);
  fprintf(out, "| %d %s%s | ", state,
          property_label(CAIRN_PROPERTY_JobState, state), when);
  for (int i = 0; i < s.count; i++)
    fprintf(out, "%s%u %s", i > 0 ? ", " : "", s.operational_status[i],
            property_label(CAIRN_PROPERTY_OperationalStatus,
                           s.operational_status[i]));
  fprintf(out, " | %s | %u %s | %u %s | %u %s | %u %s |\n", s.status,
          s.health_state,
          property_label(CAIRN_PROPERTY_HealthState, s.health_state),
          s.detailed_status,
          property_label(CAIRN_PROPERTY_DetailedStatus, s.detailed_status),
          s.operating_status,
          property_label(CAIRN_PROPERTY_OperatingStatus, s.operating_status),
          s.primary_status,
          property_label(CAIRN_PROPERTY_PrimaryStatus, s.primary_status));
}

static void write_status(FILE *out)
{
  static const struct {
    int state;
    const char *when;
    struct cairn__status_flags flags;
  } special[] = {
      {CAIRN_SUSPENDED, ", waiting for its next run", {.is_waiting = 1}},
      {CAIRN_SUSPENDED,
       ", waiting after a failed run",
       {.is_waiting = 1, .run_failed = 1}},
      {CAIRN_SUSPENDED, ", held", {.is_held = 1}},
      {CAIRN_SUSPENDED,
       ", held after a failed run",
       {.is_held = 1, .run_failed = 1}},
      {CAIRN_SHUTTING_DOWN, " after Kill", {.is_killing = 1}},
      {CAIRN_EXCEPTION,
       ", cause outside the job",
       {.is_retryable = 1, .is_cause_outside = 1}},
  };
  fputs("| JobState | OperationalStatus | Status | HealthState | "
        "DetailedStatus | OperatingStatus | PrimaryStatus |\n"
        "|---|---|---|---|---|---|---|\n",
        out);
  size_t count;
  const struct cairn_value_label *v = cairn_value_map("JobState", &count);
  for (size_t i = 0; i < count; i++) {
    write_status_row(out, "", (int)v[i].value, (struct cairn__status_flags){0});
    for (size_t k = 0; k < COUNT(special); k++)
      if (special[k].state == v[i].value)
        write_status_row(out, special[k].when, special[k].state,
                         special[k].flags);
  }
}

static void write_errors(FILE *out)
{
  fputs("| code | ErrorCode | MessageID | exit | meaning | ErrorType | "
        "ProbableCause | CIMStatusCode | what to do |\n"
        "|---|---|---|---|---|---|---|---|---|\n",
        out);
  for (size_t i = 0; cairn_error_info_at(i) != NULL; i++) {
    const struct cairn_error_info *e = cairn_error_info_at(i);
    fprintf(out, "| `%s` | %d | %s | %d | %s | %u %s | %u %s | %u | %s |\n",
            e->code, e->id, e->message_id, e->exit_code, e->summary,
            e->error_type, label_of("ErrorType", e->error_type),
            e->probable_cause, label_of("ProbableCause", e->probable_cause),
            e->cim_status_code, e->recommended_action);
  }
}

static const struct {
  const char *name;
  void (*write)(FILE *out);
} tables[] = {
    {"properties", write_properties},
    {"additions", write_additions},
    {"values", write_values},
    {"states", write_states},
    {"requests", write_requests},
    {"return-codes", write_return_codes},
    {"method-codes", write_method_codes},
    {"status", write_status},
    {"error-values", write_error_values},
    {"errors", write_errors},
};

/* ---- documents ----------------------------------------------------------- */

static const char program[] = "cairn-reference";
static const char begin_mark[] = "<!-- generated: ";
static const char end_mark[] = "<!-- /generated -->";

static char *read_file(const char *path, size_t *length, mode_t *mode)
{
  FILE *in = fopen(path, "re");
  struct stat st;
  char *text = NULL;
  if (in != NULL && fstat(fileno(in), &st) == 0 && S_ISREG(st.st_mode)) {
    text = malloc((size_t)st.st_size + 1);
    if (text != NULL) {
      *length = fread(text, 1, (size_t)st.st_size, in);
      if (ferror(in)) {
        free(text);
        text = NULL;
      } else {
        text[*length] = '\0';
        *mode = st.st_mode & 07777;
      }
    }
  }
  if (text == NULL)
    fprintf(stderr, "%s: %s: %s\n", program, path,
            errno != 0 ? strerror(errno) : "not a regular file");
  if (in != NULL)
    fclose(in);
  return text;
}

/* Beside the file, synced, then renamed over it. */
static int write_file(const char *path, const char *text, size_t length,
                      mode_t mode)
{
  char temporary[PATH_MAX];
  if (snprintf(temporary, sizeof temporary, "%s.new", path) >=
      (int)sizeof temporary) {
    fprintf(stderr, "%s: %s: the name is too long\n", program, path);
    return -1;
  }
  int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  FILE *out = fd >= 0 ? fdopen(fd, "w") : NULL;
  if (out == NULL) {
    fprintf(stderr, "%s: %s: %s\n", program, temporary, strerror(errno));
    if (fd >= 0) {
      close(fd);
      unlink(temporary);
    }
    return -1;
  }
  int is_written = fwrite(text, 1, length, out) == length && fflush(out) == 0 &&
                   fsync(fd) == 0;
  int saved = errno;
  if (fclose(out) != 0 && is_written) {
    is_written = 0;
    saved = errno;
  }
  if (is_written && rename(temporary, path) != 0) {
    is_written = 0;
    saved = errno;
  }
  if (!is_written) {
    fprintf(stderr, "%s: %s: %s\n", program, path, strerror(saved));
    unlink(temporary);
    return -1;
  }
  return 0;
}

static int line_of(const char *text, const char *at)
{
  int line = 1;
  for (; text < at; text++)
    line += *text == '\n';
  return line;
}

static int write_table(FILE *out, const char *name, size_t length)
{
  for (size_t i = 0; i < COUNT(tables); i++) {
    if (strlen(tables[i].name) == length &&
        memcmp(tables[i].name, name, length) == 0) {
      tables[i].write(out);
      return 0;
    }
  }
  return -1;
}

/* Copies the document with fresh tables; -1 when a mark is wrong. */
static int renew(const char *path, const char *text, FILE *out)
{
  const char *rest = text;
  const char *begin;
  while ((begin = strstr(rest, begin_mark)) != NULL) {
    const char *name = begin + sizeof begin_mark - 1;
    const char *close = strstr(name, " -->\n");
    const char *end = close != NULL ? strstr(close, end_mark) : NULL;
    const char *next = close != NULL ? strstr(close, begin_mark) : NULL;
    if (end == NULL || (next != NULL && next < end)) {
      fprintf(stderr, "%s: %s:%d: no \"%s\" follows this mark\n", program, path,
              line_of(text, begin), end_mark);
      return -1;
    }
    const char *table = close + strlen(" -->\n");
    fwrite(rest, 1, (size_t)(table - rest), out);
    if (write_table(out, name, (size_t)(close - name)) != 0) {
      fprintf(stderr, "%s: %s:%d: there is no table \"%.*s\"; see --list\n",
              program, path, line_of(text, begin), (int)(close - name), name);
      return -1;
    }
    rest = end;
  }
  fputs(rest, out);
  return 0;
}

/* 0 fine, 1 out of date (when checking), 2 an error. */
static int process(const char *path, int is_check)
{
  size_t length = 0, fresh_length = 0;
  mode_t mode = 0644;
  errno = 0;
  char *text = read_file(path, &length, &mode);
  if (text == NULL)
    return 2;
  int rc = 2;
  char *fresh = NULL;
  FILE *out = open_memstream(&fresh, &fresh_length);
  if (out == NULL) {
    fprintf(stderr, "%s: %s\n", program, strerror(errno));
    goto done;
  }
  int is_renewed = renew(path, text, out) == 0;
  int has_failed = ferror(out);
  if (fclose(out) != 0 || has_failed) {
    fprintf(stderr, "%s: out of memory\n", program);
    goto done;
  }
  if (!is_renewed)
    goto done;
  if (fresh_length == length && memcmp(fresh, text, length) == 0) {
    rc = 0;
  } else if (is_check) {
    size_t same = 0;
    while (same < length && same < fresh_length && fresh[same] == text[same])
      same++;
    fprintf(stderr, "%s: %s:%d: out of date; run \"%s %s\"\n", program, path,
            line_of(text, text + same), program, path);
    rc = 1;
  } else {
    rc = write_file(path, fresh, fresh_length, mode) == 0 ? 0 : 2;
  }
done:
  free(fresh);
  free(text);
  return rc;
}

static const char usage[] =
    "usage: cairn-reference FILE...           rewrite the tables of documents\n"
    "       cairn-reference --check FILE...   exit 1 when one is out of date\n"
    "       cairn-reference --list            the names of the tables\n";

int main(int argc, char **argv)
{
  int is_check = 0, file_count = 0, rc = 0;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--check") == 0) {
      is_check = 1;
    } else if (strcmp(argv[i], "--list") == 0) {
      for (size_t k = 0; k < COUNT(tables); k++)
        puts(tables[k].name);
      return 0;
    } else if (strcmp(argv[i], "--help") == 0) {
      fputs(usage, stdout);
      return 0;
    } else if (argv[i][0] == '-') {
      fprintf(stderr, "%s: unknown option \"%s\"\n%s", program, argv[i], usage);
      return 2;
    } else {
      file_count++;
    }
  }
  if (file_count == 0) {
    fputs(usage, stderr);
    return 2;
  }
  for (int i = 1; i < argc; i++) {
    if (argv[i][0] == '-')
      continue;
    int one = process(argv[i], is_check);
    if (one > rc)
      rc = one;
  }
  return rc;
}
