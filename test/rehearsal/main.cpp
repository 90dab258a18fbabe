// The rehearsal's program: runs the decode grid, or a part of it, and prints a line for every case that fails.
//
//   rehearse_fast [--case N] [--set NAME] [--every N] [--shard I/N] [--stop] [--list] [--seed N]
//
// --set takes one part of the grid, --every N each Nth case, --shard the Ith of N equal parts; --stop ends at the first
// failure (what a planted bug needs to be found). Exit code 1: something failed.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "rehearse.h"

#if defined(LEAN_REHEARSAL_RACES)
constexpr bool kCheckRaces = true;
#else
constexpr bool kCheckRaces = false;
#endif

int main(int argc, char** argv) {
  using namespace lean;
  int only = -1, every = 1, shard = 0, shards = 1;
  uint64_t seed = 1;
  const char* set = nullptr;
  bool stop = false, list = false;
  for (int i = 1; i < argc; ++i) {
    const auto is = [&](const char* name) { return !strcmp(argv[i], name) && i + 1 < argc; };
    if (is("--case"))
      only = atoi(argv[++i]);
    else if (is("--set"))
      set = argv[++i];
    else if (is("--every"))
      every = atoi(argv[++i]);
    else if (is("--seed"))
      seed = strtoull(argv[++i], nullptr, 10);
    else if (is("--shard"))
      sscanf(argv[++i], "%d/%d", &shard, &shards);
    else if (!strcmp(argv[i], "--stop"))
      stop = true;
    else if (!strcmp(argv[i], "--list"))
      list = true;
    else
      return fprintf(stderr, "Unknown option %s\n", argv[i]), 2;
  }

  rehearsal::DeviceMemory memory;
  struct Count {
    int run = 0, failed = 0;
  };
  std::map<std::string, Count> sets;
  int64_t run = 0, failed = 0, launches = 0, bytes = 0, position = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (const cases::Case& c : cases::decode_grid()) {
    if (set && strcmp(c.set, set)) continue;
    if (only >= 0 ? c.index != only : c.index % every != 0 || position++ % shards != shard) continue;
    if (list) {
      puts(c.describe().c_str());
      continue;
    }
    const rehearsal::Outcome outcome =
        rehearsal::rehearse(c, memory, seed * 1000 + static_cast<uint64_t>(c.index), kCheckRaces);
    if (outcome.skipped) continue;
    ++run;
    ++sets[c.set].run;
    launches += outcome.launches;
    bytes += outcome.counters.bytes_copied;
    if (outcome.failure.empty()) continue;
    ++failed;
    ++sets[c.set].failed;
    printf("FAIL %s: %s\n", c.describe().c_str(), outcome.failure.c_str());
    fflush(stdout);
    if (stop) break;
  }
  if (list) return 0;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (const auto& [set, count] : sets) printf("set %s: %d cases, %d failed\n", set.c_str(), count.run, count.failed);
  printf("%lld cases, %lld launches, %lld failed, %.1f MB of K and V, %.1f s\n", static_cast<long long>(run),
         static_cast<long long>(launches), static_cast<long long>(failed), static_cast<double>(bytes) / 1e6, seconds);
  return failed || !run ? 1 : 0;
}
