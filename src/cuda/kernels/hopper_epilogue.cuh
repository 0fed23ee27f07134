// SPDX-License-Identifier: MIT
// A warpgroup's output leaves through shared memory in one copy, which stops at the borders; or,
// where there is no memory that is free in time, straight from registers.
#ifndef VECINA_CUDA_KERNELS_HOPPER_EPILOGUE_CUH_
#define VECINA_CUDA_KERNELS_HOPPER_EPILOGUE_CUH_

#include "hopper_copy.cuh"
#include "hopper_ptx.h"
#include "hopper_softmax.cuh"
#include "hopper_tiles.cuh"

namespace vecina::cuda {

// What a warpgroup computes now, as load_queries wrote it.
struct Work {
  int batch, head;           // the first of the packed heads
  int tiles, before, after;  // tiles of keys to compute; to pass over before and after them
  int short_tiles;           // of those to compute, the last
  int query[3], group[3];

  VECINA_DEVICE explicit Work(unsigned words) {
    const uint4 w0 = shared_quad(words), w2 = shared_quad(words + 32);
    batch = static_cast<int>(w0.x);
    head = static_cast<int>(w0.y);
    tiles = static_cast<int>(w0.z);
    before = static_cast<int>(w0.w);
    after = static_cast<int>(shared_word(words + 16));
    short_tiles = 0;
    if constexpr (kConfig.short_rows > 0) {
      short_tiles = static_cast<int>(shared_word(words + 20));
    }
    query[0] = static_cast<int>(w2.x);
    query[1] = static_cast<int>(w2.y);
    query[2] = static_cast<int>(w2.z);
    group[0] = group[1] = group[2] = 0;
    if constexpr (kConfig.is_dilated) {
      const uint4 w3 = shared_quad(words + 48);
      group[0] = static_cast<int>(w3.x);
      group[1] = static_cast<int>(w3.y);
      group[2] = static_cast<int>(w3.z);
    }
  }
  VECINA_DEVICE int token(const HopperParams& params, int axis, int i) const {
    return kConfig.is_dilated ? na_group_to_axis(i, params.axes[axis].dilation, group[axis]) : i;
  }
};

// Where a thread's row lies in a box of kBoxBytes whose 16-byte pieces are swizzled: with the row's
// number, as the copy engine and the products do.
template <int kBoxBytes>
VECINA_DEVICE int swizzled(int row, int piece) {
  return kBoxBytes == 128  ? piece ^ (row & 7)
         : kBoxBytes == 64 ? piece ^ (row >> 1 & 3)
                           : piece ^ (row >> 2 & 1);
}

VECINA_DEVICE int num_queries(const HopperParams& params, const Work& work, int axis) {
  if constexpr (kConfig.has_lengths) return params.samples[work.batch].num_queries[axis];
  return params.axes[axis].num_queries;
}

// Of one row of a thread.
struct Place {
  bool is_query;
  int head;      // among the packed heads
  int token[3];  // of the output

  VECINA_DEVICE Place(const HopperParams& params, const Work& work, int row) {
    constexpr int kBox1 = kConfig.query_box[1], kBox2 = kConfig.query_box[2];
    head = kConfig.packed_heads > 1 ? row / kLayout.query_tokens : 0;
    const int query = kConfig.packed_heads > 1 ? row % kLayout.query_tokens : row;
    const int along[3] = {query / (kBox1 * kBox2), query / kBox2 % kBox1, query % kBox2};
    is_query = row < kLayout.query_rows;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      token[a] = work.token(params, a, work.query[a] + along[a]);
      is_query = is_query && token[a] < num_queries(params, work, a);
    }
  }

  // In elements.
  VECINA_DEVICE long long offset(const HopperRows& rows, long long head_stride,
                                 const Work& work) const {
    long long offset = (kConfig.has_lengths ? rows.batch : work.batch * rows.batch) +
                       (work.head + head) * head_stride;
#pragma unroll
    for (int a = 0; a < 3; ++a) offset += token[a] * rows.token[a];
    return offset;
  }
};

VECINA_DEVICE const HopperRows& output_rows(const HopperParams& params, const Work& work) {
  if constexpr (kConfig.has_lengths) return params.samples[work.batch].output;
  return params.output;
}
VECINA_DEVICE const HopperRows& lse_rows(const HopperParams& params, const Work& work) {
  if constexpr (kConfig.has_lengths) return params.samples[work.batch].lse;
  return params.lse_rows;
}

// Four lanes have two columns each of four pieces of eight; each gets one piece.
VECINA_DEVICE uint4 exchange_pieces(unsigned w0, unsigned w1, unsigned w2, unsigned w3, int lane) {
  constexpr unsigned kAll = 0xffffffffu;
  const bool is_odd = (lane & 1) != 0, is_upper = (lane & 2) != 0;
  const unsigned x0 = __shfl_xor_sync(kAll, is_odd ? w0 : w1, 1);
  const unsigned x2 = __shfl_xor_sync(kAll, is_odd ? w2 : w3, 1);
  w0 = is_odd ? x0 : w0;
  w1 = is_odd ? w1 : x0;
  w2 = is_odd ? x2 : w2;
  w3 = is_odd ? w3 : x2;
  const unsigned y0 = __shfl_xor_sync(kAll, is_upper ? w0 : w2, 2);
  const unsigned y1 = __shfl_xor_sync(kAll, is_upper ? w1 : w3, 2);
  return is_upper ? make_uint4(y0, y1, w2, w3) : make_uint4(w0, w1, y0, y1);
}

