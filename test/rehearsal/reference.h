// What a case's result must be: attention in float64 on the rounded inputs, and how far a kernel may be from it.
#pragma once

#include <string>
#include <vector>

#include "tensors.h"

namespace lean::cases {

struct Result {
  std::vector<double> out;  // [batch][query][head][dim]
  std::vector<double> lse;  // [batch][query][head]
};

// The expected result, and the same formula as a plain framework computes it: every intermediate rounded to K's type.
struct Reference {
  Result exact;
  std::vector<double> rounded_out;
};

Reference reference(const Tensors& tensors);

// What a kernel wrote, in its own types.
Result read_result(const Tensors& tensors, const void* out, const float* lse);

// Positions of NaN and infinity first, then the error of the whole, of every row, and of every element. The first
// violation, described; empty: none.
std::string compare(const Case& c, const Tensors& tensors, const Reference& expected, const Result& actual);

}  // namespace lean::cases
