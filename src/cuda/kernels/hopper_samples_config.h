// SPDX-License-Identifier: MIT
// What hopper_samples.cu is compiled for.
#ifndef VECINA_CUDA_KERNELS_HOPPER_SAMPLES_CONFIG_H_
#define VECINA_CUDA_KERNELS_HOPPER_SAMPLES_CONFIG_H_

namespace vecina::cuda {

struct HopperSamplesConfig {
  int rank;
  int lengths;         // vecina_lengths: padded or packed
  int head_dim_value;  // a multiple of 8
};

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_SAMPLES_CONFIG_H_
