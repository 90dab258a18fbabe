#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace lean::cases {

namespace {

double round_to(DType type, double value) {
  const float f = static_cast<float>(value);
  if (type == DType::kF16) return to_float(from_float<Float16>(f));
  if (type == DType::kBF16) return to_float(from_float<BFloat16>(f));
  return f;
}

// ||out - ref|| / ||ref|| that the contract allows, on contexts up to 4k: float32 accumulation, softmax weights and
// output rounded to the type.
double norm_bound(DType type) { return type == DType::kF32 ? 1e-5 : type == DType::kF16 ? 5e-4 : 3.5e-3; }

// A single row has fewer elements for errors to average out over than the whole.
constexpr double kRowFactor = 2;

std::string where(const Tensors& t, size_t row) {
  const auto heads = static_cast<size_t>(t.params.num_query_heads), queries = static_cast<size_t>(t.params.query_len);
  return "sequence " + std::to_string(row / heads / queries) + " query " + std::to_string(row / heads % queries) +
         " head " + std::to_string(row % heads);
}

std::string number(double x) {
  char text[32];
  snprintf(text, sizeof text, "%.9g", x);
  return text;
}

bool same_kind(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (std::isinf(a) || std::isinf(b)) return a == b;
  return true;
}

double norm(const std::vector<double>& a, const std::vector<double>* b, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) {
    const double x = b ? a[i] - (*b)[i] : a[i];
    sum += x * x;
  }
  return std::sqrt(sum);
}

}  // namespace

Reference reference(const Tensors& t) {
  const DecodeParams& p = t.params;
  const int dim = p.head_dim;
  Reference r;
  r.exact.out.assign(t.out_rows() * dim, 0.0);
  r.exact.lse.assign(t.out_rows(), -std::numeric_limits<double>::infinity());
  r.rounded_out.assign(t.out_rows() * dim, 0.0);
  std::vector<double> scores, rounded;
  for (int s = 0; s < p.batch; ++s)
    for (int32_t query = 0; query < p.query_len; ++query)
      for (int32_t head = 0; head < p.num_query_heads; ++head) {
        const auto row = static_cast<size_t>(output_row(p, s, {query, head}));
        const int32_t visible = visible_tokens(p, t.contexts[s], query);
        if (visible == 0) continue;
        const float* q = &t.q_values[row * dim];
        const auto kv_row = [&](int32_t token) {
          return static_cast<size_t>((t.first_token[s] + token) * p.num_kv_heads + head / p.group_size()) * dim;
        };
        scores.resize(visible);
        rounded.resize(visible);
        double m = -std::numeric_limits<double>::infinity(), rounded_m = m;
        for (int32_t token = 0; token < visible; ++token) {
          const float* k = &t.k_values[kv_row(token)];
          double dot = 0;
          for (int d = 0; d < dim; ++d) dot += static_cast<double>(q[d]) * k[d];
          scores[token] = dot * p.scale;
          rounded[token] = round_to(p.kv_type, scores[token]);
          m = std::max(m, scores[token]);
          rounded_m = std::max(rounded_m, rounded[token]);
        }
        double l = 0, rounded_l = 0;
        for (int32_t token = 0; token < visible; ++token) {
          l += scores[token] = std::exp(scores[token] - m);
          rounded_l += rounded[token] = std::exp(rounded[token] - rounded_m);
        }
        double* out = &r.exact.out[row * dim];
        double* rounded_out = &r.rounded_out[row * dim];
        for (int32_t token = 0; token < visible; ++token) {
          const float* v = &t.v_values[kv_row(token)];
          const double weight = scores[token] / l, rounded_weight = round_to(p.kv_type, rounded[token] / rounded_l);
          for (int d = 0; d < dim; ++d) {
            out[d] += weight * v[d];
            rounded_out[d] += rounded_weight * v[d];
          }
        }
        for (int d = 0; d < dim; ++d) rounded_out[d] = round_to(p.q_type, rounded_out[d]);
        r.exact.lse[row] = m + std::log(l);
      }
  return r;
}

Result read_result(const Tensors& t, const void* out, const float* lse) {
  Result r;
  r.lse.assign(lse, lse + t.out_rows());
  r.out.resize(t.out_rows() * t.params.head_dim);
  for (size_t i = 0; i < r.out.size(); ++i) {
    switch (t.params.q_type) {
      case DType::kF32:
        r.out[i] = static_cast<const float*>(out)[i];
        break;
      case DType::kF16:
        r.out[i] = to_float(static_cast<const Float16*>(out)[i]);
        break;
      case DType::kBF16:
        r.out[i] = to_float(static_cast<const BFloat16*>(out)[i]);
        break;
    }
  }
  return r;
}

std::string compare(const Case& c, const Tensors& t, const Reference& expected, const Result& actual) {
  const auto dim = static_cast<size_t>(t.params.head_dim);
  const size_t rows = t.out_rows();
  const auto &want = expected.exact, &got = actual;
  for (size_t row = 0; row < rows; ++row) {
    if (!same_kind(want.lse[row], got.lse[row]))
      return "lse of " + where(t, row) + ": expected " + number(want.lse[row]) + ", got " + number(got.lse[row]);
    for (size_t d = 0; d < dim; ++d)
      if (!same_kind(want.out[row * dim + d], got.out[row * dim + d]))
        return "out of " + where(t, row) + " dim " + std::to_string(d) + ": expected " +
               number(want.out[row * dim + d]) + ", got " + number(got.out[row * dim + d]);
  }

  // The products see K's type even where queries and outputs are float32.
  const double bound = norm_bound(t.params.kv_type);
  double worst_rounded = 0;
  for (size_t i = 0; i < want.out.size(); ++i)
    worst_rounded = std::max(worst_rounded, std::abs(expected.rounded_out[i] - want.out[i]));
  const double element_bound = 2 * worst_rounded + 1e-5;
  // Large scores lose bits of their own in float32: lse to 1e-4 then.
  const double lse_bound = c.peak > 4 ? 1e-4 : 1e-5;
  for (size_t row = 0; row < rows; ++row) {
    const double error = norm(got.out, &want.out, row * dim, row * dim + dim),
                 size = norm(want.out, nullptr, row * dim, row * dim + dim);
    if (error > kRowFactor * bound * size)
      return "out of " + where(t, row) + ": relative error " + number(error / size) + ", allowed " +
             number(kRowFactor * bound);
    for (size_t d = 0; d < dim; ++d) {
      const double x = std::abs(got.out[row * dim + d] - want.out[row * dim + d]);
      if (x > element_bound)
        return "out of " + where(t, row) + " dim " + std::to_string(d) + ": error " + number(x) + ", allowed " +
               number(element_bound);
    }
    if (std::isinf(want.lse[row])) continue;
    const double x = std::abs(got.lse[row] - want.lse[row]);
    if (x > lse_bound * (1 + std::abs(want.lse[row])))
      return "lse of " + where(t, row) + ": expected " + number(want.lse[row]) + ", got " + number(got.lse[row]);
  }
  const double error = norm(got.out, &want.out, 0, want.out.size()), size = norm(want.out, nullptr, 0, want.out.size());
  if (error > bound * size) return "out: relative error " + number(error / size) + ", allowed " + number(bound);
  return {};
}

}  // namespace lean::cases
