// SPDX-License-Identifier: MIT
// Launches of a part of a call: of one sample, of some columns of values. Where the part's tensors
// begin in the call's is decided when planning: of those of a run only the addresses are read.
#ifndef VECINA_CUDA_PART_OF_CALL_H_
#define VECINA_CUDA_PART_OF_CALL_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "cuda/launch.h"

namespace vecina::internal::cuda {

template <typename Args>
class PartOfCall {
 public:
  using Tensor = vecina_tensor Args::*;

  // The part's tensor begins so many bytes behind the call's.
  void shift(Tensor tensor, int64_t bytes) {
    if (bytes != 0) shifts_.push_back({tensor, bytes});
  }
  // The part has none.
  void leave_out(Tensor tensor) { left_out_.push_back(tensor); }

  bool is_whole() const { return shifts_.empty() && left_out_.empty(); }

  // Of a call's arguments the part's; shapes stay.
  Args of(Args args) const {
    for (const Shift& each : shifts_) {
      if (given(args.*each.tensor)) (args.*each.tensor).byte_offset += each.bytes;
    }
    for (const Tensor tensor : left_out_) args.*tensor = {};
    return args;
  }

 private:
  struct Shift {
    Tensor tensor;
    int64_t bytes;
  };
  std::vector<Shift> shifts_;
  std::vector<Tensor> left_out_;
};

// A launch that was planned for a part is given the arguments of the whole call.
template <typename Args>
void fill_part(PartOfCall<Args> part, KernelLaunch<Args>* launch) {
  if (part.is_whole()) return;
  launch->fill = [fill = std::move(launch->fill), part = std::move(part)](
                     const Args& args, void* memory) { return fill(part.of(args), memory); };
}

}  // namespace vecina::internal::cuda
#endif  // VECINA_CUDA_PART_OF_CALL_H_
