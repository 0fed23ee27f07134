// SPDX-License-Identifier: MIT
// What ForwardTiles has of a tile, for the loops that are timed with it.
// Part of inner_forward.cc; compiled once for every instruction set.
#if defined(VECINA_BENCHMARKS_CPU_INNER_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_BENCHMARKS_CPU_INNER_TILE_INL_H_
#undef VECINA_BENCHMARKS_CPU_INNER_TILE_INL_H_
#else
#define VECINA_BENCHMARKS_CPU_INNER_TILE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "benchmarks/cpu/inner.h"
#include "cpu/forward.h"
#include "cpu/launch.h"
#include "cpu/pack-inl.h"
#include "cpu/packed_keys-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::benchmarks::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using namespace internal::cpu;                 // NOLINT: one namespace of every instruction set
using namespace internal::cpu::HWY_NAMESPACE;  // NOLINT

// One of the two elements of bfloat16 in a word.
template <typename T>
double half_of(const T& word, int half) {
  uint32_t bits;
  std::memcpy(&bits, &word, sizeof(bits));
  bits = half == 0 ? bits << 16 : bits & 0xffff0000;
  float element;
  std::memcpy(&element, &bits, sizeof(bits));
  return element;
}

template <typename Element>
double number(Element element) {
  return static_cast<double>(to_compute(element));
}

// Of queries whose windows touch no border, if there are such. Q is the tag of a vector of them.
template <typename E, class Q = hn::ScalableTag<typename ComputeType<E>::type>>
class Tile {
 public:
  using Element = E;
  using T = typename ComputeType<Element>::type;
  using D = Q;
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr bool kMayHavePairs = kHasPairs && std::is_same_v<Element, bfloat16>;

  explicit Tile(const std::string& line)
      : tensors(line),
        plan(plan_of(tensors)),
        memory(plan.scratch.total * sizeof(T)),
        scratch(memory.as<T>()),
        keys(plan, 0, scratch),
        pointers(pointers_of(tensors.forward)) {
    count = std::min(plan.max_slots, axis().window.kernel_size);
    rows_of_keys = std::min(keys.axis(1).window.kernel_size, plan.max_slots / count);
    const Box& box = plan.boxes[0];
    x = box.begin[2];
    while (!is_inside(x) && x + 2 * queries() <= box.end[2]) x += queries();
    if (!is_inside(x)) x = box.begin[2];
    for (int y = 0; y < rows_of_keys; ++y) {
      pack_keys(y);
      pack_values(y);
    }
    for (int r = 0; r < kTileVectors / twins(); ++r) {
      for (int t = 0; t < twins(); ++t) pack_queries(r, t);
    }
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    for (int v = 0; v < kTileVectors; ++v) {  // logits, for what does not compute them
      for (int i = 0; i < slots() * kLanes; ++i) weights(v)[i] = static_cast<T>(normal(random));
    }
  }

  const AxisGroup& axis() const { return keys.lane_axis(); }
  bool is_shifted() const { return keys.layout() == KeyLayout::shifted; }
  int twins() const { return axis().twins; }
  int queries() const { return kLanes * twins(); }
  int slots() const { return rows_of_keys * count; }
  int position_y(int y) const { return keys.range(1).begin + y; }
  vecina_dtype dtype() const { return static_cast<vecina_dtype>(tensors.problem.dtype()); }

