/* The class against literals written down from its published page: every
 * property in order with its qualifiers, every value map, and how labels are
 * matched. The page is the judge: nothing here is taken from the .def files. */
#include "cairn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define ME  "CIM_ManagedElement"
#define MSE "CIM_ManagedSystemElement"
#define J   "CIM_Job"
#define CJ  "CIM_ConcreteJob"
#define OWN "Msvm_CollectionReferencePointExportJob"

/* flags: R or W; A array, K key, Q required, D deprecated, I interval only.
 * The ranges of RunMonth, RunDayOfWeek, LocalOrUtcTime and RecoveryAction are
 * those of their closed value maps; the length of Name is that of the property
 * it overrides in CIM_ManagedSystemElement; the fiftieth property comes from
 * the class in the sibling namespace. */
static const struct {
  const char *name;
  int type;
  const char *flags, *default_text;
  int has_range, min, max;
  unsigned max_length;
  const char *origin;
} class_page[] = {
    {"Caption", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 64, ME},
    {"Description", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, ME},
    {"ElementName", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, ME},
    {"InstallDate", CAIRN_TYPE_DATETIME, "R", NULL, 0, 0, 0, 0, MSE},
    {"OperationalStatus", CAIRN_TYPE_UINT16, "RA", NULL, 0, 0, 0, 0, MSE},
    {"StatusDescriptions", CAIRN_TYPE_STRING, "RA", NULL, 0, 0, 0, 0, MSE},
    {"Status", CAIRN_TYPE_STRING, "RD", NULL, 0, 0, 0, 10, MSE},
    {"HealthState", CAIRN_TYPE_UINT16, "R", NULL, 0, 0, 0, 0, MSE},
    {"CommunicationStatus", CAIRN_TYPE_UINT16, "R", NULL, 0, 0, 0, 0, MSE},
    {"DetailedStatus", CAIRN_TYPE_UINT16, "R", NULL, 0, 0, 0, 0, MSE},
    {"OperatingStatus", CAIRN_TYPE_UINT16, "R", NULL, 0, 0, 0, 0, MSE},
    {"PrimaryStatus", CAIRN_TYPE_UINT16, "R", NULL, 0, 0, 0, 0, MSE},
    {"JobStatus", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, J},
    {"TimeSubmitted", CAIRN_TYPE_DATETIME, "R", NULL, 0, 0, 0, 0, J},
    {"ScheduledStartTime", CAIRN_TYPE_DATETIME, "WD", NULL, 0, 0, 0, 0, J},
    {"StartTime", CAIRN_TYPE_DATETIME, "R", NULL, 0, 0, 0, 0, J},
    {"ElapsedTime", CAIRN_TYPE_DATETIME, "RI", NULL, 0, 0, 0, 0, J},
    {"JobRunTimes", CAIRN_TYPE_UINT32, "W", "1", 0, 0, 0, 0, J},
    {"RunMonth", CAIRN_TYPE_UINT8, "W", NULL, 1, 0, 11, 0, J},
    {"RunDay", CAIRN_TYPE_SINT8, "W", NULL, 1, -31, 31, 0, J},
    {"RunDayOfWeek", CAIRN_TYPE_SINT8, "W", NULL, 1, -7, 7, 0, J},
    {"RunStartInterval", CAIRN_TYPE_DATETIME, "WI", NULL, 0, 0, 0, 0, J},
    {"LocalOrUtcTime", CAIRN_TYPE_UINT16, "W", NULL, 1, 1, 2, 0, J},
    {"UntilTime", CAIRN_TYPE_DATETIME, "W", NULL, 0, 0, 0, 0, J},
    {"Notify", CAIRN_TYPE_STRING, "W", NULL, 0, 0, 0, 0, J},
    {"Owner", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, J},
    {"Priority", CAIRN_TYPE_UINT32, "W", NULL, 0, 0, 0, 0, J},
    {"PercentComplete", CAIRN_TYPE_UINT16, "R", NULL, 1, 0, 101, 0, J},
    {"DeleteOnCompletion", CAIRN_TYPE_BOOLEAN, "W", NULL, 0, 0, 0, 0, J},
    {"ErrorCode", CAIRN_TYPE_UINT16, "R", NULL, 0, 0, 0, 0, J},
    {"ErrorDescription", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, J},
    {"RecoveryAction", CAIRN_TYPE_UINT16, "R", NULL, 1, 0, 5, 0, J},
    {"OtherRecoveryAction", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, J},
    {"InstanceID", CAIRN_TYPE_STRING, "RK", NULL, 0, 0, 0, 0, CJ},
    {"Name", CAIRN_TYPE_STRING, "RQ", NULL, 0, 0, 0, 1024, CJ},
    {"JobState", CAIRN_TYPE_UINT16, "R", NULL, 0, 0, 0, 0, CJ},
    {"TimeOfLastStateChange", CAIRN_TYPE_DATETIME, "R", NULL, 0, 0, 0, 0, CJ},
    {"TimeBeforeRemoval", CAIRN_TYPE_DATETIME, "WQI",
     "00000000000500.000000:000", 0, 0, 0, 0, CJ},
    {"Cancellable", CAIRN_TYPE_BOOLEAN, "R", NULL, 0, 0, 0, 0, OWN},
    {"ErrorSummaryDescription", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, OWN},
    {"CollectionId", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, OWN},
    {"ReferencePointGroupId", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, OWN},
    {"BaseReferencePointGroupId", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0,
     OWN},
    {"VirtualMachineId", CAIRN_TYPE_STRING, "RA", NULL, 0, 0, 0, 0, OWN},
    {"ExportDirectory", CAIRN_TYPE_STRING, "R", NULL, 0, 0, 0, 0, OWN},
    {"ExportedDisks", CAIRN_TYPE_STRING, "RA", NULL, 0, 0, 0, 0, OWN},
    {"ExportedLogFilePaths", CAIRN_TYPE_STRING, "RA", NULL, 0, 0, 0, 0, OWN},
    {"ExportedConfigFilePaths", CAIRN_TYPE_STRING, "RA", NULL, 0, 0, 0, 0, OWN},
    {"ExportedRuntimeFilePaths", CAIRN_TYPE_STRING, "RA", NULL, 0, 0, 0, 0,
     OWN},
    {"ExportedGuestStateFilePaths", CAIRN_TYPE_STRING, "RA", NULL, 0, 0, 0, 0,
     OWN},
};

