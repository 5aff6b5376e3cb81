/* Submitting values that need no parsing: for the Lua module, which makes them
 * of tables. The parameters and errors are those of cairn_submit() and
 * cairn_submit_all(); the values stay the caller's, who leaves them as they are
 * from then on, since the job shares what is in them. */
#ifndef CAIRN_SUBMIT_H
#define CAIRN_SUBMIT_H

#include <jansson.h>

#include "cairn.h"

int cairn__submit(cairn_engine *e, json_t *spec, cairn_job *out,
                  struct cairn_error *err);
int cairn__submit_all(cairn_engine *e, json_t *array, cairn_job *out,
                      size_t count, struct cairn_error *err);

#endif
