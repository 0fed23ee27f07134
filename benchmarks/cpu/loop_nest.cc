// SPDX-License-Identifier: MIT
#include "benchmarks/cpu/loop_nest.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/window.h"

namespace vecina::benchmarks {

void run_loop_nest(const LoopNest& nest) {
  const NaAxis rows = {nest.height, nest.kernel_height, 1, false};
  const NaAxis columns = {nest.width, nest.kernel_width, 1, false};
  const int dim = nest.head_dim;
  const int token = nest.heads * dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  std::vector<float> weights(static_cast<size_t>(nest.kernel_height * nest.kernel_width));
  for (int q = 0; q < nest.batch * nest.height * nest.width; ++q) {
    const int x = q % nest.width, y = q / nest.width % nest.height;
    const int image = q / (nest.width * nest.height) * nest.height * nest.width;
    const int first_y = na_window_begin(rows, y), first_x = na_window_begin(columns, x);
    for (int h = 0; h < nest.heads; ++h) {
      const float* query = nest.query + int64_t{q} * token + h * dim;
      float* output = nest.output + int64_t{q} * token + h * dim;
      float largest = -INFINITY;
      float* weight = weights.data();
      for (int ky = first_y; ky < first_y + nest.kernel_height; ++ky) {
        for (int kx = first_x; kx < first_x + nest.kernel_width; ++kx) {
          const float* key = nest.key + int64_t{image + ky * nest.width + kx} * token + h * dim;
          float logit = 0.0f;
          for (int d = 0; d < dim; ++d) logit += query[d] * key[d];
          *weight++ = logit * scale;
          largest = std::max(largest, logit * scale);
        }
      }
      float sum = 0.0f;
      for (float& w : weights) sum += w = std::exp(w - largest);
      std::fill_n(output, dim, 0.0f);
      weight = weights.data();
      for (int ky = first_y; ky < first_y + nest.kernel_height; ++ky) {
        for (int kx = first_x; kx < first_x + nest.kernel_width; ++kx) {
          const float* value = nest.value + int64_t{image + ky * nest.width + kx} * token + h * dim;
          const float w = *weight++ / sum;
          for (int d = 0; d < dim; ++d) output[d] += w * value[d];
        }
      }
    }
  }
}

}  // namespace vecina::benchmarks
