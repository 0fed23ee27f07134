// SPDX-License-Identifier: MIT
// How a problem is cut into boxes of queries and tiles of keys for kernels/hopper_forward.cu: what
// a cut costs, counted exactly, and which costs least. Needs no device.
#ifndef VECINA_CUDA_HOPPER_TILING_H_
#define VECINA_CUDA_HOPPER_TILING_H_

#include <array>

#include "core/problem.h"
#include "cuda/kernels/hopper_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

using vecina::cuda::HopperConfig;
using vecina::cuda::HopperLayout;

// The problem's axis, or one token for the axes before its first of three.
Axis hopper_axis(const Problem& problem, int a);

// What the kernel does, in all. A tile counts once for each warpgroup that computes it.
struct HopperWork {
  double blocks = 0;        // of queries: what a multiprocessor takes at a time
  double tiles = 0;         // of keys, computed
  double whole_tiles = 0;   // of those, seen by all queries of the warpgroup: no mask
  double loaded_tiles = 0;  // once for each block
  double flops = 0;         // of all computed tiles
  double useful_share = 0;  // of those flops that visible pairs need
};
HopperWork count_hopper_work(const Problem& problem, const HopperConfig& config);

// Milliseconds by the cost model.
double predict_hopper_ms(const HopperConfig& config, const HopperWork& work,
                         const DeviceFacts& facts);

// The cut that the model thinks fastest.
struct HopperChoice {
  HopperConfig config = {};
  HopperWork work;
  double predicted_ms = 0;
};
HopperChoice choose_hopper_tiling(const Problem& problem, const DeviceFacts& facts);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HOPPER_TILING_H_
