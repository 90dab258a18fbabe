// Makes the addon a module. A file of its own, so that the tests can make another one of the same parts.
#include "addon.h"

NODE_API_MODULE(lean_attention, lean::binding::initialise)
