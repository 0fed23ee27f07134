// SPDX-License-Identifier: MIT
// Forward on Hopper's tensor cores: a block for each multiprocessor, in which one warpgroup copies
// and makes masks and two or three compute, each for its own box of queries. Tensors are read and
// written where they lie, whatever the rank, strides and dilation: the copy engine gathers boxes.
//
// After FlashAttention-3 (Shah et al., arXiv:2407.08608): products of keys run beside those of the
// values before and the softmax.
#include "hopper_attend.cuh"
#include "hopper_copy.cuh"
#include "hopper_mask.cuh"
#include "hopper_ptx.h"
#include "hopper_tiles.cuh"

namespace vecina::cuda {
namespace {

VECINA_DEVICE void init_barriers(unsigned shared) {
  // Given back by a lane of each warp; or by one thread, once the output has left.
  for (int w = 0; w < kWarpgroups; ++w) {
    init_barrier(shared + kLayout.query_full + w * 8, 1);
    init_barrier(shared + kLayout.query_empty + w * 8, hopper_frees_query_early(kConfig) ? 4 : 1);
  }
  for (int i = 0; i < kConfig.stages; ++i) {
    init_barrier(shared + kLayout.key_full + i * 8, 2);  // keys and masks
    init_barrier(shared + kLayout.value_full + i * 8, 1);
    init_barrier(shared + kLayout.key_empty + i * 8, 4 * kWarpgroups);
    init_barrier(shared + kLayout.value_empty + i * 8, 4 * kWarpgroups);
  }
  publish_barriers();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    hopper_forward(const __grid_constant__ HopperParams params) {
  extern __shared__ __align__(1024) char memory[];
  const int thread = static_cast<int>(threadIdx.x);
  // The same for all threads of a warp, and known to be.
  const int warpgroup = __shfl_sync(0xffffffffu, thread >> 7, 0);
  const unsigned shared =
      __shfl_sync(0xffffffffu, static_cast<unsigned>(__cvta_generic_to_shared(memory)), 0);
  write_mask_tables(shared);
  if constexpr (kLayout.key_rows < kLayout.tile_keys || kLayout.query_rows < kHopperRows) {
    // Rows that no box writes must hold numbers.
    for (int i = thread * 16; i < kLayout.padded_end; i += kThreads * 16) {
      set_shared_quad(shared + i, make_uint4(0, 0, 0, 0));
    }
    publish_shared();
  }
  if (thread == 0) init_barriers(shared);
  __syncthreads();
  wait_for_previous();
  let_next_start();
  if constexpr (kConfig.has_lengths) {
    for (int i = thread; i < params.num_samples; i += kThreads) {
      const HopperMaps& maps = params.samples[i].maps;
      acquire_map(maps.query);
      acquire_map(maps.key);
      acquire_map(maps.value);
      acquire_map(maps.output);
    }
    __syncthreads();
  }
  if (warpgroup == 0) {
    give_registers<hopper_spare_registers(kConfig)>();
    const int warp = __shfl_sync(0xffffffffu, thread >> 5, 0);
    if (warp == 3) {
      write_masks(params, shared);
    } else if ((thread & 31) == 0) {
      if (warp == 0) {
        load_tiles<true>(params, shared);
      } else if (warp == 1) {
        load_tiles<false>(params, shared);
      } else {
        load_queries(params, shared);
      }
    }
  } else {
    take_registers<hopper_registers(kConfig)>();
    attend(params, shared, warpgroup - 1);
  }
}

}  // namespace vecina::cuda
