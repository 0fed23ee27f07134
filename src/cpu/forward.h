// SPDX-License-Identifier: MIT
// The forward pass on the CPU: what the planner decides and what the SIMD kernels read.
//
// One unit of work is a box of queries of one (batch, key head, dilation group): band by band it
// packs the keys and values that the windows touch and walks tiles of a few query rows x one vector
// of queries along the innermost axis, the last of which may be narrower. Lanes are queries, so the
// logits and the softmax need no reduction across lanes; the values are added up with lanes along
// head_dim, so nothing is transposed back.
//
// The direct form, for small windows and short vectors, has head_dim in the lanes of both products.
// The matrix form, of bfloat16, has queries in the rows of both products: tiles of 16, by AMX. The
// backward pass has one too (backward.h).
#ifndef VECINA_CPU_FORWARD_H_
#define VECINA_CPU_FORWARD_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <vector>

#include "core/problem.h"
#include "core/window.h"
#include "cpu/layout.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {

// Vectors of queries that a tile may hold: rows of queries, which find most of each other's keys in
// L1, or neighbouring queries of one lane, where there are few rows (AxisGroup::twins).
inline constexpr int kTileRows = 6;
inline constexpr int kTileVectors = 8;
inline constexpr int kMaxTwins = 4;
// Logits of a tile row held at once, in bytes: those of small windows fit L1 together.
inline constexpr int kWeightBytes = 8 * 1024;
// Of a vector of queries: keys whose logits are held at once, and elements from one vector's to the
// next one's. kFactors vectors stand before the weights, and the number of all is odd, so that
// neighbours do not share cache sets.
inline constexpr int kFactors = 2;
constexpr int max_slots(int lanes, int element_bytes) {
  return kWeightBytes / (lanes * element_bytes);
}
constexpr int weights_pitch(int slots, int lanes) { return ((slots + kFactors) | 1) * lanes; }
// Of twins, which take it from their type.
constexpr int twin_pitch(int lanes, int element_bytes) {
  return weights_pitch(max_slots(lanes, element_bytes), lanes);
}
inline constexpr int kRank = 3;  // missing outer axes have one token

// How the keys of a vector of queries lie along the innermost axis.
enum class KeyLayout : int {
  shifted,  // each lane's window is its neighbour's, moved by `step` positions
  shared,   // the window is the whole axis: all lanes read the same keys
};

// One dilation group of one axis. Positions count the tokens of the group. Query k of the group is
// position first + step * k; along the innermost axis a stride s makes s `phases` of every query:
// positions first + step * k + 0 ... s - 1, which share one window, so that lanes stay regular.
struct AxisGroup {
  NaAxis window;          // in positions
  int token, token_step;  // token of position p: token + token_step * p
  int first, step, phases, num_queries;
  int twins = 1;  // innermost axis: neighbouring queries that share a lane, each in its own vector
  bool narrows_last = false;          // innermost axis: the last vector of a row has half the lanes
  int64_t output_first, output_step;  // of queries, in output tokens
  int query_extent;  // positions of queries; differs from window.extent in attention only

  int position(int k) const { return first + step * k; }
  int64_t to_token(int p) const { return token + int64_t{token_step} * p; }
  // Token of a query, and its place in the output: both linear in k.
  int64_t query_token(int k, int phase) const { return to_token(position(k) + phase); }
  int64_t output_token(int k, int phase) const {
    return output_first + output_step * k + int64_t{token_step} * phase;
  }
  int begin(int p) const { return na_window_begin(window, p); }
  int end(int p) const { return na_window_end(window, p); }
};

// Where the window of position p would begin if no border were near; may be negative. A border
// moves a window by whole keys, so its keys p < 0 and p >= extent stand for p + kernel_size and
// p - kernel_size: with those packed in their place every lane's window is a plain shift.
int borderless_begin(const NaAxis& window, int p);
// The key that is packed in the place of position p; -1 if there is none.
int packed_key(const AxisGroup& axis, int p);

