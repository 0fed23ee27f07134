// SPDX-License-Identifier: MIT
// Problems for Hopper's kernels, one for each thing that they are compiled for.
#ifndef VECINA_TESTS_CUDA_HOPPER_CASES_H_
#define VECINA_TESTS_CUDA_HOPPER_CASES_H_

namespace vecina::internal::cuda {

// A problem and what of the computed work has to be useful.
struct Chosen {
  const char* line;
  double useful_share;  // at least
};
inline constexpr Chosen kChosen[] = {
    {"2d 256x256 kernel_size 80 heads 24 head_dim 128 dtype bf16", 0.85},
    {"2d 256x256 kernel_size 80 stride 16 heads 24 head_dim 128 dtype bf16", 0.9999},
    {"3d 30x48x80 kernel_size 18x24x24 heads 24 head_dim 128 dtype bf16", 0.69},
    {"3d 30x48x80 kernel_size 18x24x24 stride 16x8x8 heads 24 head_dim 128 dtype bf16", 0.9999},
    {"1d 32768 kernel_size 2048 heads 24 head_dim 128 dtype bf16", 0.93},
    {"1d 32768 kernel_size 32768 heads 24 head_dim 128 dtype bf16", 0.99},
    {"2d 256x256 kernel_size 32 heads 24 head_dim 128 dtype f16", 0.62},
    {"2d 128x128 kernel_size 13 batch 4 heads 8 head_dim 128 dtype bf16", 0.38},
    {"3d 16x32x32 kernel_size 5 batch 2 heads 8 head_dim 128 dtype bf16", 0.25},
    {"2d 256x256 kernel_size 80 heads 24 head_dim 64 dtype bf16", 0.8},
    {"3d 30x48x80 kernel_size 18x24x24 heads 24 heads_kv 3 head_dim 128 dtype bf16", 0.8},
    {"2d 256x256 kernel_size 80 causal 1x0 heads 4 head_dim 128 dtype bf16", 0.8},
    {"2d 256x256 kernel_size 40 dilation 2 heads 24 head_dim 128 dtype bf16", 0.7},
    {"2d 256x256 kernel_size 81 additional 1 heads 24 head_dim 128 dtype bf16", 0.8},
    {"2d 256x256 kernel_size 80 heads 24 head_dim 128 head_dim_value 64 dtype bf16", 0.8},
    {"2d 128x128 kernel_size 32 heads 8 head_dim 256 dtype f16", 0.5},
    {"2d 128x128 kernel_size 32 heads 8 head_dim 80 head_dim_value 112 dtype f16", 0.5},
    {"2d 128x128 kernel_size 32 heads 8 head_dim 72 dtype bf16", 0.5},
    {"1d 32768 kernel_size 2048 heads 8 head_dim 120 head_dim_value 88 dtype bf16", 0.85},
    {"3d 30x48x80 kernel_size 18x24x24 heads 24 head_dim 72 head_dim_value 120 dtype bf16", 0.6},
    {"2d 96x96 kernel_size 24 heads 8 head_dim 128 dtype bf16", 0.55},
    {"2d 188x140 kernel_size 49x44 heads 19 head_dim 128 dtype bf16", 0.6},
    {"2d 187x121 kernel_size 36x15 heads 18 head_dim 96 dtype bf16", 0.5},
    {"2d 61x57 kernel_size 31 heads 1 head_dim 80 head_dim_value 112 dtype f16", 0.5},
    {"2d 96x96 kernel_size 31 heads 4 head_dim 64 dtype bf16", 0.5},
    {"2d 96x96 kernel_size 24 dilation 2x1 heads 2 head_dim 128 dtype bf16", 0.4},
    {"1d 32768 kernel_size 2048 heads 24 head_dim 64 dtype bf16", 0.93},
    {"1d 32768 kernel_size 2048 causal heads 24 head_dim 128 dtype bf16", 0.85},
    {"attention 1000x9000 heads 8 head_dim 128 dtype bf16", 0.9},
    {"attention 6000x6000 heads 8 head_dim 128 dtype bf16", 0.9},
    {"2d 256x256 kernel_size 80 batch 2 heads 24 head_dim 128 lengths padded dtype bf16", 0.85},
    {"1d 32768 kernel_size 2048 batch 2 heads 24 head_dim 64 lengths padded dtype f16", 0.93},
    {"3d 30x48x80 kernel_size 18x24x24 heads 24 head_dim 128 lengths packed:3 dtype bf16", 0.69},
    {"3d 30x48x80 kernel_size 18x24x24 heads 24 heads_kv 3 head_dim 64 lengths packed:3 dtype "
     "bf16",
     0.8},
    {"2d 256x256 kernel_size 40 dilation 2 causal 1x0 heads 8 head_dim 128 lengths packed:2 dtype "
     "bf16",
     0.6},
    {"2d 128x128 kernel_size 32 batch 2 heads 8 head_dim 256 additional 70 lengths padded dtype "
     "f16",
     0.4},
    {"2d 256x256 kernel_size 80 heads 24 head_dim 128 dtype bf16 query_key_dtype e4m3", 0.8},
    {"3d 30x48x80 kernel_size 18x24x24 heads 24 head_dim 128 dtype bf16 query_key_dtype e4m3",
     0.65},
    {"1d 32768 kernel_size 2048 heads 24 head_dim 128 dtype f16 query_key_dtype e4m3", 0.9},
    {"1d 32768 kernel_size 32768 heads 24 head_dim 128 dtype bf16 query_key_dtype e4m3", 0.99},
    {"3d 30x48x80 kernel_size 18x24x24 heads 24 heads_kv 3 head_dim 64 dtype bf16 query_key_dtype "
     "e4m3",
     0.7},
    {"2d 128x128 kernel_size 32 dilation 1x2 causal 1x0 heads 8 head_dim 256 additional 3 dtype "
     "f16 query_key_dtype e4m3",
     0.4},
    {"3d 16x32x32 kernel_size 9 batch 2 heads 8 head_dim 96 lengths padded dtype bf16 "
     "query_key_dtype e4m3",
     0.4},
    {"2d 64x64 kernel_size 13 heads 24 head_dim 48 head_dim_value 128 dtype bf16 query_key_dtype "
     "e4m3",
     0.3},
    {"1d 32768 kernel_size 2048 heads 8 head_dim 32 dtype bf16 query_key_dtype e4m3", 0.9},
    {"attention 1000x9000 batch 3 heads 8 head_dim 128 additional 2 lengths padded dtype bf16",
     0.8},
};

// The smallest that they take, of each kind: tests look at every pair of a query and a key.
inline constexpr const char* kSmallest[] = {
    "1d 1200 kernel_size 300 heads 2 head_dim 128 dtype bf16",
    "1d 1300 kernel_size 256 dilation 2 heads 2 head_dim 128 additional 3 dtype f16",
    "1d 1100 kernel_size 400 causal heads 4 heads_kv 2 head_dim 64 dtype bf16",
    "2d 40x44 kernel_size 17x18 batch 2 heads 2 heads_kv 1 head_dim 64 dtype bf16",
    "2d 48x40 kernel_size 20 stride 4x1 causal 0x1 heads 2 head_dim 128 dtype f16",
    "3d 8x16x16 kernel_size 5x9x9 heads 2 head_dim 128 dtype bf16",
    "attention 900x1000 causal heads 2 head_dim 128 head_dim_value 64 dtype bf16",
};

}  // namespace vecina::internal::cuda
#endif  // VECINA_TESTS_CUDA_HOPPER_CASES_H_
