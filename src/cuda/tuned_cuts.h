// SPDX-License-Identifier: MIT
// Cuts that `vecina tune` measured fastest, on disk beside the compiled kernels: one small file a
// problem. A file that does not read back as it was written, or is of another device or library,
// counts for nothing. Needs no device.
#ifndef VECINA_CUDA_TUNED_CUTS_H_
#define VECINA_CUDA_TUNED_CUTS_H_

#include <optional>
#include <string>
#include <utility>

#include "core/problem.h"
#include "cuda/disk_cache.h"
#include "cuda/kernels/hopper_config.h"

namespace vecina::internal::cuda {

// Of the configuration those members count that apply_cut (hopper_tiling.h) reads.
struct TunedCut {
  vecina::cuda::HopperConfig cut = {};
  double measured_ms = 0;
};

class TunedCuts {
 public:
  // `device`: the GPU's name. The cache must outlive this.
  TunedCuts(const DiskCache& cache, std::string device)
      : cache_(cache), device_(std::move(device)) {}

  std::optional<TunedCut> read(const Problem& problem) const;
  // Best effort, as DiskCache::write.
  void write(const Problem& problem, const TunedCut& tuned) const;
  std::string file_name(const Problem& problem) const;

  // Those of all devices and libraries; how many were removed.
  static int clear(const DiskCache& cache);

 private:
  const DiskCache& cache_;
  const std::string device_;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_TUNED_CUTS_H_
