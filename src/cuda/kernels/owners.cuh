// SPDX-License-Identifier: MIT
// What kernels share whose blocks own a tile of tokens and meet the union of their partners in
// shared memory (halo.cuh, tiles.cuh): which tokens those are, rows in global memory, copies, facts
// of queries. kConfig says whether owners are queries or keys.
#ifndef VECINA_CUDA_KERNELS_OWNERS_CUH_
#define VECINA_CUDA_KERNELS_OWNERS_CUH_

#include "config.h"
#include "halo_params.h"
#include "matrix.cuh"
#include "small_geometry.cuh"
#include "types.h"

namespace vecina::cuda {

using Element = Types<kConfig.dtype>::Element;
static_assert(sizeof(Element) == 2, "rows are products of 16-bit numbers");

inline constexpr int kFirstAxis = 3 - kConfig.rank;
inline constexpr int kAdditional = kConfig.additional_tokens;
inline constexpr int kBoxes = kConfig.boxes[0] * kConfig.boxes[1] * kConfig.boxes[2];
// Of a box: a warp's, one or more times 16; or a warpgroup's, 64.
inline constexpr int kRows = kConfig.box[0] * kConfig.box[1] * kConfig.box[2] * kConfig.heads;
static_assert(kRows % 16 == 0 && kRows > 0, "");
inline constexpr int kThreadsOfBox = kRows == 64 ? 128 : 32;
inline constexpr int kThreads = kThreadsOfBox * kBoxes;
inline constexpr int kKeyColumns = kConfig.head_dim, kValueColumns = kConfig.head_dim_value;
inline constexpr float kLowest = -3e38f;  // below every logit but -infinity
inline constexpr bool kHasLengths = kConfig.lengths != 0;
inline constexpr bool kHasOutputStride = kConfig.output_stride[0] > 1 ||
                                         kConfig.output_stride[1] > 1 ||
                                         kConfig.output_stride[2] > 1;
// Queries that have an output are tokens of their own along each axis, numbered as those of output.
inline constexpr bool kHasOwnQueries = kConfig.is_attention || kHasOutputStride;

// Of neighbours in a dilation group along each axis: how far apart they are.
struct GroupSteps {
  int owners[3], partners[3];  // as tokens
  int queries[3];              // as tokens of output
  int positions[3];            // queries, as positions of the group
};
constexpr __host__ __device__ GroupSteps make_group_steps() {
  GroupSteps steps = {};
  for (int a = 0; a < 3; ++a) {
    int divisor = kConfig.dilation[a], rest = kConfig.output_stride[a];
    while (rest != 0) {
      const int next = divisor % rest;
      divisor = rest;
      rest = next;
    }
    steps.queries[a] = kConfig.dilation[a] / divisor;
    steps.positions[a] = kConfig.output_stride[a] / divisor;
    steps.owners[a] = kConfig.of_keys ? kConfig.dilation[a] : steps.queries[a];
    steps.partners[a] = kConfig.of_keys ? steps.queries[a] : kConfig.dilation[a];
  }
  return steps;
}
inline constexpr GroupSteps kGroupSteps = make_group_steps();

// 16 bytes from global to shared memory, or zeros.
VECINA_DEVICE void copy_chunk(unsigned to, const char* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(is_there ? 16 : 0)
               : "memory");
}
// The same, or nothing.
VECINA_DEVICE void copy_chunk_if(bool is_there, unsigned to, const char* from) {
  asm volatile(
      "{\n"
      ".reg .pred is_there;\n"
      "setp.ne.s32 is_there, %2, 0;\n"
      "@is_there cp.async.cg.shared.global [%0], [%1], 16;\n"
      "}"
      ::"r"(to), "l"(from), "r"(static_cast<int>(is_there))
      : "memory");
}
VECINA_DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
VECINA_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
VECINA_DEVICE unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
VECINA_DEVICE uint4 load_shared(unsigned from) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from));
  return words;
}
// Two 16 x 8 second factors: each thread names a row (of 16) and a half. Of products over columns,
// and over rows.
VECINA_DEVICE void load_matrices(unsigned (&words)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from));
}
VECINA_DEVICE void load_transposed(unsigned (&words)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from));
}

