// SPDX-License-Identifier: MIT
// Before kernels that take delta as given: facts of each query, from lse, output and their
// gradients. Around those that add to the queries' gradients: sums of zero, and the gradients,
// rounded. Rows by 8 threads each, in the order of memory.
// What is not finite: alone.cuh.
#include "gradient_alone.cuh"
#include "row_part.cuh"
#include "tiles.cuh"

namespace vecina::cuda {
namespace {

static_assert(!kConfig.of_keys && kAdditional == 0, "rows are queries");
constexpr int kThreadsOfRow = 8;

struct QueryRow {
  bool exists;
  int batch, head, token[3];
};
VECINA_DEVICE QueryRow make_query_row(const HaloParams& params) {
  const long long thread = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  const int number = static_cast<int>(thread / kThreadsOfRow);
  QueryRow row = {};
  row.head = number % params.heads;
  int rest = number / params.heads;
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    row.token[a] = rest % params.axes[a].extent;
    rest /= params.axes[a].extent;
  }
  row.batch = rest;
  row.exists = rest * params.num_items_of_sample < params.num_items;
  return row;
}
VECINA_DEVICE int place_in_row() { return static_cast<int>(threadIdx.x) % kThreadsOfRow; }
VECINA_DEVICE float* sums_of(const HaloParams& params, const QueryRow& row) {
  return query_sums(params, row.batch, row.head) +
         static_cast<long long>(token_number(params, row.token)) * kColumnsOfSums;
}
VECINA_DEVICE float real_at(const HaloRows& tensor, const QueryRow& row) {
  return *reinterpret_cast<const float*>(row_at(tensor, row.batch, row.head, row.token));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    tiles_gradient_facts(const __grid_constant__ HaloParams params) {
  wait_for_previous();
  const QueryRow row = make_query_row(params);
  float dot = 0.0f;
  if (row.exists) {
    const char* grad_output = row_at(params.grad_output, row.batch, row.head, row.token);
    const char* output = row_at(params.output, row.batch, row.head, row.token);
    for (int c = place_in_row(); c < ValueSide::kChunks; c += kThreadsOfRow) {
      float a[8], b[8];
      load<Element, 8>(grad_output + 16 * c, a);
      load<Element, 8>(output + 16 * c, b);
#pragma unroll
      for (int e = 0; e < 8; ++e) dot = fmaf(a[e], b[e], dot);
    }
    if constexpr (kConfig.adds_queries) {
      uint4* sums = reinterpret_cast<uint4*>(sums_of(params, row));
      for (int c = place_in_row(); c < kColumnsOfSums / 4; c += kThreadsOfRow) {
        sums[c] = make_uint4(0, 0, 0, 0);
      }
    }
  }
  dot = sum_over_lanes<kThreadsOfRow>(dot);
  if (!row.exists || place_in_row() != 0) return;
  const float lse = real_at(params.lse, row);
  float grad_lse = 0.0f;
  if constexpr (kConfig.has_grad_lse) grad_lse = real_at(params.grad_lse, row);
  const float maximum = lse == -infinity() ? 0.0f : lse * static_cast<float>(1.0 / kLn2);
  head_facts(params, row.batch, row.head)[token_number(params, row.token)] =
      make_facts(maximum, lse == -infinity() ? 0.0f : 1.0f, -grad_lse, dot);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    tiles_gradient_round(const __grid_constant__ HaloParams params) {
  wait_for_previous();
  const QueryRow row = make_query_row(params);
  float all = 0.0f;
  if (row.exists) {
    const float* sums = sums_of(params, row);
    char* gradient = row_at(params.grad_query, row.batch, row.head, row.token);
    for (int step = place_in_row(); step < KeySide::kSteps; step += kThreadsOfRow) {
      float columns[2][8];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float part[4];
        load<float, 4>(reinterpret_cast<const char*>(sums + 16 * step + 4 * q), part);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          columns[e / 2][2 * q + e % 2] = part[e] * params.scale;
          all += columns[e / 2][2 * q + e % 2];
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (2 * step + half < KeySide::kChunks) {
          store<Element, 8>(columns[half], gradient + 32 * step + 16 * half);
        }
      }
    }
  }
  unsigned bad = __ballot_sync(0xffffffffu, !is_finite(all));
  __syncwarp();  // what a row's threads stored, all read
  while (bad != 0) {
    const int thread = __ffs(static_cast<int>(bad)) - 1;
    bad &= ~(((1u << kThreadsOfRow) - 1) << (thread / kThreadsOfRow * kThreadsOfRow));
    const auto of_thread = [&](int x) { return __shfl_sync(0xffffffffu, x, thread); };
    const int token[3] = {of_thread(row.token[0]), of_thread(row.token[1]),
                          of_thread(row.token[2])};
    differentiate_query_alone(params, of_thread(row.batch), of_thread(row.head), token);
  }
}

}  // namespace vecina::cuda