// Strides of one tensor in elements: batch, three token axes, head. The last dimension has 1.
struct Strides {
  int64_t batch = 0, head = 0;
  std::array<int64_t, kRank> token = {};
};

// Tensors of more bytes do not stay in L2 (1 MiB and more where this counts: AVX-512), and in no
// cache that one call has for itself.
inline constexpr int64_t kFarBytes = 1024 * 1024;
inline constexpr int64_t kStreamedBytes = 32 * 1024 * 1024;
// Of what one core finds again in the third cache.
inline constexpr int64_t kNearBytes = 12 * 1024 * 1024;

// True if `lanes` elements that follow each other in a row, counted from its first one, lie at a
// multiple of their size.
template <typename T>
bool has_whole_vectors(const T* tensor, const Strides& strides, int lanes) {
  bool is_whole =
      reinterpret_cast<uintptr_t>(tensor) % (static_cast<size_t>(lanes) * sizeof(T)) == 0;
  for (const int64_t stride :
       {strides.batch, strides.head, strides.token[0], strides.token[1], strides.token[2]}) {
    is_whole = is_whole && stride % lanes == 0;
  }
  return is_whole;
}

// The first element of a head; nullptr stays nullptr.
template <typename T>
T* tensor_at(const void* data, const Strides& strides, int64_t batch, int64_t head) {
  if (data == nullptr) return nullptr;
  return static_cast<T*>(const_cast<void*>(data)) + batch * strides.batch + head * strides.head;
}
// Of the outer token axes.
inline int64_t token_offset(const Strides& strides, int64_t z, int64_t y) {
  return z * strides.token[0] + y * strides.token[1];
}

// A box of queries of one combination of dilation groups: [begin, end) for each axis.
struct Box {
  std::array<int, kRank> group;
  std::array<int, kRank> begin, end;
};

// Where a unit keeps what in its scratch, in elements of the kernel's float type.
struct ForwardScratch {
  size_t keys = 0, values = 0;                        // packed key and value rows
  size_t additional_keys = 0, additional_values = 0;  // packed additional tokens
  size_t queries = 0, weights = 0, sums = 0;          // of one tile
  size_t bias = 0;                                    // tables of the heads of one key head
  size_t total = 0;
};
// What packing needs itself.
struct PackedScratch {
  size_t zeros = 0, num_zeros = 0;  // a row that stands for no token
  size_t key_offsets = 0;           // int64_t: of one window
  size_t positions = 0;             // int: keys that stand in one packed row
};

// Positions of keys along one axis that the queries [begin, end) of a group touch. Along the
// innermost axis the shifted layout reaches beyond the borders and covers whole vectors.
struct KeyRange {
  int begin, end;
  int size() const { return end - begin; }
};

// Transposed keys of the shifted layout: for each head_dim entry step * twins runs of columns, run
// r holding the positions r, r + step * twins, ... of the range. Neighbouring lanes are neighbours
// there. Where that takes little more room, each vector of queries may have a strip of its own, so
// that what it reads lies in few cache lines and no load crosses two.
struct KeyRuns {
  int num_runs = 0, columns = 0;
  int pitch = 0;   // elements from one head_dim entry to the next
  int strips = 0;  // of one row; 0: all vectors of queries read the same

  // Elements of one row of keys or values.
  ptrdiff_t row(int head_dim) const {
    return ptrdiff_t{strips > 0 ? strips : 1} * pitch * head_dim;
  }
};

// Keys and values of a box are packed row by row as its tiles need them, and rows that no tile
// needs any more make room: `rows` of them are held along `axis`, all along the other outer axis.
struct PackedRing {
  int axis = 0;  // 0 or 1
  int rows = 0;
  int band = 0;  // queries along the axis whose keys are held at once
};

// The rows of keys that the windows of a box touch, and how they are packed.
struct PackedBox {
  std::array<KeyRange, kRank> ranges;
  KeyRuns runs;  // of the shifted layout
  PackedRing ring;

