// The softmax state: identity, associativity up to rounding, extremes, sinks, and merging finished results.
#include "../../csrc/core/softmax_state.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../../csrc/runtime/merge_states.h"
#include "harness.h"

namespace lean::test {

namespace {

// A state with an accumulator of one dimension.
struct Row {
  SoftmaxState state;
  float acc = 0.0f;
};

Row token(float score, float value) { return {{score * kLog2E, 1.0f}, value}; }

Row merged(const Row& a, const Row& b) {
  const Merge merge_of = merge(a.state, b.state);
  return {merge_of.state, merge_of.weight_a * a.acc + merge_of.weight_b * b.acc};
}

Row fold(const std::vector<Row>& rows, size_t begin, size_t end) {
  Row sum;
  for (size_t i = begin; i < end; ++i) sum = merged(sum, rows[i]);
  return sum;
}

struct Result {
  double out;
  double lse;
};

Result result_of(const Row& row) {
  const Finish finished = finish(row.state);
  return {double{finished.normalise} * row.acc, finished.lse};
}

// In float64, from natural scores.
Result expected(const std::vector<float>& scores, const std::vector<float>& values) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0, out = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(scores[i] - largest);
    sum += weight;
    out += weight * values[i];
  }
  return {out / sum, largest + std::log(sum)};
}

bool close(double value, double wanted, double relative) {
  return std::abs(value - wanted) <= relative * (1 + std::abs(wanted));
}

void check_close(const Row& row, const Result& wanted, double relative = 1e-5) {
  const Result result = result_of(row);
  if (!close(result.out, wanted.out, relative)) CHECK_EQUAL(result.out, wanted.out);
  if (!close(result.lse, wanted.lse, relative)) CHECK_EQUAL(result.lse, wanted.lse);
}

TEST(state_the_empty_state_is_the_identity_bit_by_bit) {
  for (const float score : {-5e5f, -1.0f, 0.0f, 3.5f, 5e5f}) {
    const Row row = token(score, 1.25f);
    for (const Row& same : {merged(row, Row{}), merged(Row{}, row)}) {
      CHECK_EQUAL(same.state.m, row.state.m);
      CHECK_EQUAL(same.state.l, row.state.l);
      CHECK_EQUAL(same.acc, row.acc);
    }
  }
  const Row empty = merged(Row{}, Row{});
  CHECK_EQUAL(empty.state.m, kNegInf);
  CHECK_EQUAL(empty.state.l, 0.0f);
  CHECK_EQUAL(empty.acc, 0.0f);
}

TEST(state_any_bracketing_gives_the_same_up_to_rounding) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    const float spread = round % 3 == 0 ? 50.0f : 1.0f;
    std::vector<float> scores, values;
    std::vector<Row> rows;
    for (int i = 0; i < 60; ++i) {
      scores.push_back(spread * random.normal());
      values.push_back(random.normal());
      rows.push_back(token(scores.back(), values.back()));
    }
    const Result wanted = expected(scores, values);
    check_close(fold(rows, 0, rows.size()), wanted);
    const auto first = static_cast<size_t>(random.integer(0, 60)), second = static_cast<size_t>(random.integer(0, 60));
    const size_t low = std::min(first, second), high = std::max(first, second);
    const Row a = fold(rows, 0, low), b = fold(rows, low, high), c = fold(rows, high, rows.size());
    check_close(merged(merged(a, b), c), wanted);
    check_close(merged(a, merged(b, c)), wanted);
    check_close(merged(c, merged(b, a)), wanted);  // commutative as well
  }
}

TEST(state_extreme_scores) {
  for (const float score : {5e5f, -5e5f}) {
    std::vector<Row> rows;
    for (int i = 0; i < 8; ++i) rows.push_back(token(score, static_cast<float>(i)));
    const Row sum = fold(rows, 0, rows.size());
    CHECK_EQUAL(sum.state.l, 8.0f);
    check_close(sum, {3.5, score + std::log(8.0)});
  }
  // One huge outlier, first, last or between, leaves nothing of the others.
  for (size_t at = 0; at < 5; ++at) {
    std::vector<Row> rows(5, token(-5e5f, 100.0f));
    rows[at] = token(5e5f, 7.0f);
    const Row sum = fold(rows, 0, rows.size());
    CHECK_EQUAL(sum.state.l, 1.0f);
    CHECK_EQUAL(sum.acc, 7.0f);
    check_close(sum, {7.0, 5e5});
  }
}

