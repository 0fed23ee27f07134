// SPDX-License-Identifier: MIT
// Random problems for checks: small enough for the reference loops, awkward on purpose.
#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "cli/conformance.h"

namespace vecina::cli {
namespace {

// Multiplications of one product, all pairs and heads. The reference does about 0.8 of them in a
// nanosecond; the mean case is far below the limit.
constexpr double kMaxWork = 4e6;

template <typename T, size_t N>
T pick(Random& random, const T (&choices)[N]) {
  return choices[random.integer(0, static_cast<int64_t>(N) - 1)];
}

// Extent, window, dilation and strides of one axis; every rule between them holds.
void draw_axis(vecina_problem& p, int a, int64_t longest, Random& random) {
  p.extent[a] = random.chance(0.1) ? 1 : random.integer(1, longest);
  // Not a divisor of the extent as a rule, so the dilation groups are unequal.
  p.dilation[a] = random.chance(0.7) ? 1 : random.integer(1, std::min<int64_t>(p.extent[a], 5));
  const int64_t largest = p.extent[a] / p.dilation[a];
  const bool is_whole = random.chance(0.15);
  const int64_t usual = random.chance(0.7) ? std::min<int64_t>(largest, 9) : largest;
  p.kernel_size[a] = is_whole ? largest : random.integer(1, usual);
  p.is_causal[a] = random.chance(0.25);
  if (random.chance(0.25)) {
    p.stride[a] = random.chance(0.3) ? p.kernel_size[a] : random.integer(1, p.kernel_size[a]);
  } else if (random.chance(0.15)) {
    p.output_stride[a] = random.integer(1, 4);
  }
}

void draw_tokens(vecina_problem& p, Random& random) {
  if (p.rank == 1 && random.chance(0.25)) {
    p.kind = VECINA_ATTENTION;
    p.extent[0] = random.integer(1, 120);
    p.query_extent[0] = random.chance(0.3) ? p.extent[0] : random.integer(1, 120);
    p.is_causal[0] = random.chance(0.5);
    return;
  }
  constexpr int64_t kLongest[] = {200, 24, 9};
  for (int a = 0; a < p.rank; ++a) draw_axis(p, a, kLongest[p.rank - 1], random);
}

void draw_sizes(vecina_problem& p, Random& random) {
  constexpr int32_t kUsualHeadDims[] = {12, 16, 30, 32, 64};
  const auto draw_head_dim = [&] {
    return random.chance(0.5) ? pick(random, kUsualHeadDims)
                              : static_cast<int32_t>(random.integer(1, 80));
  };
  p.batch = random.chance(0.03) ? 0 : random.integer(1, 3);
  p.heads_kv = static_cast<int32_t>(random.integer(1, 3));
  p.heads = p.heads_kv * (random.chance(0.5) ? 1 : static_cast<int32_t>(random.integer(2, 4)));
  p.head_dim = draw_head_dim();
  if (random.chance(0.25)) p.head_dim_value = draw_head_dim();
  if (random.chance(0.3)) p.additional_tokens = random.integer(1, 5);
  if (random.chance(0.25)) {
    constexpr double kScales[] = {0.0, 1.0, -0.25, 0.5};
    p.has_scale = 1;
    p.scale = random.chance(0.5) ? pick(random, kScales) : random.uniform() - 0.5;
  }
  constexpr int32_t kDtypes[] = {VECINA_F32, VECINA_F32, VECINA_F64, VECINA_F16, VECINA_BF16};
  p.dtype = pick(random, kDtypes);
}

void draw_lengths_and_bias(vecina_problem& p, Random& random) {
  p.has_bias = p.kind == VECINA_NEIGHBORHOOD && random.chance(0.3);
  if (random.chance(0.2)) {
    p.lengths = VECINA_LENGTHS_PADDED;
  } else if (random.chance(0.2)) {
    p.lengths = VECINA_LENGTHS_PACKED;
    p.samples = static_cast<int32_t>(random.integer(1, 4));
    p.batch = 1;
  }
}

// At most this many multiplications; the window counts at full size.
double work(const vecina_problem& p) {
  double queries = 1.0, seen = 1.0;
  for (int a = 0; a < p.rank; ++a) {
    const bool is_attention = p.kind == VECINA_ATTENTION;
    queries *= static_cast<double>(is_attention ? p.query_extent[a] : p.extent[a]);
    seen *= static_cast<double>(is_attention ? p.extent[a] : p.kernel_size[a]);
  }
  const double samples = static_cast<double>(std::max<int64_t>(p.batch, p.samples));
  return samples * p.heads * queries * (seen + static_cast<double>(p.additional_tokens)) *
         std::max(p.head_dim, p.head_dim_value);
}

}  // namespace

bool is_quick(const vecina_problem& problem) { return work(problem) <= kMaxWork; }

vecina_problem random_problem(Random& random, bool everything) {
  while (true) {
    const double draw = random.uniform();
    const int rank = draw < 0.4 ? 1 : draw < 0.75 ? 2 : 3;
    vecina_problem problem;
    vecina_problem_init(&problem, sizeof(problem), rank);
    draw_tokens(problem, random);
    draw_sizes(problem, random);
    if (everything) draw_lengths_and_bias(problem, random);
    if (!is_quick(problem)) continue;
    if (vecina_problem_check(&problem) != VECINA_OK) throw std::logic_error(vecina_last_error());
    return problem;
  }
}

}  // namespace vecina::cli