  bool has_row(int z, int y) const {
    return z >= ranges[0].begin && z < ranges[0].end && y >= ranges[1].begin && y < ranges[1].end;
  }
  // Number of the row at the given outer positions: of all, and of those that the ring holds.
  ptrdiff_t row(int z, int y) const {
    return ptrdiff_t{z - ranges[0].begin} * ranges[1].size() + (y - ranges[1].begin);
  }
  ptrdiff_t ring_row(int z, int y) const {
    z -= ranges[0].begin;
    y -= ranges[1].begin;
    return ring.axis == 0 ? ptrdiff_t{z % ring.rows} * ranges[1].size() + y
                          : ptrdiff_t{z} * ring.rows + y % ring.rows;
  }
  int64_t rows() const { return int64_t{ranges[0].size()} * ranges[1].size(); }
  int64_t ring_rows() const { return int64_t{ring.rows} * ranges[ring.axis == 0 ? 1 : 0].size(); }
};

// What both passes decide in the same way.
struct Partition {
  int64_t batch = 0;
  int heads_kv = 0, head_group = 0, head_dim = 0, head_dim_value = 0;
  int64_t additional_tokens = 0;
  double scale = 0.0;
  int64_t tensor_bytes = 0;                          // of those that a call reads and writes
  std::array<std::vector<AxisGroup>, kRank> groups;  // groups[axis][residue]
  std::vector<Box> boxes;  // of every (batch, key head); those of one combination follow each other
  std::vector<PackedBox> packed;  // of each box; the direct form has none
  PackedScratch packed_scratch;
  int lanes = 0;          // of the kernel; matrix form: queries of an item that lie in one row
  int heads_at_once = 1;  // key heads of one unit

  // Of the last vector of a row, in the group where it is narrowest.
  int last_lanes() const {
    const std::vector<AxisGroup>& rows = groups[kRank - 1];
    const bool narrows = std::any_of(rows.begin(), rows.end(),
                                     [](const AxisGroup& group) { return group.narrows_last; });
    return narrows ? lanes / 2 : lanes;
  }
  int64_t num_units() const {
    return batch * (heads_kv / heads_at_once) * static_cast<int64_t>(boxes.size());
  }
};

// Relative position bias: a table of 2 * kernel_size - 1 entries along each axis for each head.
struct BiasTable {
  bool given = false;
  std::array<int, kRank> sizes = {1, 1, 1};
  int64_t head = 0;  // strides of the tensor
  std::array<int64_t, kRank> strides = {};

  int size() const { return sizes[0] * sizes[1] * sizes[2]; }
};

// The direct form: the widest vector that it uses, the most vectors of queries of a block, and the
// most weights of one query that it holds.
inline constexpr int kMaxDirectLanes = 8;
inline constexpr int kDirectVectors = 4;
inline constexpr int kMaxDirectSlots = 256;
// Rows of keys whose logits are computed together because one would leave vectors half empty.
constexpr int grouped_rows(int row_keys, int lanes) {
  if (2 * row_keys <= lanes) return lanes / row_keys;
  return lanes == 8 && row_keys == 5 ? 3 : 1;
}
// Weights of one query whose window has that many rows, in whole vectors, and where those of each
// row begin.
int direct_slots(int row_keys, int num_rows, int grouped_rows, int lanes, int* row_slots);

struct DirectForm {
  bool is_used = false;
  bool one_row = false;   // one dimension: all heads of a block of queries before the next block
  bool in_place = false;  // then keys and values are read where they lie, of float or bfloat16
  int grouped_rows = 1;
  int block_queries = 0;               // neighbours in a row, computed together
  int64_t key_row = 0, value_row = 0;  // elements of one packed row; one_row: of a block's keys
  ptrdiff_t weights_pitch = 0;         // of one query
  // Places in scratch.
  size_t keys = 0, values = 0, additional_keys = 0, additional_values = 0;
  size_t queries = 0, weights = 0, additional_weights = 0;
  size_t bias = 0;                      // tables of all heads of a unit
  size_t key_rows = 0, value_rows = 0;  // int64_t: offsets of the rows of a window
  size_t row_slots = 0;                 // int
};

