// SPDX-License-Identifier: MIT
// The backward pass on the CPU: what the planner decides and what the SIMD kernels read.
//
// A unit is a box of queries of one (batch, key head, dilation groups), as in the forward pass. It
// computes probabilities anew from lse, writes the gradients of its queries, and sums those of the
// keys that its windows touch. If it is the only unit that touches them it writes them too;
// otherwise every unit keeps its sums apart and gather units add them up, box after box. How the
// boxes are cut does not depend on the number of threads, so neither does a single bit.
//
// Queries are in lanes (backward-inl.h), or of bfloat16 in tiles of 16 (matrix_backward-inl.h).
#ifndef VECINA_CPU_BACKWARD_H_
#define VECINA_CPU_BACKWARD_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/problem.h"
#include "cpu/forward.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {

// Query rows of a backward tile: a row is one vector of queries.
inline constexpr int kBackwardRows = 8;

// Where a unit keeps what in its scratch, in elements of the kernel's float type. Comments are of
// queries in lanes.
struct BackwardScratch {
  size_t keys = 0, values = 0;  // packed rows; values of the shared layout only
  size_t transposed_keys = 0, transposed_values = 0;  // of the shifted layout
  size_t sums = 0;                                    // if units do not keep theirs apart
  size_t additional_keys = 0, additional_values = 0, additional_sums = 0;
  // Of one tile. Transposed ones have a vector of queries for each head_dim entry.
  size_t queries = 0, grad_outputs = 0, transposed_queries = 0, transposed_grad_outputs = 0;
  size_t grad_queries = 0;
  size_t probabilities = 0, grad_logits = 0;
  size_t products = 0;   // of output and its gradient, before they are summed
  size_t bias = 0;       // tables of the heads of one key head
  size_t bias_sums = 0;  // for each of their entries a vector
  size_t total = 0;
};

struct BackwardPlan;
struct BackwardPointers;
// Computes unit `unit` of the plan with `scratch` of scratch.total elements, 64-byte aligned.
using BackwardFunction = void (*)(const BackwardPlan& plan, const BackwardPointers& pointers,
                                  int64_t unit, void* scratch);

// The matrix form (matrix_backward-inl.h), of bfloat16 but for sums, logits and grad_probabilities.
// Keys and values lie in rows, keys transposed too; queries and grad_output in words of two entries
// for each of them, and in rows of two tokens. Two tiles of queries are multiplied at a time; up to
// so many pairs of them add to the sums of a step's keys before those go back to memory, which took
// 6 (16x16 dense) to 17 % (1024 keys) less time than one.
inline constexpr int kMostTilePairs = 4;
inline constexpr int kMatrixPairQueries = 2 * kMatrixTile;
inline constexpr int kMatrixPairStep = kMatrixPairQueries * kMatrixStep;
struct MatrixBackward {
  BackwardFunction run = nullptr;
  MatrixPair pair = MatrixPair::columns;
  int tile_pairs = 1;  // of an item
  // Places in scratch.
  size_t additional_transposed = 0;
  size_t apart = 0, additional_apart = 0;     // uint16_t: marks of keys that are not finite
  size_t logits = 0, grad_probabilities = 0;  // of a pair of tiles and a step, two take turns
  size_t paired_grad_logits = 0;              // grad_logits once more, two keys side by side

  bool is_used() const { return run != nullptr; }
};

// Where the tile of a walk after this one begins, if first_row is less than num_rows.
struct NextTile {
  int x, z, first_row, num_rows;
  bool is_of_next_unit = false;  // at the place of this one's first tile
};

// Keys of one combination of dilation groups: positions [begin, end) of the innermost axis.
struct KeySlice {
  int combination, z, y, begin, end;
};

struct BackwardPlan : Partition {
  Strides query, key, value, additional_key, additional_value, output, lse, grad_output, grad_lse;
  Strides grad_query, grad_key, grad_value, grad_additional_key, grad_additional_value;
  BiasTable bias, grad_bias;
  std::array<int64_t, kRank> query_extent = {}, key_extent = {};  // of the tensors
  bool has_unseen_tokens = false;  // with an output_stride some gradients are zero
  bool fetches_far = false;        // the tensors are more than L2 holds
  bool streams_gradients = false;  // and more than the caches do