// Owners and partners of a dilation group along an axis.
struct Group {
  int residue;  // token of the first owner
  int length;   // keys; of attention, partners
  // These differ from the above only where queries are tokens of their own.
  int num_owners, partner_residue;
  int first_position;  // of the first query, among the group's positions
};
VECINA_DEVICE Group make_group(const HaloParams& params, int a, int residue) {
  Group group = {};
  group.residue = group.partner_residue = residue;
  if constexpr (!kHasOwnQueries) {
    group.length = group.num_owners =
        na_group_length(params.axes[a].extent, kConfig.dilation[a], residue);
  } else {
    constexpr int kNowhere = 1 << 30;  // of keys that no query sees
    if (kConfig.output_stride[a] > 1) {
      int first = residue;  // token of output
      if constexpr (kConfig.of_keys) {
        first = 0;
        while (first < kGroupSteps.queries[a] &&
               first * kConfig.output_stride[a] % kConfig.dilation[a] != residue) {
          ++first;
        }
      }
      const int position = first * kConfig.output_stride[a];
      group.partner_residue = kConfig.of_keys ? first : position % kConfig.dilation[a];
      group.first_position =
          first < kGroupSteps.queries[a] ? position / kConfig.dilation[a] : kNowhere;
    }
    const int outputs = params.num_outputs[a], keys = params.axes[a].extent;
    const int key_residue = kConfig.of_keys ? residue : group.partner_residue;
    group.length = kConfig.is_attention
                       ? (kConfig.of_keys ? outputs : keys)
                       : na_group_length(keys, kConfig.dilation[a], key_residue);
    group.num_owners =
        na_group_length(kConfig.of_keys ? keys : outputs, kGroupSteps.owners[a], residue);
  }
  return group;
}

// The partners of owner i along axis a.
VECINA_DEVICE Range partners_of(int a, const Group& group, int i) {
  const int length = group.length;
  const NaAxis dense = {length, kConfig.kernel_size[a], kConfig.stride[a], kConfig.is_causal[a]};
  if constexpr (kConfig.is_attention) {
    if (a < 2 || !kConfig.is_causal[a]) return {0, length};
    if constexpr (!kConfig.of_keys) return {0, na_min(i * kGroupSteps.positions[a] + 1, length)};
    return {na_min((i + kGroupSteps.positions[a] - 1) / kGroupSteps.positions[a], length), length};
  }
  if constexpr (kHasOutputStride) {
    constexpr auto count_before = [](int position, int step) {  // queries
      return na_max((position + step - 1) / step, 0);
    };
    if constexpr (kConfig.of_keys) {
      const int begin = na_query_begin(dense, i), end = na_query_end(dense, i);
      return {count_before(begin - group.first_position, kGroupSteps.positions[a]),
              count_before(end - group.first_position, kGroupSteps.positions[a])};
    }
    i = group.first_position + i * kGroupSteps.positions[a];
  }
  if constexpr (kConfig.of_keys) return {na_query_begin(dense, i), na_query_end(dense, i)};
  return {na_window_begin(dense, i), na_min(na_window_end(dense, i), length)};
}

// A group along each axis.
template <bool kHasOwn>
struct Groups {
  int residue[3], length[3];

  VECINA_DEVICE void set(int a, const Group& group) {
    residue[a] = group.residue;
    length[a] = group.length;
  }
  VECINA_DEVICE int owners_along(int a) const { return length[a]; }
  VECINA_DEVICE int first_partner(int a) const { return residue[a]; }  // token
  VECINA_DEVICE Group along(int a) const {
    return {residue[a], length[a], length[a], residue[a], 0};
  }
};
template <>
struct Groups<true> {
  int residue[3], length[3], num_owners[3], partner_residue[3], first_position[3];

  VECINA_DEVICE void set(int a, const Group& group) {
    residue[a] = group.residue;
    length[a] = group.length;
    num_owners[a] = group.num_owners;
    partner_residue[a] = group.partner_residue;
    first_position[a] = group.first_position;
  }
  VECINA_DEVICE int owners_along(int a) const { return num_owners[a]; }
  VECINA_DEVICE int first_partner(int a) const { return partner_residue[a]; }
  VECINA_DEVICE Group along(int a) const {
    return {residue[a], length[a], num_owners[a], partner_residue[a], first_position[a]};
  }
};
// A block's tokens. Coordinates of a dilation group.
struct Tile {
  int first_item, num_items;  // that the block walks
  Groups<kHasOwnQueries> groups;
  int first[3];               // owner
  Range halo[3];              // partners
};

VECINA_DEVICE int number_of_block() { return static_cast<int>(blockIdx.x); }
VECINA_DEVICE Tile make_tile(const HaloParams& params, int block = number_of_block()) {
  Tile tile = {};
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    tile.groups.length[a] = 1;
    tile.halo[a] = {0, 1};
    if (a < kFirstAxis) continue;
    const int number = divide_off(block, params.axes[a].divide_tiles, params.axes[a].tiles);
    const int residue = number % kGroupSteps.owners[a];
    const int size = kConfig.box[a] * kConfig.boxes[a];
    tile.first[a] = number / kGroupSteps.owners[a] * size;
    const Group group = make_group(params, a, residue);
    tile.groups.set(a, group);
    const int last = group.num_owners - 1;  // the last tile of a short group may be empty
    tile.halo[a].begin = partners_of(a, group, na_min(tile.first[a], last)).begin;
    tile.halo[a].end = partners_of(a, group, na_min(tile.first[a] + size - 1, last)).end;
  }
  tile.first_item = block * kConfig.items_of_block;
  tile.num_items = na_min(kConfig.items_of_block, params.num_items - tile.first_item);
  return tile;
}

