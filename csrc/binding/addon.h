// The addon's table of exports, for whoever makes a module of it.
#pragma once

#include <napi.h>

namespace lean::binding {

Napi::Object initialise(Napi::Env env, Napi::Object exports);

}  // namespace lean::binding
