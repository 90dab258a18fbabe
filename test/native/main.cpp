// Runs the C++ tests: all of them, or those whose name holds one of the arguments; --list names them instead.
// A line a test ("ok NAME" or "FAILED NAME: why") and one for the sum; exit code 1 when a test failed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "harness.h"

namespace lean::test {

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

}  // namespace lean::test

int main(int argc, char** argv) {
  using lean::test::Test;
  std::vector<Test> chosen = lean::test::tests();
  std::sort(chosen.begin(), chosen.end(), [](const Test& a, const Test& b) { return strcmp(a.name, b.name) < 0; });
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    for (const Test& test : chosen) printf("%s\n", test.name);
    return 0;
  }
  std::erase_if(chosen, [&](const Test& test) {
    return argc > 1 && std::none_of(argv + 1, argv + argc, [&](const char* part) { return strstr(test.name, part); });
  });
  int failed = 0;
  for (const Test& test : chosen) {
    const auto start = std::chrono::steady_clock::now();
    try {
      test.body();
      const auto time = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
      printf("ok %s (%lld ms)\n", test.name, static_cast<long long>(time.count()));
    } catch (const std::exception& error) {
      ++failed;
      printf("FAILED %s: %s\n", test.name, error.what());
    }
    fflush(stdout);
  }
  printf("%zu passed, %d failed\n", chosen.size() - static_cast<size_t>(failed), failed);
  return failed > 0 || chosen.empty() ? 1 : 0;
}
