// Makes the addon a module. A file of its own, so that the tests can make another one of the same parts.
#include "addon.h"

using lean::binding::initialise;

NODE_API_MODULE(lean_attention, initialise)