// The matrix form: queries of a tile, keys of a step (two tiles of logits, one of weights), and
// keys whose logits are held at once (backward: gradients of logits). Forward, rows of logits and
// of weights are an odd number of cache lines apart, so that neighbours do not share cache sets.
inline constexpr int kMatrixTile = 16;
inline constexpr int kMatrixStep = 32;
inline constexpr int kMatrixColumns = 256;
inline constexpr int kMatrixLogitsPitch = kMatrixColumns + kMatrixTile;   // floats
inline constexpr int kMatrixWeightsPitch = kMatrixColumns + kMatrixStep;  // bfloat16

// What the tiles of queries that are computed together differ in: heads that share a key head,
// rows along the middle axis, or their places in a row.
enum class MatrixPair : int { heads, rows, columns };

struct ForwardPlan;
struct ForwardPointers;
// Computes unit `unit` of the plan with `scratch` of scratch.total elements, 64-byte aligned.
using ForwardFunction = void (*)(const ForwardPlan& plan, const ForwardPointers& pointers,
                                 int64_t unit, void* scratch);

struct MatrixForm {
  ForwardFunction run = nullptr;
  MatrixPair pair = MatrixPair::columns;
  // Places in scratch: of float, bfloat16, uint16_t and uint16_t.
  size_t logits = 0, weights = 0, apart = 0, additional_apart = 0;

  bool is_used() const { return run != nullptr; }
};

struct ForwardPlan : Partition {
  Strides query, key, value, additional_key, additional_value, output, lse;
  bool has_lse = false;
  bool values_in_place = false;         // away from the borders values are read where they lie
  bool keys_in_place = false;           // those that all lanes share
  bool shared_values_in_place = false;  // theirs too
  bool fetches_far = false;             // the tensors are more than what needs no asking for
  bool streams_output = false;          // and more than the caches do
  BiasTable bias;

  // bfloat16 in pairs: logits take two entries of queries and keys at once, as they lie. Then
  // key_words is half of head_dim.
  bool has_pairs = false;
  bool has_value_pairs = false;  // two neighbouring rows of values are packed side by side too
  int key_words = 0;             // of a query or a key, that logits multiply
  int key_pitch = 0;             // elements of one packed key (shared layout)
  int value_pitch = 0;           // elements of one packed value row: head_dim_value, padded
  int max_slots = 0;             // keys of a row whose logits are held at once
  int weights_pitch = 0;         // elements from one vector's weights to the next one's
  int queries_pitch = 0;         // elements of a vector of queries
  ForwardScratch scratch;
  DirectForm direct;
  MatrixForm matrix;
};

// True if the problem is attention over all tokens and every token axis of the tensors is one axis
// in memory: then vectors may span rows.
bool is_dense(const Problem& problem, std::initializer_list<const vecina_tensor*> tensors);
// Sizes, groups, and one box for each combination of groups that has queries. `has_phases`: a
// stride of the innermost axis makes phases.
void partition(const Problem& problem, bool is_dense, bool has_phases, int lanes, Partition* plan);
// The most keys of a window.
int64_t window_keys(const Partition& plan);
// Halves boxes that are too large, and all of them until there are `enough` units, as long as that
// packs little twice. The axis with the most windows is cut; for their size not one along which
// boxes are packed as they are needed (ring_axis, none: -1).
void cut_boxes(
    Partition* plan, int64_t enough, const std::function<bool(const Box&)>& is_too_large,
    const std::function<int(const Box&)>& ring_axis = [](const Box&) { return -1; });
// The table of a [heads, 2 * kernel_size - 1, ...] tensor; not given if the tensor is not.
BiasTable bias_table(const Problem& problem, const vecina_tensor& bias);
// Strides of a [batch, axes..., head, head_dim] tensor; `rank` token axes are moved innermost.
Strides strides_of(const vecina_tensor& tensor, int rank);

KeyLayout key_layout(const AxisGroup& axis);

// `count` queries of the innermost axis, and the lanes that fill up their vectors of `lanes`.
int filled_up(const AxisGroup& axis, int count, int lanes);

