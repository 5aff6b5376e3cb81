/* Submitting values that need no parsing: for the Lua module, which makes them
 * of tables. Parameters and errors are those of cairn_submit() and
 * cairn_submit_all(), `length` the bytes that the text would have, for the
 * limit of it. The caller keeps its reference, but the values are not its own
 * any more: checking fills in defaults and puts GUIDs and paths in order, also
 * in one that is refused, and a job shares them. So no part of them may be used
 * elsewhere, or twice among them. */
#ifndef CAIRN_SUBMIT_H
#define CAIRN_SUBMIT_H

#include <jansson.h>

#include "cairn.h"

int cairn__submit(cairn_engine *e, json_t *spec, size_t length, cairn_job *out,
                  struct cairn_error *err);
int cairn__submit_all(cairn_engine *e, json_t *array, size_t length,
                      cairn_job *out, size_t count, struct cairn_error *err);

#endif
