// SPDX-License-Identifier: MIT
// Before hopper_forward.cu, where samples have lengths of their own: for each sample the tensors as
// the copy engine sees them, which end where the sample does, so that copies fill in zeros beyond
// and stores leave out what lies there; and the number of its first block. Clears the output of
// what no query writes.
#include "config.h"
#include "hopper_params.h"
#include "samples.cuh"
#include "types.h"

namespace vecina::cuda {
namespace {

constexpr int kFirstAxis = 3 - kConfig.rank;
constexpr bool kIsPacked = kConfig.lengths == kPackedLengths;
constexpr int kThreads = 256;
constexpr int kPieceBytes = 16;
constexpr int kPieces = kConfig.head_dim_value * 2 / kPieceBytes;  // of an output row

// How a sample's queries are cut into blocks.
struct Cut {
  int tiles[3];
  int blocks;
};
VECINA_DEVICE Cut cut_of(const HopperSamplesParams& params, int index) {
  const Sample sample = extents_of<kFirstAxis>(params.lengths, index);
  const bool has_keys = params.has_additional != 0 || sample.key.count() > 0;
  Cut cut = {{1, 1, 1}, sample.has_windows && has_keys ? params.num_packs : 0};
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) {
    const int dilation = params.dilation[a], block = params.block[a];
    const int longest = (sample.output.extent[a] + dilation - 1) / dilation;  // dilation group
    cut.tiles[a] = (longest + block - 1) / block * dilation;
    cut.blocks *= cut.tiles[a];
  }
  return cut;
}

VECINA_DEVICE void set_address(unsigned map, const char* address) {
  asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(map),
               "l"(address)
               : "memory");
}
template <int kDimension>
VECINA_DEVICE void set_extent(unsigned map, int extent) {
  asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], %1, %2;" ::"r"(map),
               "n"(kDimension), "r"(extent)
               : "memory");
}
template <int kDimension>
VECINA_DEVICE void set_stride(unsigned map, long long bytes) {
#if __CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ < 5
  bytes >>= 4;  // compilers before CUDA 12.5 take it so
#endif
  // The innermost dimension has no stride.
  asm volatile(
      "tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], %1, %2;" ::"r"(map),
      "n"(kDimension - 1), "l"(bytes)
      : "memory");
}

// A sample's rows among those of all, in the same unit.
VECINA_DEVICE HopperRows rows_of(const Tokens& tokens, HopperRows rows) {
  if constexpr (kIsPacked) {
    rows.batch = tokens.first * rows.token[2];
    rows.token[1] = tokens.extent[2] * rows.token[2];
    rows.token[0] = tokens.extent[1] * rows.token[1];
  } else {
    rows.batch *= tokens.sample;
  }
  return rows;
}

// One tensor's map for the sample, made at `map` in shared memory.
VECINA_DEVICE void make_map(const HopperTokens& all, const Tokens& tokens, HopperMap* map,
                            HopperMap* to) {
  const HopperRows rows = rows_of(tokens, all.rows);
  *map = all.map;
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(map));
  set_address(at, all.data + rows.batch);
  // Dimensions of one token may have any stride; none may be empty.
  set_extent<1>(at, na_max(tokens.extent[2], 1));
  if (tokens.extent[2] > 1) set_stride<1>(at, rows.token[2]);
  if constexpr (kConfig.rank > 1) {
    set_extent<2>(at, na_max(tokens.extent[1], 1));
    if (tokens.extent[1] > 1) set_stride<2>(at, rows.token[1]);
  }
  if constexpr (kConfig.rank > 2) {  // else the heads
    set_extent<3>(at, na_max(tokens.extent[0], 1));
    if (tokens.extent[0] > 1) set_stride<3>(at, rows.token[0]);
  }
  set_extent<4>(at, 1);
  *to = *map;
  asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
}

// By one warp.
VECINA_DEVICE void describe(const HopperSamplesParams& params, const Sample& sample,
                            const Cut& cut) {
  __shared__ __align__(128) HopperMap maps[4];
  const int lane = static_cast<int>(threadIdx.x), index = sample.key.sample;
  long long before = 0;
  for (int i = lane; i < index; i += 32) before += cut_of(params, i).blocks;
  before = sum_over_warp(before);
  HopperSample& to = params.samples[index];
  if (lane == 0) {
    params.first_blocks[index] = static_cast<int>(before);
    if (index + 1 == static_cast<int>(gridDim.x)) {
      params.first_blocks[index + 1] = static_cast<int>(before) + cut.blocks;
    }
    for (int a = 0; a < 3; ++a) {
      to.extent[a] = sample.key.extent[a];
      to.num_queries[a] = sample.output.extent[a];
      to.tiles[a] = cut.tiles[a];
    }
    to.output = rows_of(sample.output, params.output_rows);
    to.lse = rows_of(sample.output, params.lse_rows);
  }
  if (lane == 0) make_map(params.query, sample.query, &maps[0], &to.maps.query);
  if (lane == 1) make_map(params.key, sample.key, &maps[1], &to.maps.key);
  if (lane == 2) make_map(params.value, sample.key, &maps[2], &to.maps.value);
  if (lane == 3) make_map(params.output, sample.output, &maps[3], &to.maps.output);
}

// Output is 0 and lse -infinity where the sample has no query, or a query sees nothing. A warp
// takes a token, blocks along y share them.
VECINA_DEVICE void clear_rest(const HopperSamplesParams& params, const Sample& sample,
                              bool has_blocks) {
  const Tokens& tokens = sample.output;
  int extent[3], written[3];
  bool is_whole = has_blocks;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    extent[a] = kIsPacked ? tokens.extent[a] : params.num_queries[a];
    written[a] = has_blocks ? tokens.extent[a] : 0;
    is_whole = is_whole && written[a] == extent[a];
  }
  if (is_whole) return;
  const HopperRows output = rows_of(tokens, params.output.rows);  // in bytes
  const HopperRows lse = rows_of(tokens, params.lse_rows);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp =
      static_cast<int>(blockIdx.y) * (kThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  const int num_warps = static_cast<int>(gridDim.y) * (kThreads / 32);
  const int num_tokens = extent[0] * extent[1] * extent[2];
  for (int i = warp; i < num_tokens; i += num_warps) {
    const int token[3] = {i / (extent[1] * extent[2]), i / extent[2] % extent[1], i % extent[2]};
    if (token[0] < written[0] && token[1] < written[1] && token[2] < written[2]) continue;
    char* row = params.output.data + output.batch;
    long long lse_row = lse.batch;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      row += token[a] * output.token[a];
      lse_row += token[a] * lse.token[a];
    }
    for (int piece = lane; piece < params.heads * kPieces; piece += 32) {
      char* to = row + piece / kPieces * params.output_head + piece % kPieces * kPieceBytes;
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    }
    if (params.lse == nullptr) continue;
    for (int head = lane; head < params.heads; head += 32) {
      params.lse[lse_row + head * params.lse_head] = -infinity();
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    hopper_samples(const __grid_constant__ HopperSamplesParams params) {
  wait_for_previous();
  let_next_start();
  const int index = static_cast<int>(blockIdx.x);
  const Sample sample = sample_at<kConfig.lengths, kFirstAxis>(params.lengths, index);
  const Cut cut = cut_of(params, index);
  if (blockIdx.y == 0 && threadIdx.x < 32) describe(params, sample, cut);
  clear_rest(params, sample, cut.blocks > 0);
}

}  // namespace vecina::cuda
