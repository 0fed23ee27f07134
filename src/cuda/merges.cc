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

// Calls visit(tensor, is_output) for those of a call; nullptr: not given.
template <typename Visit>
void for_tensors(const MergeArgs& args, Visit visit) {
  for (int i = 0; i < args.count; ++i) visit(&args.outputs[i], false);
  for (int i = 0; i < args.count; ++i) visit(&args.lses[i], false);
  visit(args.output, true);
  visit(args.lse, true);
}
template <typename Visit>
void for_tensors(const MergeBackwardArgs& args, Visit visit) {
  for (int i = 0; i < args.count; ++i) visit(&args.outputs[i], false);
  for (int i = 0; i < args.count; ++i) visit(&args.lses[i], false);
  visit(args.grad_output, false);
  visit(args.grad_lse, false);
  for (int i = 0; i < args.count; ++i) visit(&args.grad_outputs[i], true);
  for (int i = 0; i < args.count; ++i) visit(&args.grad_lses[i], true);
}

// A call with the tensors of a list in that order.
MergeArgs with_tensors(const MergeArgs& args, const vecina_tensor* list) {
  const int n = args.count;
  return {n, list, list + n, list + 2 * n, list + 2 * n + 1};
}
MergeBackwardArgs with_tensors(const MergeBackwardArgs& args, const vecina_tensor* list) {
  const int n = args.count;
  const vecina_tensor* gradients = list + 2 * n + 2;
  return {n, list, list + n, list + 2 * n, list + 2 * n + 1, gradients, gradients + n};
}

// All that the launches depend on: of each tensor, everything but the address.
template <typename Args>
void write_key(const Args& args, std::vector<int64_t>* key) {
  key->assign({args.count});
  for_tensors(args, [&](const vecina_tensor* tensor, bool) { add_to_key(tensor, key); });
}

}  // namespace

template <typename Args>
Status Merges<Args>::run_on_device(const Args& args, std::shared_ptr<const DeviceState> state,
                                   void* queue) {
  thread_local Key key;
  write_key(args, &key);
  std::shared_ptr<const LaunchSequence<Args>> sequence;
  {
    const std::shared_lock lock(mutex_);
    const auto found = sequences_.find(key);
    if (found != sequences_.end()) sequence = found->second;
  }
  if (sequence == nullptr) {
    std::vector<KernelLaunch<Args>> launches;
    VECINA_RETURN_IF_ERROR(small_plan_merge(args, state->facts(), &launches));
    auto made = std::make_shared<LaunchSequence<Args>>();
    VECINA_RETURN_IF_ERROR(
        LaunchSequence<Args>::make(std::move(state), std::move(launches), made.get()));
    sequence = made;
    const std::unique_lock lock(mutex_);
    if (sequences_.size() >= kMaxRemembered) sequences_.clear();
    sequences_.emplace(key, std::move(made));
  }
  return sequence->run(args, queue);
}

template <typename Args>
Status Merges<Args>::run(const Args& args, std::shared_ptr<const DeviceState> state, void* queue) {
  if (args.outputs[0].device == VECINA_CUDA) return run_on_device(args, std::move(state), queue);
  const Device& device = *state->device;
  const Device::Current current(device);
  VECINA_RETURN_IF_ERROR(current.status());
  StagedTensors copies;
  std::vector<vecina_tensor> host, on_device;  // of those not given: empty ones
  Status status;
  for_tensors(args, [&](const vecina_tensor* tensor, bool is_output) {
    host.push_back(tensor == nullptr ? vecina_tensor{} : *tensor);
    on_device.push_back(host.back());
    if (!status.ok() || !given(host.back())) return;
    status = copies.add(device, is_output, &on_device.back());
    if (status.ok()) status = copies.copy_in(copies.size() - 1, host.back());
  });
  VECINA_RETURN_IF_ERROR(status);
  VECINA_RETURN_IF_ERROR(
      run_on_device(with_tensors(args, on_device.data()), std::move(state), nullptr));
  VECINA_CUDA_RETURN_IF_ERROR(Driver::get(), cuStreamSynchronize, (nullptr));
  size_t index = 0;
  for (const vecina_tensor& tensor : host) {
    if (given(tensor)) VECINA_RETURN_IF_ERROR(copies.copy_out(index++, tensor));
  }
  return {};
}

template class Merges<MergeArgs>;
template class Merges<MergeBackwardArgs>;

}  // namespace vecina::internal::cuda