TEST(state_minus_infinity_is_nothing) {
  // A masked token: its weight against the guarded maximum is 2^(-inf - 0) = 0.
  const SoftmaxState masked{kNegInf, 0.0f};
  CHECK_EQUAL(std::exp2(kNegInf - safe_max(kNegInf)), 0.0f);
  CHECK_EQUAL(safe_max(3.0f), 3.0f);
  CHECK_EQUAL(rescale_factor(kNegInf, kNegInf), 0.0f);
  CHECK_EQUAL(rescale_factor(kNegInf, 1.0f), 0.0f);
  CHECK_EQUAL(rescale_factor(1.0f, 1.0f), 1.0f);
  const Merge all_masked = merge(masked, masked);
  CHECK_EQUAL(all_masked.state.l, 0.0f);
  const Finish finished = finish(all_masked.state);
  CHECK_EQUAL(finished.normalise, 0.0f);
  CHECK_EQUAL(finished.lse, kNegInf);
}

TEST(state_a_nan_score_stays_visible) {
  const SoftmaxState nan{NAN, NAN}, plain{1.0f, 1.0f};
  CHECK(std::isnan(finish(merge(nan, plain).state).lse));
  CHECK(std::isnan(finish(merge(plain, nan).state).lse));
  CHECK(std::isnan(finish(merge(SoftmaxState{}, nan).state).lse));
}

TEST(state_a_sink_is_one_element_without_a_value) {
  std::vector<float> scores, values;
  std::vector<Row> rows;
  Random random(2);
  for (int i = 0; i < 20; ++i) {
    scores.push_back(random.normal());
    values.push_back(random.normal());
    rows.push_back(token(scores.back(), values.back()));
  }
  const float sink = 1.5f;
  scores.push_back(sink);
  values.push_back(0.0f);
  const Result wanted = expected(scores, values);
  const Row sink_row{sink_state(sink), 0.0f};
  check_close(merged(fold(rows, 0, 20), sink_row), wanted);
  // Merged once, wherever the context is cut and whichever part it joins.
  for (size_t cut = 0; cut <= 20; ++cut) {
    const Row a = fold(rows, 0, cut), b = fold(rows, cut, 20);
    check_close(merged(merged(a, sink_row), b), wanted);
    check_close(merged(a, merged(b, sink_row)), wanted);
  }
  // Merged twice it would not be the same.
  const Result twice = result_of(merged(merged(fold(rows, 0, 20), sink_row), sink_row));
  CHECK(!close(twice.lse, wanted.lse, 1e-3));
  // Alone: nothing attended to but the sink.
  const Result alone = result_of(merged(Row{}, sink_row));
  CHECK_EQUAL(alone.out, 0.0);
  CHECK(close(alone.lse, sink, 1e-6));
}

TEST(state_of_a_log_sum_exp_is_the_state_again) {
  for (const float lse : {-1e4f, -3.0f, 0.0f, 12.5f, 1e4f}) {
    const Finish finished = finish(state_from_lse(lse));
    CHECK(close(finished.lse, lse, 1e-6));
    CHECK_EQUAL(finished.normalise, 1.0f);
  }
  CHECK_EQUAL(state_from_lse(kNegInf).l, 0.0f);
  CHECK_EQUAL(state_from_lse(kNegInf).m, kNegInf);
}

TEST(merge_states_skips_empty_parts_whatever_they_hold) {
  constexpr int64_t kRows = 3, kHeadDim = 8;
  std::vector<float> out(kRows * kHeadDim, 2.0f), poison(kRows * kHeadDim, NAN);
  const std::vector<float> lse(kRows, 1.0f), nothing(kRows, kNegInf);
  std::vector<float> merged_out(kRows * kHeadDim), merged_lse(kRows);
  const FinishedPart parts[] = {
      {poison.data(), nothing.data()}, {out.data(), lse.data()}, {poison.data(), nothing.data()}};
  merge_states(parts, DType::kF32, kRows, kHeadDim, merged_out.data(), merged_lse.data());
  for (const float value : merged_out) CHECK_EQUAL(value, 2.0f);
  for (const float value : merged_lse) CHECK(close(value, 1.0, 1e-6));
  // None but empty ones: 0 and -infinity.
  merge_states(std::span(parts, 1), DType::kF32, kRows, kHeadDim, merged_out.data(), merged_lse.data());
  for (const float value : merged_out) CHECK_EQUAL(value, 0.0f);
  for (const float value : merged_lse) CHECK_EQUAL(value, kNegInf);
  // The result may go where a part stands.
  const FinishedPart halves[] = {{out.data(), lse.data()}, {out.data(), lse.data()}};
  std::vector<float> lse_in_place = lse;
  merge_states(halves, DType::kF32, kRows, kHeadDim, out.data(), lse_in_place.data());
  for (const float value : out) CHECK_EQUAL(value, 2.0f);
}

}  // namespace

}  // namespace lean::test
