// SPDX-License-Identifier: MIT
#include "cuda/merges.h"

#include <mutex>
#include <utility>

#include "core/tensor.h"
#include "cuda/small_plan.h"
#include "cuda/staging.h"

namespace vecina::internal::cuda {
namespace {

constexpr size_t kMaxRemembered = 512;  // as plans

void add_to_key(const vecina_tensor* tensor, std::vector<int64_t>* key) {
  if (tensor == nullptr || !given(*tensor)) {
    key->push_back(-1);
    return;
  }
  const int64_t is_aligned = reinterpret_cast<uintptr_t>(address(*tensor)) % 16 == 0;
  key->insert(key->end(), {tensor->ndim, tensor->dtype, tensor->device_index, is_aligned});
  key->insert(key->end(), tensor->shape, tensor->shape + tensor->ndim);
  key->insert(key->end(), tensor->strides, tensor->strides + tensor->ndim);
}

// All that the launches depend on: of each tensor, everything but the address.
void write_key(const MergeArgs& args, std::vector<int64_t>* key) {
  key->assign({args.count});
  for (int32_t i = 0; i < args.count; ++i) {
    add_to_key(&args.outputs[i], key);
    add_to_key(&args.lses[i], key);
  }
  add_to_key(args.output, key);
  add_to_key(args.lse, key);
}

// The tensors of a merge in one list, with room to let copies point elsewhere.
struct TensorList {
  std::vector<vecina_tensor> outputs, lses;
  vecina_tensor output, lse;

  explicit TensorList(const MergeArgs& args)
      : outputs(args.outputs, args.outputs + args.count),
        lses(args.lses, args.lses + args.count),
        output(*args.output),
        lse(*args.lse) {}
  MergeArgs args() const {
    return {static_cast<int32_t>(outputs.size()), outputs.data(), lses.data(), &output, &lse};
  }
  template <typename Visit>
  Status for_each(Visit visit) {
    for (size_t i = 0; i < outputs.size(); ++i) {
      VECINA_RETURN_IF_ERROR(visit(&outputs[i], false));
      VECINA_RETURN_IF_ERROR(visit(&lses[i], false));
    }
    VECINA_RETURN_IF_ERROR(visit(&output, true));
    return given(lse) ? visit(&lse, true) : Status();
  }
};

}  // namespace

Status Merges::run_on_device(const MergeArgs& args, std::shared_ptr<const DeviceState> state,
                             void* queue) {
  thread_local Key key;
  write_key(args, &key);
  std::shared_ptr<const LaunchSequence<MergeArgs>> sequence;
  {
    const std::shared_lock lock(mutex_);
    const auto found = sequences_.find(key);
    if (found != sequences_.end()) sequence = found->second;
  }
  if (sequence == nullptr) {
    std::vector<KernelLaunch<MergeArgs>> launches;
    VECINA_RETURN_IF_ERROR(small_plan_merge(args, state->device->facts(), &launches));
    auto made = std::make_shared<LaunchSequence<MergeArgs>>();
    VECINA_RETURN_IF_ERROR(
        LaunchSequence<MergeArgs>::make(std::move(state), std::move(launches), made.get()));
    sequence = made;
    const std::unique_lock lock(mutex_);
    if (sequences_.size() >= kMaxRemembered) sequences_.clear();
    sequences_.emplace(key, std::move(made));
  }
  return sequence->run(args, queue);
}

Status Merges::run(const MergeArgs& args, std::shared_ptr<const DeviceState> state, void* queue) {
  if (args.outputs[0].device == VECINA_CUDA) return run_on_device(args, std::move(state), queue);
  const Device& device = *state->device;
  const Device::Current current(device);
  VECINA_RETURN_IF_ERROR(current.status());
  TensorList host(args), on_device(args);
  StagedTensors copies;
  const auto stage = [&](vecina_tensor* tensor, bool is_output) {
    const vecina_tensor from = *tensor;
    const Status added = copies.add(device, is_output, tensor);
    return added.ok() ? copies.copy_in(copies.size() - 1, from) : added;
  };
  VECINA_RETURN_IF_ERROR(on_device.for_each(stage));
  VECINA_RETURN_IF_ERROR(run_on_device(on_device.args(), std::move(state), nullptr));
  VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuStreamSynchronize, (nullptr));
  size_t index = 0;
  return host.for_each(
      [&](vecina_tensor* tensor, bool) { return copies.copy_out(index++, *tensor); });
}

}  // namespace vecina::internal::cuda
