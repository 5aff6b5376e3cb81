#ifndef CAIRN_BINDING_POLICY_SETTINGS_H
#define CAIRN_BINDING_POLICY_SETTINGS_H

#include <stdint.h>

#include "binding.h"

/* settings(given | nil, { NAME = default, ... }) -> { NAME = value, ... }, as
 * cairn.settings is described in cairn/api.lua; raises. charge(L, steps) is
 * called for each setting, or NULL. */
int cairn__lua_settings(lua_State *L,
                        void (*charge)(lua_State *L, uint64_t steps));

#endif