// The KeyRange of the queries [begin, end) of a group.
KeyRange key_range(const AxisGroup& axis, int begin, int end);                  // outer axes
KeyRange lane_key_range(const AxisGroup& axis, int begin, int end, int lanes);  // innermost axis
KeyRange direct_key_range(const AxisGroup& axis, int begin, int end);  // the same, direct form

KeyRuns key_runs(const AxisGroup& axis, const KeyRange& range, int lanes, bool may_have_strips);
// Where each key of a window lies: run j % num_runs, column j / num_runs for key j.
void find_key_offsets(int num_keys, int num_runs, int columns, int64_t* offsets);

// Ranges and runs; the ring is what the pass wants, along an axis that has queries. And room for
// what packing needs, for rows of up to num_zeros elements.
PackedBox packed_box(const Partition& plan, const Box& box, bool may_have_strips);
int ring_axis(const Box& box);
PackedScratch lay_out_packed(const Partition& plan, int num_zeros, int element_bytes,
                             ScratchLayout* take);

// The groups of a box and the rows of keys that its windows touch.
struct BoxKeys {
  std::array<const AxisGroup*, kRank> axes;
  const PackedBox& packed;

  BoxKeys(const Partition& plan, size_t box) : packed(plan.packed[box]) {
    for (size_t a = 0; a < kRank; ++a) {
      axes[a] = &plan.groups[a][static_cast<size_t>(plan.boxes[box].group[a])];
    }
  }
};

// What one run reads and writes.
struct ForwardPointers {
  const void *query, *key, *value, *additional_key, *additional_value, *bias;
  void *output, *lse;
};

struct ForwardKernel {
  ForwardFunction run;
  int lanes;                             // elements of one vector
  int direct_lanes;                      // of the direct form; 0: this kernel has none
  bool has_narrow_vectors;               // of half the lanes, for the last queries of a row
  int element_bytes;                     // of scratch and vectors
  const char* target;                    // instruction set, as Highway names it
  bool reads_parts = false;              // direct form: rows that fill no vectors, where they lie
  bool has_pair_products = false;        // of bfloat16: dot products of pairs, in one instruction
  bool has_fast_pair_products = false;   // in about the time of a multiply-add of floats
  ForwardFunction run_matrix = nullptr;  // of the matrix form; nullptr: this kernel has none
  const char* matrix_target = "";        // what it multiplies with
  bool matrix_everywhere = false;        // not only where it is faster
  int64_t far_bytes = kFarBytes;         // tensors of more are fetched ahead by queries in lanes
};
// For the best instruction set of this machine, or VECINA_CPU_TARGET.
ForwardKernel forward_kernel_f32();
ForwardKernel forward_kernel_f64();
ForwardKernel forward_kernel_f16();
ForwardKernel forward_kernel_bf16();

// Fills in everything; cut into `enough` units if that packs little twice and changes no result.
ForwardPlan plan_forward(const Problem& problem, const vecina_forward_args& example,
                         const ForwardKernel& kernel, int64_t enough);

// The choice between the forms, and the rest of a plan for the direct one.
bool takes_direct_form(const Problem& problem, const ForwardKernel& kernel);
bool can_take_matrix_form(const Problem& problem);
bool is_matrix_form_faster(const Partition& plan);  // than queries in lanes
void plan_direct(const Problem& problem, const ForwardKernel& kernel, int64_t enough,
                 ForwardPlan* plan);
// Of the matrix form: packed_box(), with keys of either layout transposed and whole steps of them;
// the columns, in whole steps, that an item of `lanes` queries reads; what packing needs to know;
// and the scratch but for packed rows, which have `columns` columns in all.
PackedBox matrix_box(const Partition& plan, const Box& box);
int matrix_columns(const AxisGroup& axis, int lanes);
MatrixPair choose_matrix_pair(const Partition& plan);
int matrix_lanes(MatrixPair pair);
void begin_matrix(ForwardPlan* plan);
void lay_out_matrix(size_t columns, ForwardPlan* plan, ScratchLayout* take);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_FORWARD_H_
