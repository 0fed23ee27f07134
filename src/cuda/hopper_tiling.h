// SPDX-License-Identifier: MIT
// How a problem is cut into boxes of queries and tiles of keys for kernels/hopper_forward.cu: what
// a cut costs, counted exactly, and which costs least. Needs no device.
#ifndef VECINA_CUDA_HOPPER_TILING_H_
#define VECINA_CUDA_HOPPER_TILING_H_

#include <array>
#include <vector>

#include "core/problem.h"
#include "cuda/kernels/hopper_config.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

using vecina::cuda::HopperConfig;
using vecina::cuda::HopperLayout;

// The problem's axis, or one token for the axes before its first of three.
Axis hopper_axis(const Problem& problem, int a);

// The copy engine's maps hold one sample, so that each has a launch of its own.
bool has_heads_for_batch(const Problem& problem);
int64_t count_hopper_launches(const Problem& problem);  // one after another

// What the kernel does, in all. A tile counts once for each warpgroup that computes it.
struct HopperWork {
  double launches = 1;      // among which blocks are divided
  double blocks = 0;        // of queries: what a multiprocessor takes at a time
  double tiles = 0;         // of keys, computed
  double whole_tiles = 0;   // of those, seen by all queries of the warpgroup: no mask
  double loaded_tiles = 0;  // once for each block
  double short_tiles = 0;   // of those computed, multiplied in part
  double flops = 0;         // of all computed tiles
  double useful_share = 0;  // of those flops that visible pairs need
};
HopperWork count_hopper_work(const Problem& problem, const HopperConfig& config);

// Milliseconds by the cost model.
double predict_hopper_ms(const HopperConfig& config, const HopperWork& work,
                         const DeviceFacts& facts);

struct HopperChoice {
  HopperConfig config = {};
  HopperWork work;
  double predicted_ms = 0;
  bool is_tuned = false;  // measured to be the fastest, not predicted
};
HopperChoice hopper_choice(const Problem& problem, const DeviceFacts& facts,
                           const HopperConfig& config);
// The `count` cuts that the model thinks fastest, the fastest first; fewer if there are not as
// many.
std::vector<HopperChoice> rank_hopper_tilings(const Problem& problem, const DeviceFacts& facts,
                                              int count);
// The first of them; predicted_ms is 0 if there is none.
HopperChoice choose_hopper_tiling(const Problem& problem, const DeviceFacts& facts);

// The same boxes with every other way to take turns, to chain and to let output leave.
std::vector<HopperConfig> hopper_variants(const HopperConfig& config, const DeviceFacts& facts);

// The whole configuration for a cut that did not come from here: what depends on the problem alone
// is not read from it. False if the kernel cannot be compiled so.
bool apply_cut(const Problem& problem, const DeviceFacts& facts, const HopperConfig& cut,
               HopperConfig* config);

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_HOPPER_TILING_H_