template <class Element>
VECINA_DEVICE void store_from_registers(const HopperParams& params, const Work& work, int warp,
                                        int lane, const float (&sums)[kConfig.head_dim_value / 2],
                                        const RunningSum (&rows)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Place place(params, work, warp * 16 + (lane >> 2) + 8 * h);
    const long long offset = place.offset(output_rows(params, work), params.output_head, work);
    char* to = params.output_data + (offset + (lane & 3) * 8) * 2;
    const float scale = 1.0f / rows[h].sum;
#pragma unroll
    for (int c = 0; c < kConfig.head_dim_value; c += 32) {
      const float* from = sums + c / 2 + 2 * h;
      const uint4 piece =
          exchange_pieces(pack(Element{}, from[0] * scale, from[1] * scale),
                          pack(Element{}, from[4] * scale, from[5] * scale),
                          pack(Element{}, from[8] * scale, from[9] * scale),
                          pack(Element{}, from[12] * scale, from[13] * scale), lane);
      const bool is_there = c + 32 <= kConfig.output_columns ||
                            c + (lane & 3) * 8 < kConfig.output_columns;
      if (place.is_query && is_there) *reinterpret_cast<uint4*>(to + c * 2) = piece;
    }
  }
}

// `thread` counts within the warpgroup. Ends with the copy under way, of which thread 0 knows.
template <class Element>
VECINA_DEVICE void store_through_memory(const HopperParams& params, const Work& work,
                                        unsigned memory, int warpgroup, int thread,
                                        const float (&sums)[kConfig.head_dim_value / 2],
                                        const RunningSum (&rows)[2]) {
  constexpr int kHeadDim = kConfig.head_dim_value;
  constexpr int kBoxBytes = hopper_box_bytes(kHeadDim * kHopperValueBytes);
  constexpr int kColumns = kBoxBytes / kHopperValueBytes;
  const int lane = thread & 31, warp = thread >> 5;
  const float scale0 = 1.0f / rows[0].sum, scale1 = 1.0f / rows[1].sum;
  if (kConfig.has_output_buffer && thread == 0) wait_until_stores_have_read();
  sync_threads(4 + warpgroup, 128);
  const int row = warp * 16 + (lane & 7) + (lane >> 3 & 1) * 8;
  const unsigned row_memory = memory + row * kBoxBytes;
#pragma unroll
  for (int e = 0; e < kHeadDim / 8; e += 2) {
    const int piece = e % (kColumns / 8) + (lane >> 4);
    const unsigned to = row_memory + e * 8 / kColumns * (kHopperRows * kBoxBytes) +
                        (swizzled<kBoxBytes>(row, piece) << 4);
    store_matrices(to, pack(Element{}, sums[4 * e] * scale0, sums[4 * e + 1] * scale0),
                   pack(Element{}, sums[4 * e + 2] * scale1, sums[4 * e + 3] * scale1),
                   pack(Element{}, sums[4 * e + 4] * scale0, sums[4 * e + 5] * scale0),
                   pack(Element{}, sums[4 * e + 6] * scale1, sums[4 * e + 7] * scale1));
  }
  publish_shared();
  sync_threads(4 + warpgroup, 128);
  if (thread == 0) {
    BoxOrigin at = box_origin(work.head, params.output_head, work.token(params, 0, work.query[0]),
                              work.token(params, 1, work.query[1]),
                              work.token(params, 2, work.query[2]), batch_in_maps(work.batch));
    const HopperMap& map = maps_of(params, work.batch).output;
#pragma unroll
    for (int h = 0; h < kConfig.packed_heads; ++h) {
#pragma unroll
      for (int box = 0; box < kHeadDim / kColumns; ++box) {
        store_box(memory + (box * kHopperRows + h * kLayout.query_tokens) * kBoxBytes, map,
                  {at.column + box * kColumns, {at.token[0], at.token[1], at.token[2]}, at.batch});
      }
      to_next_head(params.output_head, &at);
    }
    commit_stores();
  }
}

template <class Element>
VECINA_DEVICE void store_output(const HopperParams& params, const Work& work, unsigned memory,
                                int warpgroup, int thread,
                                const float (&sums)[kConfig.head_dim_value / 2],
                                const RunningSum (&rows)[2], const float (&scales)[2]) {
  const int lane = thread & 31, warp = thread >> 5;
  if constexpr (kConfig.is_chained && !kConfig.has_output_buffer) {
    store_from_registers<Element>(params, work, warp, lane, sums, rows);
  } else {
    store_through_memory<Element>(params, work, memory, warpgroup, thread, sums, rows);
  }
  if (params.lse != nullptr && (lane & 3) == 0) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Place place(params, work, warp * 16 + (lane >> 2) + 8 * h);
      const long long offset = place.offset(lse_rows(params, work), params.lse_head, work);
      if (place.is_query) {
        params.lse[offset] = (rows[h].maximum * scales[h] + logarithm_of_two(rows[h].sum)) *
                             static_cast<float>(kLn2);
      }
    }
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_EPILOGUE_CUH_
