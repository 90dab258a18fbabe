// Runs the kernels on a GPU, without Node: conformance of the primitives, the registry of cases, timings.
//
//   gpu_runner [primitives] [cases] [time] [--every N] [--case N] [--quick]     (no name: all but time)
//   gpu_runner time [--tile N] [--stages N] [--warps N] [--ctas N]              what a launch may choose, to tune it
//
// The cases are those that the rehearsal executes on the host (test/rehearsal/cases.h). On a thinned grid, under
// compute-sanitizer with each of memcheck, racecheck, initcheck and synccheck:
//
//   compute-sanitizer --tool memcheck gpu_runner cases --every 10
//
// Exit code 1: a check failed. 3: there is no usable GPU; nothing was run.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "parts.h"

int main(int argc, char** argv) {
  std::set<std::string> parts;
  int every = 1, only = -1;
  bool quick = false;
  lean::LaunchOptions choice;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--every" && i + 1 < argc)
      every = atoi(argv[++i]);
    else if (argument == "--case" && i + 1 < argc)
      only = atoi(argv[++i]);
    else if (argument == "--tile" && i + 1 < argc)
      choice.tile_tokens = atoi(argv[++i]);
    else if (argument == "--stages" && i + 1 < argc)
      choice.stages = atoi(argv[++i]);
    else if (argument == "--warps" && i + 1 < argc)
      choice.warps = atoi(argv[++i]);
    else if (argument == "--ctas" && i + 1 < argc)
      choice.ctas_per_sm = atoi(argv[++i]);
    else if (argument == "--quick")
      quick = true;
    else if (argument == "primitives" || argument == "cases" || argument == "time")
      parts.insert(argument);
    else
      return fprintf(stderr, "Unknown argument %s\n", argv[i]), 2;
  }
  if (parts.empty()) parts = {"primitives", "cases"};

  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    fprintf(stderr, "No usable GPU: nothing was run.\n");
    return 3;
  }
  printf("%s, compute capability %d.%d, %d SMs\n", properties.name, properties.major, properties.minor,
         properties.multiProcessorCount);

  int failed = 0;
  if (parts.count("primitives")) failed += lean::gpu::test_primitives();
  if (parts.count("cases")) failed += lean::gpu::test_cases(every > 0 ? every : 1, only);
  if (parts.count("time")) lean::gpu::time_decode(quick, choice);
  printf("%d checks failed\n", failed);
  return failed ? 1 : 0;
}