  // Rows of keys and of values at y of a window.
  const Element* key_row(int y) const { return row_of(pointers.key, plan.key, y); }
  const Element* value_row(int y) const { return row_of(pointers.value, plan.value, y); }
  ptrdiff_t packed_key_row() const {
    return is_shifted() ? keys.transposed_row(plan.key_words)
                        : ptrdiff_t{keys.tokens()} * plan.key_pitch;
  }
  T* packed_keys(int y) const {
    return scratch + plan.scratch.keys +
           keys.row(keys.range(0).begin, position_y(y)) * packed_key_row();
  }
  T* packed_values(int y) const {
    const ptrdiff_t row = keys.row(keys.range(0).begin, position_y(y));
    return scratch + plan.scratch.values +
           (plan.has_value_pairs ? row / 2 : row) * keys.tokens() * plan.value_pitch;
  }
  // Where the keys of the queries begin in a packed row.
  ptrdiff_t column() const { return is_shifted() ? keys.column(x, plan.key_words) : 0; }
  void pack_keys(int y) const {
    if constexpr (kMayHavePairs) {
      if (plan.has_pairs) {
        return is_shifted() ? keys.template transpose<true>(key_row(y), plan.key, plan.key_words,
                                                            packed_keys(y))
                            : keys.copy_words(key_row(y), plan.key, plan.key_words, packed_keys(y));
      }
    }
    if (is_shifted()) {
      keys.transpose(key_row(y), plan.key, plan.head_dim, packed_keys(y));
    } else {
      keys.copy(key_row(y), plan.key, 0, keys.tokens(), plan.head_dim, plan.key_pitch,
                packed_keys(y));
    }
  }
  // Of pairs both rows with the second, or with the last.
  void pack_values(int y) const {
    if constexpr (kMayHavePairs) {
      if (plan.has_value_pairs) {
        if (y % 2 == 0 && y + 1 < rows_of_keys) return;
        const Element* second = y % 2 == 0 ? nullptr : value_row(y);
        return keys.copy_beside(value_row(y - y % 2), second, plan.value, plan.head_dim_value,
                                plan.value_pitch, packed_values(y));
      }
    }
    if (!plan.values_in_place) {
      keys.copy(value_row(y), plan.value, 0, keys.tokens(), plan.head_dim_value, plan.value_pitch,
                packed_values(y));
    }
  }

  // Of row r of queries; rows are those of a middle axis of that many tokens, or heads.
  const Element* query(int r, int t) const {
    const int rows = keys.axis(1).num_queries;
    const auto* first = static_cast<const Element*>(pointers.query);
    return first + r % rows * plan.query.token[1] + r / rows % plan.head_group * plan.query.head +
           axis().query_token(x, 0) * plan.query.token[2] + t * query_stride();
  }
  ptrdiff_t query_stride() const { return plan.query.token[2] * axis().token_step * axis().step; }
  T* packed_queries(int r, int t) const {
    return scratch + plan.scratch.queries + (ptrdiff_t{r} * twins() + t) * plan.queries_pitch;
  }
  T scale() const { return static_cast<T>(plan.scale * kLog2E); }
  void pack_queries(int r, int t) const {
    const RegularRows<Element> rows(query(r, t), twins() * query_stride());
    const auto size = static_cast<size_t>(plan.key_words);
    if constexpr (kMayHavePairs) {
      if (plan.has_pairs) {
        return transpose_rows(D(), InWords<RegularRows<Element>>{rows}, size, kLanes, Unscaled(),
                              packed_queries(r, t));
      }
    }
    transpose_rows(D(), rows, size, kLanes, scale(), packed_queries(r, t));
  }

  // Of vector v of queries.
  T* weights(int v) const {
    return scratch + plan.scratch.weights + ptrdiff_t{v} * plan.weights_pitch;
  }

  // The token of key j of the window of query `lane` in the vector of twin t.
  int key_token(int lane, int t, int j) const {
    if (!is_shifted()) return j;
    const int position = axis().position(x + lane * twins() + t);
    return static_cast<int>(
        axis().to_token(packed_key(axis(), borderless_begin(axis().window, position) + j)));
  }

  const Tensors tensors;
  const ForwardPlan plan;
  const Memory memory;
  T* const scratch;
  const PackedKeys<Element> keys;
  const ForwardPointers pointers;
  int rows_of_keys = 0,
      count = 0;  // of a window, and keys of each: those that a tile holds at once
  int x = 0;      // of the first query

 private:
  static ForwardPlan plan_of(const Tensors& of) {
    const ForwardKernel kernel = forward_kernel(of.problem.dtype());
    ForwardPlan found = plan_forward(of.problem, of.forward, kernel, /*enough=*/1);
    if (found.direct.is_used) throw std::invalid_argument("direct form: " + of.problem.line());
    return found;
  }
  bool is_inside(int at) const {
    const int begin = borderless_begin(axis().window, axis().position(at));
    const int last = begin + axis().step * (queries() - 1);
    return begin >= 0 && last + axis().window.kernel_size <= axis().window.extent;
  }
  const Element* row_of(const void* tensor, const Strides& strides, int y) const {
    return static_cast<const Element*>(tensor) +
           keys.row_offset(strides, keys.range(0).begin, position_y(y));
  }
};

}  // namespace
}  // namespace vecina::benchmarks::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_BENCHMARKS_CPU_INNER_TILE_INL_H_
