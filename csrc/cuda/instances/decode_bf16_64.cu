#include "instantiate.h"

template struct lean::DecodeInstances<lean::BFloat16, 64>;
