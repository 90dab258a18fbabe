// The C++ tests' harness: a list of named tests, a check that throws, and seeded random numbers.
#pragma once

#include <cstdint>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace lean::test {

struct Test {
  const char* name;
  void (*body)();
};

// All tests, in the order in which the linker brings them together; main.cpp sorts them by name.
std::vector<Test>& tests();

struct Registered {
  Registered(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <class A, class B>
void check_equal(const A& a, const B& b, const char* text, const char* file, int line) {
  if (a == b) return;
  std::ostringstream what;
  what << text << ": " << a << " against " << b;
  fail(file, line, what.str());
}

// Numbers in [low, high].
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  float normal() { return normal_(engine_); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

}  // namespace lean::test

#define TEST(name)                                                      \
  static void name();                                                   \
  static const ::lean::test::Registered registered_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) ::lean::test::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_EQUAL(a, b) ::lean::test::check_equal((a), (b), #a " == " #b, __FILE__, __LINE__)