#define MAX_VALUES 20

static const struct {
  const char *property;
  size_t count;
  struct cairn_value_label values[MAX_VALUES];
} class_page_values[] = {
    {"OperationalStatus",
     19,
     {
         {0, "Unknown"},
         {1, "Other"},
         {2, "OK"},
         {3, "Degraded"},
         {4, "Stressed"},
         {5, "Predictive Failure"},
         {6, "Error"},
         {7, "Non-Recoverable Error"},
         {8, "Starting"},
         {9, "Stopping"},
         {10, "Stopped"},
         {11, "In Service"},
         {12, "No Contact"},
         {13, "Lost Communication"},
         {14, "Aborted"},
         {15, "Dormant"},
         {16, "Supporting Entity in Error"},
         {17, "Completed"},
         {18, "Power Mode"},
     }},
    {"Status",
     13,
     {
         {0, "OK"},
         {1, "Error"},
         {2, "Degraded"},
         {3, "Unknown"},
         {4, "Pred Fail"},
         {5, "Starting"},
         {6, "Stopping"},
         {7, "Service"},
         {8, "Stressed"},
         {9, "NonRecover"},
         {10, "No Contact"},
         {11, "Lost Comm"},
         {12, "Stopped"},
     }},
    {"HealthState",
     7,
     {
         {0, "Unknown"},
         {5, "OK"},
         {10, "Degraded/Warning"},
         {15, "Minor failure"},
         {20, "Major failure"},
         {25, "Critical failure"},
         {30, "Non-recoverable error"},
     }},
    {"CommunicationStatus",
     5,
     {
         {0, "Unknown"},
         {1, "Not Available"},
         {2, "Communication OK"},
         {3, "Lost Communication"},
         {4, "No Contact"},
     }},
    {"DetailedStatus",
     6,
     {
         {0, "Not Available"},
         {1, "No Additional Information"},
         {2, "Stressed"},
         {3, "Predictive Failure"},
         {4, "Non-Recoverable Error"},
         {5, "Supporting Entity in Error"},
     }},
    {"OperatingStatus",
     17,
     {
         {0, "Unknown"},
         {1, "Not Available"},
         {2, "Servicing"},
         {3, "Starting"},
         {4, "Stopping"},
         {5, "Stopped"},
         {6, "Aborted"},
         {7, "Dormant"},
         {8, "Completed"},
         {9, "Migrating"},
         {10, "Emigrating"},
         {11, "Immigrating"},
         {12, "Snapshotting"},
         {13, "Shutting Down"},
         {14, "In Test"},
         {15, "Transitioning"},
         {16, "In Service"},
     }},
    {"PrimaryStatus",
     4,
     {
         {0, "Unknown"},
         {1, "OK"},
         {2, "Degraded"},
         {3, "Error"},
     }},
    {"RunMonth",
     12,
     {
         {0, "January"},
         {1, "February"},
         {2, "March"},
         {3, "April"},
         {4, "May"},
         {5, "June"},
         {6, "July"},
         {7, "August"},
         {8, "September"},
         {9, "October"},
         {10, "November"},
         {11, "December"},
     }},
    {"RunDayOfWeek",
     15,
     {
         {-7, "-Saturday"},
         {-6, "-Friday"},
         {-5, "-Thursday"},
         {-4, "-Wednesday"},
         {-3, "-Tuesday"},
         {-2, "-Monday"},
         {-1, "-Sunday"},
         {0, "ExactDayOfMonth"},
         {1, "Sunday"},
         {2, "Monday"},
         {3, "Tuesday"},
         {4, "Wednesday"},
         {5, "Thursday"},
         {6, "Friday"},
         {7, "Saturday"},
     }},
    {"LocalOrUtcTime",
     2,
     {
         {1, "Local Time"},
         {2, "UTC Time"},
     }},
    {"RecoveryAction",
     6,
     {
         {0, "Unknown"},
         {1, "Other"},
         {2, "Do Not Continue"},
         {3, "Continue With Next Job"},
         {4, "Re-run Job"},
         {5, "Run Recovery Job"},
     }},
    {"JobState",
     11,
     {
         {2, "New"},
         {3, "Starting"},
         {4, "Running"},
         {5, "Suspended"},
         {6, "Shutting Down"},
         {7, "Completed"},
         {8, "Terminated"},
         {9, "Killed"},
         {10, "Exception"},
         {11, "Service"},
         {12, "Query Pending"},
     }},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int has(const char *flags, char flag)
{
  return strchr(flags, flag) != NULL;
}

static void has_the_fifty_properties_of_the_class_page_in_order(void **state)
{
  (void)state;
  assert_int_equal(COUNT(class_page), 50);
  assert_int_equal(CAIRN_PROPERTY_CLASS_COUNT, 50);
  for (size_t i = 0; i < COUNT(class_page); i++) {
    const struct cairn_property_info *p = cairn_property_at(i);
    assert_non_null(p);
    assert_string_equal(p->name, class_page[i].name);
    assert_int_equal(p->id, i + 1);
    const char *flags = class_page[i].flags;
    int is_right =
        p->type == class_page[i].type && p->is_array == has(flags, 'A') &&
        p->is_writable == has(flags, 'W') && p->is_key == has(flags, 'K') &&
        p->is_required == has(flags, 'Q') &&
        p->is_deprecated == has(flags, 'D') &&
        p->is_interval == has(flags, 'I') && !p->is_addition &&
        p->max_length == class_page[i].max_length;
    if (!is_right)
      fail_msg("%s differs from the class page", p->name);
    assert_int_equal(p->has_range, class_page[i].has_range);
    assert_int_equal(p->min, class_page[i].min);
    assert_int_equal(p->max, class_page[i].max);
    assert_string_equal(p->origin, class_page[i].origin);
    if (class_page[i].default_text == NULL)
      assert_null(p->default_text);
    else
      assert_string_equal(p->default_text, class_page[i].default_text);
    assert_non_null(p->description);
    assert_null(strchr(p->description, '\n'));
  }
}

static void lists_its_own_properties_after_the_classs(void **state)
{
  (void)state;
  static const struct {
    const char *name;
    int type;
  } additions[] = {
      {"phase", CAIRN_TYPE_STRING},       {"queue", CAIRN_TYPE_STRING},
      {"zone", CAIRN_TYPE_STRING},        {"gap", CAIRN_TYPE_STRING},
      {"overlap", CAIRN_TYPE_STRING},     {"catch_up", CAIRN_TYPE_STRING},
      {"RecoveryJob", CAIRN_TYPE_STRING}, {"attempts", CAIRN_TYPE_UINT32},
      {"policy", CAIRN_TYPE_STRING},      {"policy_key", CAIRN_TYPE_STRING},
      {"run_number", CAIRN_TYPE_UINT32},  {"bytes_total", CAIRN_TYPE_UINT64},
      {"bytes_done", CAIRN_TYPE_UINT64},  {"rate", CAIRN_TYPE_REAL64},
      {"eta", CAIRN_TYPE_REAL64},
  };
  for (size_t i = 0; i < COUNT(additions); i++) {
    const struct cairn_property_info *p = cairn_property_at(50 + i);
    assert_non_null(p);
    assert_string_equal(p->name, additions[i].name);
    assert_int_equal(p->id, 51 + i);
    assert_int_equal(p->type, additions[i].type);
    assert_true(p->is_addition);
    assert_false(p->is_array);
    assert_string_equal(p->origin, "Cairn");
  }
  assert_null(cairn_property_at(50 + COUNT(additions)));
  assert_null(cairn_property_at((size_t)-1));
  assert_int_equal(CAIRN_PROPERTY_END, 51 + COUNT(additions));
}

static void has_twelve_writable_properties_in_the_class(void **state)
{
  (void)state;
  int count = 0;
  for (size_t i = 0; i < 50; i++)
    count += cairn_property_at(i)->is_writable;
  assert_int_equal(count, 12);
}

static void finds_a_property_by_its_exact_name_only(void **state)
{
  (void)state;
  for (size_t i = 0; cairn_property_at(i) != NULL; i++) {
    const struct cairn_property_info *p = cairn_property_at(i);
    assert_ptr_equal(cairn_property_find(p->name), p);
  }
  assert_null(cairn_property_find("jobstate"));
  assert_null(cairn_property_find("JobStat"));
  assert_null(cairn_property_find("JobStates"));
  assert_null(cairn_property_find(""));
  assert_int_equal(cairn_property_find("RunMonth")->id,
                   CAIRN_PROPERTY_RunMonth);
  assert_int_equal(cairn_property_find("eta")->id, CAIRN_PROPERTY_eta);
}

static void names_the_nearest_property(void **state)
{
  (void)state;
  static const char *const cases[][2] = {
      {"JobStat", "JobState"},
      {"jobstate", "JobState"},
      {"RunMoth", "RunMonth"},
      {"runmonth", "RunMonth"},
      {"Prioritty", "Priority"},
      {"Day", "RunDay"},
      {"RunDays", "RunDay"},
      {"Until", "UntilTime"},
      {"RunDayOfWeak", "RunDayOfWeek"},
      {"EelapsedTime", "ElapsedTime"},
      {"percent", "PercentComplete"},
      {"bytes", "bytes_done"},
      {"InstanceId", "InstanceID"},
      {"Nmae", "Name"},
  };
  for (size_t i = 0; i < COUNT(cases); i++)
    assert_string_equal(cairn_property_nearest(cases[i][0]), cases[i][1]);
  char long_name[5000];
  memset(long_name, 'q', sizeof long_name - 1);
  long_name[sizeof long_name - 1] = '\0';
  assert_non_null(cairn_property_find(cairn_property_nearest(long_name)));
  assert_non_null(cairn_property_find(cairn_property_nearest("")));
}

static void has_the_value_maps_of_the_class_page(void **state)
{
  (void)state;
  for (size_t i = 0; i < COUNT(class_page_values); i++) {
    const struct cairn_property_info *p =
        cairn_property_find(class_page_values[i].property);
    assert_non_null(p);
    /* the one value that is not the page's is checked below */
    size_t extra = p->id == CAIRN_PROPERTY_JobState ? 1 : 0;
    assert_int_equal(p->value_count, class_page_values[i].count + extra);
    for (size_t k = 0; k < class_page_values[i].count; k++) {
      const struct cairn_value_label *v = &class_page_values[i].values[k];
      assert_int_equal(p->values[k].value, v->value);
      assert_string_equal(p->values[k].label, v->label);
      assert_string_equal(cairn_value_label(p, v->value), v->label);
    }
  }
}

static void has_no_other_value_maps(void **state)
{
  (void)state;
  for (size_t i = 0; i < 50; i++) {
    const struct cairn_property_info *p = cairn_property_at(i);
    int is_listed = 0;
    for (size_t k = 0; k < COUNT(class_page_values); k++)
      is_listed |= strcmp(class_page_values[k].property, p->name) == 0;
    assert_int_equal(p->values != NULL, is_listed);
    assert_int_equal(p->value_count != 0, is_listed);
  }
}

static void calls_32768_completed_with_warnings(void **state)
{
  (void)state;
  const struct cairn_property_info *p = cairn_property_find("JobState");
  int64_t number = 0;
  assert_string_equal(cairn_value_label(p, 32768), "Completed With Warnings");
  assert_int_equal(cairn_value_number(p, "Completed With Warnings", &number),
                   0);
  assert_int_equal(number, 32768);
}

/* What the page reserves, for every number there is. */
static const char *reserved_label(const char *property, int64_t n)
{
  if (strcmp(property, "HealthState") == 0)
    return n >= 0 && n <= 65535 ? "DMTF Reserved" : NULL;
  if (strcmp(property, "JobState") == 0 && n < 13)
    return NULL;
  static const char *const with_both[] = {
      "OperationalStatus", "CommunicationStatus", "DetailedStatus",
      "OperatingStatus",   "PrimaryStatus",       "JobState"};
  for (size_t i = 0; i < COUNT(with_both); i++)
    if (strcmp(property, with_both[i]) == 0 && n >= 0 && n <= 65535)
      return n < 32768 ? "DMTF Reserved" : "Vendor Reserved";
  return NULL;
}

static void labels_reserved_numbers_as_the_class_page_does(void **state)
{
  (void)state;
  for (size_t i = 0; i < COUNT(class_page_values); i++) {
    const char *name = class_page_values[i].property;
    const struct cairn_property_info *p = cairn_property_find(name);
    for (int64_t n = -10; n < 65540; n++) {
      int is_listed = 0;
      for (size_t k = 0; k < p->value_count; k++)
        is_listed |= p->values[k].value == n;
      if (is_listed)
        continue;
      const char *expected = reserved_label(name, n);
      const char *label = cairn_value_label(p, n);
      if (expected == NULL ? label != NULL
                           : label == NULL || strcmp(label, expected) != 0)
        fail_msg("%s %d is \"%s\"", name, (int)n, label ? label : "(null)");
    }
    assert_null(cairn_value_label(p, INT64_MIN));
    assert_null(cairn_value_label(p, INT64_MAX));
  }
}

static void reads_no_number_from_a_reserved_label(void **state)
{
  (void)state;
  int64_t n = 77;
  const struct cairn_property_info *p = cairn_property_find("JobState");
  assert_int_equal(cairn_value_number(p, "DMTF Reserved", &n), -1);
  assert_int_equal(cairn_value_number(p, "Vendor Reserved", &n), -1);
  assert_int_equal(n, 77);
}

static void ignores_case_spaces_and_hyphens_in_labels(void **state)
{
  (void)state;
  static const struct {
    const char *property, *label;
    int number;
  } cases[] = {
      {"JobState", "shuttingdown", 6},
      {"JobState", "SHUTTING-DOWN", 6},
      {"JobState", "  Query  Pending ", 12},
      {"JobState", "completedwithwarnings", 32768},
      {"RecoveryAction", "rerun job", 4},
      {"RecoveryAction", "Re-run Job", 4},
      {"OperationalStatus", "nonrecoverable error", 7},
      {"RunDayOfWeek", "Exact Day Of Month", 0},
      {"RunDayOfWeek", "exact-day-of-month", 0},
      {"RunDayOfWeek", "saturday", 7},
      {"RunDayOfWeek", "-saturday", -7},
      {"RunDayOfWeek", " - Satur-day", -7},
      {"RunDayOfWeek", "Sun-day", 1},
      {"RunDayOfWeek", "-Sunday", -1},
      {"LocalOrUtcTime", "utctime", 2},
      {"HealthState", "degraded/warning", 10},
      {"phase", "Waiting", 1},
      {"JobState", "-running", 4}, /* a sign counts before weekdays only */
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    int64_t n = -99;
    const struct cairn_property_info *p =
        cairn_property_find(cases[i].property);
    if (cairn_value_number(p, cases[i].label, &n) != 0)
      fail_msg("%s: \"%s\" not found", cases[i].property, cases[i].label);
    assert_int_equal(n, cases[i].number);
  }
}

static void refuses_what_is_no_label(void **state)
{
  (void)state;
  static const char *const cases[][2] = {
      {"JobState", ""},
      {"JobState", "-"},
      {"JobState", "Runnin"},
      {"JobState", "Runningg"},
      {"JobState", "4"},
      {"JobState", "Shutting_Down"},
      {"RunDayOfWeek", "+Friday"},
      {"RunDayOfWeek", "-ExactDayOfMonth"},
      {"JobRunTimes", "once"},
      {"Name", "Running"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    int64_t n = 77;
    assert_int_equal(
        cairn_value_number(cairn_property_find(cases[i][0]), cases[i][1], &n),
        -1);
    assert_int_equal(n, 77);
  }
  assert_null(cairn_value_label(cairn_property_find("JobRunTimes"), 1));
}

static void gives_back_the_number_of_every_label(void **state)
{
  (void)state;
  for (size_t i = 0; cairn_property_at(i) != NULL; i++) {
    const struct cairn_property_info *p = cairn_property_at(i);
    for (size_t k = 0; k < p->value_count; k++) {
      int64_t n = -99;
      assert_int_equal(cairn_value_number(p, p->values[k].label, &n), 0);
      assert_int_equal(n, p->values[k].value);
    }
  }
}

static void has_the_maps_of_methods_and_errors(void **state)
{
  (void)state;
  static const struct {
    const char *map;
    size_t count;
    int64_t value;
    const char *label;
  } cases[] = {
      {"RequestedState", 5, 2, "Start"},
      {"RequestedState", 5, 3, "Suspend"},
      {"RequestedState", 5, 4, "Terminate"},
      {"RequestedState", 5, 5, "Kill"},
      {"RequestedState", 5, 6, "Service"},
      {"RequestStateChange", 11, 0, "Completed with No Error"},
      {"RequestStateChange", 11, 3, "Can NOT complete within Timeout Period"},
      {"RequestStateChange", 11, 4096,
       "Method Parameters Checked - Transition Started"},
      {"RequestStateChange", 11, 4097, "Invalid State Transition"},
      {"RequestStateChange", 11, 4098,
       "Use of Timeout Parameter Not Supported"},
      {"RequestStateChange", 11, 4099, "Busy"},
      {"KillJob", 7, 4, "Failed"},
      {"KillJob", 7, 6, "Access Denied"},
      {"KillJob", 7, 7, "Not Found"},
      {"GetError", 7, 5, "Invalid Parameter"},
      {"GetError", 7, 6, "Access Denied"},
      {"VendorReturnCode", 14, 32768, "Failed"},
      {"VendorReturnCode", 14, 32769, "Access Denied"},
      {"VendorReturnCode", 14, 32770, "Not Supported"},
      {"VendorReturnCode", 14, 32771, "Status is unknown"},
      {"VendorReturnCode", 14, 32772, "Timeout"},
      {"VendorReturnCode", 14, 32773, "Invalid parameter"},
      {"VendorReturnCode", 14, 32774, "System is in use"},
      {"VendorReturnCode", 14, 32775, "Invalid state for this operation"},
      {"VendorReturnCode", 14, 32776, "Incorrect data type"},
      {"VendorReturnCode", 14, 32777, "System is not available"},
      {"VendorReturnCode", 14, 32778, "Out of memory"},
      {"ErrorType", 11, 0, "Unknown"},
      {"ErrorType", 11, 4, "Software Error"},
      {"ErrorType", 11, 10, "Unsupported Operation Error"},
      {"PerceivedSeverity", 8, 2, "Information"},
      {"PerceivedSeverity", 8, 3, "Degraded/Warning"},
      {"PerceivedSeverity", 8, 7, "Fatal/NonRecoverable"},
      {"ErrorSourceFormat", 3, 2, "CIMObjectPath"},
      {"ProbableCause", 131, 0, "Unknown"},
      {"ProbableCause", 131, 10, "Corrupt Data"},
      {"ProbableCause", 131, 24, "I/O Device Error"},
      {"ProbableCause", 131, 33, "Out of Memory"},
      {"ProbableCause", 131, 38, "Processor Problem (Internal Machine Error)"},
      {"ProbableCause", 131, 47, "Software Error"},
      {"ProbableCause", 131, 50, "Storage Capacity Problem"},
      {"ProbableCause", 131, 65, "Unauthorized Access"},
      {"ProbableCause", 131, 73, "Element Missing"},
      {"ProbableCause", 131, 86, "Disk Failure"},
      {"ProbableCause", 131, 111, "Timeout"},
      {"ProbableCause", 131, 130, "Unexpected Information"},
      {"CIMStatusCode", 29, 1, "CIM_ERR_FAILED"},
      {"CIMStatusCode", 29, 4, "CIM_ERR_INVALID_PARAMETER"},
      {"CIMStatusCode", 29, 6, "CIM_ERR_NOT_FOUND"},
      {"CIMStatusCode", 29, 13, "CIM_ERR_TYPE_MISMATCH"},
      {"CIMStatusCode", 29, 29, "CIM_ERR_QUERY_FEATURE_NOT_SUPPORTED"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    size_t count = 0;
    const struct cairn_value_label *v = cairn_value_map(cases[i].map, &count);
    assert_non_null(v);
    assert_int_equal(count, cases[i].count);
    const char *label = NULL;
    for (size_t k = 0; k < count; k++) {
      if (k > 0)
        assert_true(v[k].value > v[k - 1].value);
      if (v[k].value == cases[i].value)
        label = v[k].label;
    }
    assert_non_null(label);
    assert_string_equal(label, cases[i].label);
  }
  size_t count = 1;
  assert_null(cairn_value_map("Nonsense", &count));
  assert_int_equal(count, 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(has_the_fifty_properties_of_the_class_page_in_order),
      cmocka_unit_test(lists_its_own_properties_after_the_classs),
      cmocka_unit_test(has_twelve_writable_properties_in_the_class),
      cmocka_unit_test(finds_a_property_by_its_exact_name_only),
      cmocka_unit_test(names_the_nearest_property),
      cmocka_unit_test(has_the_value_maps_of_the_class_page),
      cmocka_unit_test(has_no_other_value_maps),
      cmocka_unit_test(calls_32768_completed_with_warnings),
      cmocka_unit_test(labels_reserved_numbers_as_the_class_page_does),
      cmocka_unit_test(reads_no_number_from_a_reserved_label),
      cmocka_unit_test(ignores_case_spaces_and_hyphens_in_labels),
      cmocka_unit_test(refuses_what_is_no_label),
      cmocka_unit_test(gives_back_the_number_of_every_label),
      cmocka_unit_test(has_the_maps_of_methods_and_errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
