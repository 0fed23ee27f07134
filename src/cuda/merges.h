// SPDX-License-Identifier: MIT
// Merges have no plan in the interface, so their launches are remembered here.
#ifndef VECINA_CUDA_MERGES_H_
#define VECINA_CUDA_MERGES_H_

#include <map>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "core/backend.h"
#include "cuda/launch_sequence.h"

namespace vecina::internal::cuda {

// Args is MergeArgs or MergeBackwardArgs.
template <typename Args>
class Merges {
 public:
  // On the stream `queue`; host tensors are copied to the device and back, and it returns when
  // done.
  Status run(const Args& args, std::shared_ptr<const DeviceState> state, void* queue);

 private:
  using Key = std::vector<int64_t>;
  Status run_on_device(const Args& args, std::shared_ptr<const DeviceState> state, void* queue);

  std::shared_mutex mutex_;  // guards sequences_
  std::map<Key, std::shared_ptr<const LaunchSequence<Args>>> sequences_;
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_MERGES_H_