  int key_pitch = 0, value_pitch = 0;  // elements of one packed row; sums have the same
  int max_slots = 0;                   // keys of a row whose logits are held at once
  int weights_pitch = 0;               // slots from one row's to the next one's
  BackwardScratch scratch;
  MatrixBackward matrix;

  // Sums of one unit: keys, values at sums_value, in all sums_size. Kept apart (one after the
  // other, by unit) if the keys of some combination are touched by several units: those of all its
  // rows, otherwise of those that its ring holds.
  bool keeps_sums_apart = false;
  size_t sums_value = 0, sums_size = 0;
  // Up to eight keys are summed at once, the last ones of a row with some that are none.
  static constexpr int kSumsBeyond = 7;
  static int64_t sums_tokens(const PackedBox& box) {
    return box.ranges[2].size() + (box.runs.num_runs > 0 ? kSumsBeyond : 0);
  }
  // The first token of a row.
  ptrdiff_t first_sum(const PackedBox& box, int z, int y) const {
    return (keeps_sums_apart ? box.row(z, y) : box.ring_row(z, y)) * sums_tokens(box);
  }
  // Those of additional tokens; kept apart, behind all others, if there are several boxes.
  bool keeps_additional_apart = false;
  size_t additional_value_sums = 0, additional_sums_size = 0;
  // Those of the bias, tables of the heads of one key head: a sum over the batch too, so always
  // kept apart, last of all.
  size_t bias_sums_size = 0;
  size_t shared_size() const;  // elements of all that is kept apart

  std::vector<int> first_box;    // of each combination that has queries, and the end
  std::vector<KeySlice> slices;  // gather units of each (batch, key head), if sums are kept apart
  int64_t num_gathers() const;   // 0: the units write everything themselves
  int64_t num_clears() const;    // units that write zeros, before all others
};

// What one run reads and writes.
struct BackwardPointers {
  const void *query, *key, *value, *additional_key, *additional_value, *bias;
  const void *output, *lse, *grad_output, *grad_lse;
  void *grad_query, *grad_key, *grad_value, *grad_additional_key, *grad_additional_value,
      *grad_bias;
  void* shared;  // shared_size() elements, if any
};

struct BackwardKernel {
  BackwardFunction clear, run, gather;    // in this order; scratch is for run only
  int lanes;                              // elements of one vector
  int element_bytes;                      // of scratch and vectors
  const char* target;                     // instruction set, as Highway names it
  BackwardFunction run_matrix = nullptr;  // of the matrix form; nullptr: this kernel has none
  const char* matrix_target = "";         // what it multiplies with
  bool matrix_everywhere = false;         // not only where it is faster
};
// For the best instruction set of this machine, or VECINA_CPU_TARGET.
BackwardKernel backward_kernel_f32();
BackwardKernel backward_kernel_f64();
BackwardKernel backward_kernel_f16();
BackwardKernel backward_kernel_bf16();

BackwardPlan plan_backward(const Problem& problem, const vecina_backward_args& example,
                           const BackwardKernel& kernel);

// Of the matrix form: what the plan needs first; elements from one entry of transposed keys to the
// next; elements of a packed row and its sums; and the scratch but for what packing needs.
bool can_take_matrix_backward(const Problem& problem);
// Whether the rounding of output shows in the delta of queries that see so many keys, or a whole
// window and the additional tokens.
bool is_delta_rough(int64_t keys);
bool is_delta_rough(const Partition& plan);
bool is_matrix_backward_faster(const Partition& plan);  // than queries in lanes
void begin_matrix(BackwardPlan* plan);
int matrix_transposed_pitch(int columns);
size_t matrix_row_elements(const BackwardPlan& plan, const PackedBox& packed);
void lay_out_matrix(BackwardPlan* plan, ScratchLayout* take);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_BACKWARD_H_
