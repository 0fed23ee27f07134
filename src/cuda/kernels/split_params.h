// SPDX-License-Identifier: MIT
// What the kernels of the split form are given at run time. Included by the host and by NVRTC.
#ifndef VECINA_CUDA_KERNELS_SPLIT_PARAMS_H_
#define VECINA_CUDA_KERNELS_SPLIT_PARAMS_H_

#include "gather_params.h"

namespace vecina::cuda {

struct SplitParams {
  SmallRows query;            // of qk; of av, the gradient of output
  SmallRows key, additional;  // of qk; of av, the values
  SmallRows bias;
  SmallRows weights;  // or their gradient
  SmallRows result;   // what is summed up
  GatherGeometry geometry;
  long long window_slots;  // the slots of additional tokens follow
  double scale;            // of what is computed; 1 for av
  double empty;            // what split_weights.cu writes into a slot without a key
};
static_assert(sizeof(SplitParams) == 6 * 48 + 264 + 3 * 8, "the host and the kernel must agree");

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_SPLIT_PARAMS_H_