struct Item {
  int batch, head;  // the first of its heads
};
VECINA_DEVICE Item make_item(const HaloParams& params, int number) {
  const int batch = divide(number, params.items_of_sample);
  return {batch, (number - batch * params.num_items_of_sample) * kConfig.heads};
}

// A warp's box, or a warpgroup's.
struct Box {
  int first[3];   // owner
  int origin[3];  // from which a row counts the partners that it sees, in those of the block
};
VECINA_DEVICE Box first_owners(const Tile& tile) {
  Box box = {};
  int place = static_cast<int>(threadIdx.x) / kThreadsOfBox;
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    box.first[a] = tile.first[a] + place % kConfig.boxes[a] * kConfig.box[a];
    place /= kConfig.boxes[a];
  }
  return box;
}

// One of a thread's rows.
struct Row {
  int head;  // among the block's first
  int token[3];
  bool is_owner;     // not beyond the last
  Range visible[3];  // partners, from the origin of its box on
};
VECINA_DEVICE Row make_row(const Tile& tile, const Box& box, int number) {
  Row row = {};
  row.head = number % kConfig.heads;
  int place = number / kConfig.heads;
  row.is_owner = true;
#pragma unroll
  for (int a = 2; a >= kFirstAxis; --a) {
    const int unclamped = box.first[a] + place % kConfig.box[a];
    place /= kConfig.box[a];
    row.is_owner = row.is_owner && unclamped < tile.groups.owners_along(a);
    const int i = na_min(unclamped, tile.groups.owners_along(a) - 1);
    row.token[a] = na_group_to_axis(i, kGroupSteps.owners[a], tile.groups.residue[a]);
    const Range range = partners_of(a, tile.groups.along(a), i);
    const int origin = tile.halo[a].begin + box.origin[a];
    row.visible[a] = {range.begin - origin, range.end - origin};
  }
  return row;
}

VECINA_DEVICE char* head_rows(const HaloRows& rows, int batch, int head) {
  return rows.data + batch * rows.batch + static_cast<long long>(head) * rows.head;
}
// From head_rows of a head on; a sample has less than 2^31 bytes.
VECINA_DEVICE unsigned row_offset(const HaloRows& rows, const Row& row) {
  int offset = row.head * rows.head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) offset += row.token[a] * rows.token[a];
  return static_cast<unsigned>(offset);
}
VECINA_DEVICE char* row_at(const HaloRows& rows, int batch, int head, const int (&token)[3]) {
  long long offset = batch * rows.batch + static_cast<long long>(head) * rows.head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) offset += static_cast<long long>(token[a]) * rows.token[a];
  return rows.data + offset;
}

// Puts what is not finite in `bytes` of shared memory to zero.
VECINA_DEVICE void clean_shared(char* shared, int bytes) {
  unsigned* words = reinterpret_cast<unsigned*>(shared);
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += kThreads) {
    words[i] = without_infinities(Element{}, words[i]);
  }
}

// Stores a thread's columns of one of its rows; false if they are not all finite.
template <int kTilesOfRow, int kTilesOfSums>
VECINA_DEVICE bool store_row(const float (&sums)[kTilesOfSums][4], int i, float factor, char* row,
                             bool is_owner) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  float all = 0.0f;
#pragma unroll
  for (int t = 0; t < kTilesOfRow; ++t) {
    const float columns[2] = {sums[t][2 * i] * factor, sums[t][2 * i + 1] * factor};
    all += columns[0] + columns[1];
    if (is_owner) store<Element, 2>(columns, row + 16 * t + 4 * q);
  }
  return is_finite(all);
}

// What a pair's gradients need of its query beside the rows. Kernels of the gradients of bias and
// additional tokens read them as QueryFacts (gradient_pairs.cuh).
struct alignas(16) HaloFacts {
  float maximum;  // so that weights are 2^(logit - maximum); infinity if nothing was seen
  float inverse;  // 1; 0 if nothing was seen
  float delta;
  float shift;  // delta + grad_output . output
};
// total: of weights relative to 2^maximum. All weights of a query share the error of this sum, which
// is that of lse.
VECINA_DEVICE HaloFacts make_facts(float maximum, float total, float delta, float dot) {
  if (total == 0.0f) return {infinity(), 0.0f, delta, delta + dot};
  return {maximum + logarithm_of_two(total), 1.0f, delta, delta + dot};
}
VECINA_DEVICE int facts_along(const HaloParams& params, int a) {
  if constexpr (kHasOwnQueries || kHasLengths) return params.facts_extent[a];
  return params.axes[a].extent;
}
VECINA_DEVICE HaloFacts* head_facts(const HaloParams& params, int batch, int head) {
  long long number = static_cast<long long>(batch) * params.heads + head;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) number *= facts_along(params, a);
  return reinterpret_cast<HaloFacts*>(params.facts) + number;
}
VECINA_DEVICE int token_number(const HaloParams& params, const int (&token)[3]) {
  int number = 0;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) number = number * facts_along(params, a) + token[a];
  return number;
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_OWNERS_CUH_
