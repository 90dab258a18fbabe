// Prints the launch configuration table as JSON, for compile-report.cjs: what the assembler does not know.
#include <cstdio>

#include "../csrc/cuda/config_table.h"

int main() {
  using namespace lean;
  const char* separator = "[";
  for (int v = 0; v < kNumVariants; ++v) {
    const Variant variant = static_cast<Variant>(v);
    for (const KernelConfig& config : kConfigs[architecture_class(variant)]) {
      printf(
          "%s{\"variant\":%d,\"headDim\":%d,\"tileTokens\":%d,\"stages\":%d,\"threads\":%d,\"ctasPerSm\":%d,"
          "\"sharedBytes\":%d,\"bytesInFlight\":%d}",
          separator, v, config.head_dim, config.tile_tokens, config.stages, cta_threads(variant, config),
          config.ctas_per_sm, shared_bytes(config), bytes_in_flight(config));
      separator = ",";
    }
  }
  puts("]");
}
