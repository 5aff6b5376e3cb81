/* The numbers of the value maps as C constants: CAIRN__OPERATIONAL_DORMANT,
 * CAIRN__HEALTH_OK, CAIRN__PHASE_HELD, ... They come from values.def, so that
 * number and label stand in one place. */
#ifndef CAIRN_CIM_H
#define CAIRN_CIM_H

#include "cairn.h"

enum cairn__value {
#define CAIRN_NAMED(id, number, label) CAIRN__##id = (number),
#include "cairn/values.def"
};

#endif
