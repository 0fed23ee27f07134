// SPDX-License-Identifier: MIT
// What kernels share that add to sums in global memory: of keys, to the gradients of queries too;
// of queries, to that of the bias.
#ifndef VECINA_CUDA_KERNELS_TILES_ADDITIONS_CUH_
#define VECINA_CUDA_KERNELS_TILES_ADDITIONS_CUH_

#include "tiles.cuh"

namespace vecina::cuda {

VECINA_DEVICE void add_to(float* sum, float a) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(sum), "f"(a) : "memory");
}
// Adds four numbers that lie together, in any order with what other blocks add. At once from PTX
// 8.1 on, which NVRTC 12.1 brought.
VECINA_DEVICE void add_to(float* sums, const float (&a)[4]) {
#if __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums), "f"(a[0]),
               "f"(a[1]), "f"(a[2]), "f"(a[3])
               : "memory");
#else
#pragma unroll
  for (int e = 0; e < 4; ++e) add_to(sums + e, a[e]);
#endif
}

// Of the tile under way and of the one before.
struct SharedTiles {
  float* sums[2][kPartners];  // of each query; null if it does not exist
  unsigned steps[2][kBoxes];  // that each warp took, a bit each
  bool is_added[2];           // of warpgroups: whether the tile adds to queries
};
VECINA_DEVICE SharedTiles& shared_tiles() {
  __shared__ SharedTiles tiles;
  return tiles;
}
VECINA_DEVICE void store_shared(unsigned to, unsigned word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
}

// Of a tile, once nothing reads those of the tile before the last any more.
VECINA_DEVICE void share_sums(const HaloParams& params, const Tile& tile, const Tables& tables,
                              const Walk& walk, int batch, int head, int number) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= kPartners) return;
  const Partner partner = tables.partners[thread];
  float* sums = nullptr;
  if (is_within(limits_of(tile, walk), partner)) {
    int token[3];
    first_token(tile, walk, token);
    const long long query = token_number(params, token) + partner.number;
    sums = query_sums(params, batch, head + walk.part) + query * kColumnsOfSums;
  }
  shared_tiles().sums[number % 2][thread] = sums;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_TILES_ADDITIONS_CUH_
