// SPDX-License-Identifier: MIT
// A block computes at most twice with tensor cores. A masked partner counts 0 times its element,
// which is not 0 for a NaN or infinity: where a result is not finite, the block computes again with
// such elements as 0, and then a warp each of its rows alone, partner by partner. A row keeps what
// the block stored if that is finite and the row meets no such element.
#ifndef VECINA_CUDA_KERNELS_ALONE_CUH_
#define VECINA_CUDA_KERNELS_ALONE_CUH_

#include "owners.cuh"

namespace vecina::cuda {

// A row's columns lane, lane + 32, ... in the threads of a warp.
template <int kSize>
struct SpreadRow {
  static constexpr int kCount = (kSize + 31) / 32;
  float columns[kCount];

  // Or only of columns kFirst to kEnd - 1, the others 0.
  template <int kFirst = 0, int kEnd = kSize>
  VECINA_DEVICE void load(const char* row, bool& is_good) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      columns[m] = 0.0f;
      if (32 * m >= kFirst && 32 * m + lane < kEnd) {
        vecina::cuda::load<Element, 1>(row + (32 * m + lane) * 2, columns + m);
      }
    }
    is_good = is_good && is_finite();
  }
  template <int kFirst = 0, int kEnd = kSize>
  VECINA_DEVICE void store(char* row) const {
    static_assert(kFirst % 32 == 0);
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      if (32 * m >= kFirst && 32 * m + lane < kEnd) {
        vecina::cuda::store<Element, 1>(columns + m, row + (32 * m + lane) * 2);
      }
    }
  }
  VECINA_DEVICE float dot(const SpreadRow& other) const {
    float sum = 0.0f;
#pragma unroll
    for (int m = 0; m < kCount; ++m) sum = fmaf(columns[m], other.columns[m], sum);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    return sum;
  }
  VECINA_DEVICE bool is_finite() const {
    bool is_good = true;
#pragma unroll
    for (int m = 0; m < kCount; ++m) is_good = is_good && vecina::cuda::is_finite(columns[m]);
    return is_good;
  }
  // Takes the columns of `other` that are finite in both.
  VECINA_DEVICE void keep_finite(const SpreadRow& other) {
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      if (vecina::cuda::is_finite(columns[m]) && vecina::cuda::is_finite(other.columns[m])) {
        columns[m] = other.columns[m];
      }
    }
  }
  VECINA_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < kCount; ++m) columns[m] = 0.0f;
  }
  VECINA_DEVICE void scale(float factor) {
#pragma unroll
    for (int m = 0; m < kCount; ++m) columns[m] *= factor;
  }
  VECINA_DEVICE void add_scaled(float factor, const SpreadRow& other) {
#pragma unroll
    for (int m = 0; m < kCount; ++m) columns[m] = fmaf(factor, other.columns[m], columns[m]);
  }
};

using KeyRow = SpreadRow<kKeyColumns>;
using ValueRow = SpreadRow<kValueColumns>;

// Calls `visit` with the token of every partner of an owner within the axes.
template <class Visit>
VECINA_DEVICE void for_partners(const HaloParams& params, const int (&token)[3], Visit visit) {
  Range range[3] = {{0, 1}, {0, 1}, {0, 1}};
  int residue[3] = {0, 0, 0};
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    residue[a] = token[a] % kGroupSteps.owners[a];
    const Group group = make_group(params, a, residue[a]);
    range[a] = partners_of(a, group, token[a] / kGroupSteps.owners[a]);
    residue[a] = group.partner_residue;
  }
#pragma unroll 1
  for (int x = range[0].begin; x < range[0].end; ++x) {
#pragma unroll 1
    for (int y = range[1].begin; y < range[1].end; ++y) {
#pragma unroll 1
      for (int z = range[2].begin; z < range[2].end; ++z) {
        const int partner[3] = {na_group_to_axis(x, kGroupSteps.partners[0], residue[0]),
                                na_group_to_axis(y, kGroupSteps.partners[1], residue[1]),
                                na_group_to_axis(z, kGroupSteps.partners[2], residue[2])};
        visit(partner);
      }
    }
  }
}

// Adds the bias of a pair to its logit, in powers of two.
VECINA_DEVICE void add_bias(const HaloParams& params, int head, const int (&owner)[3],
                            const int (&partner)[3], float& logit) {
  if constexpr (kConfig.has_bias) {
    int relative[3] = {0, 0, 0};
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      const int query = (kConfig.of_keys ? partner : owner)[a] * kConfig.output_stride[a];
      const int key = (kConfig.of_keys ? owner : partner)[a];
      relative[a] = key / kConfig.dilation[a] - query / kConfig.dilation[a] +
                    kConfig.kernel_size[a] - 1;
    }
    logit += *reinterpret_cast<const float*>(row_at(params.bias, 0, head, relative)) *
             static_cast<float>(1.0 / kLn2);
  }
}

using ComputeRow = void(const HaloParams&, int batch, int head, const int (&token)[3]);

template <ComputeRow kCompute>
__device__ __noinline__ void compute_rows_alone(const HaloParams& params) {
  const Tile tile = make_tile(params);
  const Box box = first_owners(tile);
#pragma unroll 1
  for (int i = 0; i < tile.num_items; ++i) {
    const Item item = make_item(params, tile.first_item + i);
#pragma unroll 1
    for (int r = static_cast<int>(threadIdx.x) % kThreadsOfBox / 32; r < kRows;
         r += kThreadsOfBox / 32) {
      const Row row = make_row(tile, box, r);
      if (row.is_owner) kCompute(params, item.batch, item.head + row.head, row.token);
    }
  }
}

// The block's work. compute(is_cleaned): false if a thread's results are not finite.
template <ComputeRow kComputeAlone, class Compute>
VECINA_DEVICE void compute_block(const HaloParams& params, Compute compute) {
#pragma unroll 1
  for (int attempt = 0; attempt < 2; ++attempt) {
    const bool is_good = compute(attempt == 1);
    if (__syncthreads_and(is_good) != 0 && attempt == 0) return;
  }
  compute_rows_alone<kComputeAlone>(params);
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_ALONE_CUH_
