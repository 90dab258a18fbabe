#include "instantiate.h"

template struct lean::DecodeInstances<lean::Float16, 64>;
